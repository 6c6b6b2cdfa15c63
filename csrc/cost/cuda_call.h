// One call of the CUDA cost kernels, untyped: what Python fills, field by field.
#pragma once
#include <stdint.h>

namespace ucmkd {
namespace cost {

// Features of half precision go with a cost in float.
enum class FeatureType : int { kAsCost = 0, kHalf = 1, kBFloat16 = 2 };

struct CudaCost {
  bool f64 = false;      // the cost: double, else float
  int feature_type = 0;  // FeatureType of x and y
  int device = 0;
  uintptr_t stream = 0;
  int metric = 0;     // Metric of metrics.h
  int64_t batch = 1;  // problems, one after the other in every array; terms by class are for one
  int64_t n = 0, m = 0, d = 0, classes = 0;
  uintptr_t x = 0;                     // (n, d)
  uintptr_t y = 0;                     // (m, d)
  uintptr_t given_x = 0, given_y = 0;  // the same before they were centred, or null (features.h)
  uintptr_t scale_x = 0, scale_y = 0;  // (n,), (m,), see features.h
  uintptr_t cost = 0;                  // (n, m) inner products, which become costs; read by the backward
  uintptr_t distance = 0;              // (n, m) or null: the cost without its term by class
  uintptr_t class_cost = 0;            // (n, classes)
  uintptr_t labels = 0;                // (m,) int64
  // backward
  uintptr_t grad_cost = 0;           // (n, m) becomes the weights of the products with x and y
  uintptr_t order = 0;               // (m,) int64 columns sorted by label
  uintptr_t starts = 0;              // (classes + 1,) int64 where each label begins in order
  uintptr_t grad_class = 0;          // (n, classes)
  uintptr_t grad_x = 0, grad_y = 0;  // (n, d), (m, d) or null: the share of near pairs (kernels.h, set_apart), to which
  // the products W y and W' x are added, which becomes the gradients; sums write them
  bool adds_to_y = false;            // cuda_weigh adds to grad_y
  uintptr_t sums_x = 0, sums_y = 0;  // (n,), (m,): row and column sums of the weights
  uintptr_t marks = 0;  // int32, cuda_cost_marks of them, for metrics that have near pairs (features.h); or null
};

// Each returns null, or a sentence about what the driver refused.
const char* cuda_scales(const CudaCost&);  // of x and y
const char* cuda_cost(const CudaCost&);    // costs from the products
int64_t cuda_cost_marks(const CudaCost&);
const char* cuda_weigh(const CudaCost&);  // grad_class, then the weights, near pairs out of them
const char* cuda_finish_gradient(const CudaCost&);

}  // namespace cost
}  // namespace ucmkd

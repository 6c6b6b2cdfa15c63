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
  int metric = 0;  // Metric of features.h
  int64_t batch = 1;  // problems, one after the other in every array; terms by class are for one
  int64_t n = 0, m = 0, d = 0, classes = 0;
  uintptr_t x = 0;      // (n, d)
  uintptr_t y = 0;      // (m, d)
  uintptr_t given_x = 0, given_y = 0;  // the same before they were centred, or null (features.h)
  uintptr_t scale_x = 0, scale_y = 0;  // (n,), (m,), see features.h
  uintptr_t cost = 0;   // (n, m) inner products, which become costs; read by the backward
  uintptr_t distance = 0;    // (n, m) or null: the cost without its term by class
  uintptr_t class_cost = 0;  // (n, classes)
  uintptr_t labels = 0;      // (m,) int64
  // backward
  uintptr_t grad_cost = 0;   // (n, m) becomes the weights of the products with x and y
  uintptr_t order = 0;       // (m,) int64 columns sorted by label
  uintptr_t starts = 0;      // (classes + 1,) int64 where each label begins in order
  uintptr_t grad_class = 0;  // (n, classes)
  uintptr_t sums = 0;        // (n,) or (m,): row or column sums of the weights
  uintptr_t near_x = 0, near_y = 0;  // (n, d), (m, d) or null: added to by cuda_set_apart (kernels.h, set_apart)
  uintptr_t grad = 0;        // (n, d), or (m, d) where of_y: W y, which becomes the gradient; l1 writes it
  bool of_y = false;
};

// Each returns null, or a sentence about what the driver refused.
const char* cuda_scales(const CudaCost&);         // of x and y
const char* cuda_cost(const CudaCost&);           // costs from the products
const char* cuda_weigh(const CudaCost&);          // grad_class, then the weights
const char* cuda_set_apart(const CudaCost&);      // near pairs out of the weights; nothing for other metrics
const char* cuda_finish_gradient(const CudaCost&);

}  // namespace cost
}  // namespace ucmkd

// One call of the CUDA label-transport kernel, untyped: what Python fills (params.h for the meanings).
#pragma once
#include <stdint.h>

namespace ucmkd {
namespace label_transport {

enum class LogitType : int { kAsLoss = 0, kHalf = 1, kBFloat16 = 2 };

struct CudaLabel {
  bool f64 = false;    // losses: double, else float
  int logit_type = 0;  // LogitType of the logits and their gradients
  int device = 0;
  uintptr_t stream = 0;
  int64_t n = 0, k = 0;
  uintptr_t student = 0, teacher = 0;  // (n, k) logits
  int64_t student_stride = 0, teacher_stride = 0;
  uintptr_t target = 0;  // (n,) int64
  int64_t ignore_index = 0;
  double label_smoothing = 0;
  bool live_kappa = false;
  uintptr_t loss = 0;                            // (n,) or null
  uintptr_t grad_student = 0, grad_teacher = 0;  // (n, k) or null; may be the logits themselves
  int64_t grad_stride = 0;
  uintptr_t upstream = 0;  // gradients of the losses that the logits' are multiplied by, or null
  int64_t upstream_stride = 0;
  uintptr_t counted = 0;  // (1,) int64: the number of rows that the gradients are divided by, or null
  uintptr_t total = 0;    // (1,) of cuda_total
  bool mean = false;
};

// Null, or a sentence about what the driver refused. A target out of range makes its row NaN.
const char* cuda_forward(const CudaLabel&);

// From the losses of the rows: how many are not ignored (counted), and their sum, or their mean, which is NaN for none.
const char* cuda_total(const CudaLabel&);

}  // namespace label_transport
}  // namespace ucmkd

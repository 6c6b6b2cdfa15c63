// One call of the CUDA kernels of the projection, untyped: what Python fills (params.h for the meanings).
#pragma once
#include <stdint.h>

namespace ucmkd {
namespace doubly_stochastic {

enum class ElementType : int { kAsComputed = 0, kHalf = 1, kBFloat16 = 2 };

struct CudaProjection {
  bool f64 = false;      // computed in double, else in float
  int element_type = 0;  // ElementType of logits, upstream and out
  int device = 0;
  uintptr_t stream = 0;
  int64_t batch = 0, n = 0, m = 0, n_iter = 0;
  uintptr_t logits = 0, upstream = 0, out = 0;  // (batch, n, m); no upstream: forward
  double eps = 0;
  bool softmax = false, rows_first = false;
  uintptr_t work = 0;  // bytes that cuda_project_work asks for, aligned for 16
};

// Bytes of work space of this call; `refused` as below.
int64_t cuda_project_work(const CudaProjection&, const char** refused);
// Null, or a sentence about what the driver refused. Bad matrices are NaN.
const char* cuda_project(const CudaProjection&);

}  // namespace doubly_stochastic
}  // namespace ucmkd

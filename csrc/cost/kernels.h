// Cost matrices from features, and back: what is left of each metric around the matrix products.
// All matrices row-major and contiguous.
#pragma once
#include <stdint.h>

namespace ucmkd {
namespace cost {

enum class Metric : int { kCosine = 0, kChordal = 1, kL2 = 2, kSqeuclidean = 3, kL1 = 4 };

template <class T>
struct Kernels {
  // norm_i = |x_i|; unit = x / |x| (a zero row stays zero) unless null. False: NaN, inf or overflow in x.
  bool (*norms)(int64_t n, int64_t d, const T* x /* (n, d) */, T* unit /* (n, d) or null */, T* norm /* (n,) */,
                int tasks);
  // products <x_i, y_j> -> C_ij, in place. Pairs so close that the products cancel are measured directly.
  void (*epilogue)(Metric metric, int64_t n, int64_t m, int64_t d, const T* x, const T* y, const T* norm_x,
                   const T* norm_y, T* c /* (n, m) */, int tasks);
  // dC -> W in place, with dx = row_sum x - W y and dy = col_sum y - W' x. (chordal, l2, sqeuclidean)
  void (*weights)(Metric metric, int64_t n, int64_t m, const T* c, T* dc /* (n, m) */, T* row_sum /* (n,) */,
                  T* col_sum /* (m,) */, T* work /* (tasks, m) */, int tasks);
  // gradient of x / |x|, in place: g <- (g - u <u, g>) / |x|; 0 for a zero row.
  void (*normalise_backward)(int64_t n, int64_t d, const T* unit, const T* norm, T* g /* (n, d) */, int tasks);
  void (*l1)(int64_t n, int64_t m, int64_t d, const T* x, const T* y, T* c, int tasks);
  // dx_i = sum_j dC_ij sign(x_i - y_j). dC is (n, m) with the given strides, so that it serves dy as well.
  void (*l1_backward)(int64_t n, int64_t m, int64_t d, const T* x, const T* y, const T* dc, int64_t row_stride,
                      int64_t col_stride, T* dx /* (n, d) */, int tasks);
};

}  // namespace cost
}  // namespace ucmkd

// Costs from features and back: what is left of each metric around the matrix products.
#pragma once
#include "cost/features.h"

namespace ucmkd {
namespace cost {

template <class T>
struct Kernels {
  // |x_i|^2, or 1 / |x_i| where the metric normalises. False: NaN, inf or a square that overflows.
  bool (*scales)(bool inverse, int64_t n, int64_t d, const T* x /* (n, d) */, T* scale /* (n,) */, int tasks);
  // x - c and y - c, with c the mean of the rows of y.
  void (*centre)(const Features<T>&, T* out_x /* (n, d) */, T* out_y /* (m, d) */, int tasks);
  // Inner products (n, m) -> costs, in place; sums read none.
  void (*finish)(const Features<T>&, T* c, int tasks);
  // dC (n, m) -> W in place, see weigh_row.
  void (*weigh)(const Features<T>&, const T* c, T* dc, T* row_sum /* (n,) */, T* col_sum /* (m,) */,
                T* work /* (tasks, m) */, int tasks);
  // Near pairs leave the products of `weigh`'s W with the features: their weights become 0, and their share
  // of W y and of W' x, from the differences of the pair, is added to g_x and g_y (where they are not null).
  // `distance` is the cost without its term by class.
  void (*set_apart)(const Features<T>&, const T* distance /* (n, m) */, T* w /* (n, m) */, T* g_x /* (n, d) */,
                    T* g_y /* (m, d) */, int tasks);
  // g <- -(g - x^ <x^, g>), in place; scale = 1 / |x|.
  void (*project)(int64_t n, int64_t d, const T* x, const T* scale, T* g /* (n, d) */, int tasks);
  // g_i <- row_sum_i x_i - g_i, in place.
  void (*shift_rows)(int64_t n, int64_t d, const T* x, const T* row_sum /* (n,) */, T* g /* (n, d) */, int tasks);
  // Of a sum: the gradient of x, or of y where `of_y`, from dC (n, m).
  void (*sum_gradient)(const Features<T>&, const T* dc, bool of_y, T* g, int tasks);
};

}  // namespace cost
}  // namespace ucmkd

// Costs from features and back, on untyped pointers: what bind_cost.h calls.
#pragma once
#include <stdint.h>

#include "cost/features.h"

namespace ucmkd {
namespace cost {

// Fills scale_x and scale_y. Null, or "x" or "y": which of them holds NaN, inf or a row whose square
// overflows.
template <class T>
const char* scales(const Features<T>&, T* scale_x, T* scale_y);
template <class T>
void finish(const Features<T>&, T* c);
template <class T>
void weigh(const Features<T>&, const T* c, T* dc, T* row_sum, T* col_sum);
// The product of weights and features, in g, becomes the gradient of x, or of y where `of_y`.
template <class T>
void finish_gradient(const Features<T>&, const T* sums, bool of_y, T* g);
// The same with the product made here: weights (n, m), sums of their rows, or of their columns where `of_y`.
template <class T>
void gradient(const Features<T>&, const T* weights, const T* sums, bool of_y, T* g);
// dc is (n, m), or its transpose where `transposed`.
template <class T>
void l1_backward(int64_t n, int64_t m, int64_t d, const T* x, const T* y, const T* dc, bool transposed,
                 T* dx);

}  // namespace cost
}  // namespace ucmkd

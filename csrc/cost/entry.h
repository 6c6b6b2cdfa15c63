// Costs from features and back, on untyped pointers: what bind/cost.cpp calls.
#pragma once
#include <stdint.h>

#include "cost/kernels.h"

namespace ucmkd {
namespace cost {

// Fills scale_x and scale_y. Null, or "x" or "y": which of them holds NaN, inf or a row whose square
// overflows.
template <class T>
const char* scales(const Features<T>&, T* scale_x, T* scale_y);
// The features of a metric that is centred, and what it is centred by: the mean of the rows of y.
template <class T>
void centre(const Features<T>&, T* out_x, T* out_y);
// <x_i, y_j>, where the cost will be; nothing for sums, which read none.
template <class T>
void inner_products(const Features<T>&, T* c);
template <class T>
void finish(const Features<T>&, T* c);
template <class T>
void weigh(const Features<T>&, const T* c, T* dc, T* row_sum, T* col_sum);
// See kernels.h; nothing for a metric that has no near pairs. Else g_x and g_y begin as zeros, or as sums so
// far.
template <class T>
void set_apart(const Features<T>&, const T* c, T* w, T* g_x, T* g_y);
// The product of weights and features, in g, becomes the gradient of x, or of y where `of_y`.
template <class T>
void finish_gradient(const Features<T>&, const T* sums, bool of_y, T* g);
// Gradients of x and y, where they are not null, from the weights (n, m), their row sums and their column
// sums: the products are made here. c is the cost; the weights are not kept.
template <class T>
void gradients(const Features<T>&, const T* c, T* weights, const T* row_sum, const T* col_sum, T* dx, T* dy);
// Of a metric that is a sum: the gradient of x, or of y where `of_y`, from dC (n, m).
template <class T>
void sum_gradient(const Features<T>&, const T* dc, bool of_y, T* g);

}  // namespace cost
}  // namespace ucmkd

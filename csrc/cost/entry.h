// Costs from features and back, on contiguous matrices: what bind.cpp calls. See kernels.h for formulas.
#pragma once
#include <stdint.h>

#include "cost/kernels.h"

namespace ucmkd {
namespace cost {

template <class T>
bool norms(int64_t n, int64_t d, const T* x, T* unit, T* norm);
template <class T>
void epilogue(int metric, int64_t n, int64_t m, int64_t d, const T* x, const T* y, const T* norm_x, const T* norm_y,
              T* c);
template <class T>
void weights(int metric, int64_t n, int64_t m, const T* c, T* dc, T* row_sum, T* col_sum);
template <class T>
void normalise_backward(int64_t n, int64_t d, const T* unit, const T* norm, T* g);
template <class T>
void l1(int64_t n, int64_t m, int64_t d, const T* x, const T* y, T* c);
template <class T>
void l1_backward(int64_t n, int64_t m, int64_t d, const T* x, const T* y, const T* dc, bool transposed, T* dx);

}  // namespace cost
}  // namespace ucmkd

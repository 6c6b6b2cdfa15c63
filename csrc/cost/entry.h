// Costs from features and back, on untyped pointers: what bind.cpp calls.
#pragma once
#include <stdint.h>

#include "cost/features.h"

namespace ucmkd {
namespace cost {

template <class T>
bool scales(bool inverse, int64_t n, int64_t d, const T* x, T* scale);
template <class T>
void finish(const Features<T>&, T* c);
template <class T>
void weigh(const Features<T>&, const T* c, T* dc, T* row_sum, T* col_sum);
template <class T>
void project(int64_t n, int64_t d, const T* x, const T* scale, T* g);
// dc is (n, m), or its transpose where `transposed`.
template <class T>
void l1_backward(int64_t n, int64_t m, int64_t d, const T* x, const T* y, const T* dc, bool transposed,
                 T* dx);

}  // namespace cost
}  // namespace ucmkd

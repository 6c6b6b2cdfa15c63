// A matrix product for problems too small, or too uneven, to be worth a call of BLAS each.
#pragma once
#include <stdint.h>

namespace ucmkd {

template <class T>
struct Product {
  int64_t n, m, depth;
  const T* a;              // (n, depth), element (i, k) at a[i * a_row + k * a_depth]
  int64_t a_row, a_depth;  // so that a transposed matrix serves as well
  const T* b;              // (depth, m), rows contiguous
  T* out;                  // (n, m): a b, written, not added to
  int tasks;
};

}  // namespace ucmkd

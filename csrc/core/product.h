// Matrix products of small problems, where a call into a BLAS costs as much as its work. No packing:
// the operands are expected in the second-level cache.
#pragma once
#include <stdint.h>

namespace ucmkd {
namespace product {

// out_ij = sum_k left(i, k) right(k, j), added to what is there where `add`. `left` has any strides, so that it may be
// a transpose.
template <class T>
struct Plain {
  int64_t rows, cols, depth;
  const T* left;  // (rows, depth)
  int64_t left_row, left_depth;
  const T* right;  // (depth, cols)
  T* out;          // (rows, cols)
  int tasks;
  bool add = false;
};

// out_ij = <x_i, y_j>.
template <class T>
struct Inner {
  int64_t n, m, d;
  const T* x;  // (n, d)
  const T* y;  // (m, d)
  T* out;      // (n, m)
  int tasks;
};

// y (m, d) as core/packed.h reads it, in packed_size(m, d) elements. The layout is the level's own.
constexpr int64_t kPackedColumns = 64;
static inline int64_t packed_columns(int64_t m) { return (m + kPackedColumns - 1) / kPackedColumns * kPackedColumns; }
static inline int64_t packed_size(int64_t m, int64_t d) { return packed_columns(m) * d; }

template <class T>
struct Kernels {
  void (*plain)(const Plain<T>&);
  void (*inner)(const Inner<T>&);
  void (*pack)(int64_t m, int64_t d, const T* y, T* packed, int tasks);
};

}  // namespace product
}  // namespace ucmkd

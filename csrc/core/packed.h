// Inner products of a few rows with all of y, whose rows were packed once: column tiles as wide as the
// accumulators, each (depth, tile) and contiguous, so that a tile stays in the first cache for all rows of a
// call. As fast as a BLAS on one thread, and a thread can make products where it needs them, for itself.
#pragma once
#include "core/simd.h"

namespace ucmkd {
namespace UK_LEVEL {

// Accumulators of a block, kBlockRows x kBlockVectors, fill the register file (32 or 16 registers).
constexpr int kBlockRows = 6;
constexpr int kBlockVectors = UK_BYTES == 64 ? 4 : 2;

// Columns of a tile; divides product::kPackedColumns at every level.
template <class T>
constexpr int64_t tile_columns() {
  return kBlockVectors * Lanes<T>::W;
}

// One tile of y (m, d), zeros behind the m-th row.
template <class T>
static inline void pack_tile(const T* y, int64_t m, int64_t d, int64_t tile, T* packed) {
  constexpr int64_t kTile = tile_columns<T>();
  T* out = packed + tile * kTile * d;
  for (int64_t j = 0; j < kTile; ++j) {
    const T* row = y + (tile * kTile + j) * d;
    const bool there = tile * kTile + j < m;
    for (int64_t k = 0; k < d; ++k) out[k * kTile + j] = there ? row[k] : 0;
  }
}

// body(i, RowBlock<R>) for rows begin .. end, in blocks of R rows from i on, as large ones as there are.
template <int R>
struct RowBlock {
  static constexpr int rows = R;
};
template <class Body>
static inline void row_blocks(int64_t begin, int64_t end, const Body& body) {
  int64_t i = begin;
  for (; i + kBlockRows <= end; i += kBlockRows) body(i, RowBlock<kBlockRows>());
  for (; i + 4 <= end; i += 4) body(i, RowBlock<4>());
  for (; i + 2 <= end; i += 2) body(i, RowBlock<2>());
  if (i < end) body(i, RowBlock<1>());
}

// Element by element, so that the block stays in registers: an initialiser clears memory.
template <class T, int R, int V>
static inline void clear(Vec<T> (&total)[R][V]) {
  for (int r = 0; r < R; ++r)
    for (int h = 0; h < V; ++h) total[r][h] = Vec<T>{};
}

// total += R rows of `left`, of any strides, times V vectors of columns of `right`, whose rows are `stride` apart.
template <class T, int R, int V>
static inline void multiply(const T* left, int64_t left_row, int64_t left_depth, const T* right, int64_t stride,
                            int64_t depth, Vec<T> (&total)[R][V]) {
  constexpr int W = Lanes<T>::W;
  for (int64_t k = 0; k < depth; ++k, left += left_depth, right += stride) {
    Vec<T> row[V];
    for (int h = 0; h < V; ++h) row[h] = load(right + h * W);
    for (int r = 0; r < R; ++r) {
      const Vec<T> x = splat(left[r * left_row]);
      for (int h = 0; h < V; ++h) total[r][h] += x * row[h];
    }
  }
}

template <class T, int R>
static inline void packed_block(const T* x, int64_t d, const T* tile, T* out, int64_t stride) {
  constexpr int W = Lanes<T>::W;
  Vec<T> total[R][kBlockVectors];
  clear<T>(total);
  multiply<T>(x, d, 1, tile, kBlockVectors * W, d, total);
  for (int r = 0; r < R; ++r)
    for (int h = 0; h < kBlockVectors; ++h) store(out + r * stride + h * W, total[r][h]);
}

// out_ij = <x_i, y_j> for x (rows, d); rows of out are `stride` apart, a multiple of product::kPackedColumns,
// and written up to the end of the last tile.
template <class T>
static inline void packed_products(const T* x, int64_t rows, int64_t d, const T* packed, int64_t m, T* out,
                                   int64_t stride) {
  constexpr int64_t kTile = tile_columns<T>();
  for (int64_t j = 0; j < m; j += kTile)
    row_blocks(0, rows, [&](int64_t i, auto block) {
      packed_block<T, decltype(block)::rows>(x + i * d, d, packed + j * d, out + i * stride + j, stride);
    });
}

}  // namespace UK_LEVEL
}  // namespace ucmkd

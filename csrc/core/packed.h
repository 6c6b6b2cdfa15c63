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

// Element by element, so that the block stays in registers: an initialiser clears memory.
template <class T, int R, int V>
static inline void clear(Vec<T> (&total)[R][V]) {
  for (int r = 0; r < R; ++r)
    for (int h = 0; h < V; ++h) total[r][h] = Vec<T>{};
}

template <class T, int R>
static inline void packed_block(const T* x, int64_t d, const T* tile, T* out, int64_t stride) {
  constexpr int W = Lanes<T>::W;
  Vec<T> total[R][kBlockVectors];
  clear<T>(total);
  for (int64_t k = 0; k < d; ++k, tile += kBlockVectors * W) {
    Vec<T> row[kBlockVectors];
    for (int h = 0; h < kBlockVectors; ++h) row[h] = load(tile + h * W);
    for (int r = 0; r < R; ++r) {
      const Vec<T> left = splat(x[r * d + k]);
      for (int h = 0; h < kBlockVectors; ++h) total[r][h] += left * row[h];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int h = 0; h < kBlockVectors; ++h) store(out + r * stride + h * W, total[r][h]);
}

// out_ij = <x_i, y_j> for x (rows, d); rows of out are `stride` apart, a multiple of product::kPackedColumns,
// and written up to the end of the last tile.
template <class T>
static inline void packed_products(const T* x, int64_t rows, int64_t d, const T* packed, int64_t m, T* out,
                                   int64_t stride) {
  constexpr int64_t kTile = tile_columns<T>();
  for (int64_t j = 0; j < m; j += kTile) {
    int64_t i = 0;
    for (; i + kBlockRows <= rows; i += kBlockRows)
      packed_block<T, kBlockRows>(x + i * d, d, packed + j * d, out + i * stride + j, stride);
    for (; i + 4 <= rows; i += 4) packed_block<T, 4>(x + i * d, d, packed + j * d, out + i * stride + j, stride);
    for (; i + 2 <= rows; i += 2) packed_block<T, 2>(x + i * d, d, packed + j * d, out + i * stride + j, stride);
    if (i < rows) packed_block<T, 1>(x + i * d, d, packed + j * d, out + i * stride + j, stride);
  }
}

}  // namespace UK_LEVEL
}  // namespace ucmkd

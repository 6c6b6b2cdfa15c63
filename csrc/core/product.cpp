// See product.h for the contract.
#include "core/product.h"

#include "core/level_table.h"
#include "core/packed.h"
#include "core/parallel.h"
#include "core/simd.h"

namespace ucmkd {
namespace UK_LEVEL {
namespace {

using product::Inner;
using product::Plain;

constexpr int kRows = kBlockRows, kVectors = kBlockVectors;  // of a block of `plain`

// R rows by V vectors of columns; `lanes` of the last vector count.
template <class T, int R, int V, bool kWhole>
inline void block(const Plain<T>& p, int64_t i, int64_t j, int64_t lanes) {
  constexpr int W = Lanes<T>::W;
  Vec<T> total[R][V] = {};
  const T *left = p.left + i * p.left_row, *right = p.right + j;
  for (int64_t k = 0; k < p.depth; ++k) {
    Vec<T> row[V];
    for (int h = 0; h < V; ++h) row[h] = kWhole ? load(right + h * W) : load_part(right, lanes, T(0));
    for (int r = 0; r < R; ++r) {
      const Vec<T> x = splat(left[r * p.left_row]);
      for (int h = 0; h < V; ++h) total[r][h] += x * row[h];
    }
    left += p.left_depth, right += p.cols;
  }
  for (int r = 0; r < R; ++r)
    for (int h = 0; h < V; ++h) {
      T* out = p.out + (i + r) * p.cols + j + h * W;
      if (p.add) total[r][h] += kWhole ? load(out) : load_part(out, lanes, T(0));
      kWhole ? store(out, total[r][h]) : store_part(out, total[r][h], lanes);
    }
}

template <class T, int V, bool kWhole>
inline void column(const Plain<T>& p, int64_t begin, int64_t end, int64_t j, int64_t lanes) {
  int64_t i = begin;
  for (; i + kRows <= end; i += kRows) block<T, kRows, V, kWhole>(p, i, j, lanes);
  for (; i + 2 <= end; i += 2) block<T, 2, V, kWhole>(p, i, j, lanes);
  if (i < end) block<T, 1, V, kWhole>(p, i, j, lanes);
}

// Four columns by R rows of inner products: vectors run along the depth, summed across lanes at the end.
template <class T, int R>
inline void inner_block(const Inner<T>& p, int64_t i, int64_t j) {
  constexpr int W = Lanes<T>::W;
  const T *x[R], *y[4];
  for (int r = 0; r < R; ++r) x[r] = p.x + (i + r) * p.d;
  for (int q = 0; q < 4; ++q) y[q] = p.y + (j + q < p.m ? j + q : p.m - 1) * p.d;
  Vec<T> total[R][4] = {};
  int64_t k = 0;
  for (; k + W <= p.d; k += W)
    for (int q = 0; q < 4; ++q) {
      const Vec<T> column = load(y[q] + k);
      for (int r = 0; r < R; ++r) total[r][q] += load(x[r] + k) * column;
    }
  if (k < p.d)
    for (int q = 0; q < 4; ++q)
      for (int r = 0; r < R; ++r)
        total[r][q] += load_part(x[r] + k, p.d - k, T(0)) * load_part(y[q] + k, p.d - k, T(0));
  for (int r = 0; r < R; ++r) {
    const Quad<T> sums = sum4<T>(total[r][0], total[r][1], total[r][2], total[r][3]);
    T* out = p.out + (i + r) * p.m + j;
    if (j + 4 <= p.m)
      store4(out, sums);
    else
      for (int64_t q = 0; q < p.m - j; ++q) out[q] = sums[q];
  }
}

template <class T>
void plain(const Plain<T>& p) {
  constexpr int W = Lanes<T>::W;
  auto body = [&](int index) {
    const int64_t begin = p.rows * index / p.tasks, end = p.rows * (index + 1) / p.tasks;
    int64_t j = 0;
    for (; j + kVectors * W <= p.cols; j += kVectors * W) column<T, kVectors, true>(p, begin, end, j, W);
    for (; j + W <= p.cols; j += W) column<T, 1, true>(p, begin, end, j, W);
    if (j < p.cols) column<T, 1, false>(p, begin, end, j, p.cols - j);
  };
  parallel(p.tasks, body);
}

template <class T>
void inner(const Inner<T>& p) {
  constexpr int R = UK_BYTES == 64 ? 4 : 2;
  auto body = [&](int index) {
    int64_t i = p.n * index / p.tasks;
    const int64_t end = p.n * (index + 1) / p.tasks;
    for (; i + R <= end; i += R)
      for (int64_t j = 0; j < p.m; j += 4) inner_block<T, R>(p, i, j);
    for (; i < end; ++i)
      for (int64_t j = 0; j < p.m; j += 4) inner_block<T, 1>(p, i, j);
  };
  parallel(p.tasks, body);
}

template <class T>
void pack(int64_t m, int64_t d, const T* y, T* packed, int tasks) {
  const int64_t tiles = product::packed_columns(m) / tile_columns<T>();
  auto body = [&](int index) {
    for (int64_t t = tiles * index / tasks; t < tiles * (index + 1) / tasks; ++t) pack_tile(y, m, d, t, packed);
  };
  parallel(tasks, body);
}

template <class T>
constexpr product::Kernels<T> kTable = {plain<T>, inner<T>, pack<T>};

}  // namespace

const ByType<product::Kernels> product_kernels = {kTable<float>, kTable<double>};

}  // namespace UK_LEVEL
}  // namespace ucmkd

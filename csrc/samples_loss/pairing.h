// One transport problem between two sets of points, and its costs, a tile of kRows rows at a time.
#pragma once
#include "core/math.h"
#include "core/simd.h"
#include "samples_loss/params.h"

namespace ucmkd {
namespace UK_LEVEL {

// |x_i - y_j|^p / p between points x (n, d) of weights a and y (m, d) of weights b. Vectors over rows have padded(n)
// elements, those over columns `stride`; weights beyond the end are 0. `symmetric`: y is x, g is f, and sweeps visit the
// pairs j > i, each for both of its points.
template <class T>
struct Pairing {
  int64_t n, m, d, stride;  // stride = padded(m)
  int p;
  bool symmetric;
  bool log_domain = false;  // sums of plain exponentials have left the range of T once
  bool row_slopes = false, col_slopes = false;
  const T* x;        // (n, d)
  const T* flipped;  // (d, stride): y
  const T *a, *b;
  T* cost;           // (padded(n), stride), where symmetric its part j > i; null: made in every sweep
  T *f, *g;          // potentials
  T *row, *col;      // (padded(n),), (stride,): sums of the sweep
  T *k, *h;          // log a + f / eps, log b + g / eps, in the log domain
  T* partial;        // (tasks, stride) of each task's rows
  T *row_top, *top;  // (padded(n),), (tasks, stride): what the exponents of the sums are less, in the log domain
  T* row_slope;      // (padded(n), d) sums of weighted differences x_i - y_j
  T* col_slope;      // (tasks, d, stride) sums of y_j - x_i of each task's rows
};

// Rows of one task, in whole blocks of kRows; where symmetric, about as many pairs for each.
struct Rows {
  int64_t begin, end;
};
template <class T>
static inline Rows rows_of(const Pairing<T>& q, int tasks, int index) {
  constexpr int64_t R = samples_loss::kRows;
  const int64_t blocks = (q.n + R - 1) / R;
  auto bound = [&](int k) {
    if (!q.symmetric || k == tasks) return blocks * k / tasks;
    const double share = 1 - __builtin_sqrt(1 - double(k) / tasks);
    return static_cast<int64_t>(share * double(blocks));
  };
  return {bound(index) * R, bound(index + 1) * R};
}

template <int kVectors>
struct Vectors {
  static constexpr int V = kVectors;
};
// Vectors of columns of a tile: its kRows x V sums stay in registers.
constexpr int kTileVectors = UK_BYTES == 64 ? 4 : 2;

// body(Vectors<V>(), j) for each tile of a block of rows from row i.
template <class T, class Body>
static inline void each_tile(const Pairing<T>& q, int64_t i, const Body& body) {
  constexpr int W = Lanes<T>::W;
  int64_t j = q.symmetric ? i / W * W : 0;
  for (; j + kTileVectors * W <= q.stride; j += kTileVectors * W) body(Vectors<kTileVectors>(), j);
  for (; j < q.stride; j += W) body(Vectors<1>(), j);
}

// Where the points do not reach: exp(-cost / eps) is 0.
template <class T>
constexpr T kFar = Lanes<T>::kMax / 4;
// GeomLoss's floor under the squared distance where p = 1.
constexpr double kLeastSquaredDistance = 1e-8;

// The costs of kRows rows from i and V vectors of columns from j, from the differences of the points: products would
// lose near pairs.
template <class T, int V>
static inline void make_costs(const Pairing<T>& q, int64_t i, int64_t j, T* out, int64_t out_stride) {
  constexpr int W = Lanes<T>::W, R = samples_loss::kRows;
  Vec<T> total[R][V] = {};
  const T* x[R];
  for (int r = 0; r < R; ++r) x[r] = q.x + (i + r < q.n ? i + r : q.n - 1) * q.d;
  for (int64_t k = 0; k < q.d; ++k)
    for (int v = 0; v < V; ++v) {
      const Vec<T> y = load(q.flipped + k * q.stride + j + v * W);
      for (int r = 0; r < R; ++r) {
        const Vec<T> e = x[r][k] - y;
        total[r][v] += e * e;
      }
    }
  const T least = T(kLeastSquaredDistance);
  for (int r = 0; r < R; ++r) {
    T* row = out + r * out_stride;
    for (int v = 0; v < V; ++v)
      store(row + v * W, q.p == 2 ? total[r][v] * T(0.5) : total[r][v] > least ? total[r][v] : splat(least));
    if (q.p == 1)
      for (int e = 0; e < V * W; ++e) row[e] = root(row[e]);
    const int64_t held = i + r >= q.n || j >= q.m ? 0 : q.m - j;
    for (int64_t e = held; e < V * W; ++e) row[e] = kFar<T>;
  }
}

template <class T>
struct Tile {
  const T* cost;
  int64_t stride;
};
// Kept costs where they are, or new ones in `buffer`, of kRows * V vectors.
template <class T, int V>
static inline Tile<T> costs(const Pairing<T>& q, int64_t i, int64_t j, T* buffer) {
  if (q.cost) return {q.cost + i * q.stride + j, q.stride};
  constexpr int64_t width = V * Lanes<T>::W;
  make_costs<T, V>(q, i, j, buffer, width);
  return {buffer, width};
}

// Lanes of columns j > i keep their value, others get `filler`.
template <class T>
static inline Vec<T> above(int64_t i, int64_t j, Vec<T> value, T filler) {
  using Int = typename Lanes<T>::Int;
  typename Lanes<T>::I lane;
  for (int k = 0; k < Lanes<T>::W; ++k) lane[k] = k;
  return lane > static_cast<Int>(i - j) ? value : splat(filler);
}
template <class T>
static inline bool on_diagonal(const Pairing<T>& q, int64_t i, int64_t j) {
  return q.symmetric && j < i + samples_loss::kRows;
}

}  // namespace UK_LEVEL
}  // namespace ucmkd

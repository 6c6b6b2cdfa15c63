// Passes over the costs of one task's rows. In the plain domain one exponential serves both sides,
//
//   E_ij = exp((f_i + g_j - C_ij) / eps),    row_i = sum_j b_j E_ij,    col_j = sum_i a_i E_ij,
//
// since softmin_eps(C, log b + g / eps)_i = f_i - eps log row_i. Where a sum leaves the range of T, the log domain takes
// an exponential for each side, after its largest exponent.
#pragma once
#include "samples_loss/pairing.h"

namespace ucmkd {
namespace UK_LEVEL {

// Adds, with w_ij given and z = x_i - y_j: w_ij b_j z to the rows' sums (d, kRows), w_ij a_i (-z) to the columns' (d,
// stride). a and b start at row i and column j.
template <class T, int V, bool kRowsToo, bool kColsToo>
static inline void add_differences(const Pairing<T>& q, int64_t i, int64_t j, const Vec<T> (*w)[V], const T* a,
                                   const T* b, Vec<T>* rows, T* cols) {
  constexpr int W = Lanes<T>::W, R = samples_loss::kRows;
  const T* x[R];
  for (int r = 0; r < R; ++r) x[r] = q.x + (i + r < q.n ? i + r : q.n - 1) * q.d;
  for (int64_t k = 0; k < q.d; ++k) {
    Vec<T> total[R] = {};
    for (int v = 0; v < V; ++v) {
      const int64_t at = k * q.stride + j + v * W;
      const Vec<T> y = load(q.flipped + at), weight = load(b + v * W);
      Vec<T> col = {};
      for (int r = 0; r < R; ++r) {
        const Vec<T> z = (x[r][k] - y) * w[r][v];
        if (kRowsToo) total[r] += weight * z;
        if (kColsToo) col += a[r] * z;
      }
      if (kColsToo) store(cols + at, load(cols + at) - col);
    }
    if (kRowsToo)
      for (int r = 0; r < R; ++r) rows[k * R + r] += total[r];
  }
}

// An exponential this small is none beside the sums (loop.h): its products would be subnormal, which is slow.
template <class T>
constexpr T kNegligible = sizeof(T) == 4 ? T(1e-32) : T(1e-290);
template <class T>
static inline Vec<T> exp_or_zero(Vec<T> x) {
  const Vec<T> e = exp(x);
  return e > kNegligible<T> ? e : Vec<T>{};
}

// What a weight is multiplied with for the gradient of the cost: dC = w (x - y).
template <class T>
static inline Vec<T> of_difference(int p, Vec<T> weight, Vec<T> cost) {
  // The margin is for the rounding of the floor itself.
  const T floor = T(1.000001 * __builtin_sqrt(kLeastSquaredDistance));
  return p == 2 ? weight : cost > floor ? weight / cost : Vec<T>{};
}

template <class T>
static inline void start_columns(const Pairing<T>& q, int index, bool slopes) {
  T* sums = q.partial + index * q.stride;
  for (int64_t j = 0; j < q.stride; ++j) sums[j] = 0;
  if (!slopes || !q.col_slopes) return;
  T* cols = q.col_slopes ? q.col_slope + index * q.d * q.stride : nullptr;
  for (int64_t k = 0; k < q.d * q.stride; ++k) cols[k] = 0;
}

template <class T>
static inline void finish_row_slopes(const Pairing<T>& q, int64_t i, const Vec<T>* rows) {
  constexpr int R = samples_loss::kRows;
  for (int64_t k = 0; k < q.d; ++k) {
    const Quad<T> sums = sum4<T>(rows[k * R], rows[k * R + 1], rows[k * R + 2], rows[k * R + 3]);
    for (int r = 0; r < R; ++r) q.row_slope[(i + r) * q.d + k] = sums[r];
  }
}

// Of the sides whose slopes are asked for.
template <class T, int V>
static inline void add_slopes(const Pairing<T>& q, int64_t i, int64_t j, const Vec<T> (*w)[V], const T* a, const T* b,
                              Vec<T>* rows, T* cols) {
  if (q.row_slopes && q.col_slopes)
    add_differences<T, V, true, true>(q, i, j, w, a, b, rows, cols);
  else if (q.row_slopes)
    add_differences<T, V, true, false>(q, i, j, w, a, b, rows, cols);
  else
    add_differences<T, V, false, true>(q, i, j, w, a, b, rows, cols);
}

// row and partial, and with `kSlopes` row_slope and col_slope, not yet divided by the sums. work: (d, kRows) vectors.
template <class T, bool kSlopes>
static inline void plain_sums(const Pairing<T>& q, Rows range, int index, T inverse, Vec<T>* work) {
  constexpr int W = Lanes<T>::W, R = samples_loss::kRows;
  start_columns(q, index, kSlopes);
  T* sums = q.partial + index * q.stride;
  T* cols = q.col_slopes ? q.col_slope + index * q.d * q.stride : nullptr;
  for (int64_t i = range.begin; i < range.end; i += R) {
    Vec<T> total[R] = {};
    const T* a = q.a + i;
    for (int64_t k = 0; kSlopes && k < q.d * R; ++k) work[k] = Vec<T>{};
    each_tile(q, i, [&](auto vectors, int64_t j) {
      constexpr int V = decltype(vectors)::V;
      alignas(64) T made[R * V * W];
      Vec<T> w[kSlopes ? R : 1][V];
      const Tile<T> tile = costs<T, V>(q, i, j, made);
      const bool diagonal = on_diagonal(q, i, j);
      for (int v = 0; v < V; ++v) {
        const Vec<T> g = load(q.g + j + v * W), b = load(q.b + j + v * W);
        Vec<T> col = load(sums + j + v * W);
        for (int r = 0; r < R; ++r) {
          const Vec<T> c = load(tile.cost + r * tile.stride + v * W);
          Vec<T> e = exp_or_zero<T>(((q.f[i + r] + g) - c) * inverse);
          if (diagonal) e = above<T>(i + r, j + v * W, e, T(0));
          total[r] += b * e;
          col += a[r] * e;
          if (kSlopes) w[r][v] = of_difference<T>(q.p, e, c);
        }
        store(sums + j + v * W, col);
      }
      if (kSlopes) add_slopes<T, V>(q, i, j, w, a, q.b + j, work, cols);
    });
    store4(q.row + i, sum4<T>(total[0], total[1], total[2], total[3]));
    if (kSlopes && q.row_slopes) finish_row_slopes(q, i, work);
  }
}

// h - C / eps. In every pass the same to the last digit: its rounding is large against 1 where eps is small.
template <class T>
static inline Vec<T> less_cost(Vec<T> h, Vec<T> cost, T inverse) {
  return h - cost * inverse;
}

// row_top = max_j (h_j - C_ij / eps), row = sum_j exp(h_j - C_ij / eps - row_top_i); and this task's largest
// k_i - C_ij / eps of each column.
template <class T>
static inline void log_rows(const Pairing<T>& q, Rows range, int index, T inverse) {
  constexpr int W = Lanes<T>::W, R = samples_loss::kRows;
  const T inf = __builtin_inf();
  T* top = q.top + index * q.stride;
  for (int64_t j = 0; j < q.stride; ++j) top[j] = -inf;
  for (int64_t i = range.begin; i < range.end; i += R) {
    Vec<T> most[R], total[R] = {};
    for (int r = 0; r < R; ++r) most[r] = splat(-inf);
    // body(row, column, h_j - C_ij / eps, k_i - C_ij / eps) for each vector
    auto each = [&](const auto& body) {
      each_tile(q, i, [&](auto vectors, int64_t j) {
        constexpr int V = decltype(vectors)::V;
        alignas(64) T made[R * V * W];
        const Tile<T> tile = costs<T, V>(q, i, j, made);
        const bool diagonal = on_diagonal(q, i, j);
        for (int v = 0; v < V; ++v)
          for (int r = 0; r < R; ++r) {
            const Vec<T> c = load(tile.cost + r * tile.stride + v * W);
            const Vec<T> h = less_cost<T>(load(q.h + j + v * W), c, inverse);
            const Vec<T> k = less_cost<T>(splat(q.k[i + r]), c, inverse);
            if (diagonal)
              body(r, j + v * W, above<T>(i + r, j + v * W, h, -inf), above<T>(i + r, j + v * W, k, -inf));
            else
              body(r, j + v * W, h, k);
          }
      });
    };
    each([&](int r, int64_t j, Vec<T> h, Vec<T> k) {
      most[r] = vmax<T>(most[r], h);
      store(top + j, vmax<T>(load(top + j), k));
    });
    T shift[R];
    for (int r = 0; r < R; ++r) {
      const T greatest_of_row = greatest<T>(most[r]);
      shift[r] = greatest_of_row > -inf ? greatest_of_row : 0;
    }
    each([&](int r, int64_t, Vec<T> h, Vec<T>) { total[r] += exp(h - shift[r]); });
    for (int r = 0; r < R; ++r) q.row_top[i + r] = shift[r], q.row[i + r] = sum<T>(total[r]);
  }
}

// partial = this task's sums of exp(k_i - C_ij / eps - top_j), top being that of all tasks.
template <class T>
static inline void log_columns(const Pairing<T>& q, Rows range, int index, T inverse) {
  constexpr int W = Lanes<T>::W, R = samples_loss::kRows;
  start_columns(q, index, false);
  T* sums = q.partial + index * q.stride;
  for (int64_t i = range.begin; i < range.end; i += R)
    each_tile(q, i, [&](auto vectors, int64_t j) {
      constexpr int V = decltype(vectors)::V;
      alignas(64) T made[R * V * W];
      const Tile<T> tile = costs<T, V>(q, i, j, made);
      const bool diagonal = on_diagonal(q, i, j);
      for (int v = 0; v < V; ++v) {
        const Vec<T> top = load(q.top + j + v * W);
        Vec<T> total = load(sums + j + v * W);
        for (int r = 0; r < R; ++r) {
          const Vec<T> c = load(tile.cost + r * tile.stride + v * W);
          const Vec<T> e = exp(less_cost<T>(splat(q.k[i + r]), c, inverse) - top);
          total += diagonal ? above<T>(i + r, j + v * W, e, T(0)) : e;
        }
        store(sums + j + v * W, total);
      }
    });
}

// row_slope and col_slope, not yet divided by the sums, after both tops are known.
template <class T>
static inline void log_slopes(const Pairing<T>& q, Rows range, int index, T inverse, Vec<T>* work) {
  constexpr int W = Lanes<T>::W, R = samples_loss::kRows;
  start_columns(q, index, true);
  T* cols = q.col_slopes ? q.col_slope + index * q.d * q.stride : nullptr;
  T ones[kTileVectors * W];
  for (T& one : ones) one = 1;
  for (int64_t i = range.begin; i < range.end; i += R) {
    for (int64_t k = 0; k < q.d * R; ++k) work[k] = Vec<T>{};
    each_tile(q, i, [&](auto vectors, int64_t j) {
      constexpr int V = decltype(vectors)::V;
      alignas(64) T made[R * V * W];
      Vec<T> w[R][V];
      const Tile<T> tile = costs<T, V>(q, i, j, made);
      const bool diagonal = on_diagonal(q, i, j);
      auto weigh = [&](const auto& exponent) {
        for (int v = 0; v < V; ++v)
          for (int r = 0; r < R; ++r) {
            const Vec<T> c = load(tile.cost + r * tile.stride + v * W);
            const Vec<T> e = of_difference<T>(q.p, exp_or_zero<T>(exponent(r, j + v * W, c)), c);
            w[r][v] = diagonal ? above<T>(i + r, j + v * W, e, T(0)) : e;
          }
      };
      if (q.row_slopes) {
        weigh([&](int r, int64_t at, Vec<T> c) { return less_cost<T>(load(q.h + at), c, inverse) - q.row_top[i + r]; });
        add_differences<T, V, true, false>(q, i, j, w, ones, ones, work, cols);
      }
      if (q.col_slopes) {
        weigh([&](int r, int64_t at, Vec<T> c) {
          return less_cost<T>(splat(q.k[i + r]), c, inverse) - load(q.top + at);
        });
        add_differences<T, V, false, true>(q, i, j, w, ones, ones, work, cols);
      }
    });
    if (q.row_slopes) finish_row_slopes(q, i, work);
  }
}

}  // namespace UK_LEVEL
}  // namespace ucmkd

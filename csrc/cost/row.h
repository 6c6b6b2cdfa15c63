// One row at a time, so that the Sinkhorn kernels can do it while the row is in the cache:
// inner products become costs, and the gradient of costs becomes the weights of a matrix product.
#pragma once
#include "core/math.h"
#include "core/simd.h"
#include "cost/features.h"

namespace ucmkd {
namespace UK_LEVEL {

template <class T>
static inline T dot(const T* x, const T* y, int64_t d) {
  constexpr int W = Lanes<T>::W;
  Vec<T> total = {};
  int64_t k = 0;
  for (; k + W <= d; k += W) total += load(x + k) * load(y + k);
  T rest = 0;
  for (; k < d; ++k) rest += x[k] * y[k];
  return sum<T>(total) + rest;
}

// |p x - q y|^2, as p (x - y) + (p - q) y: exactly 0 where both pairs are equal, however it is contracted.
template <class T>
static inline T squared_distance(const T* x, T p, const T* y, T q, int64_t d) {
  constexpr int W = Lanes<T>::W;
  Vec<T> total = {};
  int64_t k = 0;
  for (; k + W <= d; k += W) {
    const Vec<T> e = (load(x + k) - load(y + k)) * p + load(y + k) * (p - q);
    total += e * e;
  }
  T rest = 0;
  for (; k < d; ++k) {
    const T e = (x[k] - y[k]) * p + y[k] * (p - q);
    rest += e * e;
  }
  return sum<T>(total) + rest;
}

template <class T>
static inline T distance_l1(const T* x, const T* y, int64_t d) {
  constexpr int W = Lanes<T>::W;
  Vec<T> total = {};
  int64_t k = 0;
  for (; k + W <= d; k += W) {
    const Vec<T> e = load(x + k) - load(y + k);
    total += e < 0 ? -e : e;
  }
  T rest = 0;
  for (; k < d; ++k) rest += x[k] < y[k] ? y[k] - x[k] : x[k] - y[k];
  return sum<T>(total) + rest;
}

// <x_i, y_j> -> d(x_i, y_j) for one i, in place; l1 reads no products.
template <class T>
static inline void finish_distance_row(const cost::Features<T>& f, int64_t i, T* row) {
  using cost::Metric;
  const int64_t m = f.m;
  const T sx = f.scale_x[i];
  const T* sy = f.scale_y;
  if (f.metric == Metric::kL1) {
    for (int64_t j = 0; j < m; ++j) row[j] = distance_l1(f.x + i * f.d, f.y + j * f.d, f.d);
    return;
  }
  if (f.metric == Metric::kCosine) {
    for (int64_t j = 0; j < m; ++j) {
      const T c = 1 - row[j] * sx * sy[j];
      row[j] = c > 0 ? c : 0;
    }
    return;
  }
  // |x|^2 + |y|^2 - 2 <x, y> loses all digits where x is near y: such pairs are measured directly.
  // 1/128 keeps five of float32's digits.
  const bool unit = f.metric == Metric::kChordal;
  const T xx = unit ? T(sx > 0) : sx;
  bool close = false;
  for (int64_t j = 0; j < m; ++j) {
    const T total = xx + (unit ? T(sy[j] > 0) : sy[j]);
    const T square = total - 2 * (unit ? row[j] * sx * sy[j] : row[j]);
    row[j] = square > 0 ? square : 0;
    close |= row[j] * 128 < total;
  }
  if (close)
    for (int64_t j = 0; j < m; ++j) {
      const T total = xx + (unit ? T(sy[j] > 0) : sy[j]);
      if (row[j] * 128 < total)
        row[j] = squared_distance(f.x + i * f.d, unit ? sx : T(1), f.y + j * f.d, unit ? sy[j] : T(1), f.d);
    }
  if (f.metric != Metric::kSqeuclidean)
    for (int64_t j = 0; j < m; ++j) row[j] = root(row[j]);
}

// d -> C for one i, in place. A distance that overflows becomes NaN: it is no forbidden pair.
template <class T>
static inline void add_class_cost(const cost::Features<T>& f, int64_t i, T* row) {
  const T* by_class = f.classes.cost + i * f.classes.count;
  T* kept = f.classes.distance ? f.classes.distance + i * f.m : nullptr;
  for (int64_t j = 0; j < f.m; ++j) {
    if (kept) kept[j] = row[j];
    row[j] = row[j] <= Lanes<T>::kMax ? row[j] + by_class[f.classes.label[j]] : T(__builtin_nan(""));
  }
}

// <x_i, y_j> -> C_ij for one i, in place; l1 reads no products.
template <class T>
static inline void finish_cost_row(const cost::Features<T>& f, int64_t i, T* row) {
  finish_distance_row(f, i, row);
  if (f.classes.count) add_class_cost(f, i, row);
}

template <class T>
static inline void sum_by_class(const cost::Classes<T>& classes, int64_t i, int64_t m, const T* dc) {
  T* out = classes.grad + i * classes.count;
  for (int64_t k = 0; k < classes.count; ++k) out[k] = 0;
  for (int64_t j = 0; j < m; ++j) out[classes.label[j]] += dc[j];
}

// dC -> W for one i, in place, with
//   normalised metrics:  dx = -(I - x^ x^') (W y),   dy likewise with W'
//   l2, sqeuclidean:     dx = row_sum x - W y,       dy = col_sum y - W' x
// Returns the row's sum and adds the row to col_sum (m,) where that is asked for; l1 keeps dC. The gradient of
// the term by class is made on the way.
template <class T>
static inline T weigh_row(const cost::Features<T>& f, int64_t i, const T* cost, T* w, T* col_sum) {
  using cost::Metric;
  constexpr int W = Lanes<T>::W;
  const int64_t m = f.m;
  if (f.classes.grad) sum_by_class(f.classes, i, m, w);
  if (f.classes.distance) cost = f.classes.distance + i * m;
  if (f.metric == Metric::kL1) return 0;
  if (cost::normalised(f.metric)) {
    const T sx = f.scale_x[i];
    const T* sy = f.scale_y;
    if (f.metric == Metric::kCosine)
      for (int64_t j = 0; j < m; ++j) w[j] *= sx * sy[j];
    else
      for (int64_t j = 0; j < m; ++j) w[j] = cost[j] > 0 ? w[j] * sx * sy[j] / cost[j] : 0;
    return 0;
  }
  if (f.metric == Metric::kSqeuclidean)
    for (int64_t j = 0; j < m; ++j) w[j] *= 2;
  else
    for (int64_t j = 0; j < m; ++j) w[j] = cost[j] > 0 ? w[j] / cost[j] : 0;
  Vec<T> total = {};
  T rest = 0;
  int64_t j = 0;
  for (; j + W <= m; j += W) {
    total += load(w + j);
    store(col_sum + j, load(col_sum + j) + load(w + j));
  }
  for (; j < m; ++j) rest += w[j], col_sum[j] += w[j];
  return sum<T>(total) + rest;
}

}  // namespace UK_LEVEL
}  // namespace ucmkd

// One row at a time, so that the Sinkhorn kernels can do it while the row is in the cache:
// inner products become costs, and the gradient of costs becomes the weights of a matrix product.
#pragma once
#include "core/math.h"
#include "core/simd.h"
#include "cost/features.h"

namespace ucmkd {
namespace UK_LEVEL {

// <x_r, y_r> of R rows, whose sums do not wait for each other.
template <int R, class T>
static inline void dots(const T* x, const T* y, int64_t d, T* out) {
  constexpr int W = Lanes<T>::W;
  Vec<T> total[R];
  for (int r = 0; r < R; ++r) total[r] = Vec<T>{};
  int64_t k = 0;
  for (; k + W <= d; k += W)
    for (int r = 0; r < R; ++r) total[r] += load(x + r * d + k) * load(y + r * d + k);
  for (int r = 0; r < R; ++r) {
    T rest = 0;
    for (int64_t e = k; e < d; ++e) rest += x[r * d + e] * y[r * d + e];
    out[r] = sum<T>(total[r]) + rest;
  }
}

// body(i, <x_i, y_i>) for rows begin .. end.
template <class T, class Body>
static inline void each_dot(int64_t begin, int64_t end, int64_t d, const T* x, const T* y, const Body& body) {
  constexpr int R = 4;
  T dot[R];
  int64_t i = begin;
  for (; i + R <= end; i += R) {
    dots<R>(x + i * d, y + i * d, d, dot);
    for (int r = 0; r < R; ++r) body(i + r, dot[r]);
  }
  for (; i < end; ++i) {
    dots<1>(x + i * d, y + i * d, d, dot);
    body(i, dot[0]);
  }
}

// |x - y|^2.
template <class T>
static inline T squared_distance(const T* x, const T* y, int64_t d) {
  constexpr int W = Lanes<T>::W;
  Vec<T> total = {};
  int64_t k = 0;
  for (; k + W <= d; k += W) {
    const Vec<T> e = load(x + k) - load(y + k);
    total += e * e;
  }
  T rest = 0;
  for (; k < d; ++k) rest += (x[k] - y[k]) * (x[k] - y[k]);
  return sum<T>(total) + rest;
}

// 1 / |x| in double.
template <class T>
static inline double inverse_length(const T* x, int64_t d) {
  constexpr int64_t kLanes = 8;
  double total[kLanes] = {};
  int64_t k = 0;
  for (; k + kLanes <= d; k += kLanes)
    for (int64_t e = 0; e < kLanes; ++e) total[e] += double(x[k + e]) * double(x[k + e]);
  for (; k < d; ++k) total[0] += double(x[k]) * double(x[k]);
  for (int64_t e = 1; e < kLanes; ++e) total[0] += total[e];
  return 1 / __builtin_sqrt(total[0]);
}

// |x^ - y^|^2 of rows that are not 0, in double: rounded unit rows would be as far apart as near ones are. 0 where it is
// the rounding of double: the rows are parallel.
template <class T>
static inline T squared_distance_of_units(const T* x, double p, const T* y, int64_t d) {
  constexpr int64_t kLanes = 8;
  const double q = inverse_length(y, d);
  double total[kLanes] = {};
  auto square = [&](int64_t k) {
    const double e = (double(x[k]) - double(y[k])) * p + double(y[k]) * (p - q);  // 0 for equal rows, fused or not
    return e * e;
  };
  int64_t k = 0;
  for (; k + kLanes <= d; k += kLanes)
    for (int64_t e = 0; e < kLanes; ++e) total[e] += square(k + e);
  for (; k < d; ++k) total[0] += square(k);
  for (int64_t e = 1; e < kLanes; ++e) total[0] += total[e];
  return total[0] > cost::kParallel ? T(total[0]) : 0;
}

template <class T>
static inline T sum_of_terms(cost::Metric metric, const T* x, const T* y, int64_t d) {
  constexpr int W = Lanes<T>::W;
  Vec<T> total = {};
  int64_t k = 0;
  for (; k + W <= d; k += W) total += cost::term<Vec<T>>(metric, load(x + k), load(y + k));
  T rest = 0;
  for (; k < d; ++k) rest += cost::term(metric, x[k], y[k]);
  return sum<T>(total) + rest;
}

// |x|^2 + |y|^2 of a pair, of unit rows where the metric normalises.
template <class T>
static inline T total_square(const cost::Features<T>& f, int64_t i, int64_t j) {
  return cost::normalised(f.metric) ? T(f.scale_x[i] > 0) + T(f.scale_y[j] > 0) : f.scale_x[i] + f.scale_y[j];
}

// |x|^2 + |y|^2 - 2 <x, y> loses all digits where x is near y, and so does W x - W y of the gradient: such pairs are
// taken from the differences. 1/128 keeps five of float32's digits.
template <class T>
static inline bool near(T square, T total) {
  return square * 128 < total;
}

// The same of the distance d(x_i, y_j).
template <class T>
static inline bool near_pair(const cost::Features<T>& f, int64_t i, int64_t j, T distance) {
  return near(cost::square_of(f.metric, distance), total_square(f, i, j));
}

template <class T>
static inline bool any_near(const cost::Features<T>& f, int64_t i, const T* distance) {
  bool any = false;
  for (int64_t j = 0; j < f.m; ++j) any |= near_pair(f, i, j, distance[j]);
  return any;
}

// <x_i, y_j> -> d(x_i, y_j) for one i, in place; sums read no products.
template <class T>
static inline void finish_distance_row(const cost::Features<T>& f, int64_t i, T* row) {
  using cost::Kind;
  const cost::Metric metric = f.metric;
  const Kind kind = cost::kind_of(metric);
  const int64_t m = f.m;
  const T sx = f.scale_x[i];
  const T* sy = f.scale_y;
  if (kind == Kind::kSum) {
    for (int64_t j = 0; j < m; ++j) row[j] = sum_of_terms(metric, f.x + i * f.d, f.y + j * f.d, f.d);
    return;
  }
  if (kind == Kind::kCosine) {
    for (int64_t j = 0; j < m; ++j) {
      const T c = 1 - row[j] * sx * sy[j];
      row[j] = c > 0 ? c : 0;
    }
    return;
  }
  const bool unit = kind == Kind::kUnitSquare;
  bool any = false;
  for (int64_t j = 0; j < m; ++j) {
    const T total = total_square(f, i, j);
    const T square = total - 2 * (unit ? row[j] * sx * sy[j] : row[j]);
    row[j] = square > 0 ? square : 0;
    any |= near(row[j], total);
  }
  if (any) {
    const T* x = f.given_x + i * f.d;
    const double p = unit ? inverse_length(x, f.d) : 1;
    for (int64_t j = 0; j < m; ++j)
      if (near(row[j], total_square(f, i, j))) {
        const T* y = f.given_y + j * f.d;
        row[j] = unit ? squared_distance_of_units(x, p, y, f.d) : squared_distance(x, y, f.d);
      }
  }
  for (int64_t j = 0; j < m; ++j) row[j] = cost::of_square(metric, row[j]);
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

// <x_i, y_j> -> C_ij for one i, in place; sums read no products.
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
//   centred ones:        dx = row_sum x - W y,       dy = col_sum y - W' x
// Returns the row's sum and adds the row to col_sum (m,) where that is asked for, both without near pairs, which
// `set_apart` (kernels.h) takes out of the products; sums keep dC. The gradient of the term by class is made on the way.
template <class T>
static inline T weigh_row(const cost::Features<T>& f, int64_t i, const T* cost, T* w, T* col_sum) {
  using cost::Kind;
  constexpr int W = Lanes<T>::W;
  const cost::Metric metric = f.metric;
  const Kind kind = cost::kind_of(metric);
  const int64_t m = f.m;
  if (f.classes.grad) sum_by_class(f.classes, i, m, w);
  if (f.classes.distance) cost = f.classes.distance + i * m;
  if (kind == Kind::kSum) return 0;
  if (cost::normalised(metric)) {
    const T sx = f.scale_x[i];
    const T* sy = f.scale_y;
    if (kind == Kind::kCosine)
      for (int64_t j = 0; j < m; ++j) w[j] *= sx * sy[j];
    else
      for (int64_t j = 0; j < m; ++j) w[j] = cost::weight(metric, w[j] * sx * sy[j], cost[j]);
    return 0;
  }
  for (int64_t j = 0; j < m; ++j) w[j] = cost::weight(metric, w[j], cost[j]);
  if (any_near(f, i, cost)) {
    T all = 0;
    for (int64_t j = 0; j < m; ++j) {
      const T far = near_pair(f, i, j, cost[j]) ? 0 : w[j];
      all += far, col_sum[j] += far;
    }
    return all;
  }
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

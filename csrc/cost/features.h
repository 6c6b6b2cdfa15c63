// What the costs of a batch of features are made from.
//
// metrics.h has the metrics. x^ = x / |x|; a zero row stays zero, and so is a row taken whose |x|^2 is below the
// normal numbers of its type: its gradient, about 1 / |x|, and the products of two such are beyond them.
//
// All but sums start from the inner products <x_i, y_j>. l2 and sqeuclidean take them between centred features,
// x - c and y - c with one c per problem: far from the origin |x|^2 + |y|^2 - 2 <x, y> would lose the
// distance. Pairs that are still near (row.h) are measured by the differences of what was given.
#pragma once
#include <stdint.h>

#include "core/offset.h"
#include "cost/metrics.h"

namespace ucmkd {
namespace cost {

// A term of the cost that depends on the class of y_j:  C_ij = d(x_i, y_j) + cost[i, label_j].
template <class T>
struct Classes {
  int64_t count;         // K; 0: there is no such term
  const T* cost;         // (n, K), may hold +inf
  const int64_t* label;  // (m,) from 0 to K - 1
  T* distance;           // (n, m): where the forward keeps d for a metric whose gradient reads it; or null
  T* grad;               // (n, K): dC summed over the columns of each label; or null
};

// The smallest normal number: a row with a smaller square is not normalised.
template <class T>
constexpr T kLeastSquare = T(2.2250738585072014e-308);
template <>
constexpr float kLeastSquare<float> = 1.17549435e-38f;

// Squared distance of unit rows that double cannot tell from 0.
constexpr double kParallel = 1e-30;

template <class T>
struct Features {
  Metric metric;
  int64_t n, m, d;
  const T* x;        // (n, d), centred where the metric is
  const T* y;        // (m, d)
  const T* scale_x;  // (n,) 1 / |x| (0 for a zero row) where the metric normalises, else |x|^2
  const T* scale_y;  // (m,)
  const T* given_x;  // (n, d) before it was centred; x otherwise
  const T* given_y;  // (m, d)
  Classes<T> classes;
};

// `rows` rows of x, from row `begin` on, against all of y.
template <class T>
static inline Features<T> rows_of(Features<T> f, int64_t begin, int64_t rows) {
  f.n = rows, f.x += begin * f.d, f.scale_x += begin, f.given_x += begin * f.d;
  Classes<T>& c = f.classes;
  if (c.cost) c.cost += begin * c.count;
  if (c.distance) c.distance += begin * f.m;
  if (c.grad) c.grad += begin * c.count;
  return f;
}

// Features on untyped pointers, of all problems of a call.
struct FeatureSet {
  bool f64;  // double, else float
  Metric metric = Metric::kNone;
  int64_t n, m, d;
  const void* x;  // as in Features
  const void* y;
  void* scale_x;  // made by `loss_forward`, given to everyone else
  void* scale_y;
  const void* given_x;  // or null: x is as it was given
  const void* given_y;
  Classes<void> classes;
};

// n rows of x from `row` on, against m rows of y from `column` on; their distances begin at `element`.
template <class T>
static inline Features<T> part_of(const FeatureSet& f, int64_t n, int64_t m, int64_t row, int64_t column,
                                  int64_t element) {
  const Classes<void>& c = f.classes;
  Features<T> part{};
  part.metric = f.metric, part.n = n, part.m = m, part.d = f.d;
  part.x = offset<T>(f.x, row * f.d), part.scale_x = offset<T>(f.scale_x, row);
  part.y = offset<T>(f.y, column * f.d), part.scale_y = offset<T>(f.scale_y, column);
  part.given_x = f.given_x ? offset<T>(f.given_x, row * f.d) : part.x;
  part.given_y = f.given_y ? offset<T>(f.given_y, column * f.d) : part.y;
  part.classes = {c.count, offset<T>(c.cost, row * c.count), offset<int64_t>(c.label, column),
                  offset<T>(c.distance, element), offset<T>(c.grad, row * c.count)};
  return part;
}
template <class T>
static inline Features<T> features_of(const FeatureSet& f) {
  return part_of<T>(f, f.n, f.m, 0, 0, 0);
}

// Whether the gradient needs a distance that the cost, with its term by class, no longer shows.
template <class T>
static inline bool reads_distance(const Features<T>& f) {
  return f.classes.count && by_difference(f.metric);
}

}  // namespace cost
}  // namespace ucmkd

// What the costs of a batch of features are made from.
//
//   cosine 1 - <x^, y^>   chordal |x^ - y^|   l2 |x - y|   sqeuclidean |x - y|^2   l1 sum |x - y|
//
// x^ = x / |x|; a zero row stays zero, and so is a row taken whose |x|^2 is below the normal numbers of its type: its
// gradient, about 1 / |x|, and the products of two such are beyond them.
//
// All but l1 start from the inner products <x_i, y_j>. l2 and sqeuclidean take them between centred features, x - c and
// y - c with one c per problem: far from the origin |x|^2 + |y|^2 - 2 <x, y> would lose the distance. Pairs that are
// still near (row.h) are measured by the differences of what was given.
#pragma once
#include <stdint.h>

namespace ucmkd {
namespace cost {

enum class Metric : int { kCosine = 0, kChordal = 1, kL2 = 2, kSqeuclidean = 3, kL1 = 4 };

static inline bool normalised(Metric metric) {
  return metric == Metric::kCosine || metric == Metric::kChordal;
}
// Metrics whose features are centred before the products.
static inline bool centred(Metric metric) { return metric == Metric::kL2 || metric == Metric::kSqeuclidean; }
// Metrics that take |x|^2 + |y|^2 - 2 <x, y>, in which near pairs are lost.
static inline bool by_difference(Metric metric) { return centred(metric) || metric == Metric::kChordal; }

// A term of the cost that depends on the class of y_j:  C_ij = d(x_i, y_j) + cost[i, label_j].
template <class T>
struct Classes {
  int64_t count;         // K; 0: there is no such term
  const T* cost;         // (n, K), may hold +inf
  const int64_t* label;  // (m,) from 0 to K - 1
  T* distance;           // (n, m): where the forward keeps d for a metric whose gradient reads it; or null
  T* grad;               // (n, K): dC summed over the columns of each label; or null
};

// The same on untyped pointers, of all problems of a call; the arguments are where one of them begins.
struct ClassTerm {
  int64_t count;
  const void* cost;
  const int64_t* label;
  void* distance;
  void* grad;

  template <class T>
  Classes<T> typed(int64_t row = 0, int64_t column = 0, int64_t element = 0) const {
    auto at = [](const void* base, int64_t k) {
      return base ? const_cast<T*>(static_cast<const T*>(base)) + k : nullptr;
    };
    return {count, at(cost, row * count), label ? label + column : nullptr, at(distance, element),
            at(grad, row * count)};
  }
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

  // The same from row `begin` of x on.
  Features from(int64_t begin) const {
    Features rest = *this;
    rest.n -= begin, rest.x += begin * d, rest.scale_x += begin, rest.given_x += begin * d;
    Classes<T>& c = rest.classes;
    if (c.cost) c.cost += begin * c.count;
    if (c.distance) c.distance += begin * m;
    if (c.grad) c.grad += begin * c.count;
    return rest;
  }
};

// Those of a call that has them on untyped pointers, under the same names: sinkhorn's Problem, PanelsOf.
template <class T, class Untyped>
static inline Features<T> features_of(const Untyped& p) {
  return {static_cast<Metric>(p.metric),
          p.n,
          p.m,
          p.d,
          static_cast<const T*>(p.x),
          static_cast<const T*>(p.y),
          static_cast<const T*>(p.scale_x),
          static_cast<const T*>(p.scale_y),
          static_cast<const T*>(p.given_x ? p.given_x : p.x),
          static_cast<const T*>(p.given_y ? p.given_y : p.y),
          p.classes.template typed<T>()};
}

// Whether the gradient needs a distance that the cost, with its term by class, no longer shows.
template <class T>
static inline bool reads_distance(const Features<T>& f) {
  return f.classes.count && by_difference(f.metric);
}

}  // namespace cost
}  // namespace ucmkd

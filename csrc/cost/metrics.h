// The metrics: names, kinds, and the formulas of one pair, for every device. To add one: CONTRIBUTING.md.
//
//   cosine 1 - <x^, y^>   chordal |x^ - y^|   l2 |x - y|   sqeuclidean |x - y|^2   l1 sum |x - y|
#pragma once
#include <math.h>

#include "core/host_device.h"

namespace ucmkd {
namespace cost {

enum class Metric : int { kNone = -1, kCosine = 0, kChordal = 1, kL2 = 2, kSqeuclidean = 3, kL1 = 4 };

struct MetricInfo {
  Metric metric;
  const char* name;
  int degree;  // features times s > 0 lie s^degree times as far apart
};

inline constexpr MetricInfo kMetrics[] = {
    {Metric::kCosine, "cosine", 0},           {Metric::kChordal, "chordal", 0}, {Metric::kL2, "l2", 1},
    {Metric::kSqeuclidean, "sqeuclidean", 2}, {Metric::kL1, "l1", 1},
};

// What a distance is made from.
enum class Kind {
  kNone,
  kCosine,      // <x^, y^>
  kUnitSquare,  // |x^ - y^|^2 = 2 - 2 <x^, y^>, by `of_square`
  kSquare,      // |x - y|^2 = |x|^2 + |y|^2 - 2 <x, y>, by `of_square`
  kSum,         // the features one by one, by `term`: no inner products
};

UK_HOST_DEVICE constexpr Kind kind_of(Metric metric) {
  switch (metric) {
    case Metric::kCosine: return Kind::kCosine;
    case Metric::kChordal: return Kind::kUnitSquare;
    case Metric::kL2:
    case Metric::kSqeuclidean: return Kind::kSquare;
    case Metric::kL1: return Kind::kSum;
    case Metric::kNone: break;
  }
  return Kind::kNone;
}

// Of rows scaled to unit length.
UK_HOST_DEVICE constexpr bool normalised(Metric metric) {
  return kind_of(metric) == Kind::kCosine || kind_of(metric) == Kind::kUnitSquare;
}
// The features are centred before the products.
UK_HOST_DEVICE constexpr bool centred(Metric metric) { return kind_of(metric) == Kind::kSquare; }
// By a square, in which near pairs are lost: they are taken by the differences of their rows (row.h).
UK_HOST_DEVICE constexpr bool by_difference(Metric metric) {
  return centred(metric) || kind_of(metric) == Kind::kUnitSquare;
}
UK_HOST_DEVICE constexpr bool summed(Metric metric) { return kind_of(metric) == Kind::kSum; }

// Of metrics by a square

UK_HOST_DEVICE float square_root(float x) { return ::sqrtf(x); }
UK_HOST_DEVICE double square_root(double x) { return ::sqrt(x); }

template <class T>
UK_HOST_DEVICE T of_square(Metric metric, T square) {
  return metric == Metric::kSqeuclidean ? square : square_root(square);
}
template <class T>
UK_HOST_DEVICE T square_of(Metric metric, T d) {
  return metric == Metric::kSqeuclidean ? d : d * d;
}
// w times 2 dd/d(square): what the features are weighted by in the gradient.
template <class T>
UK_HOST_DEVICE T weight(Metric metric, T w, T d) {
  return metric == Metric::kSqeuclidean ? 2 * w : d > 0 ? w / d : T(0);
}

// Of metrics that are sums: of two features, or of vectors of them

template <class V>
UK_HOST_DEVICE V absolute(V e) {
  return e < 0 ? -e : e;
}
UK_HOST_DEVICE float absolute(float e) { return ::fabsf(e); }
UK_HOST_DEVICE double absolute(double e) { return ::fabs(e); }

// Never negative, the same for (y, x), and 0 where they are equal.
template <class V>
UK_HOST_DEVICE V term(Metric, V x, V y) {
  return absolute(x - y);
}
// w times its derivative by x.
template <class V>
UK_HOST_DEVICE V term_gradient(Metric, V w, V x, V y) {
  const V e = x - y;
  return e > 0 ? w : (e < 0 ? -w : V{});
}

}  // namespace cost
}  // namespace ucmkd

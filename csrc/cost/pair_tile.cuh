// Costs that are made when they are needed and never stored: a square tile of pairs at a time, in the registers of a block.
// The formulas are those of row.h.
#pragma once
#include <type_traits>

#include "core/tile.cuh"
#include "cost/pairs.cuh"

namespace ucmkd {
namespace cost {
namespace {

// What the pairs are of. Half precision is widened as it is read.
template <class T>
struct PairsOf {
  Metric metric;
  FeatureType type;
  int n, m, d, classes;
  const void *x, *y;              // (n, d), (m, d)
  const void *given_x, *given_y;  // before they were centred
  const T *scale_x, *scale_y;     // (n,), (m,)
  const T* class_cost;            // (n, classes)
  const int64_t* labels;          // (m,)
};

template <class T>
PairsOf<T> pairs_of(const CudaCost& c) {
  auto features = [](uintptr_t at) { return reinterpret_cast<const void*>(at); };
  auto numbers = [](uintptr_t at) { return reinterpret_cast<const T*>(at); };
  return {Metric(c.metric),
          FeatureType(c.feature_type),
          int(c.n),
          int(c.m),
          int(c.d),
          int(c.classes),
          features(c.x),
          features(c.y),
          features(c.given_x ? c.given_x : c.x),
          features(c.given_y ? c.given_y : c.y),
          numbers(c.scale_x),
          numbers(c.scale_y),
          numbers(c.class_cost),
          reinterpret_cast<const int64_t*>(c.labels)};
}

// body(features in their type)
template <class T, class Body>
__device__ auto typed_features(FeatureType type, const void* z, Body body) {
  if constexpr (sizeof(T) == 4) {
    if (type == FeatureType::kHalf) return body(static_cast<const cuda::Half*>(z));
    if (type == FeatureType::kBFloat16) return body(static_cast<const cuda::BFloat16*>(z));
  }
  return body(static_cast<const T*>(z));
}

// body(metric as a constant)
template <class Body>
__device__ void known_metric(Metric metric, Body body) {
  switch (metric) {
    case Metric::kCosine: return body(std::integral_constant<Metric, Metric::kCosine>());
    case Metric::kChordal: return body(std::integral_constant<Metric, Metric::kChordal>());
    case Metric::kL2: return body(std::integral_constant<Metric, Metric::kL2>());
    case Metric::kSqeuclidean: return body(std::integral_constant<Metric, Metric::kSqeuclidean>());
    case Metric::kL1: return body(std::integral_constant<Metric, Metric::kL1>());
    case Metric::kNone: return;
  }
}

// Squared distances of so few features are summed from differences: as quick as products, and no pair is too near.
constexpr int kFewFeatures = 16;

template <class T>
class PairTile : public SquareTile<T, sizeof(T) == 4 ? 8 : 4> {
  static constexpr int kPer = sizeof(T) == 4 ? 8 : 4;
  using Square = SquareTile<T, kPer>;

 public:
  using Square::kSize, Square::kThreads, Square::row, Square::column;
  // Threads that share a row, or a column, and which of them this is.
  static constexpr int kRowSharers = Square::kSide, kColumnSharers = Square::kSide;
  static __device__ int row_sharer() { return Square::thread_column(); }
  static __device__ int column_sharer() { return Square::thread_row(); }
  using Values = T[kPer][kPer];
  static constexpr int kRows = kPer, kColumns = kPer;  // of a thread
  static constexpr int kDepth = 16;                    // features at a time
  struct Shared {
    T left[2][kDepth][kSize], right[2][kDepth][kSize];  // by turns
  };

  __device__ PairTile(const PairsOf<T>& pairs, Shared* shared) : p_(pairs), shared_(shared) {
    squares_ = centred(p_.metric) && p_.d <= kFewFeatures;
  }

  // The costs of the tile from row0 and col0 on, (row0 + row(r), col0 + column(c)) at [r][c]. What lies outside of the
  // matrix is that of its last row or column.
  __device__ void make(int row0, int col0, Values& costs) {
    T ahead[2][kLoads];
#pragma unroll
    for (int r = 0; r < kPer; ++r)
#pragma unroll
      for (int c = 0; c < kPer; ++c) costs[r][c] = 0;
    load(row0, col0, 0, ahead);
#pragma unroll 1
    for (int first = 0; first < p_.d; first += kDepth) {
      Shared& s = *shared_;
      turn_ ^= 1;
      store(s.left[turn_], s.right[turn_], ahead);
      cuda::sync_block();
      if (first + kDepth < p_.d) load(row0, col0, first + kDepth, ahead);
      const int depth = p_.d - first < kDepth ? p_.d - first : kDepth;
      if (summed(p_.metric))
        Square::multiply(s.left[turn_], s.right[turn_], depth, costs,
                         [&](T& sum, T x, T y) { sum += term(p_.metric, x, y); });
      else if (squares_)
        Square::multiply(s.left[turn_], s.right[turn_], depth, costs,
                         [](T& sum, T x, T y) { sum += (x - y) * (x - y); });
      else
        Square::multiply(s.left[turn_], s.right[turn_], depth, costs, [](T& sum, T x, T y) { sum += x * y; });
    }
    finish(row0, col0, costs);
  }

 private:
  static constexpr int kLoads = kDepth * kSize / kThreads;  // features of a row that a thread brings to shared memory

  const PairsOf<T>& p_;
  Shared* shared_;
  int turn_ = 0;
  bool squares_;

  __device__ int row_at(int row0, int r) const { return within(row0 + row(r), p_.n); }
  __device__ int column_at(int col0, int c) const { return within(col0 + column(c), p_.m); }
  static __device__ int within(int index, int count) { return index < count ? index : count - 1; }

  static __device__ int place() { return threadIdx.x % kSize; }
  static __device__ int depth() { return threadIdx.x / kSize * kLoads; }
  __device__ void load(int row0, int col0, int first, T (&to)[2][kLoads]) const {
    const bool given = squares_;
    load_side(given ? p_.given_x : p_.x, within(row0 + place(), p_.n), first, to[0]);
    load_side(given ? p_.given_y : p_.y, within(col0 + place(), p_.m), first, to[1]);
  }
  __device__ void load_side(const void* features, int row, int first, T (&to)[kLoads]) const {
    const int begin = first + depth();
    typed_features<T>(p_.type, features, [&](auto* z) {
      z += int64_t(row) * p_.d;
#pragma unroll
      for (int k = 0; k < kLoads; ++k) to[k] = begin + k < p_.d ? cuda::wide(z[begin + k]) : T(0);
    });
  }
  __device__ void store(T (*left)[kSize], T (*right)[kSize], const T (&from)[2][kLoads]) const {
#pragma unroll
    for (int k = 0; k < kLoads; ++k) left[depth() + k][place()] = from[0][k], right[depth() + k][place()] = from[1][k];
  }

  // Sums over the features -> costs.
  __device__ void finish(int row0, int col0, Values& costs) const {
    known_metric(p_.metric, [&](auto known) {
      constexpr Metric kMetric = decltype(known)::value;
      if constexpr (!summed(kMetric)) {
        if (!squares_) return from_products<kMetric>(row0, col0, costs);
#pragma unroll
        for (int r = 0; r < kPer; ++r)
#pragma unroll
          for (int c = 0; c < kPer; ++c) costs[r][c] = of_square(kMetric, costs[r][c]);
      }
    });
#pragma unroll
    for (int r = 0; r < kPer; ++r)
#pragma unroll
      for (int c = 0; c < kPer; ++c) costs[r][c] = finite_or_nan(costs[r][c]);
    if (!p_.classes) return;
    const int64_t* labels = p_.labels;
#pragma unroll
    for (int c = 0; c < kPer; ++c) {
      const int64_t label = labels[column_at(col0, c)];
#pragma unroll
      for (int r = 0; r < kPer; ++r)
        costs[r][c] =
            with_class_term(costs[r][c], p_.class_cost + int64_t(row_at(row0, r)) * p_.classes, p_.classes, label);
    }
  }

  template <Metric kMetric>
  __device__ void from_products(int row0, int col0, Values& costs) const {
    T sy[kPer];
#pragma unroll
    for (int c = 0; c < kPer; ++c) sy[c] = p_.scale_y[column_at(col0, c)];
    uint64_t found = 0;  // near pairs, a bit each
#pragma unroll
    for (int r = 0; r < kPer; ++r) {
      const T sx = p_.scale_x[row_at(row0, r)];
#pragma unroll
      for (int c = 0; c < kPer; ++c) {
        bool is_near = false;
        costs[r][c] = distance(kMetric, sx, sy[c], costs[r][c], &is_near);
        found |= uint64_t(is_near) << (r * kPer + c);
      }
    }
    if (!by_difference(kMetric)) return;
#pragma unroll 1
    for (int bit = 0; bit < kPer * kPer && found >> bit; ++bit) {
      if (!(found >> bit & 1)) continue;
      const int64_t i = within(row0 + row(bit / kPer), p_.n), j = within(col0 + column(bit % kPer), p_.m);
      const T measured = of_square(kMetric, typed_features<T>(p_.type, p_.given_x, [&](auto* x) {
                                     auto* y = static_cast<decltype(x)>(p_.given_y);
                                     return squared_distance<T>(normalised(kMetric), x + i * p_.d, y + j * p_.d, p_.d);
                                   }));
#pragma unroll
      for (int e = 0; e < kPer * kPer; ++e) costs[e / kPer][e % kPer] = e == bit ? measured : costs[e / kPer][e % kPer];
    }
  }
};

}  // namespace
}  // namespace cost
}  // namespace ucmkd

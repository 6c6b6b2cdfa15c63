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

// What becomes of sums over the features, wherever a tile has them: Layout says which rows and columns a thread has.
template <class T, class Layout>
class TileOfCosts : public Layout {
 public:
  using Layout::kColumns, Layout::kRows, Layout::row, Layout::column;
  using Values = T[kRows][kColumns];

 protected:
  const PairsOf<T>& p_;

  __device__ explicit TileOfCosts(const PairsOf<T>& pairs) : p_(pairs) {}
  // What lies outside of the matrix is taken for its last row or column.
  static __device__ int within(int index, int count) { return index < count ? index : count - 1; }
  __device__ int row_at(int row0, int r) const { return within(row0 + row(r), p_.n); }
  __device__ int column_at(int col0, int c) const { return within(col0 + column(c), p_.m); }

  // Products become distances.
  template <Metric kMetric>
  __device__ void from_products(int row0, int col0, Values& costs) const {
    T sy[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) sy[c] = p_.scale_y[column_at(col0, c)];
    uint64_t found = 0;  // near pairs, a bit each
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const T sx = p_.scale_x[row_at(row0, r)];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        bool is_near = false;
        costs[r][c] = distance(kMetric, sx, sy[c], costs[r][c], &is_near);
        found |= uint64_t(is_near) << (r * kColumns + c);
      }
    }
    if constexpr (by_difference(kMetric)) measure<kMetric>(row0, col0, found, costs);
  }

  // Distances become costs.
  __device__ void finish(int row0, int col0, Values& costs) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int c = 0; c < kColumns; ++c) costs[r][c] = finite_or_nan(costs[r][c]);
    if (!p_.classes) return;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int64_t label = p_.labels[column_at(col0, c)];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const T* of_row = p_.class_cost + int64_t(row_at(row0, r)) * p_.classes;
        costs[r][c] = with_class_term(costs[r][c], of_row, p_.classes, label);
      }
    }
  }

 private:
  // Near pairs by the differences of their rows.
  template <Metric kMetric>
  __device__ void measure(int row0, int col0, uint64_t found, Values& costs) const {
#pragma unroll 1
    for (int bit = 0; bit < kRows * kColumns && found >> bit; ++bit) {
      if (!(found >> bit & 1)) continue;
      const int64_t i = row_at(row0, bit / kColumns), j = column_at(col0, bit % kColumns);
      const T measured = of_square(kMetric, typed_features<T>(p_.type, p_.given_x, [&](auto* x) {
                                     auto* y = static_cast<decltype(x)>(p_.given_y);
                                     return squared_distance<T>(normalised(kMetric), x + i * p_.d, y + j * p_.d, p_.d);
                                   }));
#pragma unroll
      for (int e = 0; e < kRows * kColumns; ++e)
        costs[e / kColumns][e % kColumns] = e == bit ? measured : costs[e / kColumns][e % kColumns];
    }
  }
};

// Squared distances of so few features are summed from differences: as quick as products, and no pair is too near.
constexpr int kFewFeatures = 16;

// By multiply-adds of every thread: any metric and type.
template <class T>
class PairTile : public TileOfCosts<T, SquareTile<T, sizeof(T) == 4 ? 8 : 4>> {
  static constexpr int kPer = sizeof(T) == 4 ? 8 : 4;
  using Square = SquareTile<T, kPer>;
  using Costs = TileOfCosts<T, Square>;

 public:
  using Costs::kSize, Costs::kThreads;
  using typename Costs::Values;
  static constexpr int kDepth = 16;  // features at a time
  struct Chunk {
    T left[kDepth][kSize], right[kDepth][kSize];
  };
  struct Shared {
    Chunk chunks[2];  // by turns
  };

  __device__ PairTile(const PairsOf<T>& pairs, Shared* shared) : Costs(pairs), shared_(shared) {
    squares_ = centred(p_.metric) && p_.d <= kFewFeatures;
  }

  // The costs of the tile from row0 and col0 on, (row0 + row(r), col0 + column(c)) at [r][c].
  __device__ void make(int row0, int col0, Values& costs) {
    T ahead[2][kLoads];
#pragma unroll
    for (int r = 0; r < kPer; ++r)
#pragma unroll
      for (int c = 0; c < kPer; ++c) costs[r][c] = 0;
    load(row0, col0, 0, ahead);
#pragma unroll 1
    for (int first = 0; first < p_.d; first += kDepth) {
      Chunk& chunk = shared_->chunks[turn_ ^= 1];
      store(chunk, ahead);
      cuda::sync_block();
      if (first + kDepth < p_.d) load(row0, col0, first + kDepth, ahead);
      const int depth = p_.d - first < kDepth ? p_.d - first : kDepth;
      if (summed(p_.metric))
        Square::multiply(chunk, depth, costs, [&](T& sum, T x, T y) { sum += term(p_.metric, x, y); });
      else if (squares_)
        Square::multiply(chunk, depth, costs, [](T& sum, T x, T y) { sum += (x - y) * (x - y); });
      else
        Square::multiply(chunk, depth, costs, [](T& sum, T x, T y) { sum += x * y; });
    }
    known_metric(p_.metric, [&](auto known) {
      constexpr Metric kMetric = decltype(known)::value;
      if constexpr (!summed(kMetric)) {
        if (!squares_) return this->template from_products<kMetric>(row0, col0, costs);
#pragma unroll
        for (int r = 0; r < kPer; ++r)
#pragma unroll
          for (int c = 0; c < kPer; ++c) costs[r][c] = of_square(kMetric, costs[r][c]);
      }
    });
    this->finish(row0, col0, costs);
  }

 private:
  using Costs::p_, Costs::within;
  static constexpr int kLoads = kDepth * kSize / kThreads;  // features of a row that a thread brings to shared memory

  Shared* shared_;
  int turn_ = 0;
  bool squares_;

  static __device__ int place() { return threadIdx.x % kSize; }
  static __device__ int depth() { return threadIdx.x / kSize * kLoads; }
  __device__ void load(int row0, int col0, int first, T (&to)[2][kLoads]) const {
    load_side(squares_ ? p_.given_x : p_.x, within(row0 + place(), p_.n), first, to[0]);
    load_side(squares_ ? p_.given_y : p_.y, within(col0 + place(), p_.m), first, to[1]);
  }
  __device__ void load_side(const void* features, int row, int first, T (&to)[kLoads]) const {
    const int begin = first + depth();
    typed_features<T>(p_.type, features, [&](auto* z) {
      z += int64_t(row) * p_.d;
#pragma unroll
      for (int k = 0; k < kLoads; ++k) to[k] = begin + k < p_.d ? cuda::wide(z[begin + k]) : T(0);
    });
  }
  static __device__ void store(Chunk& to, const T (&from)[2][kLoads]) {
#pragma unroll
    for (int k = 0; k < kLoads; ++k)
      to.left[depth() + k][place()] = from[0][k], to.right[depth() + k][place()] = from[1][k];
  }
};

}  // namespace
}  // namespace cost
}  // namespace ucmkd

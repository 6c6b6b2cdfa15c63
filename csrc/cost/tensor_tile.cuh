// Costs of a tile of pairs of half-precision features, whose products the tensor cores make: exact products, summed in
// float. The same 128 x 128 as pair_tile.cuh, in a layout of its own:
//
//   warp w    rows (w / 2) 32 ..., columns (w % 2) 64 ...: 2 x 8 products of 16 x 8 by 16 features
//   a thread  of each, rows lane / 4 and 8 more, columns lane % 4 * 2 and the next (cuda::multiply_add)
#pragma once
#include "cost/pair_tile.cuh"

namespace ucmkd {
namespace cost {
namespace {

struct TensorLayout {
  static constexpr int kThreads = 256, kSize = 128;
  static constexpr int kDown = 2, kAcross = 8;  // products of a warp
  static constexpr int kRows = 2 * kDown, kColumns = 2 * kAcross;
  static constexpr int kRowSharers = 8, kColumnSharers = 32;

  static __device__ int lane() { return threadIdx.x % kWarp; }
  static __device__ int warp_row() { return threadIdx.x / kWarp / 2 * (16 * kDown); }
  static __device__ int warp_column() { return threadIdx.x / kWarp % 2 * (8 * kAcross); }
  static __device__ int row(int r) { return warp_row() + r / 2 * 16 + r % 2 * 8 + lane() / 4; }
  static __device__ int column(int c) { return warp_column() + c / 2 * 8 + lane() % 4 * 2 + c % 2; }
  static __device__ int row_sharer() { return threadIdx.x / kWarp % 2 * 4 + lane() % 4; }
  static __device__ int column_sharer() { return threadIdx.x / kWarp / 2 * 8 + lane() / 4; }
};

class TensorTile : public TileOfCosts<float, TensorLayout> {
  using Costs = TileOfCosts<float, TensorLayout>;
  static constexpr int kDepth = 32;          // features at a time
  static constexpr int kPitch = kDepth + 8;  // of a row in shared memory: eight rows lie in different banks
  static constexpr int kEight = kDepth / 8;  // vectors of 16 bytes per row
  static constexpr int kLoads = kSize * kEight / kThreads;

 public:
  struct alignas(16) Shared {
    uint16_t left[2][kSize][kPitch], right[2][kSize][kPitch];  // by turns
  };

  __device__ TensorTile(const PairsOf<float>& pairs, Shared* shared) : Costs(pairs), shared_(shared) {
    const uintptr_t addresses = reinterpret_cast<uintptr_t>(p_.x) | reinterpret_cast<uintptr_t>(p_.y);
    vectors_ = p_.d % 8 == 0 && addresses % 16 == 0;
  }

  __device__ void make(int row0, int col0, Values& costs) {
    cuda::Eight ahead[2][kLoads];
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int c = 0; c < kColumns; ++c) costs[r][c] = 0;
    load(row0, col0, 0, ahead);
#pragma unroll 1
    for (int first = 0; first < p_.d; first += kDepth) {
      turn_ ^= 1;
      store(row0, col0, first, ahead);
      cuda::sync_block();
      if (first + kDepth < p_.d) load(row0, col0, first + kDepth, ahead);
      if (p_.type == FeatureType::kHalf)
        multiply<cuda::Half>(costs);
      else
        multiply<cuda::BFloat16>(costs);
    }
    known_metric(p_.metric, [&](auto known) {
      constexpr Metric kMetric = decltype(known)::value;
      if constexpr (!summed(kMetric)) from_products<kMetric>(row0, col0, costs);
    });
    finish(row0, col0, costs);
  }

 private:
  Shared* shared_;
  int turn_ = 0;
  bool vectors_;

  // Vector k of a thread: eight features of a row of the tile, 0 behind its last one.
  static __device__ int vector_row(int k) { return (threadIdx.x + k * kThreads) / kEight; }
  static __device__ int vector_begin(int k) { return (threadIdx.x + k * kThreads) % kEight * 8; }
  __device__ const uint16_t* row_of(const void* features, int row) const {
    return static_cast<const uint16_t*>(features) + int64_t(row) * p_.d;
  }

  // On their way to registers, where vectors can be.
  __device__ void load(int row0, int col0, int first, cuda::Eight (&to)[2][kLoads]) const {
    if (!vectors_) return;
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const int begin = first + vector_begin(k);
      const bool there = begin < p_.d;
      const uint16_t *x = row_of(p_.x, within(row0 + vector_row(k), p_.n)) + begin,
                     *y = row_of(p_.y, within(col0 + vector_row(k), p_.m)) + begin;
      to[0][k] = there ? *reinterpret_cast<const cuda::Eight*>(x) : cuda::Eight();
      to[1][k] = there ? *reinterpret_cast<const cuda::Eight*>(y) : cuda::Eight();
    }
  }
  __device__ void store(int row0, int col0, int first, const cuda::Eight (&from)[2][kLoads]) const {
    uint16_t (*left)[kPitch] = shared_->left[turn_];
    uint16_t (*right)[kPitch] = shared_->right[turn_];
    if (vectors_) {
#pragma unroll
      for (int k = 0; k < kLoads; ++k) {
        *reinterpret_cast<cuda::Eight*>(&left[vector_row(k)][vector_begin(k)]) = from[0][k];
        *reinterpret_cast<cuda::Eight*>(&right[vector_row(k)][vector_begin(k)]) = from[1][k];
      }
      return;
    }
#pragma unroll 1
    for (int at = threadIdx.x; at < kSize * kDepth; at += kThreads) {
      const int row = at / kDepth, k = at % kDepth;
      const bool there = first + k < p_.d;
      left[row][k] = there ? row_of(p_.x, within(row0 + row, p_.n))[first + k] : uint16_t(0);
      right[row][k] = there ? row_of(p_.y, within(col0 + row, p_.m))[first + k] : uint16_t(0);
    }
  }

  // Two features of a row in shared memory.
  static __device__ unsigned two(const uint16_t* from) { return *reinterpret_cast<const unsigned*>(from); }
  // Those at hand, sixteen by sixteen.
  template <class F>
  __device__ void multiply(Values& sums) const {
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) multiply<F>(k, sums);
  }
  template <class F>
  __device__ void multiply(int k, Values& sums) const {
    const int of_lane = lane() / 4, begin = k + lane() % 4 * 2;
    unsigned a[kDown][4];
#pragma unroll
    for (int down = 0; down < kDown; ++down)
#pragma unroll
      for (int part = 0; part < 4; ++part)
        a[down][part] =
            two(&shared_->left[turn_][warp_row() + down * 16 + part % 2 * 8 + of_lane][begin + part / 2 * 8]);
#pragma unroll
    for (int across = 0; across < kAcross; ++across) {
      const uint16_t* of_column = &shared_->right[turn_][warp_column() + across * 8 + of_lane][begin];
      const unsigned b[2] = {two(of_column), two(of_column + 8)};
#pragma unroll
      for (int down = 0; down < kDown; ++down) {
        float* upper = &sums[2 * down][2 * across];
        float* lower = &sums[2 * down + 1][2 * across];
        float four[4] = {upper[0], upper[1], lower[0], lower[1]};
        cuda::multiply_add<F>(four, a[down], b);
        upper[0] = four[0], upper[1] = four[1], lower[0] = four[2], lower[1] = four[3];
      }
    }
  }
};

}  // namespace
}  // namespace cost
}  // namespace ucmkd

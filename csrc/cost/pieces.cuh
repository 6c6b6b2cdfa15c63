// How the matrix is shared out among blocks by the kernels that visit all of it.
#pragma once
#include "cost/pairs.cuh"

namespace ucmkd {
namespace cost {
namespace {

// A block's piece: `across` threads, a power of two, own kVec neighbouring columns each, for kRows rows at a distance
// of `down`, which are on their way together.
struct Piece {
  static constexpr int kRows = 4;
  int64_t row, column;
  int down;

  template <class T, class F>
  __device__ Piece(const Call<T, F>& c, int vec) {
    const int across = 1 << c.across, pieces = int((c.m + across * vec - 1) / (across * vec));
    down = blockDim.x >> c.across;
    column = (int64_t(c.block % pieces) * across + (threadIdx.x & (across - 1))) * vec;
    row = c.block / pieces * (down * kRows) + (threadIdx.x >> c.across);
  }
};

}  // namespace
}  // namespace cost
}  // namespace ucmkd

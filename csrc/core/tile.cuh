// A square tile of a matrix in the registers of one block: kSide x kSide threads of kPer x kPer elements each. It is what
// two arrays in shared memory multiply to, (depth, kSize) for its rows and its columns.
#pragma once
#include "core/launch.cuh"
#include "core/pack.h"

namespace ucmkd {

template <class T, int kPer>
struct SquareTile {
  static constexpr int kSide = 16, kThreads = kSide * kSide;
  static constexpr int kSize = kSide * kPer;           // rows, columns
  static constexpr int kRows = kPer, kColumns = kPer;  // of a thread
  // Threads that share a row, or a column, and which of them this is.
  static constexpr int kRowSharers = kSide, kColumnSharers = kSide;
  static __device__ int row_sharer() { return thread_column(); }
  static __device__ int column_sharer() { return thread_row(); }
  static constexpr int kVec = kPer * sizeof(T) < 16 ? kPer : 16 / sizeof(T);
  using Vec = Pack<T, kVec>;

  static __device__ int thread_row() { return threadIdx.x / kSide; }
  static __device__ int thread_column() { return threadIdx.x % kSide; }

  // Where in the tile element e of the row or column `thread` of threads lies: neighbours read neighbouring vectors.
  static __device__ int at(int thread, int e) { return (e / kVec * kSide + thread) * kVec + e % kVec; }
  static __device__ int row(int e) { return at(thread_row(), e); }
  static __device__ int column(int e) { return at(thread_column(), e); }

  static __device__ void read(const T* from, int thread, T (&to)[kPer]) {
#pragma unroll
    for (int e = 0; e < kPer; e += kVec) {
      const Vec vec = *reinterpret_cast<const Vec*>(from + at(thread, e));
#pragma unroll
      for (int q = 0; q < kVec; ++q) to[e + q] = vec.e[q];
    }
  }

  // add(sum of an element, x of its row, y of its column) at every depth of `from`: left and right (depth, kSize).
  template <class From, class Add>
  static __device__ void multiply(const From& from, int depth, T (&sum)[kPer][kPer], Add add) {
#pragma unroll 2
    for (int k = 0; k < depth; ++k) {
      T x[kPer], y[kPer];
      read(from.left[k], thread_row(), x);
      read(from.right[k], thread_column(), y);
#pragma unroll
      for (int r = 0; r < kPer; ++r)
#pragma unroll
        for (int c = 0; c < kPer; ++c) add(sum[r][c], x[r], y[c]);
    }
  }
};

}  // namespace ucmkd

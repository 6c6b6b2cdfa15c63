// The blocks that solve one problem together: where a block stands among them, their barrier, and their sums.
//
// A crew is one block (its barrier is the block's), a whole cooperative grid, or a cluster. The code is the same.
#pragma once
#include "core/launch.cuh"
#include "sinkhorn/step.h"
#include "sinkhorn/steps.cuh"

namespace ucmkd {
namespace sinkhorn {

// Sums over a warp of kN numbers in turn: half of them at each step, then the butterfly of the last.
template <int kN, int kMask, class T>
__device__ T fold(T (&x)[kN], int lane) {
  if constexpr (kN == 1) {
    T sum = x[0];
#pragma unroll
    for (int mask = kMask; mask > 0; mask /= 2) sum += cuda::shuffle_xor(sum, mask);
    return sum;
  } else {
    T half[kN / 2];
    const bool upper = lane & kMask;
#pragma unroll
    for (int k = 0; k < kN / 2; ++k) {
      const T mine = upper ? x[k + kN / 2] : x[k], other = upper ? x[k] : x[k + kN / 2];
      half[k] = mine + cuda::shuffle_xor(other, kMask);
    }
    return fold<kN / 2, kMask / 2>(half, lane);
  }
}

// So many threads beside each other, as a power of two, read the sums of columns beside each other.
__device__ inline int log_strip(int columns) {
  int log_width = 0;
  while ((1 << log_width) < columns && (1 << log_width) < kWarp) ++log_width;
  return log_width;
}

struct Crew {
  int rank, size;  // blocks of the crew
  int tid, threads, warp, lane, warps;
  int n, m;
  int row_begin, row_end;  // rows of this block
  int col_begin, col_end;  // columns that this block puts together
  double* scratch;         // shared (64,)
  double* slots;           // global (2, size): one number of each block, two rounds in flight
  unsigned* counter;       // global (): of the barrier, 0 at first; null: the runtime's own barrier
  unsigned passed = 0;     // barriers
  unsigned arrival = 0;    // of the barrier that is under way
  int round = 0;
  bool grid, cluster;  // neither: one block

  __device__ Crew(bool grid_, int n_, int m_, unsigned* counter_, bool cluster_ = false)
      : n(n_), m(m_), counter(counter_), grid(grid_), cluster(cluster_) {
    rank = cluster ? cuda::cluster_rank() : grid ? blockIdx.x : 0;
    size = cluster ? cuda::cluster_size() : grid ? gridDim.x : 1;
    tid = threadIdx.x, threads = blockDim.x;
    warp = tid / kWarp, lane = tid % kWarp, warps = threads / kWarp;
    row_begin = part_of(n, rank), row_end = part_of(n, rank + 1);
    col_begin = part_of(m, rank), col_end = part_of(m, rank + 1);
  }

  __device__ int part_of(int count, int index) const { return static_cast<int>(int64_t(count) * index / size); }
  __device__ void sync() { arrive(), wait(); }
  // Its halves: what this block does between them, others need not see behind it.
  __device__ void arrive() {
    if (cluster) return cuda::arrive_at_cluster();
    if (!grid) return;
    if (counter)
      cuda::counted_arrive(counter);
    else
      arrival = cuda::arrive_at_grid();
  }
  __device__ void wait() {
    if (cluster)
      cuda::wait_for_cluster();
    else if (!grid)
      cuda::sync_block();
    else if (counter)
      cuda::counted_wait(counter, ++passed * unsigned(size));
    else
      cuda::wait_for_grid(arrival);
  }
  __device__ bool leads() const { return rank == 0 && tid == 0; }

  // body(k) for every k of [begin, end), shared by the threads of this block.
  template <class Body>
  __device__ void over(int begin, int end, Body body) const {
#pragma unroll 1
    for (int k = begin + tid; k < end; k += threads) body(k);
  }

  // The sum, or the largest, of one number per thread over the whole crew: the same on every thread, and in
  // an order that never changes. Every thread of the crew calls it; it is a barrier of the crew.
  __device__ double total(double mine) { return reduce<false>(mine); }
  __device__ double largest(double mine) { return reduce<true>(mine); }

  // The same over this block alone; the largest of nothing is -inf.
  template <bool kLargest>
  __device__ double in_block(double mine) {
    mine = warp_reduce<kLargest>(mine);
    cuda::sync_block();  // scratch may still be read from the round before
    if (lane == 0) scratch[warp] = mine;
    cuda::sync_block();
    double result = kLargest ? -double(INFINITY) : 0.0;
#pragma unroll 1
    for (int w = 0; w < warps; ++w) result = combine<kLargest>(result, scratch[w]);
    return result;
  }

 private:
  template <bool kLargest>
  __device__ static double combine(double a, double b) {
    return kLargest ? (a < b ? b : a) : a + b;
  }
  template <bool kLargest>
  __device__ static double warp_reduce(double x) {
    for (int mask = kWarp / 2; mask > 0; mask /= 2) x = combine<kLargest>(x, cuda::shuffle_xor(x, mask));
    return x;
  }
  template <bool kLargest>
  __device__ double reduce(double mine) {
    double result = in_block<kLargest>(mine);
    if (!grid && !cluster) return result;
    double* slot = slots + (round++ & 1) * size;
    if (tid == 0) slot[rank] = result;
    sync();
    result = kLargest ? -double(INFINITY) : 0.0;
    for (int k = lane; k < size; k += kWarp) result = combine<kLargest>(result, slot[k]);
    return warp_reduce<kLargest>(result);
  }
};

}  // namespace sinkhorn
}  // namespace ucmkd

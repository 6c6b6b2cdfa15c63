// Problems of at most 128 rows and columns in float: the whole cost in the registers of one block of eight warps.
// A warp owns R rows, a lane C columns of each. Sums of rows stay within a warp; sums of columns pass through shared
// memory, and every warp puts all of them together: potentials of the columns are in the registers of each.
//
// What lies outside the problem has no mass and costs +inf: its exponentials are 0, and nothing asks for sizes.
#pragma once
#include "core/launch.cuh"
#include "core/pack.h"
#include "sinkhorn/cuda.h"
#include "sinkhorn/steps.cuh"

namespace ucmkd {
namespace sinkhorn {

constexpr int kSmallWarps = 8, kSmallThreads = kSmallWarps * kWarp;
constexpr float kPowersOf2 = float(kLog2E), kLn2 = 0.693147181f;  // per power of e, and back

// kSums: how many sums of each column are taken at a time.
template <int R, int C, int kSums>
struct SmallShared {
  Pack<float, C> parts[2][kSums][kSmallWarps][kWarp];  // of the columns' sums, by turns: one barrier per sum
  double totals[4][kSmallWarps];
};

// Where a thread stands. With 32 / R lanes beside it, it answers for one row of its warp, `mine`: sums over the row
// arrive there. Each lane holds the warp's rows in an order of its own, r ^ mine, so that its own comes first and
// each shuffle finds on all lanes what it needs in the same register.
template <int R, int C, int kSums = 1>
struct Small {
  static_assert(R >= 2 && R <= kWarp && (R & (R - 1)) == 0, "rows are halved until a lane has one");
  int n, m, warp, lane, mine;
  bool leads;  // of the lanes that answer for the row
  SmallShared<R, C, kSums>& shared;

  __device__ Small(int n_, int m_)
      : n(n_), m(m_), warp(threadIdx.x / kWarp), lane(threadIdx.x % kWarp), mine(lane / (kWarp / R)),
        leads(lane % (kWarp / R) == 0), shared(*reinterpret_cast<SmallShared<R, C, kSums>*>(cuda::shared_memory())) {}

  __device__ int row(int r) const { return warp * R + (r ^ mine); }
  __device__ int row() const { return warp * R + mine; }
  __device__ int column(int c) const { return lane + kWarp * c; }
  __device__ bool has_row() const { return row() < n; }
  __device__ bool has_column(int c) const { return column(c) < m; }

  __device__ float element(const float* cost, int i, int c) const {
    return i < n && has_column(c) ? cost[i * m + column(c)] : float(INFINITY);
  }
  __device__ void load(const float* cost, float (&out)[R][C]) const {
    each([&](int r, int c, bool there, int offset) { out[r][c] = there ? cost[offset] : float(INFINITY); });
  }
  // body(r, c, whether the problem has it, offset in a matrix)
  template <class Body>
  __device__ void each(Body body) const {
    const int rows = cuda::opaque(n), columns = cuda::opaque(m), first = cuda::opaque(mine);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int i = warp * R + (r ^ first);
#pragma unroll
      for (int c = 0; c < C; ++c) body(r, c, i < rows && column(c) < columns, i * columns + column(c));
    }
  }

  // The sum over the lanes of x[mine]: each step halves the rows that a lane holds and doubles what they cover.
  __device__ float sum_row(float (&x)[R]) const {
    float sums[1];
    float (*all[1])[R] = {&x};
    sum_rest<R / 2>(all, sums);
    return sums[0];
  }
  // Of two, the shuffles of one while those of the other are on their way.
  __device__ void sum_rows(float (&x)[R], float (&y)[R], float (&sums)[2]) const {
    float (*all[2])[R] = {&x, &y};
    sum_rest<R / 2>(all, sums);
  }

  // What lanes hold of the rows that they answer for, to all lanes of the warp.
  __device__ float spread(float own, int r) const { return cuda::shuffle_xor(own, r * (kWarp / R)); }
  __device__ void spread_rows(float own, float (&rows)[R]) const {
#pragma unroll
    for (int r = 0; r < R; ++r) rows[r] = r == 0 ? own : spread(own, r);
  }

  // Sums over the warps of what each lane holds for its columns: the same on every warp. `turn`: 0 and 1 alternate.
  // Nobody is still at the sums before the last: all have put down their parts of the last one since.
  __device__ void put_columns(const Pack<float, C>& own, int turn, int which = 0) const {
    shared.parts[turn][which][warp][lane] = own;
  }
  // Behind a barrier.
  __device__ void take_columns(int turn, float (&sums)[C], int which = 0) const {
    add_parts(shared.parts[turn][which], sums);
  }
  __device__ void sum_columns(const Pack<float, C>& first, const Pack<float, C>& second, int turn, float (&firsts)[C],
                              float (&seconds)[C]) const {
    put_columns(first, turn), put_columns(second, turn, 1);
    cuda::sync_block();
    take_columns(turn, firsts), take_columns(turn, seconds, 1);
  }

  // The same for log-sums, between two turns.
  __device__ void merge_columns(LogSum<float> (&sums)[C]) const {
    cuda::sync_block();
#pragma unroll
    for (int c = 0; c < C; ++c) {
      shared.parts[0][0][warp][lane].e[c] = sums[c].top;
      shared.parts[1][0][warp][lane].e[c] = sums[c].sum;
      sums[c] = LogSum<float>::empty();
    }
    cuda::sync_block();
    for (int w = 0; w < kSmallWarps; ++w)
#pragma unroll
      for (int c = 0; c < C; ++c) sums[c].merge({shared.parts[0][0][w][lane].e[c], shared.parts[1][0][w][lane].e[c]});
    cuda::sync_block();
  }

  // One number per thread, summed over the block; each call of a kernel has a slot of its own.
  __device__ double total(double x, int slot) const {
    x = warp_merge(Sum<double>{x}).sum;
    if (lane == 0) shared.totals[slot][warp] = x;
    cuda::sync_block();
    x = 0;
    for (int w = 0; w < kSmallWarps; ++w) x += shared.totals[slot][w];
    return x;
  }

 private:
  __device__ void add_parts(const Pack<float, C> (&parts)[kSmallWarps][kWarp], float (&sums)[C]) const {
    Pack<float, C> total = parts[0][lane];
#pragma unroll
    for (int w = 1; w < kSmallWarps; ++w) {
      const Pack<float, C> part = parts[w][lane];
#pragma unroll
      for (int c = 0; c < C; ++c) total.e[c] += part.e[c];
    }
#pragma unroll
    for (int c = 0; c < C; ++c) sums[c] = total.e[c];
  }

  template <int kHalf, int kCount>
  __device__ void sum_rest(float (*(&x)[kCount])[R], float (&sums)[kCount]) const {
    constexpr int kMask = kWarp / R * kHalf;
#pragma unroll
    for (int k = 0; k < kHalf; ++k)
#pragma unroll
      for (int s = 0; s < kCount; ++s) (*x[s])[k] += cuda::shuffle_xor((*x[s])[k + kHalf], kMask);
    if constexpr (kHalf > 1) {
      sum_rest<kHalf / 2>(x, sums);
    } else {
#pragma unroll
      for (int s = 0; s < kCount; ++s) sums[s] = (*x[s])[0];
#pragma unroll
      for (int left = kWarp / R / 2; left > 0; left /= 2)
#pragma unroll
        for (int s = 0; s < kCount; ++s) sums[s] += cuda::shuffle_xor(sums[s], left);
    }
  }
};

// Registers for the cost, for as many exponentials and for what goes with them; several blocks share a multiprocessor.
constexpr int small_blocks(int rows, int columns) { return rows * columns > 16 || rows > 8 ? 1 : 2; }

// body(Rows<R>, Columns<C>) for the least that holds the problem.
template <int R, int C>
struct SmallSize {
  static constexpr int kRows = R, kColumns = C;
};
template <int R, class Body>
const char* with_columns(int64_t m, Body body) {
  return m <= 32 ? body(SmallSize<R, 1>()) : m <= 64 ? body(SmallSize<R, 2>()) : body(SmallSize<R, 4>());
}
template <class Body>
const char* with_small_size(int64_t n, int64_t m, Body body) {
  return n <= 32 ? with_columns<4>(m, body) : n <= 64 ? with_columns<8>(m, body) : with_columns<16>(m, body);
}

const char* small_forward(const DeviceProblem<float>&, const ForwardOut<float>&, cuda::Stream);
// Through the iterations, not at the fixed point; makes dC as well.
const char* small_adjoint(const DeviceProblem<float>&, const AdjointCall<float>&, cuda::Stream);

}  // namespace sinkhorn
}  // namespace ucmkd

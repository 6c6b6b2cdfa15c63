// Near pairs in the backward: they are set apart from the products, in which their share would be lost (row.h). Such
// pairs are rare: the pass that makes the weights marks the pieces of the matrix that hold one, and nothing else is
// looked at here.
#pragma once
#include "cost/pieces.cuh"

namespace ucmkd {
namespace cost {
namespace {

// Whether the distance d of a pair is near.
template <class T, class F>
__device__ bool near_at(const Call<T, F>& c, T d, T sx, T sy) {
  const T total = normalised(c.metric) ? T(sx > 0) + T(sy > 0) : sx + sy;
  return near(square_of(c.metric, d), total);
}

template <class T, class F>
__device__ bool near_pair(const Call<T, F>& c, int64_t i, int64_t j) {
  return near_at(c, (c.distance ? c.distance : c.cost)[i * c.m + j], c.scale_x[i], c.scale_y[j]);
}

// 1 / |x| in double, by a warp: the same on all lanes, and of equal rows.
template <class F>
__device__ double inverse_length_of_warp(const F* x, int64_t d) {
  double total = 0;
  for (int64_t k = threadIdx.x % kWarp; k < d; k += kWarp) total += double(cuda::wide(x[k])) * double(cuda::wide(x[k]));
  return 1 / cuda::root(warp_sum(total));
}

// g += w |y| (y^ - z^), or w (y - z), over the rows y of `others` that have a bit in `found`, in their order, by a warp:
// their share of the products. Each lane has the weight of its row.
template <class T, class F>
__device__ void add_near(const Call<T, F>& c, unsigned found, T w, const F* z, const F* others, T* g) {
  constexpr int kAhead = 4;  // features of a lane, whose loads are on their way together
  const bool unit = normalised(c.metric);
  const int lane = threadIdx.x % kWarp;
  const double p = unit ? inverse_length_of_warp(z, c.d) : 1;
  double q = 1;
  for (unsigned rest = unit ? found : 0; rest; rest &= rest - 1) {
    const int at = cuda::lowest_bit(rest);
    const double its = inverse_length_of_warp(others + at * c.d, c.d);
    q = lane == at ? its : q;
  }
  w = T(double(w) / q);
  for (int64_t first = 0; first < c.d; first += kAhead * kWarp) {
    T total[kAhead];
#pragma unroll
    for (int e = 0; e < kAhead; ++e) {
      const int64_t k = first + e * kWarp + lane;
      total[e] = k < c.d ? g[k] : T(0);
    }
    for (unsigned rest = found; rest; rest &= rest - 1) {
      const int at = cuda::lowest_bit(rest);
      const T weight = cuda::shuffle_from(w, at);
      const double its = cuda::shuffle_from(q, at);
#pragma unroll
      for (int e = 0; e < kAhead; ++e) {
        const int64_t k = first + e * kWarp + lane;
        if (k < c.d) total[e] += weight * difference<T>(unit, others + at * c.d, its, z, p, k);
      }
    }
#pragma unroll
    for (int e = 0; e < kAhead; ++e) {
      const int64_t k = first + e * kWarp + lane;
      if (k < c.d) g[k] = total[e];
    }
  }
}

// grad_x begins as the share of the rows' near pairs of W y: a warp per row.
template <class T, class F>
__global__ void near_rows_kernel(const __grid_constant__ Call<T, F> all) {
  constexpr int kAhead = 8;  // warps' widths, whose distances are on their way together
  const Call<T, F> c = all.of_problem();
  const int64_t i = c.thread() / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (i >= c.n) return;  // the whole warp
  T* g = c.grad_x + i * c.d;
  for (int64_t k = lane; k < c.d; k += kWarp) g[k] = 0;
  const int64_t across = c.pieces_across();
  const int* marks = c.marks + (i >> c.piece_rows) * across;
  for (int64_t group = 0; group < across; group += kWarp) {
    unsigned marked = cuda::lanes_where(group + lane < across && marks[group + lane]);
    for (; marked; marked &= marked - 1) {
      const int64_t left = (group + cuda::lowest_bit(marked)) << c.piece_columns;
      const int64_t right = left + (int64_t(1) << c.piece_columns), end = right < c.m ? right : c.m;
      for (int64_t first = left; first < end; first += kAhead * kWarp) {
        unsigned mine = 0;
#pragma unroll
        for (int e = 0; e < kAhead; ++e) {
          const int64_t j = first + e * kWarp + lane;
          mine |= unsigned(j < end && near_pair(c, i, j)) << e;
        }
        if (!cuda::any(mine)) continue;
        for (int e = 0; e < kAhead; ++e) {
          const int64_t at = first + e * kWarp;
          const unsigned found = cuda::lanes_where(mine >> e & 1);
          if (!found) continue;
          const T w = mine >> e & 1 ? c.grad_cost[i * c.m + at + lane] : T(0);
          add_near(c, found, w, c.given_x + i * c.d, c.given_y + at * c.d, g);
        }
      }
    }
  }
}

// Whether a piece that holds these columns is marked; for the whole block.
template <class T, class F>
__device__ bool marked_columns(const Call<T, F>& c, const int* marks) {
  const int64_t across = c.pieces_across(), down = c.pieces_down();
  bool found = false;
  for (int64_t p = threadIdx.x; p < down; p += blockDim.x) found = found || marks[p * across];
  return cuda::any_of_block(found);
}

// grad_y begins as the share of the columns' near pairs of W' x, or has it added; their weights become 0. A block has
// kWarp columns, which lie in one piece. A row for every thread at a time: its warp's lanes look for near pairs in a
// column each, and leave a bit for each row; then a warp adds a column's.
template <class T, class F>
__global__ void near_columns_kernel(const __grid_constant__ Call<T, F> all) {
  constexpr int kWarps = kThreads / kWarp;
  const Call<T, F> c = all.of_problem();
  unsigned* rows_near = reinterpret_cast<unsigned*>(cuda::shared_memory());  // (kWarps, kWarp)
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t left = c.block * kWarp, j = left + lane;
  const int columns = c.m - left < kWarp ? int(c.m - left) : kWarp;
  if (c.grad_y && !c.adds_to_y)
    for (int s = warp; s < columns; s += kWarps)
      for (int64_t k = lane; k < c.d; k += kWarp) c.grad_y[(left + s) * c.d + k] = 0;
  const int* marks = c.marks + (left >> c.piece_columns);
  if (!marked_columns(c, marks)) return;
  for (int64_t top = 0; top < c.n; top += kThreads) {
    const int64_t row = top + threadIdx.x;
    if (!cuda::any_of_block(row < c.n && marks[(row >> c.piece_rows) * c.pieces_across()])) continue;
    unsigned mine = 0;
#pragma unroll 8
    for (int r = 0; r < kWarp; ++r) {
      const int64_t i = top + warp * kWarp + r;
      mine |= unsigned(j < c.m && i < c.n && near_pair(c, i, j)) << r;
    }
    rows_near[threadIdx.x] = mine;
    cuda::sync_block();
    for (int s = warp; s < columns && c.grad_y; s += kWarps)
      for (int v = 0; v < kWarps; ++v) {
        const unsigned found = rows_near[v * kWarp + s];
        if (!found) continue;  // the whole warp
        const int64_t first = top + v * kWarp, at = left + s;
        const T w = found >> lane & 1 ? c.grad_cost[(first + lane) * c.m + at] : T(0);
        add_near(c, found, w, c.given_y + at * c.d, c.given_x + first * c.d, c.grad_y + at * c.d);
      }
    cuda::sync_block();  // the weights have been read
    for (int r = 0; r < kWarp; ++r)
      if (mine >> r & 1) c.grad_cost[(top + warp * kWarp + r) * c.m + j] = 0;
  }
}

}  // namespace
}  // namespace cost
}  // namespace ucmkd

// The blocks that solve one problem together, and the one sweep that all kernels are made of.
//
//   row pass     y_i = step.finish(i, sum_j step.row(step.given(i), j, C_ij))   a warp or more per row
//   column pass  state_j += step.column(y_i, j, C_ij)                           a thread per column, rows in turns
//
// A block owns a range of rows. It takes as many as fit into shared memory at a time: their costs are read
// from global memory once, by the row pass, and the column pass finds them on chip. What the blocks have
// gathered for the columns is put together in a fixed order: results do not depend on scheduling.
//
// For problems whose columns no block can own (owned.cuh).
#pragma once
#include "core/launch.cuh"
#include "sinkhorn/crew.cuh"
#include "sinkhorn/regime.h"
#include "sinkhorn/steps.cuh"

namespace ucmkd {
namespace sinkhorn {

template <class T, bool kGrid>
struct Team : Crew {
  // memory
  const T* cost;  // (n, m) global
  T* tile;        // shared (tile_rows, m)
  int tile_rows;
  bool kept, state_shared;
  RowValue<T>* values;  // shared (rows at once,)
  T* parts;             // shared 2 (max(rows at once, warps),)
  T* state;             // this block's (groups, m) sums of 2 elements: shared, or its part of all_states
  T* all_states;        // (size * groups, m) sums of 2 elements; global where size > 1
  int span, groups;

  // `work`: the work space of this problem (Plan::work elements).
  __device__ Team(const Plan& plan, int n_, int m_, const T* cost_, T* work)
      : Crew(kGrid, n_, m_, nullptr), cost(cost_) {
    tile_rows = plan.tile_rows, kept = plan.kept, state_shared = plan.state_shared;
    span = column_span(threads, m), groups = threads / span;
    const int at_once = rows_at_once(tile_rows), part_count = at_once > warps ? at_once : warps;
    scratch = reinterpret_cast<double*>(cuda::shared_memory());
    T* shared = reinterpret_cast<T*>(scratch) + 2 * 64;
    values = reinterpret_cast<RowValue<T>*>(shared), shared += 3 * at_once;
    parts = shared, shared += 2 * part_count;
    T* states_in_work = work;
    slots = reinterpret_cast<double*>(work + 2 * int64_t(size) * groups * m);
    all_states = states_in_work;
    state = states_in_work + 2 * int64_t(rank) * groups * m;
    if (state_shared) {
      state = shared, shared += 2 * int64_t(groups) * m;
      if (!kGrid) all_states = state;
    }
    tile = tile_rows > 0 ? shared : nullptr;
    if (kept) {
      const int64_t count = int64_t(row_end - row_begin) * m;
      const T* own = cost + int64_t(row_begin) * m;
      for (int64_t k = tid; k < count; k += threads) tile[k] = own[k];
      cuda::sync_block();
    }
  }

  // (3, m) global elements for vectors of the columns.
  __device__ T* spare() const { return reinterpret_cast<T*>(slots + 2 * size); }

  // Row pass and column pass over the rows of this block. Ends with the team's sums complete in all_states,
  // and a barrier of the team.
  template <class Step>
  __device__ void sweep(Step& step) {
    if constexpr (Step::kColumns) clear_state<typename Step::Column>();
    const int at_once = rows_at_once(tile_rows);
    for (int begin = row_begin; begin < row_end; begin += at_once) {
      const int count = row_end - begin < at_once ? row_end - begin : at_once;
      if constexpr (Step::kRows) {
        row_pass(step, begin, count);
      } else {
        over(0, count, [&](int r) { values[r] = step.given(begin + r); });
      }
      cuda::sync_block();
      if constexpr (Step::kColumns) column_pass(step, begin, count);
      cuda::sync_block();
    }
    if (Step::kColumns && kGrid && state_shared) publish_state();
    sync();
  }

  // body(j, sums of column j) on one thread per column of this block.
  template <class A, class Body>
  __device__ void columns(Body body) const {
    const int states = size * groups;
    const A* all = reinterpret_cast<const A*>(all_states);
    constexpr int kStride = 2 * sizeof(T) / sizeof(A);  // a state takes two elements whatever it holds
    if (states < kWarp) {
      for (int j = col_begin + tid; j < col_end; j += threads) {
        A acc = all[int64_t(j) * kStride];
        for (int s = 1; s < states; ++s) acc.merge(all[(int64_t(s) * m + j) * kStride]);
        body(j, acc);
      }
      return;
    }
    for (int j = col_begin + warp; j < col_end; j += warps) {
      A acc = A::empty();
      for (int s = lane; s < states; s += kWarp) acc.merge(all[(int64_t(s) * m + j) * kStride]);
      acc = warp_merge(acc);
      if (lane == 0) body(j, acc);
    }
  }

 private:
  template <class Step>
  __device__ void row_pass(Step& step, int begin, int count) {
    using Row = typename Step::Row;
    Row* sums = reinterpret_cast<Row*>(parts);
    const int slices = warps > count ? warps / count : 1;  // warps per row
    const T* rows = kept ? tile + int64_t(begin - row_begin) * m : cost + int64_t(begin) * m;
    const bool stage = tile && !kept;
    const int slice = warp % slices;
    for (int r = warp / slices; r < count && warp < (warps / slices) * slices; r += warps / slices) {
      const T* row = rows + int64_t(r) * m;
      const RowValue<T> given = step.given(begin + r);
      Row acc = Row::empty();
#pragma unroll Step::kUnroll
      for (int j = slice * kWarp + lane; j < m; j += slices * kWarp) {
        const T c = row[j];
        if (stage) tile[int64_t(r) * m + j] = c;
        acc.add(step.row(given, j, c));
      }
      acc = warp_merge(acc);
      if (lane == 0) sums[r * slices + slice] = acc;
    }
    cuda::sync_block();
    for (int r = tid; r < count; r += threads) {
      Row acc = sums[r * slices];
      for (int s = 1; s < slices; ++s) acc.merge(sums[r * slices + s]);
      values[r] = step.finish(begin + r, acc);
    }
  }

  template <class Step>
  __device__ void column_pass(Step& step, int begin, int count) {
    using Column = typename Step::Column;
    const int group = tid / span;
    if (group >= groups) return;
    const T* rows = kept                  ? tile + int64_t(begin - row_begin) * m
                    : tile && Step::kRows ? tile
                                          : cost + int64_t(begin) * m;
    for (int j = tid % span; j < m; j += span) {
      Column* at = reinterpret_cast<Column*>(state + 2 * (int64_t(group) * m + j));
      Column acc = *at;
#pragma unroll Step::kUnroll
      for (int r = group; r < count; r += groups) acc.add(step.column(values[r], j, rows[int64_t(r) * m + j]));
      *at = acc;
    }
  }

  // Each thread clears what it alone adds to.
  template <class Column>
  __device__ void clear_state() {
    const int group = tid / span;
    if (group >= groups) return;
    for (int j = tid % span; j < m; j += span)
      *reinterpret_cast<Column*>(state + 2 * (int64_t(group) * m + j)) = Column::empty();
  }

  __device__ void publish_state() {
    cuda::sync_block();
    const int64_t count = 2 * int64_t(groups) * m;
    T* out = all_states + rank * count;
    for (int64_t k = tid; k < count; k += threads) out[k] = state[k];
  }
};

// A kernel of a team: a block per problem, or the whole grid for one problem after the other.
template <class T, class Call>
const char* launch_team(void (*block)(const DeviceProblem<T>, const Call, int),
                        void (*grid)(const DeviceProblem<T>, const Call, int), const DeviceProblem<T>& p,
                        const Call& call, cuda::Stream stream) {
  const Plan& plan = p.plan;
  if (one_block(plan.regime)) return cuda::launch(block, p.batch, 1, plan.threads, plan.shared, stream, p, call, 0);
  for (int k = 0; k < p.batch; ++k)
    if (const char* refused = cuda::launch_cooperative(grid, plan.grid, plan.threads, plan.shared, stream, p, call, k))
      return refused;
  return nullptr;
}

}  // namespace sinkhorn
}  // namespace ucmkd

// One sweep over all rows of a problem whose cost is made where it is read, and never stored: the steps of steps.cuh on
// the tiles of cost/pair_tile.cuh.
//
//   row pass     a block per tile of rows and group of columns; then a thread per row, over the groups
//   column pass  a block per tile of columns and group of rows; the groups are put together in ops/_cuda/panels.py
//
// Each pass makes the costs anew: what a pair costs to make, by its features, against what a panel costs to write and read
// is weighed in regime.h. Sums are put together in a fixed order.
#include "cost/tensor_tile.cuh"
#include "sinkhorn/panel_steps.cuh"

namespace ucmkd {
namespace sinkhorn {
namespace {

// Sums of one side of a tile, put together over the threads that share them: those of the tile's first rows or columns
// by the first threads. Every thread calls it.
template <class A, int kSize, int kOwn>
__device__ A of_tile(A* shared, const A (&own)[kOwn], int sharers, int sharer, int (*place)(int)) {
  cuda::sync_block();  // the memory was the tile's
#pragma unroll
  for (int e = 0; e < kOwn; ++e) shared[sharer * kSize + place(e)] = own[e];
  cuda::sync_block();
  A sum = A::empty();
  if (threadIdx.x < kSize)
    for (int s = 0; s < sharers; ++s) sum.merge(shared[s * kSize + threadIdx.x]);
  return sum;
}

// The tiles of group `group` of `groups` along a side of `count`: from the first to before the last.
__device__ inline int group_begin(int count, int size, int group, int groups) {
  const int tiles = (count + size - 1) / size;
  return int(int64_t(tiles) * group / groups);
}

template <class T, class Step, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 2)
    stream_rows(const __grid_constant__ DeviceProblem<T> problem, const __grid_constant__ PanelCall<T> call,
                const __grid_constant__ cost::PairsOf<T> pairs) {
  using Row = typename Step::Row;
  if (over(problem, call)) return;  // the whole grid
  const Step step = make(Named<Step>(), One<T>{problem, 0}, call);
  Tile tile(pairs, reinterpret_cast<typename Tile::Shared*>(cuda::shared_memory()));
  const int row0 = blockIdx.x * Tile::kSize, n = pairs.n, m = pairs.m;
  RowValue<T> given[Tile::kRows];
  Row sums[Tile::kRows];
#pragma unroll
  for (int r = 0; r < Tile::kRows; ++r) {
    const int i = row0 + Tile::row(r);
    given[r] = step.given(i < n ? i : n - 1), sums[r] = Row::empty();
  }
  const int end = group_begin(m, Tile::kSize, blockIdx.y + 1, gridDim.y);
#pragma unroll 1
  for (int at = group_begin(m, Tile::kSize, blockIdx.y, gridDim.y); at < end; ++at) {
    const int col0 = at * Tile::kSize;
    typename Tile::Values costs;
    tile.make(row0, col0, costs);
#pragma unroll
    for (int r = 0; r < Tile::kRows; ++r) {
      typename Row::Term terms[Tile::kColumns];
#pragma unroll
      for (int c = 0; c < Tile::kColumns; ++c) {
        const int j = col0 + Tile::column(c);
        terms[c] = j < m ? step.row(given[r], j, costs[r][c]) : Row::nothing();
      }
      sums[r].add_all(terms);
    }
  }
  const Row sum = of_tile<Row, Tile::kSize>(reinterpret_cast<Row*>(cuda::shared_memory()), sums, Tile::kRowSharers,
                                            Tile::row_sharer(), Tile::row);
  const int i = row0 + threadIdx.x;
  if (threadIdx.x < Tile::kSize && i < n) reinterpret_cast<Row*>(call.parts)[int64_t(blockIdx.y) * n + i] = sum;
}

// A thread per row.
template <class T, class Step>
__global__ void finish_rows(const __grid_constant__ DeviceProblem<T> problem,
                            const __grid_constant__ PanelCall<T> call) {
  using Row = typename Step::Row;
  if (over(problem, call)) return;  // the whole grid
  const int i = blockIdx.x * blockDim.x + threadIdx.x, n = int(problem.n);
  if (i >= n) return;
  Step step = make(Named<Step>(), One<T>{problem, 0}, call);
  const Row* parts = reinterpret_cast<const Row*>(call.parts) + i;
  Row sum = parts[0];
  for (int k = 1; k < int(call.row_groups); ++k) sum.merge(parts[int64_t(k) * n]);
  call.values[i] = step.finish(i, sum);
  keep_row(step, call, i);
}

template <class T, class Step, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 2)
    stream_columns(const __grid_constant__ DeviceProblem<T> problem, const __grid_constant__ PanelCall<T> call,
                   const __grid_constant__ cost::PairsOf<T> pairs) {
  using Column = typename Step::Column;
  if (over(problem, call)) return;  // the whole grid
  Step step = make(Named<Step>(), One<T>{problem, 0}, call);
  Tile tile(pairs, reinterpret_cast<typename Tile::Shared*>(cuda::shared_memory()));
  const int col0 = blockIdx.x * Tile::kSize, n = pairs.n, m = pairs.m;
  Column sums[Tile::kColumns];
#pragma unroll
  for (int c = 0; c < Tile::kColumns; ++c) sums[c] = Column::empty();
  const int end = group_begin(n, Tile::kSize, blockIdx.y + 1, gridDim.y);
#pragma unroll 1
  for (int at = group_begin(n, Tile::kSize, blockIdx.y, gridDim.y); at < end; ++at) {
    const int row0 = at * Tile::kSize;
    typename Tile::Values costs;
    tile.make(row0, col0, costs);
    RowValue<T> values[Tile::kRows];
#pragma unroll
    for (int r = 0; r < Tile::kRows; ++r) {
      const int i = row0 + Tile::row(r), inside = i < n ? i : n - 1;
      if constexpr (Step::kRows)
        values[r] = call.values[inside];
      else
        values[r] = step.given(inside);
    }
#pragma unroll
    for (int c = 0; c < Tile::kColumns; ++c) {
      const int j = col0 + Tile::column(c), inside = j < m ? j : m - 1;
      typename Column::Term terms[Tile::kRows];
#pragma unroll
      for (int r = 0; r < Tile::kRows; ++r)
        terms[r] = row0 + Tile::row(r) < n ? step.column(values[r], inside, costs[r][c]) : Column::nothing();
      sums[c].add_all(terms);
    }
  }
  const Column sum = of_tile<Column, Tile::kSize>(reinterpret_cast<Column*>(cuda::shared_memory()), sums,
                                                  Tile::kColumnSharers, Tile::column_sharer(), Tile::column);
  const int j = col0 + threadIdx.x;
  if (threadIdx.x < Tile::kSize && j < m)
    *reinterpret_cast<Column*>(call.states + 2 * (int64_t(blockIdx.y) * m + j)) = sum;
  keep_flags(step, problem);
}

template <class T, class Tile>
struct Launches {
  const DeviceProblem<T>& p;
  const cost::PairsOf<T>& pairs;
  cuda::Stream stream;

  static int64_t tiles(int64_t count) { return (count + Tile::kSize - 1) / Tile::kSize; }
  template <class Step, class Finish>
  const char* rows(Named<Step>, Named<Finish>, const PanelCall<T>& call) const {
    const char* refused = cuda::launch(stream_rows<T, Step, Tile>, tiles(p.n), call.row_groups, Tile::kThreads,
                                       shared<typename Step::Row>(), stream, p, call, pairs);
    if (refused) return refused;
    constexpr int kThreads = 256;
    const int threads = cuda::thread_limit() < kThreads ? cuda::thread_limit() : kThreads;
    return cuda::launch(finish_rows<T, Finish>, (p.n + threads - 1) / threads, 1, threads, 0, stream, p, call);
  }
  template <class Step>
  const char* columns(Named<Step>, const PanelCall<T>& call) const {
    return cuda::launch(stream_columns<T, Step, Tile>, tiles(p.m), call.groups, Tile::kThreads,
                        shared<typename Step::Column>(), stream, p, call, pairs);
  }

 private:
  template <class Sums>
  static size_t shared() {
    constexpr int kSharers = Tile::kRowSharers > Tile::kColumnSharers ? Tile::kRowSharers : Tile::kColumnSharers;
    const size_t merged = kSharers * Tile::kSize * sizeof(Sums);
    return sizeof(typename Tile::Shared) > merged ? sizeof(typename Tile::Shared) : merged;
  }
};

}  // namespace

template <class T>
const char* cuda_streamed(const DeviceProblem<T>& p, const PanelCall<T>& call, const cost::CudaCost& features,
                          int device, cuda::Stream stream) {
  const cuda::DeviceGuard guard(device);
  if (guard.error()) return guard.error();
  const cost::PairsOf<T> pairs = cost::pairs_of<T>(features);
  if constexpr (sizeof(T) == 4)
    if (call.tensor_cores) return with_steps(call, Launches<T, cost::TensorTile>{p, pairs, stream});
  return with_steps(call, Launches<T, cost::PairTile<T>>{p, pairs, stream});
}
template const char* cuda_streamed<float>(const DeviceProblem<float>&, const PanelCall<float>&, const cost::CudaCost&,
                                          int, cuda::Stream);
template const char* cuda_streamed<double>(const DeviceProblem<double>&, const PanelCall<double>&,
                                           const cost::CudaCost&, int, cuda::Stream);

}  // namespace sinkhorn
}  // namespace ucmkd

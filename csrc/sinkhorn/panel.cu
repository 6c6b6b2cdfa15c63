// One visit of a panel of rows, for costs that do not fit and are made by a matrix product: the steps of steps.cuh, shared
// out over a panel that lies in global memory. Two launches a visit, the second finds what fits of the panel in the cache:
//
//   row pass     a block per row
//   column pass  a thread per column and group of rows; states go on from panel to panel
//
// The sweeps over the panels, and what becomes of the columns' states between them, are in ops/_cuda/panels.py.
#include "sinkhorn/panel_steps.cuh"

namespace ucmkd {
namespace sinkhorn {
namespace {

constexpr int kPanelThreads = 256;

template <class T, class Step>
__global__ void __launch_bounds__(kPanelThreads, 1)
    rows_kernel(const __grid_constant__ DeviceProblem<T> problem, const __grid_constant__ PanelCall<T> call) {
  using Row = typename Step::Row;
  if (over(problem, call)) return;  // the whole grid
  Step step = make(Named<Step>(), One<T>{problem, 0}, call);
  Row* parts = reinterpret_cast<Row*>(cuda::shared_memory());  // (warps,)
  const int r = blockIdx.x, i = int(problem.first_row) + r, m = int(problem.m);
  const T* row = problem.cost + int64_t(r) * m;
  const RowValue<T> given = step.given(i);
  Row acc = Row::empty();
#pragma unroll Step::kUnroll
  for (int j = threadIdx.x; j < m; j += blockDim.x) acc.add(step.row(given, j, row[j]));
  acc = warp_merge(acc);
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = acc;
  cuda::sync_block();
  if (threadIdx.x > 0) return;
  for (int w = 1; w < int(blockDim.x) / kWarp; ++w) acc.merge(parts[w]);
  call.values[r] = step.finish(i, acc);
  keep_row(step, call, i);
}

// Block (x, y): columns from x blockDim on, rows y, y + groups, ... of the panel.
template <class T, class Step>
__global__ void __launch_bounds__(kPanelThreads, 1)
    columns_kernel(const __grid_constant__ DeviceProblem<T> problem, const __grid_constant__ PanelCall<T> call) {
  using Column = typename Step::Column;
  if (over(problem, call)) return;  // the whole grid
  const int m = int(problem.m), j = int(blockIdx.x * blockDim.x + threadIdx.x), group = blockIdx.y;
  if (j >= m) return;
  Step step = make(Named<Step>(), One<T>{problem, 0}, call);
  Column* at = reinterpret_cast<Column*>(call.states + 2 * (int64_t(group) * m + j));
  Column acc = *at;
#pragma unroll Step::kUnroll
  for (int r = group; r < int(problem.rows); r += int(call.groups)) {
    const T c = problem.cost[int64_t(r) * m + j];
    if constexpr (Step::kRows)
      acc.add(step.column(call.values[r], j, c));
    else
      acc.add(step.column(step.given(int(problem.first_row) + r), j, c));
  }
  *at = acc;
  keep_flags(step, problem);
}

int threads() { return cuda::thread_limit() < kPanelThreads ? cuda::thread_limit() : kPanelThreads; }

template <class T>
struct Launches {
  const DeviceProblem<T>& p;
  cuda::Stream stream;

  template <class Summed, class Step>
  const char* rows(Named<Summed>, Named<Step>, const PanelCall<T>& call) const {
    const size_t shared = threads() / kWarp * sizeof(typename Step::Row);
    return cuda::launch(rows_kernel<T, Step>, p.rows, 1, threads(), shared, stream, p, call);
  }
  template <class Step>
  const char* columns(Named<Step>, const PanelCall<T>& call) const {
    const int64_t across = (p.m + threads() - 1) / threads();
    return cuda::launch(columns_kernel<T, Step>, across, call.groups, threads(), 0, stream, p, call);
  }
};

}  // namespace

template <class T>
const char* cuda_panel(const DeviceProblem<T>& p, const PanelCall<T>& call, int device, cuda::Stream stream) {
  const cuda::DeviceGuard guard(device);
  if (guard.error()) return guard.error();
  return with_steps(call, Launches<T>{p, stream});
}
template const char* cuda_panel<float>(const DeviceProblem<float>&, const PanelCall<float>&, int, cuda::Stream);
template const char* cuda_panel<double>(const DeviceProblem<double>&, const PanelCall<double>&, int, cuda::Stream);

}  // namespace sinkhorn
}  // namespace ucmkd

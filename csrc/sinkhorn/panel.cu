// One visit of a panel of rows, for costs that do not fit: the steps of steps.cuh, shared out over a panel that
// lies in global memory. Two launches a visit, the second finds what fits of the panel in the cache:
//
//   row pass     a block per row
//   column pass  a thread per column and group of rows; states go on from panel to panel
//
// The sweeps over the panels, and what becomes of the columns' states between them, are in ops/_cuda/panels.py. A
// launch looks itself up whether it is still to run: nobody waits to tell it.
#include <type_traits>

#include "sinkhorn/cuda.h"
#include "sinkhorn/steps.cuh"

namespace ucmkd {
namespace sinkhorn {
namespace {

constexpr int kPanelThreads = 256;

// Whether what the kernel is for has already ended.
template <class T>
__device__ bool over(const DeviceProblem<T>& p, const PanelCall<T>& c) {
  if (c.stop && *c.stop) return true;
  return c.sweep == Sweep::kBack && (c.t > *p.n_iter || c.t <= *c.first);
}

// The step of a sweep, from the call. The first argument only names its type.
template <class T>
__device__ Start<T> make(const Start<T>*, const One<T>& p, const PanelCall<T>&) {
  return {p, p.f_at(0), 1 / p.reg(), false};
}
template <class T>
__device__ Iterate<T> make(const Iterate<T>*, const One<T>& p, const PanelCall<T>& c) {
  return {p, p.g_at(c.t), p.f_at(c.t), p.log_f_at(c.t), 1 / p.reg(), c.relaxed && *c.relaxed};
}
template <class T>
__device__ Value<T> make(const Value<T>*, const One<T>& p, const PanelCall<T>& c) {
  return {p, p.f(), p.g(), 1 / p.reg(), c.centre, 0, 0};
}
template <class T>
__device__ First<T> make(const First<T>*, const One<T>& p, const PanelCall<T>&) {
  return {p, p.g(), nullptr, 1 / p.reg(), T(1)};
}
template <class T>
__device__ Back<T> make(const Back<T>*, const One<T>& p, const PanelCall<T>& c) {
  return {p,        c.t,        p.log_g_at(c.t), c.dg + (c.t - 1) * p.m(), p.g_at(c.t - 1), c.df + (c.t - 2) * p.n(),
          c.grad_a, 1 / p.reg()};
}
template <class T>
__device__ ColumnMass<T> make(const ColumnMass<T>*, const One<T>& p, const PanelCall<T>&) {
  return {p, 1 / p.reg()};
}
template <class T>
__device__ FixedPoint<T> make(const FixedPoint<T>*, const One<T>& p, const PanelCall<T>& c) {
  return {p, p.log_f_at(*p.n_iter()), c.share, c.df, c.grad_a, 1 / p.reg()};
}

template <class T, class Step>
__global__ void __launch_bounds__(kPanelThreads, 1)
    rows_kernel(const __grid_constant__ DeviceProblem<T> problem, const __grid_constant__ PanelCall<T> call) {
  using Row = typename Step::Row;
  if (over(problem, call)) return;  // the whole grid
  Step step = make(static_cast<const Step*>(nullptr), One<T>{problem, 0}, call);
  Row* parts = reinterpret_cast<Row*>(cuda::shared_memory());  // (warps,)
  const int r = blockIdx.x, i = int(problem.first_row) + r, m = int(problem.m);
  const T* row = problem.cost + int64_t(r) * m;
  const RowValue<T> given = step.given(i);
  Row acc = Row::empty();
#pragma unroll Step::kUnroll
  for (int j = threadIdx.x; j < m; j += blockDim.x) step.row(acc, given, j, row[j]);
  acc = warp_merge(acc);
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = acc;
  cuda::sync_block();
  if (threadIdx.x > 0) return;
  for (int w = 1; w < int(blockDim.x) / kWarp; ++w) acc.merge(parts[w]);
  call.values[r] = step.finish(i, acc);
  if constexpr (std::is_same_v<Step, Value<T>>) {
    if (!step.centre) call.row_value[i] = T(step.value);
  }
}

// Block (x, y): columns from x blockDim on, rows y, y + groups, ... of the panel.
template <class T, class Step>
__global__ void __launch_bounds__(kPanelThreads, 1)
    columns_kernel(const __grid_constant__ DeviceProblem<T> problem, const __grid_constant__ PanelCall<T> call) {
  using Column = typename Step::Column;
  if (over(problem, call)) return;  // the whole grid
  const int m = int(problem.m), j = int(blockIdx.x * blockDim.x + threadIdx.x), group = blockIdx.y;
  if (j >= m) return;
  Step step = make(static_cast<const Step*>(nullptr), One<T>{problem, 0}, call);
  Column* at = reinterpret_cast<Column*>(call.states + 2 * (int64_t(group) * m + j));
  Column acc = *at;
#pragma unroll Step::kUnroll
  for (int r = group; r < int(problem.rows); r += int(call.groups)) {
    const T c = problem.cost[int64_t(r) * m + j];
    if constexpr (Step::kRows)
      step.column(acc, call.values[r], j, c);
    else
      step.column(acc, step.given(int(problem.first_row) + r), j, c);
  }
  *at = acc;
  if constexpr (std::is_same_v<Step, Start<T>>) {
    if (step.bad) cuda::atomic_or(problem.flags, kFlagOverflow);
  }
}

int threads() { return cuda::thread_limit() < kPanelThreads ? cuda::thread_limit() : kPanelThreads; }

template <class Step, class T>
const char* rows(const DeviceProblem<T>& p, const PanelCall<T>& call, cuda::Stream stream) {
  const size_t shared = threads() / kWarp * sizeof(typename Step::Row);
  return cuda::launch(rows_kernel<T, Step>, p.rows, 1, threads(), shared, stream, p, call);
}

template <class Step, class T>
const char* columns(const DeviceProblem<T>& p, const PanelCall<T>& call, cuda::Stream stream) {
  const int64_t across = (p.m + threads() - 1) / threads();
  return cuda::launch(columns_kernel<T, Step>, across, call.groups, threads(), 0, stream, p, call);
}

template <class Step, class T>
const char* both(const DeviceProblem<T>& p, const PanelCall<T>& call, cuda::Stream stream) {
  const char* refused = rows<Step>(p, call, stream);
  return refused ? refused : columns<Step>(p, call, stream);
}

// Twice over the rows, the second time centred, then over the columns.
template <class T>
const char* plan(const DeviceProblem<T>& p, PanelCall<T> call, cuda::Stream stream) {
  for (const bool centre : {false, true}) {
    call.centre = centre;
    if (const char* refused = rows<Value<T>>(p, call, stream)) return refused;
  }
  return columns<First<T>>(p, call, stream);
}

}  // namespace

template <class T>
const char* cuda_panel(const DeviceProblem<T>& p, const PanelCall<T>& call, int device, cuda::Stream stream) {
  const cuda::DeviceGuard guard(device);
  if (guard.error()) return guard.error();
  switch (call.sweep) {
    case Sweep::kStart: return columns<Start<T>>(p, call, stream);
    case Sweep::kIterate: return both<Iterate<T>>(p, call, stream);
    case Sweep::kPlan: return plan(p, call, stream);
    case Sweep::kBack: return both<Back<T>>(p, call, stream);
    case Sweep::kColumnMass: return columns<ColumnMass<T>>(p, call, stream);
    case Sweep::kFixedPoint: return both<FixedPoint<T>>(p, call, stream);
  }
  return "no such sweep";
}
template const char* cuda_panel<float>(const DeviceProblem<float>&, const PanelCall<float>&, int, cuda::Stream);
template const char* cuda_panel<double>(const DeviceProblem<double>&, const PanelCall<double>&, int, cuda::Stream);

}  // namespace sinkhorn
}  // namespace ucmkd

// A warp per row up to kFull logits for each lane, a block per row above; the row stays in registers, so that each
// logit is read once and each gradient written once. Rows too long for that are read twice. The formulas are those
// of README.md beside this file.
#include "label_transport/cuda_call.h"
#include "label_transport/params.h"
#include "label_transport/rows.cuh"

namespace ucmkd {
namespace label_transport {
namespace {

constexpr int kRowsPerBlock = 4;  // of a warp each
constexpr int kMaxThreads = 512;  // of a row in the registers of a block
constexpr int kTotalThreads = 1024;
constexpr int kStreamThreads = 512;  // of a row that is read twice
// Logits of each side in the registers of a thread. 16 warps of a multiprocessor then have 128 KB of loads in flight.
template <class T>
constexpr int kFull = sizeof(T) == 8 ? 8 : 32;
template <class T>
constexpr int kBlocks = sizeof(T) == 8 ? 2 : 4;  // of warps of a row each, on a multiprocessor at least

// S: how logits and their gradients are stored; half precision is computed in float.
template <class S>
using Wide = decltype(cuda::wide(S()));

template <class S>
struct Call : Forward<Wide<S>> {
  const S *student, *teacher;  // in place of the fields of the same names
  S *grad_student, *grad_teacher;
  const Wide<S>* upstream;  // gradient of each loss, upstream_stride apart, or null: 1
  int64_t upstream_stride;
  const int64_t* counted;  // (1,) the gradients are over this, or null
};

// One row: where it lies.
template <class S>
struct Row {
  const S *student, *teacher;
  S *ds, *dt;  // or null; may lie over the logits
  Wide<S> student_label, teacher_label;
  int k;
  int64_t y;
};

// What the sums of a row say.
template <class T>
struct Found {
  T loss;
  Pair<T> scale, shift, peak;  // gradient = scale exp(z - top) + shift, and + peak at the label
};

template <class S, class T = Wide<S>>
__device__ T upstream_of(const Call<S>& p, int64_t i) {
  const T up = p.upstream ? p.upstream[i * p.upstream_stride] : T(1);
  return p.counted ? up / T(*p.counted > 1 ? *p.counted : 1) : up;
}

// From the largest logit, the sum of exp(z - top) and the sum of the logits (where there is smoothing). A NaN, +inf
// or a row of nothing but -inf makes its sum NaN.
template <class S, class T>
__device__ Found<T> conclude(const Call<S>& p, const Row<S>& row, int64_t i, Pair<T> top, Pair<T> sum, Pair<T> mean) {
  const T smoothing = p.label_smoothing, spread = smoothing / T(row.k), peak = 1 - smoothing;
  const T teacher_log = top.teacher + cuda::log_of(sum.teacher), student_log = top.student + cuda::log_of(sum.student);
  const T kappa = cuda::exp_of(row.teacher_label - teacher_log);
  const T off_student = smoothing > 0 ? spread * mean.student : T(0);
  const T off_teacher = smoothing > 0 ? spread * mean.teacher : T(0);
  const T teacher_ce = teacher_log - peak * row.teacher_label - off_teacher;
  const bool bad = sum.student != sum.student || sum.teacher != sum.teacher;
  const T up = bad ? T(NAN) : upstream_of(p, i), live = p.live_kappa ? teacher_ce : T(0);
  Found<T> found;
  found.loss = bad ? T(NAN) : student_log - peak * row.student_label - off_student - kappa * teacher_ce;
  found.scale = {up / sum.student, -up * kappa * (1 - live) / sum.teacher};
  found.shift = {-up * spread, up * kappa * spread};
  found.peak = {-up * peak, up * kappa * (peak - live)};
  return found;
}

// The label's gradient, by the thread that has written the pack it lies in.
template <int W, int V, class S, class T, class Team>
__device__ void write_label(const Row<S>& row, const Team& team, const Found<T>& found, Pair<T> top) {
  const int y = static_cast<int>(row.y), pack = y / W;
  if (pack / (V * kWarp) % team.warps() * kWarp + pack % kWarp != team.thread) return;
  const T s = exp_below(row.student_label, top.student), t = exp_below(row.teacher_label, top.teacher);
  if (row.ds) row.ds[y] = cuda::narrow<S>(s * found.scale.student + found.shift.student + found.peak.student);
  if (row.dt) row.dt[y] = cuda::narrow<S>(t * found.scale.teacher + found.shift.teacher + found.peak.teacher);
}

template <class T, class Team>
__device__ void fill(T* out, int k, const Team& team, T value) {
  for (int j = team.thread; out && j < k; j += team.threads) out[j] = value;
}

// False: the row does not count, or has no such label; then all is written.
template <class S, class T = Wide<S>, class Team>
__device__ bool find_row(const Call<S>& p, int64_t i, const Team& team, Row<S>* row) {
  const int k = static_cast<int>(p.k);
  const int64_t y = p.target[i];
  *row = {p.student + i * p.student_stride,
          p.teacher + i * p.teacher_stride,
          p.grad_student ? p.grad_student + i * p.grad_stride : nullptr,
          p.grad_teacher ? p.grad_teacher + i * p.grad_stride : nullptr,
          T(0),
          T(0),
          k,
          y};
  const bool ignored = y == p.ignore_index;
  if (!ignored && y >= 0 && y < k) return true;
  const T value = ignored ? T(0) : T(NAN);
  if (p.loss && team.thread == 0) p.loss[i] = value;
  fill(row->ds, k, team, cuda::narrow<S>(value));
  fill(row->dt, k, team, cuda::narrow<S>(value));
  return false;
}

// The row in registers: V packs of W logits of each side for each thread.
template <int W, int V, class S, class Team>
__device__ void solve_row(const Call<S>& p, int64_t i, Team& team) {
  using T = Wide<S>;
  Row<S> row;
  if (!find_row(p, i, team, &row)) return;
  const int k = row.k, first = first_logit<W, V>(team.thread);
  T s[V * W], t[V * W];
  load<W, V>(row.student, k, first, s);
  load<W, V>(row.teacher, k, first, t);
  row.student_label = cuda::wide(row.student[row.y]), row.teacher_label = cuda::wide(row.teacher[row.y]);
  const Pair<T> top = team.largest({largest_of(s), largest_of(t)});
  Pair<T> mean{T(0), T(0)};
  if (p.label_smoothing > 0) mean = team.sum({sum_of<W, V>(s, k, first), sum_of<W, V>(t, k, first)});
  const Pair<T> part{exponentiate(s, top.student), exponentiate(t, top.teacher)};
  const Found<T> found = conclude(p, row, i, top, team.sum(part), mean);
  if (p.loss && team.thread == 0) p.loss[i] = found.loss;
  if (!row.ds && !row.dt) return;
  team.meet();
  if (row.ds) store<W, V>(row.ds, k, first, s, found.scale.student, found.shift.student);
  if (row.dt) store<W, V>(row.dt, k, first, t, found.scale.teacher, found.shift.teacher);
  write_label<W, V>(row, team, found, top);
}

template <class S, int W, int V>
__global__ void __launch_bounds__(kRowsPerBlock* kWarp, kBlocks<Wide<S>>)
    warp_kernel(const __grid_constant__ Call<S> p) {
  const int64_t i = int64_t(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
  Team<Wide<S>, false> team{int(threadIdx.x) % kWarp, kWarp, nullptr};
  if (i < p.n) solve_row<W, V>(p, i, team);  // a warp as a whole
}

template <class S, int W, int V>
__global__ void __launch_bounds__(kMaxThreads) block_kernel(const __grid_constant__ Call<S> p) {
  Team<Wide<S>, true> team{int(threadIdx.x), int(blockDim.x), reinterpret_cast<Wide<S>*>(cuda::shared_memory())};
  solve_row<W, V>(p, blockIdx.x, team);
}

// A thread's share of a row that is read in steps.
template <class T>
struct Part {
  T top, sum, mean;
};

template <int W, int V, class S, class T = Wide<S>, class Team>
__device__ Part<T> read_part(const S* z, int k, const Team& team, bool with_mean) {
  Part<T> part{-T(INFINITY), T(0), T(0)};
  for (int first = first_logit<W, V>(team.thread); first < k; first += V * W * team.threads) {
    T x[V * W];
    load<W, V>(z, k, first, x);
    if (with_mean) part.mean += sum_of<W, V>(x, k, first);
    const T top = cuda::larger_of(part.top, largest_of(x));
    const T base = top > -T(INFINITY) ? top : T(0);  // nothing but -inf so far
    part.sum = part.sum * exp_below(part.top, base) + exponentiate(x, base);
    part.top = top;
  }
  return part;
}

template <int W, int V, class S, class T, class Team>
__device__ void write_part(const S* z, S* out, int k, const Team& team, T top, T scale, T shift) {
  for (int first = first_logit<W, V>(team.thread); out && first < k; first += V * W * team.threads) {
    T x[V * W];
    load<W, V>(z, k, first, x);
    exponentiate(x, top);
    store<W, V>(out, k, first, x, scale, shift);
  }
}

// Rows of any length, read twice.
template <class S, int W, int V>
__global__ void __launch_bounds__(kStreamThreads, 1) stream_kernel(const __grid_constant__ Call<S> p) {
  using T = Wide<S>;
  Team<T, true> team{int(threadIdx.x), int(blockDim.x), reinterpret_cast<T*>(cuda::shared_memory())};
  Row<S> row;
  if (!find_row(p, blockIdx.x, team, &row)) return;
  row.student_label = cuda::wide(row.student[row.y]), row.teacher_label = cuda::wide(row.teacher[row.y]);
  const bool smooth = p.label_smoothing > 0;
  const Part<T> s = read_part<W, V>(row.student, row.k, team, smooth);
  const Part<T> t = read_part<W, V>(row.teacher, row.k, team, smooth);
  const Pair<T> top = team.largest({s.top, t.top});
  const Pair<T> sum = team.sum({s.sum * exp_below(s.top, top.student), t.sum * exp_below(t.top, top.teacher)});
  const Pair<T> mean = smooth ? team.sum({s.mean, t.mean}) : Pair<T>{T(0), T(0)};
  const Found<T> found = conclude(p, row, blockIdx.x, top, sum, mean);
  if (p.loss && threadIdx.x == 0) p.loss[blockIdx.x] = found.loss;
  write_part<W, V>(row.student, row.ds, row.k, team, top.student, found.scale.student, found.shift.student);
  write_part<W, V>(row.teacher, row.dt, row.k, team, top.teacher, found.scale.teacher, found.shift.teacher);
  write_label<W, V>(row, team, found, top);
}

// One block, in a fixed order: one launch instead of a handful of torch's for numbers as small as these.
template <class T>
__global__ void __launch_bounds__(kTotalThreads)
    total_kernel(const T* loss, const int64_t* target, int64_t n, int64_t ignore_index, bool mean, T* total,
                 int64_t* counted) {
  Team<double, true> team{int(threadIdx.x), int(blockDim.x), reinterpret_cast<double*>(cuda::shared_memory())};
  double sum = 0;
  int kept = 0;
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    sum += loss[i];
    kept += target[i] != ignore_index;
  }
  const Pair<double> all = team.sum({sum, double(kept)});
  if (threadIdx.x > 0) return;
  *counted = static_cast<int64_t>(all.teacher);
  *total = T(!mean ? all.student : all.teacher > 0 ? all.student / all.teacher : double(NAN));
}

// Packs of W logits: where every row that is touched starts on their alignment, and holds no part of one.
template <class S>
bool aligned(const Call<S>& p, int width) {
  const int64_t bytes = int64_t(sizeof(S)) * width;
  auto fits = [&](const S* z, int64_t stride) {
    return z == nullptr || (reinterpret_cast<uintptr_t>(z) % bytes == 0 && stride % width == 0);
  };
  return p.k % width == 0 && fits(p.student, p.student_stride) && fits(p.teacher, p.teacher_stride) &&
         fits(p.grad_student, p.grad_stride) && fits(p.grad_teacher, p.grad_stride);
}

template <class S, int W>
const char* launch(const Call<S>& p, cuda::Stream stream) {
  using T = Wide<S>;
  constexpr int V = kFull<T> / W;  // packs that fill a thread
  auto by_warps = [&](void (*kernel)(Call<S>)) {
    return cuda::launch(kernel, (p.n + kRowsPerBlock - 1) / kRowsPerBlock, 1, kRowsPerBlock * kWarp, 0, stream, p);
  };
  auto by_blocks = [&](void (*kernel)(Call<S>), int64_t threads) {
    const size_t shared = kReductions * (threads / kWarp) * sizeof(Pair<T>);
    return cuda::launch(kernel, p.n, 1, static_cast<int>(threads), shared, stream, p);
  };
  const int64_t warps = (p.k + kFull<T> * kWarp - 1) / (kFull<T> * kWarp);  // that hold a row
  if constexpr (V >= 8)
    if (p.k <= kFull<T> / 8 * kWarp) return by_warps(warp_kernel<S, W, V / 8>);
  if (p.k <= kFull<T> / 4 * kWarp) return by_warps(warp_kernel<S, W, V / 4>);
  if (p.k <= kFull<T> / 2 * kWarp) return by_warps(warp_kernel<S, W, V / 2>);
  if (warps <= 1) return by_warps(warp_kernel<S, W, V>);
  if (warps * kWarp <= kMaxThreads) return by_blocks(block_kernel<S, W, V>, warps * kWarp);
  return by_blocks(stream_kernel<S, W, V / 2>, kStreamThreads);
}

template <class S>
const char* run(const CudaLabel& c) {
  using T = Wide<S>;
  Call<S> p{};
  p.n = c.n, p.k = c.k, p.student_stride = c.student_stride, p.teacher_stride = c.teacher_stride;
  p.student = reinterpret_cast<const S*>(c.student), p.teacher = reinterpret_cast<const S*>(c.teacher);
  p.target = reinterpret_cast<const int64_t*>(c.target), p.ignore_index = c.ignore_index;
  p.label_smoothing = T(c.label_smoothing), p.live_kappa = c.live_kappa;
  p.loss = reinterpret_cast<T*>(c.loss), p.grad_stride = c.grad_stride;
  p.grad_student = reinterpret_cast<S*>(c.grad_student);
  p.grad_teacher = reinterpret_cast<S*>(c.grad_teacher);
  p.upstream = reinterpret_cast<const T*>(c.upstream), p.upstream_stride = c.upstream_stride;
  p.counted = reinterpret_cast<const int64_t*>(c.counted);
  constexpr int kWidth = 16 / sizeof(T);
  const cuda::Stream stream = reinterpret_cast<cuda::Stream>(c.stream);
  return aligned(p, kWidth) ? launch<S, kWidth>(p, stream) : launch<S, 1>(p, stream);
}

template <class T>
const char* run_total(const CudaLabel& c, int64_t threads) {
  return cuda::launch(total_kernel<T>, 1, 1, static_cast<int>(threads), threads / kWarp * sizeof(Pair<double>),
                      reinterpret_cast<cuda::Stream>(c.stream), reinterpret_cast<const T*>(c.loss),
                      reinterpret_cast<const int64_t*>(c.target), c.n, c.ignore_index, c.mean,
                      reinterpret_cast<T*>(c.total), reinterpret_cast<int64_t*>(c.counted));
}

}  // namespace

const char* cuda_total(const CudaLabel& c) {
  const cuda::DeviceGuard guard(c.device);
  if (guard.error()) return guard.error();
  const int64_t threads = c.n < kTotalThreads ? (c.n + kWarp - 1) / kWarp * kWarp : kTotalThreads;
  return c.f64 ? run_total<double>(c, threads) : run_total<float>(c, threads);
}

const char* cuda_forward(const CudaLabel& c) {
  const cuda::DeviceGuard guard(c.device);
  if (guard.error()) return guard.error();
  switch (static_cast<LogitType>(c.logit_type)) {
    case LogitType::kHalf: return run<cuda::Half>(c);
    case LogitType::kBFloat16: return run<cuda::BFloat16>(c);
    default: return c.f64 ? run<double>(c) : run<float>(c);
  }
}

}  // namespace label_transport
}  // namespace ucmkd

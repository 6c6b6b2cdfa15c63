// dC from the vectors that the adjoint left, in one pass over the cost:
//
//   dC = P weight (1 - (C - alpha) / reg) + sum_t exp((f_t + g_t - C) / reg) df_t / a
//        + exp((f_(t-1) + g_t - C) / reg) dg_t / b
//
// An exponential is P times a ratio of the row times a ratio of the column, relative to the last iteration:
//
//   exp((f_t + g_t - C) / reg) = P u_t v_t,   u_t = exp((f_t - f_T) / reg), v_t likewise
//
// u_t / a is made of the log-sum that f_t came from, as the adjoint's softmaxes were: what cancels in the sum is not
// rounded. So the sum is P times a matrix product of depth 2 T, left' right: a block makes a square tile of it, a thread
// kPer x kPer elements in registers. The ratios are made chunk by chunk, the next chunk's while this one is
// multiplied. Where a ratio of the tile leaves [e^-R, e^R] the product leaves that chunk out, and its iterations take the
// softmaxes of the half-steps themselves at the end, in this tile only.
#include "core/tile.cuh"
#include "sinkhorn/cuda.h"
#include "sinkhorn/step.h"

namespace ucmkd {
namespace sinkhorn {
namespace {

// u_t of the ratios that the product takes, and 1 / u_t.
template <class T>
constexpr T kMostRatio = sizeof(T) == 4 ? T(1e13) : T(1e130);

// The shape of the work of a block.
template <class T, int kPer>
struct Tile : SquareTile<T, kPer> {
  using SquareTile<T, kPer>::kSize, SquareTile<T, kPer>::kThreads;
  static constexpr int kSteps = 16 / sizeof(T);  // iterations of a chunk of which one thread makes the ratios
  static constexpr int kDepth = kSteps * kThreads / (2 * kSize);  // iterations of a chunk; two chunks take 16 KB

  T left[2 * kDepth][kSize];   // u_t df_t / a, u_(t-1) by turns
  T right[2 * kDepth][kSize];  // v_t, v_t dg_t / b by turns

  __device__ void multiply(T (&sum)[kPer][kPer]) const {
    SquareTile<T, kPer>::multiply(*this, 2 * kDepth, sum, [](T& s, T x, T y) { s += x * y; });
  }
};

// The columns of a thread in one row of the cost, from the tile's first column `col0` on; m: where the row ends.
template <class T, int kPer, bool kVectors>
struct Columns {
  using Own = Tile<T, kPer>;
  using Vec = typename Own::Vec;
  static constexpr int kVec = Own::kVec;

  static __device__ void read(const T* row, int col0, int m, T (&to)[kPer]) {
#pragma unroll
    for (int e = 0; e < kPer; e += kVec) {
      const int j = col0 + Own::column(e);
      Vec vec = {};
      if (kVectors && j < m) vec = *reinterpret_cast<const Vec*>(row + j);
#pragma unroll
      for (int q = 0; q < kVec; ++q) to[e + q] = kVectors ? vec.e[q] : j + q < m ? row[j + q] : T(0);
    }
  }
  static __device__ void write(T* row, int col0, int m, const T (&from)[kPer]) {
#pragma unroll
    for (int e = 0; e < kPer; e += kVec) {
      const int j = col0 + Own::column(e);
      Vec vec;
#pragma unroll
      for (int q = 0; q < kVec; ++q) {
        vec.e[q] = from[e + q];
        if (!kVectors && j + q < m) row[j + q] = from[e + q];
      }
      if (kVectors && j < m) *reinterpret_cast<Vec*>(row + j) = vec;
    }
  }
};

// Which iterations the sum is over, `first` to `last`, and their vectors. At the fixed point it is one.
template <class T>
struct Steps {
  const One<T>& p;
  const GradientCall<T>& call;
  int first, last;

  __device__ Steps(const One<T>& problem, const GradientCall<T>& of)
      : p(problem), call(of), last(of.implicit ? 1 : int(*problem.n_iter())) {
    first = of.plan_only ? last + 1 : of.implicit ? 1 : int(of.first[problem.k]);
  }
  __device__ const T* f_at(int64_t t) const { return call.implicit ? p.f() : p.f_at(t); }
  __device__ const T* g_at(int64_t t) const { return call.implicit ? p.g() : p.g_at(t); }
  __device__ int64_t row(int64_t t) const { return call.implicit ? p.k : p.k * p.all.max_iter + t - 1; }
  __device__ const T* df_at(int64_t t) const { return call.df + row(t) * p.n(); }
  __device__ const T* dg_at(int64_t t) const { return call.dg + row(t) * p.m(); }
};

// The ratios of one row or one column that a thread makes of every chunk: iterations t, t - 1, ... of kSteps. What they
// are made from is on its way while the chunk before is multiplied. Where there is nothing, before the first iteration,
// outside of the matrix and without mass (P is 0), the ratio is 1 and the adjoint 0: such terms are 0 without a question.
template <class T, int kPer>
struct Ratios {
  using Own = Tile<T, kPer>;
  static constexpr int kSteps = Own::kSteps;
  int left;  // iterations from that of `next` on
  const T *next, *next_log, *next_adjoint;
  T last, last_power, last_rest, mass;
  T potential[kSteps], log_sum[kSteps], adjoint[kSteps];

  static __device__ bool of_row() { return threadIdx.x / Own::kSize % 2 == 0; }
  static __device__ int place() { return threadIdx.x % Own::kSize; }                 // in the tile
  static __device__ int depth() { return threadIdx.x / (2 * Own::kSize) * kSteps; }  // in the chunk

  __device__ Ratios(const Steps<T>& steps, int row0, int end, int col0) {
    const One<T>& p = steps.p;
    const int index = place() + (of_row() ? row0 : col0), t = steps.last - depth();
    left = index < (of_row() ? end : p.m()) ? steps.last - steps.first + 1 - depth() : 0;
    next = next_log = next_adjoint = nullptr, last = 0, mass = 1;
    if (left > 0) {
      last = of_row() ? p.f()[index] : p.g()[index];
      mass = of_row() ? p.mass_a(index) : p.mass_b(index);
      next = (of_row() ? steps.f_at(t - 1) : steps.g_at(t)) + index;  // S_t has f_(t-1) beside its columns' log-sums
      next_log = (of_row() ? p.log_f_at(t) : p.log_g_at(t)) + index;
      next_adjoint = (of_row() ? steps.df_at(t) : steps.dg_at(t)) + index;
    }
    if (!(last > -T(INFINITY))) left = 0, last = 0, mass = 1;
    const T inverse_reg = 1 / p.reg();
    last_power = last * inverse_reg;  // and what rounding took of last / reg
    last_rest = cuda::fused(last, inverse_reg, -last_power) - last_power * cuda::fused(p.reg(), inverse_reg, T(-1));
  }

  __device__ void load(const Steps<T>& steps) {
    const int stride = of_row() ? steps.p.n() : steps.p.m();  // from an iteration to the one before
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const bool there = s < left, logs = there && !steps.call.implicit;
      potential[s] = there ? next[-s * stride] : last;
      log_sum[s] = logs ? next_log[-s * stride] : T(INFINITY);
      adjoint[s] = there ? next_adjoint[-s * stride] : T(0);
    }
    const int step = Own::kDepth * stride;
    next -= step, next_log -= step, next_adjoint -= step, left -= Own::kDepth;
  }

  // Into the tile; says whether they are in range. A softmax over its adjoint is P times the other side's ratio and
  // exp(-log_sum - last / reg), in which large numbers cancel exactly. At the fixed point that is one over the mass.
  __device__ bool store(Own& tile, T inverse_reg) const {
    T* to = (of_row() ? tile.left : tile.right)[2 * depth()] + place();
    bool in_range = true;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const T power = (potential[s] - last) * inverse_reg, ratio = cuda::exp_of(power);
      const bool logs = log_sum[s] < T(INFINITY);
      const T share = logs ? cuda::exp_of((-log_sum[s] - last_power) - last_rest) : inverse_or_zero(mass);
      in_range = in_range && magnitude(power) <= Rules<T>::kRangeLimit && share * mass <= kMostRatio<T> &&
                 share * mass * kMostRatio<T> >= 1;
      const T weighed = share * adjoint[s];
      to[2 * s * Own::kSize] = of_row() ? weighed : ratio;
      to[(2 * s + 1) * Own::kSize] = of_row() ? ratio : weighed;
    }
    return in_range;
  }
};

// The iterations that the product left out, for one row of a thread: added to what is written.
template <class T, int kPer>
__device__ void add_exact(const Steps<T>& steps, const int* outside, int i, int col0, const T* cost, T* out,
                          T inverse_reg) {
  using Own = Tile<T, kPer>;
  const One<T>& p = steps.p;
  T sum[kPer] = {};
  int chunk = 0;
  for (int top = steps.last; top >= steps.first; top -= Own::kDepth, ++chunk) {
    if (!(outside[chunk / 32] >> chunk % 32 & 1)) continue;
    for (int t = top; t > top - Own::kDepth && t >= steps.first; --t) {
      const T log_f = p.log_f_at(t)[i], df = steps.df_at(t)[i], f = p.f_at(t - 1)[i];
#pragma unroll
      for (int e = 0; e < kPer; ++e) {
        const int j = col0 + Own::column(e);
        if (j >= p.m()) continue;
        sum[e] += softmax_of(p.g_at(t)[j], cost[j], log_f, p.reg(), inverse_reg) * df +
                  softmax_of(f, cost[j], p.log_g_at(t)[j], p.reg(), inverse_reg) * steps.dg_at(t)[j];
      }
    }
  }
#pragma unroll
  for (int e = 0; e < kPer; ++e) {
    const int j = col0 + Own::column(e);
    if (j < p.m()) out[j] += sum[e];
  }
}

// Words of bits, one per chunk, in the order in which they are made.
template <class Own, class T>
UK_HOST_DEVICE int outside_words(const DeviceProblem<T>& p, const GradientCall<T>& call) {
  const int64_t chunks = call.plan_only || call.implicit ? 1 : (p.max_iter + Own::kDepth - 1) / Own::kDepth;
  return int((chunks + 31) / 32);
}

// Block: a tile of a problem, or of the panel that the cost holds. Rows are those of the problem, but in the cost and
// its gradient. kVectors: the rows of both begin where vectors may.
template <class T, int kPer, bool kVectors>
__global__ void __launch_bounds__(Tile<T, kPer>::kThreads, 2)
    gradient_kernel(const __grid_constant__ DeviceProblem<T> batch, const __grid_constant__ GradientCall<T> call) {
  using Own = Tile<T, kPer>;
  using Access = Columns<T, kPer, kVectors>;
  const int tid = threadIdx.x;
  const int tiles_across = int((batch.m + Own::kSize - 1) / Own::kSize);
  const int tiles = int((batch.rows + Own::kSize - 1) / Own::kSize) * tiles_across;
  const int64_t k = blockIdx.x / tiles;
  const int tile = blockIdx.x % tiles;
  const One<T> p{batch, k};
  const int m = p.m();
  const int first_row = int(batch.first_row), end = first_row + int(batch.rows);
  const int row0 = first_row + tile / tiles_across * Own::kSize, col0 = tile % tiles_across * Own::kSize;
  const T inverse_reg = 1 / p.reg();
  T* out = call.grad_cost + k * p.n() * int64_t(m);
  const Steps<T> steps(p, call);
  Own* shared = reinterpret_cast<Own*>(cuda::shared_memory());  // two, by turns
  int* outside = reinterpret_cast<int*>(shared + 2);            // a bit per chunk that the product leaves out
  T sum[kPer][kPer] = {};

  if (!call.plan_only) {
    const int chunks = (steps.last - steps.first) / Own::kDepth + 1;
    for (int c = tid; c < outside_words<Own>(batch, call); c += Own::kThreads) outside[c] = 0;
    cuda::sync_block();
    Ratios<T, kPer> ratios(steps, row0, end, col0);
    auto stage = [&](int chunk) {
      if (!ratios.store(shared[chunk % 2], inverse_reg) && !call.implicit)
        cuda::atomic_or(&outside[chunk / 32], int(1u << chunk % 32));
    };
    ratios.load(steps);
    stage(0);
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const bool more = chunk + 1 < chunks;
      if (more) ratios.load(steps);
      cuda::sync_block();  // this chunk is made, and the one before multiplied by all
      if (!(outside[chunk / 32] >> chunk % 32 & 1)) shared[chunk % 2].multiply(sum);
      if (more) stage(chunk + 1);
    }
  }

  const bool poisoned = *p.flags() & kFlagsThatPoison;
  const T zero = poisoned ? T(NAN) : T(0), weight = zero + (call.value_weight ? call.value_weight[k] : T(0));
  const T per_cost = call.plan_only ? T(0) : weight * inverse_reg;
  T g[kPer];
#pragma unroll
  for (int e = 0; e < kPer; ++e) {
    const int j = col0 + Own::column(e);
    g[e] = j < m ? p.g()[j] : T(0);
  }
#pragma unroll
  for (int r = 0; r < kPer; ++r) {
    const int i = row0 + Own::row(r);
    if (i >= end) continue;
    const int64_t row = int64_t(i - first_row) * m;
    const T f = p.f()[i], alpha = call.plan_only ? T(0) : p.alpha()[i];
    T c[kPer];
    Access::read(p.cost() + row, col0, m, c);
#pragma unroll
    for (int e = 0; e < kPer; ++e) {
      const T plan = cuda::exp_of(exponent(f, g[e], c[e], inverse_reg));
      c[e] = plan > 0 ? plan * (weight + sum[r][e] - per_cost * (c[e] - alpha)) : zero;
    }
    Access::write(out + row, col0, m, c);
  }
  bool any_outside = false;
  for (int c = 0; !call.plan_only && c < outside_words<Own>(batch, call); ++c) any_outside = any_outside || outside[c];
  if (!any_outside) return;
  for (int r = 0; r < kPer; ++r) {
    const int i = row0 + Own::row(r);
    if (i >= end) continue;
    const int64_t row = int64_t(i - first_row) * m;
    add_exact<T, kPer>(steps, outside, i, col0, p.cost() + row, out + row, inverse_reg);
  }
}

template <class T, int kPer>
const char* start(const DeviceProblem<T>& p, const GradientCall<T>& call, cuda::Stream stream) {
  using Own = Tile<T, kPer>;
  const int64_t tiles = (p.rows + Own::kSize - 1) / Own::kSize * ((p.m + Own::kSize - 1) / Own::kSize);
  const uintptr_t addresses = reinterpret_cast<uintptr_t>(p.cost) | reinterpret_cast<uintptr_t>(call.grad_cost);
  const bool vectors = p.m % Own::kVec == 0 && addresses % sizeof(typename Own::Vec) == 0;
  return cuda::launch(vectors ? gradient_kernel<T, kPer, true> : gradient_kernel<T, kPer, false>, tiles * p.batch, 1,
                      Own::kThreads, 2 * sizeof(Own) + outside_words<Own>(p, call) * sizeof(int), stream, p, call);
}

// Unbalanced: a half-step's softmax is P over what it kept.
template <class T>
DeviceProblem<T> over_kept(const DeviceProblem<T>& all) {
  if (all.marginals.exact()) return all;
  DeviceProblem<T> p = as_iterated(all);
  p.a = p.kept_a, p.a_stride = p.n, p.b = p.kept_b, p.b_stride = p.m;
  return p;
}

}  // namespace

template <class T>
const char* cuda_gradient(const DeviceProblem<T>& problem, const GradientCall<T>& call, int device,
                          cuda::Stream stream) {
  const DeviceProblem<T> p = over_kept(problem);
  const cuda::DeviceGuard guard(device);
  if (guard.error()) return guard.error();
  if (makes_gradient(p.plan, call.implicit || call.plan_only)) return nullptr;
  switch (gradient_tile(p.rows, p.m, p.batch, sizeof(T), p.plan.multiprocessors)) {
    case 32: return start<T, 2>(p, call, stream);
    case 64: return start<T, 4>(p, call, stream);
  }
  if constexpr (sizeof(T) == 4) return start<T, 8>(p, call, stream);
  return "no such tile";
}
template const char* cuda_gradient<float>(const DeviceProblem<float>&, const GradientCall<float>&, int, cuda::Stream);
template const char* cuda_gradient<double>(const DeviceProblem<double>&, const GradientCall<double>&, int,
                                           cuda::Stream);

}  // namespace sinkhorn
}  // namespace ucmkd

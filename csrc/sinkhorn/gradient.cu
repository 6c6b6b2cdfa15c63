// dC from the vectors that the adjoint left, in one pass over the cost:
//
//   dC = P weight (1 - (C - alpha) / reg) + sum_t exp((f_t + g_t - C) / reg) df_t / a
//        + exp((f_(t-1) + g_t - C) / reg) dg_t / b
//
// An exponential is P times a ratio of the row times a ratio of the column, relative to the last iteration:
//
//   exp((f_t + g_t - C) / reg) = P u_t v_t,   u_t = exp((f_t - f_T) / reg), v_t likewise
//
// so a tile of the cost takes two multiply-adds per element and iteration. Where a ratio of the tile leaves
// [e^-R, e^R], or potentials are so large against reg that their rounding shows, that iteration takes the
// softmaxes of the half-steps themselves, in this tile only.
#include "sinkhorn/cuda.h"
#include "sinkhorn/step.h"

namespace ucmkd {
namespace sinkhorn {
namespace {

constexpr int kTileRows = 32, kTileCols = 64, kDepth = 8;  // iterations at a time
constexpr int kThreads = 256;
constexpr int kPerThread = kTileRows * kTileCols / kThreads;
constexpr int kRowStep = kThreads / kTileCols;

template <class T>
struct Ratios {
  T x[kDepth][kTileRows];       // u_t df_t / a
  T before[kDepth][kTileRows];  // u_(t-1)
  T v[kDepth][kTileCols];       // v_t
  T w[kDepth][kTileCols];       // v_t dg_t / b
  int out_of_range[kDepth];
};

// exp((now - last) / reg), 0 where there is no mass; says whether it is exact enough.
template <class T>
__device__ inline T ratio(T now, T last, T inverse_reg, bool* in_range) {
  if (!(last > -T(INFINITY))) return 0;
  const T power = (now - last) * inverse_reg;
  *in_range = *in_range && magnitude(power) <= Limits<T>::kRatio &&
              magnitude(now * inverse_reg) <= Limits<T>::kPower;
  return cuda::exp_of(power);
}

// One tile of kTileRows x kTileCols.  Block: a tile of a problem, or of the panel that the cost holds. Rows are
// those of the problem, but in the cost and its gradient.
template <class T>
__global__ void __launch_bounds__(kThreads, 1) gradient_kernel(const __grid_constant__ DeviceProblem<T> batch,
                                                            const __grid_constant__ GradientCall<T> call) {
  const int tiles_across = int((batch.m + kTileCols - 1) / kTileCols);
  const int tiles = int((batch.rows + kTileRows - 1) / kTileRows) * tiles_across;
  const int64_t k = blockIdx.x / tiles;
  const int tile = blockIdx.x % tiles;
  const One<T> p{batch, k};
  const int n = int(p.n()), m = int(p.m()), tid = threadIdx.x;
  const int first_row = int(batch.first_row), end = first_row + int(batch.rows);
  const int row0 = first_row + tile / tiles_across * kTileRows, col0 = tile % tiles_across * kTileCols;
  const int j = col0 + tid % kTileCols, row = row0 + tid / kTileCols;
  const T inverse_reg = 1 / p.reg(), weight = call.value_weight ? call.value_weight[k] : T(0);
  const int64_t rows = call.implicit ? 1 : p.all.max_iter;
  const T *df = call.df + k * rows * n, *dg = call.dg + k * rows * m;
  const T* cost = p.cost();
  T* out = call.grad_cost + k * int64_t(n) * m;
  Ratios<T>& shared = *reinterpret_cast<Ratios<T>*>(cuda::shared_memory());

  T in_range_sum[kPerThread] = {}, outside_sum[kPerThread] = {};
  const int64_t last = call.implicit ? 1 : *p.n_iter();
  const int64_t first = call.plan_only ? last + 1 : call.implicit ? 1 : call.first[k];
  auto f_at = [&](int64_t t) { return call.implicit ? p.f() : p.f_at(t); };
  auto g_at = [&](int64_t t) { return call.implicit ? p.g() : p.g_at(t); };
  for (int64_t top = last; top >= first; top -= kDepth) {
    const int depth = top - first + 1 < kDepth ? int(top - first + 1) : kDepth;
    cuda::sync_block();  // the ratios of the chunk before are in use until here
    if (tid < kDepth) shared.out_of_range[tid] = 0;
    cuda::sync_block();
    for (int e = tid; e < depth * (kTileRows + kTileCols); e += kThreads) {
      const int d = e / (kTileRows + kTileCols), at = e % (kTileRows + kTileCols);
      const int64_t t = top - d;
      bool in_range = true;
      if (at < kTileRows) {
        const int i = row0 + at;
        const bool there = i < end;
        const T now = there ? ratio(f_at(t)[i], p.f()[i], inverse_reg, &in_range) : T(0);
        shared.x[d][at] = there ? now * df[(t - 1) * n + i] * inverse_or_zero(p.mass_a(i)) : T(0);
        shared.before[d][at] = there ? ratio(f_at(t - 1)[i], p.f()[i], inverse_reg, &in_range) : T(0);
      } else {
        const int c = at - kTileRows, col = col0 + c;
        const T now = col < m ? ratio(g_at(t)[col], p.g()[col], inverse_reg, &in_range) : T(0);
        shared.v[d][c] = now;
        shared.w[d][c] = col < m ? now * dg[(t - 1) * m + col] * inverse_or_zero(p.mass_b(col)) : T(0);
      }
      if (!in_range && !call.implicit) cuda::atomic_or(&shared.out_of_range[d], 1);
    }
    cuda::sync_block();
    for (int d = 0; d < depth; ++d) {
      if (!shared.out_of_range[d]) {
        const T v = shared.v[d][tid % kTileCols], w_v = shared.w[d][tid % kTileCols];
#pragma unroll
        for (int q = 0; q < kPerThread; ++q) {
          const int r = tid / kTileCols + q * kRowStep;
          in_range_sum[q] += shared.x[d][r] * v + shared.before[d][r] * w_v;
        }
        continue;
      }
      if (j >= m) continue;
      const int64_t t = top - d;
      const T g = g_at(t)[j], log_g = p.log_g_at(t)[j], dg_j = dg[(t - 1) * m + j];
      for (int q = 0; q < kPerThread; ++q) {
        const int i = row + q * kRowStep;
        if (i >= end) break;
        const T c = cost[int64_t(i - first_row) * m + j];
        outside_sum[q] += softmax_of(g, c, p.log_f_at(t)[i], p.reg(), inverse_reg) * df[(t - 1) * n + i] +
                          softmax_of(f_at(t - 1)[i], c, log_g, p.reg(), inverse_reg) * dg_j;
      }
    }
  }
  if (j >= m) return;
  const bool poisoned = *p.flags() & kFlagsThatPoison;
#pragma unroll
  for (int q = 0; q < kPerThread; ++q) {
    const int i = row + q * kRowStep;
    if (i >= end) break;
    const T c = cost[int64_t(i - first_row) * m + j];
    const T plan = cuda::exp_of(exponent(p.f()[i], p.g()[j], c, inverse_reg));
    T of_plan = weight;
    if (!call.plan_only) of_plan += in_range_sum[q] - weight * (c - p.alpha()[i]) * inverse_reg;
    const T d = (plan > 0 ? plan * of_plan : T(0)) + outside_sum[q];
    out[int64_t(i - first_row) * m + j] = poisoned ? T(NAN) : d;
  }
}

}  // namespace

template <class T>
const char* cuda_gradient(const DeviceProblem<T>& p, const GradientCall<T>& call, int device,
                          cuda::Stream stream) {
  const cuda::DeviceGuard guard(device);
  if (guard.error()) return guard.error();
  const int64_t tiles = (p.rows + kTileRows - 1) / kTileRows * ((p.m + kTileCols - 1) / kTileCols);
  return cuda::launch(gradient_kernel<T>, tiles * p.batch, 1, kThreads, sizeof(Ratios<T>), stream, p, call);
}
template const char* cuda_gradient<float>(const DeviceProblem<float>&, const GradientCall<float>&, int,
                                          cuda::Stream);
template const char* cuda_gradient<double>(const DeviceProblem<double>&, const GradientCall<double>&, int,
                                           cuda::Stream);

}  // namespace sinkhorn
}  // namespace ucmkd

// The adjoint of a small problem (small.cuh), and dC with it: nothing is left for gradient.cu. One exponential per
// element and step (adjoint.cu says what df_t, dg_t, R_t, S_t are), that of the plan P_t = exp((f_t + g_t - C) / reg):
// its columns over their sums are S_(t+1), its rows over their sums R_t.
//
//   df_t,i     = -sum_j P_t,ij y_j,   y_j = dg_(t+1),j / sum_i P_t,ij
//   dg_t,j     = -sum_i P_t,ij x_i,   x_i = df_t,i / sum_j P_t,ij
//   dC_ij     += P_t,ij (y_j + x_i)
//
// The sums are this sweep's own: whatever rounding did to potentials, softmaxes add up to one. Those of the columns
// come with the sums of the step before. f_t has just been made, so a row's sum is its mass; where a column's sum is so
// small that exponentials which have vanished would count, S_(t+1) is made from the log-sum of the iteration.
#include "sinkhorn/small.cuh"

namespace ucmkd {
namespace sinkhorn {
namespace {

// Beside the sums of dC and S the registers hold the cost of all but the largest problems.
template <int R, int C, bool kShared = (R * C >= 64)>
struct KeptCost {
  float cost[R][C];
  __device__ KeptCost(const Small<R, C, 2>& at, const float* from) { at.load(from, cost); }
  __device__ Pack<C> row(int r) const {
    Pack<C> out;
#pragma unroll
    for (int c = 0; c < C; ++c) out.x[c] = cost[r][c];
    return out;
  }
};
template <int R, int C>
struct KeptCost<R, C, true> {
  Pack<C>* own;  // (R, threads)
  __device__ KeptCost(const Small<R, C, 2>& at, const float* from)
      : own(reinterpret_cast<Pack<C>*>(&at.shared + 1) + threadIdx.x) {
#pragma unroll 4
    for (int r = 0; r < R; ++r) {
      Pack<C> out;
#pragma unroll
      for (int c = 0; c < C; ++c) out.x[c] = at.element(from, at.row(r), c);
      own[r * kSmallThreads] = out;
    }
  }
  __device__ Pack<C> row(int r) const { return own[r * kSmallThreads]; }
};
template <int R, int C>
constexpr size_t adjoint_shared() {
  return sizeof(SmallShared<R, C, 2>) + (R * C >= 64 ? R * kSmallThreads * sizeof(Pack<C>) : 0);
}

constexpr float kLeastColumn = 1e-28f, kMostColumn = 1e30f;

// Potentials of an iteration, f of the row that the lane answers for. They are loaded a step before they are needed.
template <int C>
struct Potentials {
  float f, g[C];
};

template <int R, int C>
struct SmallAdjoint {
  const One<float>& p;
  const AdjointCall<float>& call;
  const Small<R, C, 2> at;
  const KeptCost<R, C> cost;
  float reg, inverse_reg, power;
  float plan[R][C], column_sums[C];
  float dc[R][C] = {};
  float dg[C], inverse_b[C], shares[C];  // shares: sums of dg / b
  float inverse_a, of_a;                 // of the row that the lane answers for: 1 / a, sum of df / a

  __device__ SmallAdjoint(const One<float>& problem, const AdjointCall<float>& call_)
      : p(problem), call(call_), at(p.n(), p.m()), cost(at, p.cost()), reg(p.reg()), inverse_reg(1 / reg),
        power(kPowersOf2 * inverse_reg) {
#pragma unroll
    for (int c = 0; c < C; ++c)
      inverse_b[c] = at.has_column(c) ? inverse_or_zero(p.mass_b(at.column(c))) : 0.f, shares[c] = 0;
    inverse_a = at.has_row() ? inverse_or_zero(p.mass_a(at.row())) : 0.f;
    of_a = at.has_row() ? of_f(at.row()) : 0.f;
  }

  __device__ float weight() const { return call.value_weight ? call.value_weight[p.k] : 0.f; }
  // df_T / a and dg_T / b as they came
  __device__ float of_f(int i) const {
    return call.grad_f ? call.grad_f[p.k * at.n + i] * inverse_or_zero(p.mass_a(i)) : 0.f;
  }
  __device__ float of_g(int j) const { return call.grad_g ? call.grad_g[p.k * at.m + j] : 0.f; }

  // As in adjoint.cu; the same on every thread.
  __device__ float least_that_matters() const {
    float most_f = 0, most_g = 0;
    for (int i = at.lane; i < at.n; i += kWarp) most_f = fmaxf(most_f, magnitude(of_f(i)));
    for (int j = at.lane; j < at.m; j += kWarp)
      most_g = fmaxf(most_g, magnitude(of_g(j)) * inverse_or_zero(p.mass_b(j)));
    return call.tolerance * (magnitude(weight()) + cuda::largest(most_f) + cuda::largest(most_g));
  }

  __device__ Potentials<C> load(int64_t t) const {
    Potentials<C> in;
    in.f = at.has_row() ? p.f_at(t)[at.row()] : -float(INFINITY);
#pragma unroll
    for (int c = 0; c < C; ++c) in.g[c] = at.has_column(c) ? column_potential(t, at.column(c)) : -float(INFINITY);
    return in;
  }
  // There is no g_0, and any would do: only the softmaxes of P_0's columns are asked for.
  __device__ float column_potential(int64_t t, int j) const { return t > 0 ? p.g_at(t)[j] : -reg * p.log_g_at(1)[j]; }

  // P_t, and the sums over this warp's rows.
  __device__ Pack<C> make_plan(const float (&f)[R], const float (&g)[C]) {
    Pack<C> sums = {};
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const Pack<C> costs = cost.row(r);
#pragma unroll
      for (int c = 0; c < C; ++c) {
        plan[r][c] = cuda::power_of_two(((g[c] - costs.x[c]) + f[r]) * power);
        sums.x[c] += plan[r][c];
      }
    }
    return sums;
  }

  // dg_T, what the last plan adds to dC, and P_(T-1).
  __device__ void first(int64_t last) {
    float f[R], g[C];
    Pack<C> column;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      g[c] = at.has_column(c) ? p.g()[at.column(c)] : -float(INFINITY);
      column.x[c] = 0;
    }
    const float w = weight();
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int i = at.row(r);
      const bool there = i < at.n;
      const float potential = there ? p.f()[i] : -float(INFINITY), alpha = there ? p.alpha()[i] : 0.f;
      const float given = there ? of_f(i) : 0.f;
      f[r] = there ? p.f_at(last - 1)[i] : -float(INFINITY);
      const Pack<C> costs = cost.row(r);
#pragma unroll
      for (int c = 0; c < C; ++c) {
        const float now = cuda::exp_of(exponent(potential, g[c], costs.x[c], inverse_reg));
        if (!(now > 0)) continue;
        const float back = (costs.x[c] - alpha) * (w * inverse_reg) - given;
        column.x[c] += now * back;
        dc[r][c] = now * (w - back);
      }
    }
    const Pack<C> sums = make_plan(f, load(last - 1).g);
    at.sum_columns(column, sums, last & 1, dg, column_sums);
#pragma unroll
    for (int c = 0; c < C; ++c) dg[c] = inverse_b[c] > 0 ? dg[c] + of_g(at.column(c)) : 0.f;
  }

  // Adds dg_t to the gradient of b; whether what remains before iteration t is too small to matter.
  __device__ bool ends(int64_t t, float least) {
    float most = 0;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const float share = dg[c] * inverse_b[c];
      shares[c] += share;
      most = fmaxf(most, magnitude(share));
    }
    return t == 1 || 2 * float(t) * cuda::largest(most) <= least;  // all warps have the same
  }

  // y of dg_t, and S_t dg_t of the columns that have none: to dC, and their sums over a lane's columns to `parts`.
  __device__ void weigh_columns(int64_t t, float (&y)[C], float (&parts)[R]) {
    bool vanished = false;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const bool good = column_sums[c] > kLeastColumn && column_sums[c] < kMostColumn;
      y[c] = good ? cuda::quotient(dg[c], column_sums[c]) : 0.f;
      vanished |= !good && inverse_b[c] > 0;
    }
#pragma unroll
    for (int r = 0; r < R; ++r) parts[r] = 0;
    if (!cuda::any(vanished)) return;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const float f = at.row(r) < at.n ? p.f_at(t - 1)[at.row(r)] : -float(INFINITY);
#pragma unroll
      for (int c = 0; c < C; ++c) {
        if (!(inverse_b[c] > 0) || (column_sums[c] > kLeastColumn && column_sums[c] < kMostColumn)) continue;
        const float log_g = p.log_g_at(t)[at.column(c)];
        const float back = cuda::exp_of((f - cost.row(r).x[c]) * inverse_reg - log_g) * dg[c];
        parts[r] += back;
        dc[r][c] += back;
      }
    }
  }

  // From dg_t and P_(t-1) to dg_(t-1) and P_(t-2), of which `before` are the potentials.
  __device__ void step(int64_t t, const Potentials<C>& before, const float (&y)[C], float (&parts)[R]) {
    float masses[R], x[R], f[R];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      masses[r] = plan[r][0];
      parts[r] += plan[r][0] * y[0];
#pragma unroll
      for (int c = 1; c < C; ++c) masses[r] += plan[r][c], parts[r] += plan[r][c] * y[c];
    }
    const float df = -at.sum_row(parts), row_mass = at.sum_row(masses);
    of_a += df * inverse_a;
    at.spread_rows(row_mass > 0 ? cuda::quotient(df, row_mass) : 0.f, x);
    at.spread_rows(before.f, f);
    Pack<C> column = {};
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int c = 0; c < C; ++c) {
        column.x[c] -= plan[r][c] * x[r];
        dc[r][c] += plan[r][c] * (y[c] + x[r]);
      }
    const Pack<C> sums = make_plan(f, before.g);
    at.sum_columns(column, sums, t & 1, dg, column_sums);
#pragma unroll
    for (int c = 0; c < C; ++c)
      if (!(inverse_b[c] > 0)) dg[c] = 0;
  }

  __device__ void finish() const {
    const bool poisoned = *p.flags() & kFlagsThatPoison;
    float* out = call.grad_cost + p.k * at.n * at.m;
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int c = 0; c < C; ++c)
        if (at.row(r) < at.n && at.has_column(c))
          out[at.row(r) * at.m + at.column(c)] = poisoned ? float(NAN) : dc[r][c];
    if (at.leads && at.has_row())
      call.grad_a[p.k * at.n + at.row()] = weight() * p.alpha()[at.row()] + reg * of_a;
    if (at.warp != 0) return;
#pragma unroll
    for (int c = 0; c < C; ++c)
      if (at.has_column(c)) call.grad_b[p.k * at.m + at.column(c)] = reg * shares[c];
  }
};

template <int R, int C>
__global__ void __launch_bounds__(kSmallThreads, small_blocks(R, C))
    small_adjoint_kernel(const __grid_constant__ DeviceProblem<float> batch, const __grid_constant__ AdjointCall<float> call) {
  const One<float> p{batch, blockIdx.x};
  SmallAdjoint<R, C> problem(p, call);
  const float least = problem.least_that_matters();
  int64_t t = *p.n_iter();
  problem.first(t);
  float y[C], parts[R];
  Potentials<C> before = problem.load(t > 1 ? t - 2 : 0);
  for (;; --t) {
    const bool last = problem.ends(t, least);
    problem.weigh_columns(t, y, parts);
    if (last) break;
    const Potentials<C> now = before;
    before = problem.load(t > 2 ? t - 3 : 0);
    problem.step(t - 1, now, y, parts);
  }
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int c = 0; c < C; ++c) problem.dc[r][c] += problem.plan[r][c] * y[c];
  problem.finish();
}

}  // namespace

const char* small_adjoint(const DeviceProblem<float>& p, const AdjointCall<float>& call, cuda::Stream stream) {
  return with_small_size(p.n, p.m, [&](auto size) {
    using Size = decltype(size);
    constexpr int R = Size::kRows, C = Size::kColumns;
    static_assert(adjoint_shared<R, C>() <= kSmallShared, "regime.h asks the device for less");
    return cuda::launch(small_adjoint_kernel<R, C>, p.batch, 1, kSmallThreads, adjoint_shared<R, C>(), stream, p, call);
  });
}

}  // namespace sinkhorn
}  // namespace ucmkd

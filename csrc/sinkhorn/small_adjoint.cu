// The adjoint of a small problem (small.cuh), and dC with it: nothing is left for gradient.cu. adjoint.cu says what df_t,
// dg_t, R_t, S_t are. The plan P_t = exp((f_t + g_t - C) / reg) has both: its columns over their sums are S_(t+1), its
// rows over their sums R_t. As in the iterations, P_t,ij = u_i K_ij v_j, and no element takes an exponential until the
// potentials are far from those of K:
//
//   y_j = dg_(t+1),j / sum_i P_t,ij    df_t,i = -u_i sum_j K_ij (v_j y_j)
//   z_i = df_t,i / sum_j K_ij v_j      dg_t,j = -v_j sum_i K_ij z_i
//   dC_ij     += K_ij D_ij,  D_ij = sum_t u_i (v_j y_j) + z_i v_j
//
// The sums are this sweep's own: whatever rounding did to potentials, softmaxes add up to one. Those of the columns
// come with the sums of the step before. f_t has just been made, so a row's sum is its mass; where a column's sum is so
// small that elements which have vanished would count, S_(t+1) is made from the log-sum of the iteration.
#include "sinkhorn/small.cuh"

namespace ucmkd {
namespace sinkhorn {
namespace {

// An element of K below 2^-126 is 0, u / a and v beside it are at most 2^20: 128 of them are below 2^-79, less than the
// rounding of a column's least sum.
constexpr float kMostMove = 20;  // base 2
constexpr float kLeastColumn = 2.8e-17f, kMostColumn = 1e30f;

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
  float power;                           // log2(e) / reg
  float kernel[R][C], weights[R][C];     // K at the base, over a; D
  float base_g[C], u[R], v[C];           // of the plan
  float column_sums[C];                  // of the plan
  float dg[C], inverse_b[C], shares[C];  // shares: sums of dg / b
  // Of the row that the lane answers for: a, f of the base, u, 1 / sum_j K_ij v_j, sum of df
  float mass, base_f, own_u, inverse_sum, sum_df = 0;
  const float *next_f, *next_g;

  __device__ SmallAdjoint(const One<float>& problem, const AdjointCall<float>& call_)
      : p(problem), call(call_), at(p.n(), p.m()), power(kPowersOf2 * (1 / p.reg())) {
#pragma unroll
    for (int c = 0; c < C; ++c)
      inverse_b[c] = at.has_column(c) ? inverse_or_zero(p.mass_b(at.column(c))) : 0.f, shares[c] = 0;
    mass = at.has_row() ? p.mass_a(at.row()) : 0.f;
  }

  // Asked for far from the loop's path: no register is to keep them.
  __device__ int64_t offset() const { return int64_t(cuda::opaque(int(p.k))) * (at.n * at.m); }
  __device__ float* out() const { return call.grad_cost + offset(); }
  __device__ const float* costs() const { return p.all.cost + offset(); }

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

  // load(t), load(t - 1), ... will be asked for, and after 0 others that are not used.
  __device__ void load_from(int t) { next_f = p.f_at(t) + at.row(), next_g = p.g_at(t > 1 ? t : 1) + at.lane; }
  // There is no g_0, and any would do: only the softmaxes of P_0's columns are asked for. It is g_1.
  __device__ Potentials<C> load(int t) {
    Potentials<C> in;
    in.f = at.has_row() ? *next_f : -float(INFINITY);
#pragma unroll
    for (int c = 0; c < C; ++c) in.g[c] = at.has_column(c) ? next_g[kWarp * c] : -float(INFINITY);
    next_f -= t > 0 ? at.n : 0, next_g -= t > 1 ? at.m : 0;
    return in;
  }

  // K at the potentials, which have P for their plan.
  __device__ void set_base(const Potentials<C>& at_base) {
    base_f = at_base.f;
    const float log = mass > 0 ? cuda::log2_of(mass) : 0.f;
    at.load(costs(), kernel);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const float f = at.spread(base_f, r), scale = at.spread(log, r);
#pragma unroll
      for (int c = 0; c < C; ++c) {
        kernel[r][c] = cuda::power_of_two(fmaf((at_base.g[c] - kernel[r][c]) + f, power, -scale));
        weights[r][c] = 0;
      }
    }
#pragma unroll
    for (int c = 0; c < C; ++c) base_g[c] = at_base.g[c], v[c] = 1;
    own_u = mass;
  }

  // What the base has brought to dC.
  __device__ void deposit() const {
    float* matrix = out();
    at.each([&](int r, int c, bool there, int offset) {
      if (there) matrix[offset] += kernel[r][c] * weights[r][c];
    });
  }

  // To the plan of the potentials as far as u and v go; whether that is too far from the base.
  __device__ bool scale(const Potentials<C>& to) {
    const float move = mass > 0 ? (to.f - base_f) * power : 0.f;
    bool far = !(magnitude(move) < kMostMove);
    own_u = mass * cuda::power_of_two(move);
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const float across = inverse_b[c] > 0 ? (to.g[c] - base_g[c]) * power : 0.f;
      far |= !(magnitude(across) < kMostMove);
      v[c] = cuda::power_of_two(across);
    }
    return cuda::any(far);
  }

  __device__ void times_columns(const float (&x)[C], float (&out)[R]) const {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      out[r] = kernel[r][0] * x[0];
#pragma unroll
      for (int c = 1; c < C; ++c) out[r] = fmaf(kernel[r][c], x[c], out[r]);
    }
  }
  __device__ Pack<float, C> times_rows(const float (&x)[R], const float (&scale)[C]) const {
    Pack<float, C> out = {};
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int c = 0; c < C; ++c) out.e[c] = fmaf(kernel[r][c], x[r], out.e[c]);
#pragma unroll
    for (int c = 0; c < C; ++c) out.e[c] *= scale[c];
    return out;
  }

  // P of a base that has just been set.
  __device__ Pack<float, C> sum_plan() {
    float sums[R];
    at.spread_rows(own_u, u);
    times_columns(v, sums);
    inverse_sum = inverse_or_zero(at.sum_row(sums));
    return times_rows(u, v);
  }

  // dg_T, what the last plan adds to dC, and P_(T-1).
  __device__ void first(int last) {
    float g[C];
    Pack<float, C> column = {};
#pragma unroll
    for (int c = 0; c < C; ++c) g[c] = at.has_column(c) ? p.g()[at.column(c)] : -float(INFINITY);
    at.load(costs(), kernel);
    const float w = weight(), inverse_reg = 1 / p.reg();
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int i = at.row(r);
      const bool there = i < at.n;
      const float potential = there ? p.f()[i] : -float(INFINITY), alpha = there ? p.alpha()[i] : 0.f;
      const float given = there ? of_f(i) : 0.f;
#pragma unroll
      for (int c = 0; c < C; ++c) {
        const float now = cuda::exp_of(exponent(potential, g[c], kernel[r][c], inverse_reg));
        const float back = now > 0 ? (kernel[r][c] - alpha) * (w * inverse_reg) - given : 0.f;
        column.e[c] += now * back;
        if (there && at.has_column(c)) out()[i * at.m + at.column(c)] = now * (w - back);
      }
    }
    load_from(last - 1);
    set_base(load(last - 1));
    at.sum_columns(column, sum_plan(), last & 1, dg, column_sums);
#pragma unroll
    for (int c = 0; c < C; ++c) dg[c] = inverse_b[c] > 0 ? dg[c] + of_g(at.column(c)) : 0.f;
  }

  // Adds dg_t to the gradient of b; whether what remains before iteration t is too small to matter.
  __device__ bool ends(int t, float least) {
    float most = 0;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const float share = dg[c] * inverse_b[c];
      shares[c] += share;
      most = fmaxf(most, magnitude(share));
    }
    return t == 1 || 2 * float(t) * cuda::largest(most) <= least;  // all warps have the same
  }

  // v y of dg_t to `w`; whether the lane has a column that has none.
  __device__ bool weigh_columns(float (&w)[C]) const {
    bool vanished = false;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const bool good = column_sums[c] > kLeastColumn && column_sums[c] < kMostColumn;
      w[c] = (good ? v[c] : 0.f) * cuda::quotient(dg[c], good ? column_sums[c] : 1.f);
      vanished |= !good && inverse_b[c] > 0;
    }
    return vanished;
  }
  // Of such columns, S_t dg_t goes to dC; returns its sum over the lane's row.
  __device__ float weigh_vanished(int t) const {
    float sum = 0, *matrix = out();
    const float *cost = costs(), *f = p.f_at(cuda::opaque(t) - 1), *log_g = p.log_g_at(cuda::opaque(t));
#pragma unroll 1
    for (int r = 0; r < R; ++r) {
      float part = 0;
      const int i = at.warp * R + r;
      if (i >= at.n) break;
#pragma unroll
      for (int c = 0; c < C; ++c) {
        if (!(inverse_b[c] > 0) || (column_sums[c] > kLeastColumn && column_sums[c] < kMostColumn)) continue;
        const int offset = i * at.m + at.column(c);
        const float back = cuda::exp_of((f[i] - cost[offset]) / p.reg() - log_g[at.column(c)]) * dg[c];
        part += back;
        matrix[offset] += back;
      }
      part = warp_merge(Sum<float>{part}).sum;
      if (r == at.mine) sum = part;
    }
    return sum;
  }

  // What a step has from dg_t before it goes on: sum_j P_(t-1),ij y_j of the row that the lane answers for, and what it
  // needs of P_(t-1) beside u and v of P_(t-2).
  struct Half {
    float back, inverse_sum, v[C];
    bool far;
  };
  // Of `before`, the potentials of P_(t-2), nothing waits for dg: it is done while sums are on their way.
  __device__ Half begin_step(const Potentials<C>& before, const float (&w)[C]) {
    float parts[R], masses[R], sums[2];
    Half half;
    times_columns(w, parts);
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int c = 0; c < C; ++c) weights[r][c] = fmaf(u[r], w[c], weights[r][c]);
    const float scaling = own_u;
#pragma unroll
    for (int c = 0; c < C; ++c) half.v[c] = v[c];
    half.inverse_sum = inverse_sum;
    half.far = scale(before);
    if constexpr (R * C < 64) {
      times_columns(v, masses);
      at.sum_rows(parts, masses, sums);
    } else {  // no registers for two at a time
      sums[0] = at.sum_row(parts);
      times_columns(v, masses);
      sums[1] = at.sum_row(masses);
    }
    at.spread_rows(own_u, u);
    half.back = scaling * sums[0];
    inverse_sum = sums[1] > 0 ? cuda::quotient(1.f, sums[1]) : 0.f;
    return half;
  }
  // To dg_(t-1) and P_(t-2).
  __device__ void end_step(int t, const Half& half, float vanished, const Potentials<C>& before) {
    float z[R];
    const float df = -(half.back + vanished);
    sum_df += df;
    at.spread_rows(df * half.inverse_sum, z);
    Pack<float, C> column = times_rows(z, half.v), sums = times_rows(u, v);
#pragma unroll
    for (int c = 0; c < C; ++c) column.e[c] = -column.e[c];
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int c = 0; c < C; ++c) weights[r][c] = fmaf(z[r], half.v[c], weights[r][c]);
    if (half.far) {
      deposit();
      set_base(before);
      sums = sum_plan();
    }
    at.sum_columns(column, sums, t & 1, dg, column_sums);
#pragma unroll
    for (int c = 0; c < C; ++c)
      if (!(inverse_b[c] > 0)) dg[c] = 0;
  }

  __device__ void finish() {
    if (*p.flags() & kFlagsThatPoison) {
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int c = 0; c < C; ++c) weights[r][c] = float(NAN);
    }
    deposit();
    if (at.leads && at.has_row())
      call.grad_a[p.k * at.n + at.row()] =
          weight() * p.alpha()[at.row()] + p.reg() * (of_f(at.row()) + sum_df * inverse_or_zero(mass));
    if (at.warp != 0) return;
#pragma unroll
    for (int c = 0; c < C; ++c)
      if (at.has_column(c)) call.grad_b[p.k * at.m + at.column(c)] = p.reg() * shares[c];
  }
};

template <int R, int C>
__global__ void __launch_bounds__(kSmallThreads, small_blocks(R, C))
    small_adjoint_kernel(const __grid_constant__ DeviceProblem<float> batch,
                         const __grid_constant__ AdjointCall<float> call) {
  const One<float> p{batch, blockIdx.x};
  SmallAdjoint<R, C> problem(p, call);
  const float least = problem.least_that_matters();
  int t = int(*p.n_iter());
  problem.first(t);
  float w[C];
  Potentials<C> before = problem.load(t - 2);
  for (;; --t) {
    const Potentials<C> now = before;
    before = problem.load(t - 3);
    const bool vanished = cuda::any(problem.weigh_columns(w)), last = problem.ends(t, least);
    const auto half = problem.begin_step(now, w);
    const float beside = vanished ? problem.weigh_vanished(t) : 0.f;
    if (last) break;
    problem.end_step(t - 1, half, beside, now);
  }
  problem.finish();
}

}  // namespace

const char* small_adjoint(const DeviceProblem<float>& p, const AdjointCall<float>& call, cuda::Stream stream) {
  return with_small_size(p.n, p.m, [&](auto size) {
    using Size = decltype(size);
    constexpr int R = Size::kRows, C = Size::kColumns;
    static_assert(sizeof(SmallShared<R, C, 2>) <= kSmallShared, "regime.h asks the device for less");
    return cuda::launch(small_adjoint_kernel<R, C>, p.batch, 1, kSmallThreads, sizeof(SmallShared<R, C, 2>), stream, p,
                        call);
  });
}

}  // namespace sinkhorn
}  // namespace ucmkd

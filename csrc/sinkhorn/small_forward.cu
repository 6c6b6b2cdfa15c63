// The iterations of a small problem, one exponential per element (small.cuh):
//
//   e_ij = exp(((g_t,j - C_ij) + f_(t-1),i) / reg),  s_i = sum_j e_ij
//   f_t,i = f_(t-1),i + reg (log a_i - log s_i)            log_f_t,i = log s_i - f_(t-1),i / reg
//   q_j = sum_i e_ij exp((f_t,i - f_(t-1),i) / reg)        columns of the plan, and of g_(t+1) likewise
//
// Costs and potentials are subtracted before they are scaled: an offset of the costs is lost without a trace. After
// a half-step no e exceeds a mass. Where a sum is so small that exponentials which have vanished would count, the
// log-sums are made anew, each with its largest term apart; that reads the cost again and leaves the registers alone.
#include "sinkhorn/relaxation.h"
#include "sinkhorn/small.cuh"

namespace ucmkd {
namespace sinkhorn {
namespace {

// An exponential below 1e-38 is 0. A row grows by 2^50 at most and columns hold more than 2^-43: 128 of them are less
// than the rounding of a sum.
constexpr float kMostLog = 99, kMostGrowth = 50, kLeastColumnLog = -43;  // base 2

template <int R, int C>
struct SmallForward {
  const One<float>& p;
  const Small<R, C> at;
  float reg, inverse_reg, power, unit;  // power = log2(e) / reg, unit = 1 / power
  float cost[R][C];
  float f[R], g[C];
  float next_g[C], log_sum[C];  // of the next iteration, from f
  float log_b[C];               // base 2
  float mass, log_a, own;       // of the row that this lane answers for: a, log2 a, f

  __device__ explicit SmallForward(const One<float>& problem)
      : p(problem), at(problem.n(), problem.m()), reg(problem.reg()), inverse_reg(1 / reg),
        power(kPowersOf2 * inverse_reg), unit(kLn2 * reg) {}

  __device__ void check_masses(double* sum_a, double* sum_b) {
    double sums[2] = {0, 0};
    int wrong = 0;
    auto look = [&](float x, int side) {
      if (!is_mass(x)) wrong = kFlagBadMass;
      sums[side] += x;
    };
    if (threadIdx.x < at.n) look(p.mass_a(threadIdx.x), 0);
    if (threadIdx.x < at.m) look(p.mass_b(threadIdx.x), 1);
    *sum_a = p.all.a ? at.total(sums[0], 0) : 1, *sum_b = p.all.b ? at.total(sums[1], 1) : 1;
    wrong |= flags_of_sums<float>(*sum_a, *sum_b);
    if (wrong) cuda::atomic_or(p.flags(), wrong);
  }

  __device__ void start() {
    at.load(p.cost(), cost);
    bool bad = false;
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int c = 0; c < C; ++c) bad |= !(cost[r][c] >= -Limits<float>::kMax);
    if (bad) cuda::atomic_or(p.flags(), kFlagBadCost);
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const float b = at.has_column(c) ? p.mass_b(at.column(c)) : 0.f;
      log_b[c] = b > 0 ? cuda::log_of(b) * kPowersOf2 : -float(INFINITY);
      g[c] = -float(INFINITY);
    }
    mass = at.has_row() ? p.mass_a(at.row()) : 0.f;
    log_a = mass > 0 ? cuda::log_of(mass) * kPowersOf2 : -float(INFINITY);
    float first = -reg * cuda::log_of(float(at.n));
    if (at.has_row() && p.init_f()) first = p.init_f()[at.row()];
    if (!(mass > 0)) first = -float(INFINITY);
    if (at.leads && at.has_row()) p.f_at(0)[at.row()] = first;
    own = first;
    at.spread_rows(own, f);
    exact_columns();
  }

  // The columns' log-sums from f, and what they make of g, whatever their range.
  __device__ void exact_columns() {
    LogSum<float> sums[C];
#pragma unroll
    for (int c = 0; c < C; ++c) sums[c] = LogSum<float>::empty();
#pragma unroll 1
    for (int r = 0; r < R; ++r) {
      const float mine = at.spread(own, r);
#pragma unroll
      for (int c = 0; c < C; ++c) sums[c].add((mine - at.element(p.cost(), at.row(r), c)) * inverse_reg);
    }
    at.merge_columns(sums);
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const bool live = log_b[c] > -float(INFINITY);
      log_sum[c] = live ? sums[c].value() : float(INFINITY);
      next_g[c] = unit * log_b[c] - reg * log_sum[c];
      if (next_g[c] == float(INFINITY)) cuda::atomic_or(p.flags(), kFlagForbidden);
    }
  }

  // The log-sum of the row that this lane answers for, from g, whatever its range.
  __device__ float exact_row() const {
    float found = float(INFINITY);
#pragma unroll 1
    for (int r = 0; r < R; ++r) {
      LogSum<float> sum = LogSum<float>::empty();
#pragma unroll
      for (int c = 0; c < C; ++c) sum.add((g[c] - at.element(p.cost(), at.warp * R + r, c)) * inverse_reg);
      sum = warp_merge(sum);
      if (r == at.mine && mass > 0) found = sum.value();
    }
    if (found == -float(INFINITY)) cuda::atomic_or(p.flags(), kFlagForbidden);
    return found;
  }

  // On to g_t; two warps write down g_t and its log-sums, at `out`.
  __device__ void column_step(float* out, bool relaxed) {
#pragma unroll
    for (int c = 0; c < C; ++c) {
      g[c] = relaxed ? over_relaxed(next_g[c], g[c]) : next_g[c];
      if (at.warp < 2 && at.has_column(c)) out[kWarp * c] = at.warp == 0 ? g[c] : log_sum[c];
    }
  }
  __device__ float* column_out() const { return (at.warp == 0 ? p.g_at(1) : p.log_g_at(1)) + at.lane; }
  // Two lanes of a row do so for f_t.
  __device__ float* row_out() const { return (at.leads ? p.f_at(1) : p.log_f_at(1)) + at.row(); }

  // f_t from g_t, then the column sums of the plan, to `sums`.
  __device__ void row_step(float* out, bool relaxed, int turn, float (&sums)[C]) {
    float e[R][C], row_sums[R];
    exponentials(e);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      row_sums[r] = e[r][0];
#pragma unroll
      for (int c = 1; c < C; ++c) row_sums[r] += e[r][c];
    }
    const bool live = mass > 0;
    const float sum = at.sum_row(row_sums), safe = live ? sum : 1.f, log = cuda::log2_of(safe);
    float row_log_sum = fmaf(-own, inverse_reg, log * kLn2), next = own + unit * (log_a - log);
    const bool vanished = cuda::any(!(magnitude(log) < kMostLog && log_a - log < kMostGrowth));
    if (vanished) {
      row_log_sum = exact_row();
      next = unit * log_a - reg * row_log_sum;
    }
    if (relaxed) next = over_relaxed(next, own);
    const float ratio = live ? cuda::power_of_two((next - own) * power) : 0.f;
    own = next;
    if (at.lane % (kWarp / R) < 2 && at.has_row()) *out = at.leads ? next : row_log_sum;
    float ratios[R];
    at.spread_rows(next, f);
    at.spread_rows(vanished ? 1.f : ratio, ratios);
    if (vanished) exponentials(e);
    Pack<C> column;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      column.x[c] = 0;
#pragma unroll
      for (int r = 0; r < R; ++r) column.x[c] += e[r][c] * ratios[r];
    }
    at.sum_columns(column, turn, sums);
  }

  // The next g from the column sums of the plan; both are made anew where a sum is out of range.
  __device__ void next_columns(float (&sums)[C]) {
    bool vanished = false;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const bool live = log_b[c] > -float(INFINITY);
      const float log = cuda::log2_of(live ? sums[c] : 1.f);
      vanished |= !(log > kLeastColumnLog && log < kMostLog);
      log_sum[c] = fmaf(-g[c], inverse_reg, log * kLn2);
      next_g[c] = g[c] + unit * (log_b[c] - log);
    }
    if (!cuda::any(vanished)) return;  // all warps have the same sums
    exact_columns();
#pragma unroll
    for (int c = 0; c < C; ++c) sums[c] = cuda::exp_of(g[c] * inverse_reg + log_sum[c]);
  }

  __device__ void exponentials(float (&e)[R][C]) const {
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int c = 0; c < C; ++c) e[r][c] = cuda::power_of_two(((g[c] - cost[r][c]) + f[r]) * power);
  }

  // How far the column sums are from the masses: the same on every thread.
  __device__ double marginal_error(const float (&sums)[C]) const {
    double mine = 0;
#pragma unroll
    for (int c = 0; c < C; ++c)
      if (log_b[c] > -float(INFINITY)) mine += magnitude(double(sums[c]) - double(p.mass_b(at.column(c))));
    return warp_merge(Sum<double>{mine}).sum;
  }

  // alpha and the value, as Value of steps.cuh: alpha in two looks.
  __device__ void finish(double* value, double* dual) {
    *value = *dual = 0;
    float alpha = 0, shifts[R];
#pragma unroll
    for (int r = 0; r < R; ++r) shifts[r] = 0;
#pragma unroll 1
    for (int look = 0; look < 2; ++look) {
      float costs[R], masses[R];
#pragma unroll
      for (int r = 0; r < R; ++r) {
        costs[r] = masses[r] = 0;
#pragma unroll
        for (int c = 0; c < C; ++c) {
          const float plan = cuda::exp_of(exponent(f[r], g[c], cost[r][c], inverse_reg));
          if (plan > 0) costs[r] += plan * (cost[r][c] - shifts[r]), masses[r] += plan;
        }
      }
      const float row_cost = at.sum_row(costs), row_mass = at.sum_row(masses);
      alpha += row_mass > 0 ? row_cost / row_mass : 0.f;
      if (look == 1) break;
      if (at.leads) *value = row_cost;
      at.spread_rows(alpha, shifts);
    }
    if (at.leads && at.has_row()) {
      p.alpha()[at.row()] = alpha;
      p.f()[at.row()] = own;
      *dual = double(without_mass(own, mass, reg)) * mass;
    }
    if (at.warp != 0) return;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      if (!at.has_column(c)) continue;
      const float b = p.mass_b(at.column(c));
      p.g()[at.column(c)] = g[c];
      *dual += double(without_mass(g[c], b, reg)) * b;
    }
  }
};

template <int R, int C>
__global__ void __launch_bounds__(kSmallThreads, small_blocks(R, C))
    small_forward_kernel(const __grid_constant__ DeviceProblem<float> batch, const __grid_constant__ ForwardOut<float> out) {
  const One<float> p{batch, blockIdx.x};
  clear_flags(p);
  SmallForward<R, C> problem(p);
  double sum_a, sum_b, error = 0;
  problem.check_masses(&sum_a, &sum_b);
  problem.start();

  Relaxation relaxation(batch.relax, batch.tol, batch.max_iter);
  float *row_out = problem.row_out(), *column_out = problem.column_out();
  const int rows = batch.history ? p.n() : 0, columns = batch.history ? p.m() : 0;
  const int last = int(batch.max_iter);
  int t = 1;
  for (;; ++t, row_out += rows, column_out += columns) {
    const bool relaxed = batch.relax && relaxation.begin(t);
    problem.column_step(column_out, relaxed);
    float sums[C];
    problem.row_step(row_out, relaxed, t & 1, sums);
    problem.next_columns(sums);
    if (batch.tol > 0 || batch.relax || t == last) {
      error = problem.marginal_error(sums);
      if (t == last || (batch.tol > 0 && error <= batch.tol && !relaxed)) break;
      relaxation.watch(error);
    }
  }

  double value, dual;
  problem.finish(&value, &dual);
  value = problem.at.total(value, 2), dual = problem.at.total(dual, 3);
  if (threadIdx.x != 0) return;
  const int refused = *p.flags() & kFlagsThatPoison;
  out.value[p.k] = refused ? NAN : float(value);
  out.dual[p.k] = refused ? NAN : float(dual - p.reg() * (sum_a - sum_a * sum_b));
  out.marginal_error[p.k] = refused ? NAN : float(error);
  *p.n_iter() = t;
  out.n_iter[p.k] = refused ? -refused : t;
}

}  // namespace

const char* small_forward(const DeviceProblem<float>& p, const ForwardOut<float>& out, cuda::Stream stream) {
  return with_small_size(p.n, p.m, [&](auto size) {
    using Size = decltype(size);
    constexpr int R = Size::kRows, C = Size::kColumns;
    return cuda::launch(small_forward_kernel<R, C>, p.batch, 1, kSmallThreads, sizeof(SmallShared<R, C, 1>), stream, p, out);
  });
}

}  // namespace sinkhorn
}  // namespace ucmkd

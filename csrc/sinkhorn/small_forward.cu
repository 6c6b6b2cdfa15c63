// The iterations of a small problem. Between two changes of base (f', g') none of its elements takes an exponential:
//
//   K_ij = exp(((g'_j - C_ij) + f'_i) / reg) / a_i     in registers
//   s_i = sum_j K_ij v_j,  f_t,i = f'_i - reg log s_i,                    u_i = a_i exp((f_t,i - f'_i) / reg)
//   q_j = sum_i K_ij u_i,  g_(t+1),j = g'_j + reg (log b_j - log q_j),    v_j = exp((g_(t+1),j - g'_j) / reg)
//
// and the log-sums are log_f_t,i = log s_i + log a_i - f'_i / reg, log_g_(t+1),j = log q_j - g'_j / reg. u and v are
// those of the potentials as they were rounded: what one side lost the other makes good, and nothing adds up. Costs
// and potentials are subtracted before they are scaled: an offset of the costs is lost without a trace. Where u or v
// are far from the base, it moves to the potentials of the moment. Where a sum is so small that elements which have
// vanished would count, the log-sum is made anew, its largest term apart. Both read the cost again.
#include "sinkhorn/relaxation.h"
#include "sinkhorn/small.cuh"

namespace ucmkd {
namespace sinkhorn {
namespace {

// An element below 2^-126 is 0, and v or u / a beside it is at most 2^30: 128 of them are below 2^-89, less than the
// rounding of a sum of 2^-64. No sum that counts is beyond 2^99.
constexpr float kMostMove = 30, kLeastLog = -64, kMostLog = 99;  // base 2

__device__ inline bool in_range(float log) { return log > kLeastLog && log < kMostLog; }

// kPlain: neither over-relaxed nor stopped by a tolerance.
template <int R, int C, bool kPlain>
struct SmallForward {
  const One<float>& p;
  const Small<R, C> at;
  float reg, inverse_reg, power, unit;  // power = log2(e) / reg, unit = 1 / power
  float kernel[R][C];
  float base_g[C], g[C], v[C];
  float next_g[C], log_sum[C];  // of the next iteration, from f
  float log_b[C];               // base 2
  // Of the row that this lane answers for. base_log: log a - f' / reg
  float mass, log_a, base_f, base_log, own;
  bool stale = true;  // the base has to move; the same on all threads

  __device__ explicit SmallForward(const One<float>& problem)
      : p(problem), at(problem.n(), problem.m()), reg(problem.reg()), inverse_reg(1 / reg),
        power(kPowersOf2 * inverse_reg), unit(kLn2 * reg) {}

  __device__ void check_masses(double* sum_a, double* sum_b) {
    double sums[2] = {0, 0};
    bool good = true;
    auto look = [&](float x, int side) {
      good &= is_mass(x);
      sums[side] += x;
    };
    if (threadIdx.x < at.n) look(p.mass_a(threadIdx.x), 0);
    if (threadIdx.x < at.m) look(p.mass_b(threadIdx.x), 1);
    *sum_a = p.all.a ? at.total(sums[0], 0) : 1, *sum_b = p.all.b ? at.total(sums[1], 1) : 1;
    const int wrong = flags_of_masses<float>(good, *sum_a, *sum_b);
    if (wrong) cuda::atomic_or(p.flags(), wrong);
  }

  __device__ void start() {
    at.load(p.cost(), kernel);
    bool bad = false;
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int c = 0; c < C; ++c) bad |= !(kernel[r][c] >= -Rules<float>::kMax);
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
      v[c] = log_b[c] > -float(INFINITY) ? cuda::power_of_two((g[c] - base_g[c]) * power) : 0.f;
      if (at.warp < 2 && at.has_column(c)) out[kWarp * c] = at.warp == 0 ? g[c] : log_sum[c];
    }
    if (stale) move_base();
    stale = false;
  }
  __device__ float* column_out() const { return (at.warp == 0 ? p.g_at(1) : p.log_g_at(1)) + at.lane; }
  // Two lanes of a row do so for f_t.
  __device__ float* row_out() const { return (at.leads ? p.f_at(1) : p.log_f_at(1)) + at.row(); }

  // To the potentials of the moment.
  __device__ void move_base() {
    base_f = own;
    base_log = mass > 0 ? fmaf(log_a, kLn2, -own * inverse_reg) : float(INFINITY);
    const float log = mass > 0 ? log_a : 0.f;
    at.load(p.cost(), kernel);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const float f = at.spread(own, r), scale = at.spread(log, r);
#pragma unroll
      for (int c = 0; c < C; ++c) kernel[r][c] = cuda::power_of_two(fmaf((g[c] - kernel[r][c]) + f, power, -scale));
    }
#pragma unroll
    for (int c = 0; c < C; ++c) base_g[c] = g[c], v[c] = 1;
  }

  // f_t from g_t, then the columns' sums.
  __device__ void row_step(float* out, bool relaxed, int turn, float (&sums)[C]) {
    float row_sums[R];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      row_sums[r] = kernel[r][0] * v[0];
#pragma unroll
      for (int c = 1; c < C; ++c) row_sums[r] = fmaf(kernel[r][c], v[c], row_sums[r]);
    }
    const float sum = at.sum_row(row_sums), safe = mass > 0 ? sum : 1.f, log = cuda::log2_of(safe);
    float next = fmaf(-unit, log, base_f), row_log_sum = fmaf(log, kLn2, base_log);
    if (relaxed) next = over_relaxed(next, own);
    const float move = mass > 0 ? (next - base_f) * power : 0.f;
    put_columns(mass * cuda::power_of_two(move), turn);
    if (cuda::any_of_block(!(magnitude(log) < kMostMove && magnitude(move) < kMostMove))) {
      if (cuda::any(!in_range(log))) {
        row_log_sum = exact_row();
        next = unit * log_a - reg * row_log_sum;
        if (relaxed) next = over_relaxed(next, own);
      }
      own = next;
      move_base();
      put_columns(mass, turn);  // nobody has looked at what was there
      cuda::sync_block();
    }
    own = next;
    if (at.lane % (kWarp / R) < 2 && at.has_row()) *out = at.leads ? next : row_log_sum;
    at.take_columns(turn, sums);
  }

  __device__ void put_columns(float scaling, int turn) const {
    float u[R];
    at.spread_rows(scaling, u);
    Pack<float, C> column = {};
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int c = 0; c < C; ++c) column.e[c] = fmaf(kernel[r][c], u[r], column.e[c]);
    at.put_columns(column, turn);
  }

  // The next g and v; `sums` become those of the plan's columns.
  __device__ void next_columns(float (&sums)[C]) {
    bool far = false, vanished = false;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const bool live = log_b[c] > -float(INFINITY);
      const float safe = live ? sums[c] : 1.f, log = cuda::log2_of(safe), move = live ? log_b[c] - log : 0.f;
      sums[c] *= v[c];
      vanished |= !in_range(log);
      far |= !(magnitude(move) < kMostMove);
      log_sum[c] = fmaf(log, kLn2, -base_g[c] * inverse_reg);
      next_g[c] = fmaf(unit, move, base_g[c]);
    }
    stale = cuda::any(far || vanished);  // all warps have the same sums
    if (!stale || !cuda::any(vanished)) return;
    exact_columns();
#pragma unroll
    for (int c = 0; c < C; ++c) sums[c] = cuda::exp_of(g[c] * inverse_reg + log_sum[c]);
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
    float alpha = 0, shifts[R], f[R];
    float (&cost)[R][C] = kernel;
    at.load(p.cost(), cost);
    at.spread_rows(own, f);
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

template <int R, int C, bool kPlain>
__global__ void __launch_bounds__(kSmallThreads, small_blocks(R, C))
    small_forward_kernel(const __grid_constant__ DeviceProblem<float> batch,
                         const __grid_constant__ ForwardOut<float> out) {
  const One<float> p{batch, blockIdx.x};
  clear_flags(p);
  SmallForward<R, C, kPlain> problem(p);
  double sum_a, sum_b, error = 0;
  problem.check_masses(&sum_a, &sum_b);
  problem.start();

  Relaxation relaxation(batch.relax, batch.tol, batch.max_iter);
  float *row_out = problem.row_out(), *column_out = problem.column_out();
  const int rows = batch.history ? p.n() : 0, columns = batch.history ? p.m() : 0;
  const int last = int(batch.max_iter);
  int t = 1;
  for (;; ++t, row_out += rows, column_out += columns) {
    const bool relaxed = !kPlain && batch.relax && relaxation.begin(t);
    problem.column_step(column_out, relaxed);
    float sums[C];
    problem.row_step(row_out, relaxed, t & 1, sums);
    problem.next_columns(sums);
    if (!kPlain || t == last) {
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
    const auto kernel = p.tol > 0 || p.relax ? small_forward_kernel<R, C, false> : small_forward_kernel<R, C, true>;
    return cuda::launch(kernel, p.batch, 1, kSmallThreads, sizeof(SmallShared<R, C, 1>), stream, p, out);
  });
}

}  // namespace sinkhorn
}  // namespace ucmkd

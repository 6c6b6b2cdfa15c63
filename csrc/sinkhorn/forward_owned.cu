// The iterations on a GPU with one exponential per element (owned.cuh): with e_ij = exp((f_(t-1) + g_t - C_ij) / reg),
//
//   s_i = sum_j e_ij             f_t     = f_(t-1) + reg log(a / s)
//   c_j = sum_i e_ij a_i / s_i   g_(t+1) = g_t + reg log(b / c)        c: the columns' masses after iteration t
//
// Behind a plain half-step no entry exceeds its mass. A sum that leaves its range (Range) is taken again, exactly, as a
// log-sum. The columns' sums for g_1 are those of f_0 against g_0 = 0, or the opposite of f_0 where that is chosen here.
#include "sinkhorn/forward_ends.cuh"
#include "sinkhorn/owned_launch.cuh"
#include "sinkhorn/relaxation.h"
#include "sinkhorn/unbalanced.cuh"

namespace ucmkd {
namespace sinkhorn {
namespace {

// What sums may be. Entries below 1e-38 are 0 in float: grown by the factor of a row at most, all of a column's together
// stay below the rounding of a sum that is in range.
template <class T>
struct Range {
  static constexpr T kLeastColumn = sizeof(T) == 4 ? T(1e-18) : T(1e-30),
                     kMostGrowth = sizeof(T) == 4 ? T(1e8) : T(1e30);
  static __device__ bool row(T sum, T growth) { return sum >= T(1e-30) && sum <= T(1e30) && growth <= kMostGrowth; }
  static __device__ bool column(T sum) { return sum >= kLeastColumn && sum <= T(1e30); }
};

// log_sum - potential inverse_reg, rounded once: both sides' softmaxes are made with it.
template <class T>
__device__ inline T log_sum_without(T potential, T inverse_reg, T log_sum) {
  const T power = potential * inverse_reg;
  return (log_sum - cuda::fused(potential, inverse_reg, -power)) - power;
}

template <class T>
struct OwnedStart {
  static constexpr bool kRows = false, kWeighted = false, kLooks = true, kMends = false, kOnce = true;
  const T* potential;  // f_0 (count,)
  T k, g;              // log2(e) / reg, g_0
  bool bad;
  __device__ T shift(int) const { return g; }
  __device__ T power(int row) const { return potential[row] * k; }
  __device__ T entry(T shift, T c, T power) const { return cuda::power_of_two((shift - c) * k + power); }
  __device__ void look(T c) { bad |= !(c >= -Rules<T>::kMax); }
};

// What the half-steps of a side do beyond exact ones: nothing, or `kept` of the masses that this thread finished, and shifts.
template <class T, bool kDamped>
struct SideOf {
  static __device__ SideOf rows(const One<T>&, double) { return {}; }
  static __device__ SideOf columns(const One<T>&, double) { return {}; }
};
template <class T>
struct SideOf<T, true> {
  Damped<T> side;
  double kept;
  static __device__ SideOf rows(const One<T>& p, double shifted) { return {Damped<T>::rows(p, shifted), 0}; }
  static __device__ SideOf columns(const One<T>& p, double shifted) { return {Damped<T>::columns(p, shifted), 0}; }
};

template <class T, bool kDamped>
struct OwnedIterate {
  static constexpr bool kRows = true, kWeighted = false, kLooks = false, kMends = true, kOnce = false;
  One<T> p;
  T *potential, *mass;  // shared (count,): f_(t-1), which becomes f_t; a
  const T* g;           // g_t (m,)
  T *f, *log_f;         // f_t and its log-sums, of this block's rows
  T k, inverse_reg;
  bool relaxed, wrong;
  SideOf<T, kDamped> of;

  __device__ T shift(int j) const { return g[j]; }
  __device__ T power(int row) const { return potential[row] * k; }
  __device__ T entry(T shift, T c, T power) const { return cuda::power_of_two((shift - c) * k + power); }
  __device__ T value(int row, T sum) {
    const T a = mass[row];
    if (!(a > 0)) return 0;
    const T ratio = cuda::quotient(a, sum), y = grown(row, sum, ratio);
    const bool sound = y > 0 && Range<T>::row(sum, y);
    wrong |= !sound;
    return sound ? y : T(0);
  }
  __device__ void store(int row, T sum) {
    const T a = mass[row], before = potential[row];
    if (a > 0 && value(row, sum) == 0) {
      log_f[row] = T(NAN);  // to be mended
      return;
    }
    // what the rounding of `power` took from the entries
    const T lost = a > 0 ? cuda::fused(before, k, -power(row)) * T(0.6931471805599453) : T(0);
    const T log_sum = cuda::log_of(sum) + lost, of_row = log_sum_without(before, inverse_reg, log_sum);
    if constexpr (kDamped)
      write(row, a > 0 ? before + p.reg() * ((cuda::log_of(a) - log_sum) + of.side.log_kept(of_row)) : -T(INFINITY),
            of_row);
    else
      write(row, a > 0 ? before + p.reg() * (cuda::log_of(a) - log_sum) : -T(INFINITY), of_row);
  }

  __device__ bool to_mend(int row) const { return !(log_f[row] == log_f[row]); }
  // The power of the row's new potential, from the sum of its entries against 2^(shift k).
  __device__ T mended(int row, T shift, T sum) const { return then(row, exact_step(row, log_sum(shift, sum))) * k; }
  __device__ void store_mended(int row, T shift, T sum) {
    const T of_row = log_sum(shift, sum), next = exact_step(row, of_row);
    if (next == T(INFINITY)) cuda::atomic_or(p.flags(), kFlagForbidden);
    write(row, next, of_row);
  }

 private:
  // The factor of the row's entries.
  __device__ T grown(int row, T sum, T ratio) const {
    if constexpr (kDamped) {
      const T log_sum = log_sum_without(potential[row], inverse_reg, cuda::log_of(sum));
      return ratio * cuda::exp_of(of.side.log_kept(log_sum));
    } else {
      return relaxed ? ratio * cuda::root(ratio) : ratio;
    }
  }
  __device__ T exact_step(int row, T of_row) const {
    if constexpr (kDamped) return of.side.step(mass[row], of_row, p.reg());
    return half_step(mass[row], of_row, p.reg());
  }
  __device__ T log_sum(T shift, T sum) const { return shift * inverse_reg + cuda::log_of(sum); }
  __device__ T then(int row, T next) const { return relaxed ? over_relaxed(next, potential[row]) : next; }
  __device__ void write(int row, T next, T of_row) {
    if constexpr (kDamped)
      of.kept += of.side.kept(mass[row], of_row);
    else
      next = then(row, next);
    log_f[row] = mass[row] > 0 ? of_row : T(INFINITY);
    potential[row] = f[row] = next;
  }
};

// g_(t+1) of one column from the sum of its entries.
template <class T, bool kDamped>
struct ColumnStep {
  One<T> p;
  const T *f, *g_before;  // f_t (n,); g_t, or null: g_0
  T g_0;
  T *g, *log_g;
  int near;             // the column of which this thread knows these already:
  T near_mass, near_g;  // its mass and g_t
  T inverse_reg;
  bool relaxed, wrong;
  SideOf<T, kDamped> of;

  __device__ void step(int j, T sum) {
    const T b = j == near ? near_mass : p.mass_b(j), before = !g_before ? g_0 : j == near ? near_g : g_before[j];
    if (b > 0 && !Range<T>::column(sum)) {
      log_g[j] = T(NAN);  // to be mended
      wrong = true;
      return;
    }
    const T log_sum = cuda::log_of(sum), of_column = log_sum_without(before, inverse_reg, log_sum);
    if constexpr (kDamped)
      write(j, b, before,
            b > 0 ? before + p.reg() * ((cuda::log_of(b) - log_sum) + of.side.log_kept(of_column)) : -T(INFINITY),
            of_column);
    else
      write(j, b, before, b > 0 ? before + p.reg() * (cuda::log_of(b) - log_sum) : -T(INFINITY), of_column);
  }
  // Column j exactly; one warp.
  __device__ void mend(int j, int lane) {
    if (log_g[j] == log_g[j]) return;
    LogSum<T> sums = LogSum<T>::empty();
    for (int i = lane; i < p.n(); i += kWarp) sums.add((f[i] - p.cost()[int64_t(i) * p.m() + j]) * inverse_reg);
    sums = warp_merge(sums);
    if (lane > 0) return;
    const T b = p.mass_b(j), next = exact_step(b, sums.value());
    if (next == T(INFINITY)) cuda::atomic_or(p.flags(), kFlagForbidden);
    write(j, b, g_before ? g_before[j] : g_0, next, sums.value());
  }

 private:
  __device__ T exact_step(T b, T of_column) const {
    if constexpr (kDamped) return of.side.step(b, of_column, p.reg());
    return half_step(b, of_column, p.reg());
  }
  __device__ void write(int j, T b, T before, T next, T of_column) {
    log_g[j] = b > 0 ? of_column : T(INFINITY);
    if constexpr (kDamped) of.kept += of.side.kept(b, of_column);
    g[j] = !kDamped && relaxed ? over_relaxed(next, before) : next;
  }
};

// Sums of this thread's part of a row of the plan: its masses, and those times C - shift.
template <class T, int kQ, int kR, int kKeep, bool kCluster>
__device__ void look_at_plan(const Owned<T, kQ, kR, kKeep, kCluster>& team, int row, const T* g, T shift, T inverse_reg,
                             T (&sums)[2]) {
  sums[0] = sums[1] = 0;
  if (row >= team.count) return;
  const T f = team.potential[row];
#pragma unroll(kQ < 4 ? kQ : 4)
  for (int q = 0; q < kQ; ++q)
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      const int j = team.column(q) + v;
      if (j >= team.m) continue;
      const T c = team.cost_of(row, j), plan = cuda::exp_of(exponent(f, g[j], c, inverse_reg));
      if (plan > 0) sums[0] += plan, sums[1] += plan * (c - shift);
    }
}

// alpha_i = <P_i, C_i> / sum(P_i) of this block's rows, and what they add to the value. Each row is looked at twice,
// for what rounding left of the mean; the adjoint divides it by reg.
template <class T, int kQ, int kR, int kKeep, bool kCluster>
__device__ double value_of_rows(Owned<T, kQ, kR, kKeep, kCluster>& team, const T* g, T* alpha, T inverse_reg) {
  double value = 0;
#pragma unroll 1
  for (int first = 0; first < team.count; first += team.groups) {
    const int row = first + team.group;
    T mean = 0, sums[2];
#pragma unroll 1
    for (int look = 0; look < 2; ++look) {
      look_at_plan(team, row, g, mean, inverse_reg, sums);
      const T sum = team.template group_sums<2>(sums);
      const T mass = cuda::shuffle_from(sum, 0), of_cost = cuda::shuffle_from(sum, kWarp / 2);
      mean += mass > 0 ? of_cost / mass : T(0);
      if (look == 0 && team.at == 0 && row < team.count) value += of_cost;
    }
    if (team.at == 0 && row < team.count) alpha[row] = mean;
  }
  return value;
}

// Damped: of unbalanced transport (unbalanced.cuh).
template <bool kDamped, class T, int kQ, int kR, int kKeep, bool kCluster>
__device__ inline void solve(const DeviceProblem<T>& batch, const ForwardOut<T>& out, int first_problem) {
  const bool grid = !one_block(batch.plan.regime);
  const int64_t k = problem_of<kCluster>(grid, first_problem);
  const One<T> p{batch, k};
  if (!grid) clear_flags(p);
  Owned<T, kQ, kR, kKeep, kCluster> team(p.all.plan.owned, grid, p.n(), p.m(), p.cost(), p.work(), p.all.own_barrier);
  const T inverse_reg = 1 / p.reg(), log2_over_reg = T(kLog2E / double(p.reg()));
  const T f_start = -p.reg() * cuda::log_of(T(p.n())), g_0 = p.init_f() ? T(0) : -f_start;
  double sum_a, sum_b;
  check_masses(p, team, &sum_a, &sum_b, kDamped ? kFlagSums : 0);
  team.over(0, team.count, [&](int row) {
    const int i = team.row_begin + row;
    const T start = p.init_f() ? p.init_f()[i] : f_start, a = p.mass_a(i);
    team.mass[row] = a;
    p.f_at(0)[i] = team.potential[row] = a > 0 ? start : -T(INFINITY);
  });
  cuda::sync_block();
  OwnedStart<T> start{team.potential, log2_over_reg, g_0, false};
  team.sweep(start);
  if (start.bad) cuda::atomic_or(p.flags(), kFlagBadCost);

  int64_t t = 1;
  double error = 0, shifted = 0, kept_a = 0, kept_b = 0;
  Relaxation relaxation(p.all.relax, p.all.tol, p.all.max_iter);
  const bool watches = p.all.tol > 0 || p.all.relax;
  const int near = team.col_begin + team.tid;
  T near_mass = near < team.col_end ? p.mass_b(near) : T(0), near_g = g_0;
  for (;; ++t) {
    const bool relaxed = !kDamped && relaxation.begin(t);
    if constexpr (kDamped)
      if (p.all.marginals.shifted && t > 1) shifted = double(T(shifted + shift(p.all.marginals, kept_a, kept_b)));
    ColumnStep<T, kDamped> columns{p,
                                   p.f_at(t - 1),
                                   t > 1 ? p.g_at(t - 1) : nullptr,
                                   g_0,
                                   p.g_at(t),
                                   p.log_g_at(t),
                                   near,
                                   near_mass,
                                   near_g,
                                   inverse_reg,
                                   relaxed,
                                   false,
                                   SideOf<T, kDamped>::columns(p, shifted)};
    if (watches && t > 1)
      team.over(team.col_begin, team.col_end, [&](int j) { columns.step(j, team.held[j]); });
    else
      team.columns([&](int j, T sum) { columns.step(j, sum); });
    if (cuda::any_of_block(columns.wrong))
      for (int j = team.col_begin + team.warp; j < team.col_end; j += team.warps) columns.mend(j, team.lane);
    team.arrive();
    OwnedIterate<T, kDamped> iterate{p,
                                     team.potential,
                                     team.mass,
                                     p.g_at(t),
                                     p.f_at(t) + team.row_begin,
                                     p.log_f_at(t) + team.row_begin,
                                     log2_over_reg,
                                     inverse_reg,
                                     relaxed,
                                     false,
                                     SideOf<T, kDamped>::rows(p, shifted)};
    team.sweep(iterate, [&] {
      team.wait();
      if (near < team.col_end) near_g = p.g_at(t)[near];  // arrives during the sweep
    });
    if constexpr (kDamped)
      if (p.all.marginals.shifted) {
        kept_a = team.total(iterate.of.kept), kept_b = team.total(columns.of.kept);
        if (team.leads()) write_shift(p, t, shifted, kept_a, kept_b);
      }
    if (!watches && t < p.all.max_iter) continue;
    double mine = 0;
    team.columns([&](int j, T sum) {
      team.held[j] = sum;
      const T mass = p.mass_b(j);
      T wanted = mass;
      if constexpr (kDamped) wanted = columns.of.side.kept(mass, p.log_g_at(t)[j]);
      if (mass > 0) mine += magnitude(double(sum) - double(wanted));
    });
    error = team.total(mine);  // the same on every thread
    if (t == p.all.max_iter || (p.all.tol > 0 && error <= p.all.tol && !relaxed)) break;
    relaxation.watch(error);
  }

  T* alpha = p.alpha() + team.row_begin;
  const Marginals& held = p.all.marginals;
  const LastStep<T> last_row{held.rho_a, double(p.reg()), shifted, Damped<T>::rows(p, shifted)};
  const LastStep<T> last_column{held.rho_b, double(p.reg()), -shifted, Damped<T>::columns(p, shifted)};
  double value = value_of_rows(team, p.g_at(t), alpha, inverse_reg), dual = 0;
  team.over(0, team.count, [&](int row) {
    const T f = team.potential[row], a = team.mass[row];
    if constexpr (kDamped) {
      const int i = team.row_begin + row;
      dual += last_row.write(a, p.log_f_at(t)[i], f, p.f() + i, p.last_f() + i, p.kept_a() + i);
      dual -= last_row.reg * last_row.side.kept(a, p.log_f_at(t)[i]);
      return;
    }
    dual += double(without_mass(f, a, p.reg())) * a;
    p.f()[team.row_begin + row] = f;
  });
  team.over(team.col_begin, team.col_end, [&](int j) {
    const T mass = p.mass_b(j), g = p.g_at(t)[j];
    if constexpr (kDamped) {
      dual += last_column.write(mass, p.log_g_at(t)[j], g, p.g() + j, p.last_g() + j, p.kept_b() + j);
      return;
    }
    dual += double(without_mass(g, mass, p.reg())) * mass;
    p.g()[j] = g;
  });
  value = team.total(value), dual = team.total(dual);
  if constexpr (kDamped)
    report(p, out, team.leads(), t, value, dual + double(p.reg()) * sum_a * sum_b, error);
  else
    report(p, out, team.leads(), t, value, dual - p.reg() * (sum_a - sum_a * sum_b), error);
}

template <class T, int kQ, int kR, int kKeep, bool kCluster>
__global__ void __launch_bounds__(max_threads(sizeof(T)), 1)
    owned_kernel(const __grid_constant__ DeviceProblem<T> batch, const __grid_constant__ ForwardOut<T> out,
                 int first_problem) {
  solve<false, T, kQ, kR, kKeep, kCluster>(batch, out, first_problem);
}
template <class T, int kQ, int kR, int kKeep>
__global__ void __launch_bounds__(max_threads(sizeof(T)), 1)
    owned_unbalanced_kernel(const __grid_constant__ DeviceProblem<T> batch, const __grid_constant__ ForwardOut<T> out,
                            int first_problem) {
  solve<true, T, kQ, kR, kKeep, false>(batch, out, first_problem);
}

}  // namespace

template <class T>
const char* forward_owned(const DeviceProblem<T>& p, const ForwardOut<T>& out, cuda::Stream stream) {
  const OwnedPlan& plan = p.plan.owned;
  if (!p.marginals.exact())
    return with_plain_shape<T>(plan, [&](auto shape) {
      using S = decltype(shape);
      return launch_owned(owned_unbalanced_kernel<T, S::kQuads, S::kRows, S::kKeeps>, plan, p, out, stream);
    });
  return with_shape<T>(plan, [&](auto shape) {
    using S = decltype(shape);
    return launch_owned(owned_kernel<T, S::kQuads, S::kRows, S::kKeeps, S::kClusters>, plan, p, out, stream);
  });
}
template const char* forward_owned<float>(const DeviceProblem<float>&, const ForwardOut<float>&, cuda::Stream);
template const char* forward_owned<double>(const DeviceProblem<double>&, const ForwardOut<double>&, cuda::Stream);

}  // namespace sinkhorn
}  // namespace ucmkd

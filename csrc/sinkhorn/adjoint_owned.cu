// The adjoint sweep on a GPU with one exponential per element (owned.cuh). With S_t and R_(t-1) the softmaxes of the
// half-steps that made g_t and f_(t-1), both from f_(t-1) and C,
//
//   S_t,ij = exp((f_(t-1),i - C_ij) / reg - log_g_t,j)      R_(t-1),ij = S_t,ij (P_(t-1)'1)_j / a_i
//
// because f_(t-1) = reg (log a - log_f_(t-1)); (P_(t-1)'1)_j = exp(g_(t-1),j / reg + log_g_t,j) are the columns' masses
// behind iteration t - 1, all at most 1. So with s_i = sum_j S_t,ij dg_t,j
//
//   df_(t-1),i = -s_i            dg_(t-1),j = (P_(t-1)'1)_j sum_i S_t,ij s_i / a_i
//
// Nothing can overflow: an entry of S is at most 1, and both sums are means of adjoints over masses. An entry that
// underflows counts for less than rounding in its column. At the fixed point both half-steps have R itself.
//
// Unbalanced (unbalanced.cuh) R_(t-1),ij is S_t,ij (P_(t-1)'1)_j over what the row kept, and the vectors are times lambda.
//
// Where potentials are many times reg, the rounding of powers is what matters. S is made with the log-sums, and what
// the rounding of its powers took is put back into weights and sums; 1 / a_i is taken from the log-sum of
// the row, and (P_(t-1)'1)_j without rounding the large numbers that cancel in it: both softmaxes sum to one.
#include "sinkhorn/adjoint_ends.cuh"
#include "sinkhorn/adjoint_owned_steps.cuh"
#include "sinkhorn/owned_launch.cuh"

namespace ucmkd {
namespace sinkhorn {
namespace {

// The adjoint of one problem, on its crew. `mass` of the crew holds 1 / a in `unrolled`, a at the fixed point. Damped:
// 1 / R there, and through the iterations only; grad_a and grad_b gather what shifts give, times the masses.
template <class T, class Crew, bool kDamped = false>
struct Adjoint {
  const One<T>& p;
  const AdjointCall<T>& call;
  Crew& team;
  T weight, inverse_reg, k;
  const T *grad_f, *grad_g;
  T *grad_a, *grad_b;
  double least;

  __device__ Adjoint(const One<T>& p_, const AdjointCall<T>& call_, Crew& team_) : p(p_), call(call_), team(team_) {
    weight = call.value_weight ? call.value_weight[p.k] : T(0);
    inverse_reg = 1 / p.reg(), k = T(kLog2E / double(p.reg()));
    grad_f = call.grad_f ? call.grad_f + p.k * p.n() : nullptr;
    grad_g = call.grad_g ? call.grad_g + p.k * p.m() : nullptr;
    grad_a = call.grad_a + p.k * p.n(), grad_b = call.grad_b + p.k * p.m();
    if constexpr (kDamped)
      least = least_of_kept(p, call, weight, grad_f, grad_g, team);
    else
      least = least_that_matters(p, call, weight, grad_f, grad_g, team);
  }

  // df at the last half-step, and the columns' sums for dg there.
  __device__ void first(T* df) {
    team.over(0, team.count, [&](int row) {
      const int i = team.row_begin + row;
      if constexpr (kDamped) {
        df[i] = first_of_row(p, i, weight, grad_f, &grad_a[i]);
        team.row_sum[row] = df[i] * inverse_or_zero(p.kept_a()[i]);
        return;
      }
      const T a = p.mass_a(i), mine = grad_f && a > 0 ? grad_f[i] : T(0);
      df[i] = mine;
      team.row_sum[row] = mine * inverse_or_zero(a);
    });
    cuda::sync_block();
    if constexpr (kDamped) charge = first_charge(df);
    OwnedFirst<T> step{p,           p.f() + team.row_begin, p.alpha() + team.row_begin, team.row_sum,
                       inverse_reg, weight * inverse_reg};
    team.sweep(step);
  }

  __device__ void unrolled() {
    const int64_t last = *p.n_iter(), before = p.k * p.all.max_iter - 1;
    auto df_at = [&](int64_t t) { return call.df + (before + t) * p.n(); };
    auto dg_at = [&](int64_t t) { return call.dg + (before + t) * p.m(); };
    clear_rest_of_columns();
    first(df_at(last));
    T* weights = team.held;  // (m,) of the sweep
    const Powers<T> powers(p.reg(), inverse_reg, k);
    int64_t t = last;
    Ready ready{};
    const int own = team.col_begin + team.tid;
    if (own < team.col_end) ready.inverse_mass = inverse_or_zero(p.mass_b(own));
    ready = make_ready(look_ahead(last), ready, powers);
    for (Ahead ahead = look_ahead(last - 1);; --t) {
      T* dg = dg_at(t);
      T most = 0;  // of the adjoints over masses
      team.columns([&](int j, T sum) {
        const bool near = kLooksAhead && j == own;
        const T inverse_mass = near ? ready.inverse_mass : inverse_or_zero(p.mass_b(j));
        const T rest = near ? ready.rest : powers.rest_of_column(p.log_g_at(t)[j]);
        T mine = sum;
        if (t == last)
          mine += grad_g ? grad_g[j] : T(0);
        else
          mine *= near ? ready.factor : factor_of(p.g_at(t)[j], p.log_g_at(t + 1)[j], powers);
        if constexpr (kDamped) {
          const T share = damped_share(t, j, mine, &dg[j]);
          weights[j] = dg[j] == 0 ? T(0) : dg[j] * rest;
          most = share == share ? (most < share ? share : most) : T(INFINITY);
          return;
        }
        dg[j] = mine = inverse_mass > 0 ? mine : T(0);
        weights[j] = mine == 0 ? T(0) : mine * rest;  // NaN stays
        const T share = magnitude(mine * inverse_mass);
        most = share == share ? (most < share ? share : most) : T(INFINITY);  // NaN: no early end
      });
      const int last_threads = team.threads - 1 - team.tid;  // the first ones have columns
#pragma unroll 1
      for (int row = t > 1 ? last_threads : team.count; row < team.count; row += team.threads) {
        const int i = team.row_begin + row;
        const bool near = kLooksAhead && row == last_threads;
        const T f = near ? ready.f : p.f_at(t - 1)[i];
        team.potential[row] = f;
        team.mass[row] = near ? ready.scale : scale_of(f, p.log_f_at(t - 1)[i], powers);
      }
      OwnedBack<T> back{p.log_g_at(t), weights, team.potential, team.mass, df_at(t - 1) + team.row_begin, powers};
      typename Crew::Columns columns;
      team.take_shifts(back, columns);  // on their way meanwhile
      team.offer(most);
      team.sync();
      team.take_weights(back, columns);
      if (t == 1 || 2 * double(t) * double(team.largest_offer()) <= least) break;
      ready = make_ready(ahead, ready, powers), ahead = look_ahead(t - 2);
      if constexpr (kDamped) {
        const T* kept = p.shift_at(t - 1);
        pulled = p.all.marginals.shifted ? charge.back(kept[1], kept[2]) : charge.back(0, 0);
        DampedOwnedBack<T> damped(back, T(charge.lambda_a), pulled, grad_a + team.row_begin);
        team.sweep_with(damped, columns);
      } else {
        team.sweep_with(back, columns);
      }
    }
    if (team.leads()) call.first[p.k] = t;
    const int64_t steps = last - t + 1;
    for (int row = team.warp; row < team.count; row += team.warps) {
      const int i = team.row_begin + row;
      const T sum = sum_over(df_at(t) + i, steps, p.n());
      if constexpr (kDamped) {
        if (team.lane == 0) grad_a[i] = (grad_a[i] + p.reg() * sum / T(charge.lambda_a)) * inverse_or_zero(p.mass_a(i));
        continue;
      }
      if (team.lane == 0) grad_a[i] = weight * p.alpha()[i] + p.reg() * sum * inverse_or_zero(p.mass_a(i));
    }
    for (int j = team.col_begin + team.warp; j < team.col_end; j += team.warps) {
      const T sum = sum_over(dg_at(t) + j, steps, p.m());
      if constexpr (kDamped) {
        if (team.lane == 0) grad_b[j] = (grad_b[j] + p.reg() * sum / T(charge.lambda_b)) * inverse_or_zero(p.mass_b(j));
        continue;
      }
      if (team.lane == 0) grad_b[j] = p.reg() * sum * inverse_or_zero(p.mass_b(j));
    }
  }

  __device__ void at_the_fixed_point() {
    T *df = call.df + p.k * p.n(), *dg = call.dg + p.k * p.m();
    T *share = team.held, *mass = share + team.parts_stride;  // (m,) dg over the columns' masses; these
    T* change = mass + team.parts_stride;                     // (m,) dg of this sweep
    clear_rest_of_columns();
    team.over(0, team.count, [&](int row) {
      const int i = team.row_begin + row;
      team.potential[row] = -p.log_f_at(*p.n_iter())[i] * T(kLog2E);
      team.mass[row] = p.mass_a(i);
    });
    cuda::sync_block();
    OwnedColumnMass<T> columns{p.g(), team.potential, team.mass, k};
    team.sweep(columns);
    // With the columns' masses of the plan, not b, the sweep never expands.
    team.columns([&](int j, T sum) { mass[j] = sum, dg[j] = grad_b[j] = 0; });
    team.sync();
    first(df);
    sum_at_the_fixed_point(
        p, call, least, team, FixedColumns<T>{mass, change, share, dg, grad_b}, [&](auto body) { team.columns(body); },
        [&] {
          OwnedFixedPoint<T> step{p.g(), share, team.potential, team.mass, df + team.row_begin, k};
          team.sweep(step);
        });
    team.over(0, team.count, [&](int row) {
      const int i = team.row_begin + row;
      grad_a[i] = weight * p.alpha()[i] + p.reg() * df[i] * inverse_or_zero(team.mass[row]);
    });
  }

 private:
  ChargeOfColumns charge{};  // damped, as what follows
  PulledShift pulled;

  // Ahead of a barrier of the crew: what is offered then lies where its total was.
  __device__ ChargeOfColumns first_charge(const T* df) {
    double sum = 0;
    team.over(team.row_begin, team.row_end, [&](int i) { sum -= df[i]; });
    team.over(team.col_begin, team.col_end, [&](int j) {
      grad_b[j] = 0;
      if (grad_g && p.kept_b()[j] > 0) sum += grad_g[j];
    });
    const Damped<T> rows = Damped<T>::rows(p, 0), columns = Damped<T>::columns(p, 0);
    return {team.total(sum), rows.lambda, columns.lambda, p.all.marginals};
  }
  // lambda_b dg_t of a column from the sum over its rows, and its size per mass.
  __device__ T damped_share(int64_t t, int j, T sum, T* dg) {
    const bool shifted = p.all.marginals.shifted, part = p.kept_b()[j] > 0;
    const Damped<T> side = Damped<T>::columns(p, shifted ? double(p.shift_at(t)[0]) : 0);
    const T kept = part ? side.kept(p.mass_b(j), p.log_g_at(t)[j]) : T(0);
    grad_b[j] -= T(pulled.of_b) * kept;
    *dg = part ? side.lambda * (sum + T(pulled.columns) * kept) : T(0);
    return magnitude(*dg) * inverse_or_zero(kept_or_nothing(kept));
  }

  // What a thread needs of its first row and column at step t: on its way during the step before the last, ready before
  // the sums come. Where a sweep is short and leaves registers.
  static constexpr bool kLooksAhead = !Crew::kSharedShift;
  struct Ahead {
    T f, log_f;  // of t - 1, of the block's row threads - 1 - tid
    T g, log_g;  // of t, column col_begin + tid
  };
  struct Ready {
    T f, scale;                           // of the row
    T inverse_mass, factor, log_g, rest;  // of the column
  };
  __device__ Ahead look_ahead(int64_t t) const {
    Ahead ahead{};
    const int i = team.row_begin + team.threads - 1 - team.tid, j = team.col_begin + team.tid;
    if (!kLooksAhead || t < 1) return ahead;
    if (i < team.row_end && t > 1) ahead.f = p.f_at(t - 1)[i], ahead.log_f = p.log_f_at(t - 1)[i];
    if (j < team.col_end) ahead.g = p.g_at(t)[j], ahead.log_g = p.log_g_at(t)[j];
    return ahead;
  }
  // `after`: of the step after this one, which is taken before it.
  __device__ Ready make_ready(const Ahead& ahead, const Ready& after, const Powers<T>& powers) const {
    Ready ready{};
    if constexpr (!kLooksAhead) return ready;
    ready.f = ahead.f, ready.scale = scale_of(ahead.f, ahead.log_f, powers);
    ready.inverse_mass = after.inverse_mass;
    ready.log_g = ahead.log_g, ready.rest = powers.rest_of_column(ahead.log_g);
    ready.factor = factor_of(ahead.g, after.log_g, powers);
    return ready;
  }
  // 1 / a, with what rounding took from the row's powers in both softmaxes.
  __device__ T scale_of(T f, T log_f, const Powers<T>& powers) const {
    const T rest = powers.rest_of_row(f);
    const T found = f > -T(INFINITY) ? rest_of(f, log_f, inverse_reg, T(-1)) * rest * rest : T(0);
    if constexpr (kDamped) return found < T(1 / Rules<T>::kLeastMass) ? found : T(0);
    return found;
  }
  // The mass of a column behind iteration t, likewise, from g_t and log_g_(t+1).
  __device__ T factor_of(T g, T log_next, const Powers<T>& powers) const {
    return rest_of(g, log_next, inverse_reg, T(1)) * powers.rest_of_column(log_next);
  }
  // Weights are read in fours.
  __device__ void clear_rest_of_columns() const {
    if (team.leads())
      for (int j = p.m(); j < team.parts_stride; ++j) team.held[j] = 0;
  }

  // One entry of every step, by one warp; the steps are `stride` apart.
  __device__ T sum_over(const T* of_first, int64_t steps, int64_t stride) const {
    double sum = 0;
    for (int64_t s = team.lane; s < steps; s += kWarp) sum += of_first[s * stride];
    for (int mask = kWarp / 2; mask > 0; mask /= 2) sum += cuda::shuffle_xor(sum, mask);
    return T(sum);
  }
};

template <class T, int kQ, int kR, int kKeep, bool kCluster, bool kImplicit>
__global__ void __launch_bounds__(max_threads(sizeof(T)), 1)
    owned_adjoint_kernel(const __grid_constant__ DeviceProblem<T> batch, const __grid_constant__ AdjointCall<T> call,
                         int first_problem) {
  const bool grid = !one_block(batch.plan.regime);
  const int64_t k = problem_of<kCluster>(grid, first_problem);
  const One<T> p{batch, k};
  using Team = Owned<T, kQ, kR, kKeep, kCluster>;
  Team team(p.all.plan.back, grid, p.n(), p.m(), p.cost(), p.work(), p.all.own_barrier);
  Adjoint<T, Team> adjoint(p, call, team);
  if constexpr (kImplicit)
    adjoint.at_the_fixed_point();
  else
    adjoint.unrolled();
  if constexpr (kCluster) team.sync();  // others may still read this block's sums
}

template <class T, int kQ, int kR, int kKeep>
__global__ void __launch_bounds__(max_threads(sizeof(T)), 1)
    owned_unbalanced_adjoint_kernel(const __grid_constant__ DeviceProblem<T> batch,
                                    const __grid_constant__ AdjointCall<T> call, int first_problem) {
  const bool grid = !one_block(batch.plan.regime);
  const int64_t k = problem_of<false>(grid, first_problem);
  const One<T> p{batch, k};
  using Team = Owned<T, kQ, kR, kKeep, false>;
  Team team(p.all.plan.back, grid, p.n(), p.m(), p.cost(), p.work(), p.all.own_barrier);
  Adjoint<T, Team, true> adjoint(p, call, team);
  adjoint.unrolled();
}

}  // namespace

template <class T>
const char* adjoint_owned(const DeviceProblem<T>& p, const AdjointCall<T>& call, cuda::Stream stream) {
  const OwnedPlan& plan = p.plan.back;
  if (!p.marginals.exact())
    return with_plain_shape<T>(plan, [&](auto shape) {
      using S = decltype(shape);
      return launch_owned(owned_unbalanced_adjoint_kernel<T, S::kQuads, S::kRows, S::kKeeps>, plan, p, call, stream);
    });
  return with_shape<T>(plan, [&](auto shape) {
    using S = decltype(shape);
    const auto kernel = call.implicit ? owned_adjoint_kernel<T, S::kQuads, S::kRows, S::kKeeps, S::kClusters, true>
                                      : owned_adjoint_kernel<T, S::kQuads, S::kRows, S::kKeeps, S::kClusters, false>;
    return launch_owned(kernel, plan, p, call, stream);
  });
}
template const char* adjoint_owned<float>(const DeviceProblem<float>&, const AdjointCall<float>&, cuda::Stream);
template const char* adjoint_owned<double>(const DeviceProblem<double>&, const AdjointCall<double>&, cuda::Stream);

}  // namespace sinkhorn
}  // namespace ucmkd

// The iterations on a GPU for problems of any size, in the log domain: while the rows' potentials f_t are made, the
// columns' log-sums for g_(t+1) are gathered (team.cuh). Where threads can own the columns: forward_owned.cu.
//
//   g_t = reg (log b - L_t),  L_t,j = LSE_i((f_(t-1) - C_ij) / reg)
//   f_t = reg (log a - LSE_j((g_t - C_ij) / reg))
//
// L_(t+1) also gives the marginal error after iteration t: (P'1)_j = exp(g_t,j / reg + L_(t+1),j).
#include "sinkhorn/forward_ends.cuh"
#include "sinkhorn/relaxation.h"
#include "sinkhorn/small.cuh"
#include "sinkhorn/team.cuh"

namespace ucmkd {
namespace sinkhorn {
namespace {

template <class T, bool kGrid>
__global__ void __launch_bounds__(max_threads(sizeof(T)), 1)
    forward_kernel(const __grid_constant__ DeviceProblem<T> batch, const __grid_constant__ ForwardOut<T> out,
                   int first_problem) {
  const int64_t k = first_problem + (kGrid ? 0 : blockIdx.x);
  const One<T> p{batch, k};
  if (!kGrid) clear_flags(p);
  Team<T, kGrid> team(p.all.plan, p.n(), p.m(), p.cost(), p.work());
  const T inverse_reg = 1 / p.reg();
  double sum_a, sum_b;
  check_masses(p, team, &sum_a, &sum_b);
  start_rows(p, team);
  Start<T> start{p, p.f_at(0), inverse_reg, false};
  team.sweep(start);
  if (start.bad) cuda::atomic_or(p.flags(), kFlagBadCost);

  // g_(t+1) from the log-sums, and how far iteration t was from the columns' masses.
  int64_t t = 1;
  double error = 0;
  Relaxation relaxation(p.all.relax, p.all.tol, p.all.max_iter);
  for (;; ++t) {
    const bool relaxed = relaxation.begin(t);
    T *g = p.g_at(t), *log_g = p.log_g_at(t);
    team.template columns<LogSum<T>>([&](int j, const LogSum<T>& sums) {
      const T mass = p.mass_b(j), log_sum = sums.value();
      T next = half_step(mass, log_sum, p.reg());
      log_g[j] = mass > 0 ? log_sum : T(INFINITY);
      if (next == T(INFINITY)) cuda::atomic_or(p.flags(), kFlagForbidden);
      if (relaxed) next = over_relaxed(next, g[j]);
      g[j] = next;
    });
    team.sync();
    Iterate<T> iterate{p, g, p.f_at(t), p.log_f_at(t), inverse_reg, relaxed};
    team.sweep(iterate);
    if (p.all.tol > 0 || p.all.relax || t == p.all.max_iter) {
      double mine = 0;
      team.template columns<LogSum<T>>([&](int j, const LogSum<T>& sums) {
        const T mass = p.mass_b(j);
        if (!(mass > 0)) return;
        const T share = cuda::exp_of(g[j] * inverse_reg + sums.value());
        mine += magnitude(double(share) - double(mass));
      });
      error = team.total(mine);  // the same on every thread
      if (t == p.all.max_iter || (p.all.tol > 0 && error <= p.all.tol && !relaxed)) break;
      relaxation.watch(error);
    }
  }

  Value<T> value{p, p.f_at(t), p.g_at(t), inverse_reg, false, 0, 0};
  team.sweep(value);
  value.centre = true;
  team.sweep(value);
  double dual = value.dual;
  team.over(team.col_begin, team.col_end, [&](int j) {
    const T mass = p.mass_b(j), g = p.g_at(t)[j];
    dual += double(without_mass(g, mass, p.reg())) * mass;
    p.g()[j] = g;
  });
  const double total = team.total(value.value), total_dual = team.total(dual);
  report(p, out, team.leads(), t, total, total_dual - p.reg() * (sum_a - sum_a * sum_b), error);
}

}  // namespace

template <class T>
const char* cuda_forward(const DeviceProblem<T>& p, const ForwardOut<T>& out, int device, cuda::Stream stream) {
  const cuda::DeviceGuard guard(device);
  if (guard.error()) return guard.error();
  const Plan& plan = p.plan;
  if (!one_block(plan.regime))
    if (const char* refused = cuda::clear(p.flags, p.batch * sizeof(int), stream)) return refused;
  if constexpr (sizeof(T) == sizeof(float))
    if (plan.regime == Regime::kRegisters) return small_forward(p, out, stream);
  if (plan.owned.threads > 0) return forward_owned(p, out, stream);
  if (!p.marginals.exact()) return forward_unbalanced(p, out, stream);
  return launch_team(forward_kernel<T, false>, forward_kernel<T, true>, p, out, stream);
}
template const char* cuda_forward<float>(const DeviceProblem<float>&, const ForwardOut<float>&, int, cuda::Stream);
template const char* cuda_forward<double>(const DeviceProblem<double>&, const ForwardOut<double>&, int, cuda::Stream);

}  // namespace sinkhorn
}  // namespace ucmkd

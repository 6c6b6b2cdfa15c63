// The iterations of unbalanced transport on a GPU, for problems of any size: those of forward.cu, with the half-steps of
// unbalanced.cuh and shifts between them.
#include "sinkhorn/forward_ends.cuh"
#include "sinkhorn/team.cuh"
#include "sinkhorn/unbalanced.cuh"

namespace ucmkd {
namespace sinkhorn {
namespace {

template <class T, bool kGrid>
__global__ void __launch_bounds__(max_threads(sizeof(T)), 1)
    unbalanced_kernel(const __grid_constant__ DeviceProblem<T> batch, const __grid_constant__ ForwardOut<T> out,
                      int first_problem) {
  const int64_t k = first_problem + (kGrid ? 0 : blockIdx.x);
  const One<T> p{batch, k};
  if (!kGrid) clear_flags(p);
  Team<T, kGrid> team(p.all.plan, p.n(), p.m(), p.cost(), p.work());
  const Marginals& held = p.all.marginals;
  const T inverse_reg = 1 / p.reg();
  double sum_a, sum_b;
  check_masses(p, team, &sum_a, &sum_b, kFlagSums);
  start_rows(p, team);
  Start<T> start{p, p.f_at(0), inverse_reg, false};
  team.sweep(start);
  if (start.bad) cuda::atomic_or(p.flags(), kFlagBadCost);

  int64_t t = 1;
  double error = 0, shifted = 0, kept_a = 0, kept_b = 0;
  for (;; ++t) {
    if (held.shifted && t > 1) shifted = double(T(shifted + shift(held, kept_a, kept_b)));
    const Damped<T> rows = Damped<T>::rows(p, shifted), columns = Damped<T>::columns(p, shifted);
    T *g = p.g_at(t), *log_g = p.log_g_at(t);
    kept_b = 0;
    team.template columns<LogSum<T>>([&](int j, const LogSum<T>& sums) {
      const T mass = p.mass_b(j), log_sum = sums.value(), next = columns.step(mass, log_sum, p.reg());
      log_g[j] = mass > 0 ? log_sum : T(INFINITY);
      if (next == T(INFINITY)) cuda::atomic_or(p.flags(), kFlagForbidden);
      g[j] = next;
      kept_b += columns.kept(mass, log_sum);
    });
    team.sync();
    DampedIterate<T> iterate({p, g, p.f_at(t), p.log_f_at(t), inverse_reg, false}, rows);
    team.sweep(iterate);
    if (held.shifted) {
      kept_a = team.total(iterate.kept), kept_b = team.total(kept_b);
      if (team.leads()) write_shift(p, t, shifted, kept_a, kept_b);
    }
    if (p.all.tol > 0 || t == p.all.max_iter) {
      double mine = 0;
      team.template columns<LogSum<T>>([&](int j, const LogSum<T>& sums) {
        const T mass = p.mass_b(j);
        if (!(mass > 0)) return;
        const T share = cuda::exp_of(g[j] * inverse_reg + sums.value());
        mine += magnitude(double(share) - double(columns.kept(mass, log_g[j])));
      });
      error = team.total(mine);  // the same on every thread
      if (t == p.all.max_iter || error <= p.all.tol) break;
    }
  }

  const LastStep<T> last_row{held.rho_a, double(p.reg()), shifted, Damped<T>::rows(p, shifted)};
  const LastStep<T> last_column{held.rho_b, double(p.reg()), -shifted, Damped<T>::columns(p, shifted)};
  DampedValue<T> value({p, p.f_at(t), p.g_at(t), inverse_reg, false, 0, 0}, last_row, p.log_f_at(t));
  team.sweep(value);
  value.centre = true;
  team.sweep(value);
  double dual = value.dual;
  team.over(team.col_begin, team.col_end, [&](int j) {
    dual += last_column.write(p.mass_b(j), p.log_g_at(t)[j], p.g_at(t)[j], p.g() + j, p.last_g() + j, p.kept_b() + j);
  });
  const double total = team.total(value.value), total_dual = team.total(dual);
  report(p, out, team.leads(), t, total, total_dual + double(p.reg()) * sum_a * sum_b, error);
}

}  // namespace

template <class T>
const char* forward_unbalanced(const DeviceProblem<T>& p, const ForwardOut<T>& out, cuda::Stream stream) {
  return launch_team(unbalanced_kernel<T, false>, unbalanced_kernel<T, true>, p, out, stream);
}
template const char* forward_unbalanced<float>(const DeviceProblem<float>&, const ForwardOut<float>&, cuda::Stream);
template const char* forward_unbalanced<double>(const DeviceProblem<double>&, const ForwardOut<double>&, cuda::Stream);

}  // namespace sinkhorn
}  // namespace ucmkd

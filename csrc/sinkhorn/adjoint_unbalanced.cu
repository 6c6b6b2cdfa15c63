// The adjoint sweep of unbalanced transport on a GPU: that of adjoint.cu, with what unbalanced.cuh adds. f and g of the
// problem are the last potentials without shifts, -inf where next to nothing was kept; df and dg are times lambda.
#include "sinkhorn/adjoint_ends.cuh"
#include "sinkhorn/team.cuh"
#include "sinkhorn/unbalanced.cuh"

namespace ucmkd {
namespace sinkhorn {
namespace {

// The gradient of the mass of a column, and dg_t,j times lambda_b. kept: S_j, now and as it pulled the shift.
template <class T>
__device__ inline T damped_column(const One<T>& p, const Damped<T>& side, const PulledShift& pulled, int j, T dg,
                                  T kept, T* grad_b) {
  *grad_b += (p.reg() * dg - T(pulled.of_b) * kept) * inverse_or_zero(p.mass_b(j));
  return side.lambda * dg;
}

template <class T, bool kGrid>
__device__ void unrolled(const One<T>& p, const AdjointCall<T>& call, T* grad_a, T* grad_b, const T* grad_g,
                         double least, ChargeOfColumns charge, Team<T, kGrid>& team) {
  const int64_t last = *p.n_iter(), row = p.k * p.all.max_iter;
  int64_t t = last;
  PulledShift pulled;
  for (;; --t) {
    const bool shifted = p.all.marginals.shifted;
    const Damped<T> columns = Damped<T>::columns(p, shifted ? double(p.shift_at(t)[0]) : 0);
    T* dg = call.dg + (row + t - 1) * p.m();
    double most = 0;
    team.template columns<Sum<T>>([&](int j, const Sum<T>& sums) {
      const bool part = p.kept_b()[j] > 0;
      const T kept = part ? columns.kept(p.mass_b(j), p.log_g_at(t)[j]) : T(0);
      const T given = t == last && grad_g ? grad_g[j] : T(0);
      const T mine = part ? (sums.sum + given) + T(pulled.columns) * kept : T(0);
      dg[j] = damped_column(p, columns, pulled, j, mine, kept, grad_b + j);
      const T share = magnitude(dg[j]) * inverse_or_zero(kept_or_nothing(kept));
      most = most < share ? share : most;
    });
    most = team.largest(most);
    if (t == 1 || 2 * double(t) * most <= least) break;
    const T* before = p.shift_at(t - 1);
    pulled = shifted ? charge.back(before[1], before[2]) : PulledShift();
    DampedBack<T> back({p, t, p.log_g_at(t), dg, p.g_at(t - 1), call.df + (row + t - 2) * p.n(), grad_a, 1 / p.reg()},
                       Damped<T>::rows(p, shifted ? double(before[0]) : 0), pulled);
    team.sweep(back);
  }
  if (team.leads()) call.first[p.k] = t;
}

// As sum_at_the_fixed_point of adjoint_ends.cuh, of iterations with a shift: they have the same fixed point and contract.
template <class T, bool kGrid>
__device__ void at_the_fixed_point(const One<T>& p, const AdjointCall<T>& call, T* grad_a, T* grad_b, const T* grad_g,
                                   double least, ChargeOfColumns charge, Team<T, kGrid>& team) {
  T *df = call.df + p.k * p.n(), *dg = call.dg + p.k * p.m();
  T *share = team.spare(), *mass = share + p.m(), *change = mass + p.m();
  const Damped<T> rows = Damped<T>::rows(p, 0), columns = Damped<T>::columns(p, 0);  // their lambdas alone
  const T *of_iteration = p.shift_at(*p.n_iter()), *log_f = p.log_f_at(*p.n_iter());
  const double kept_a = of_iteration[1], kept_b = of_iteration[2];
  PulledShift pulled;
  bool converged = false;
  double before = 0;
  for (int64_t sweeps = 0; sweeps < call.max_sweeps; ++sweeps) {
    double drift = 0, total = 0, size = 0;
    team.template columns<Sum<T>>([&](int j, const Sum<T>& sums) {
      const T given = sweeps == 0 && grad_g ? grad_g[j] : T(0), kept = p.kept_b()[j];
      change[j] = kept > 0 ? (sums.sum + given) + T(pulled.columns) * kept : T(0);
      drift += change[j], total += mass[j];
    });
    drift = team.total(drift), total = team.total(total);
    const T excess = T((drift - charge.sum) / total);  // rounding, which would hardly decay where rho is large
    team.over(team.col_begin, team.col_end, [&](int j) {
      const T kept = p.kept_b()[j], mine = change[j] - excess * mass[j];
      const T damped = kept > 0 ? damped_column(p, columns, pulled, j, mine, kept, grad_b + j) : T(0);
      share[j] = damped * inverse_or_zero(mass[j]);
      dg[j] += share[j] * kept;
      size = size < magnitude(share[j]) ? magnitude(share[j]) : size;
    });
    size = team.largest(size);
    const double rate = before > 0 && size < before ? size / before : kUnknownRate;
    before = size;
    converged = 2 * size / (1 - rate) <= least;
    if (converged) break;  // the same on every thread
    pulled = charge.back(kept_a, kept_b);
    DampedFixedPoint<T> step({p, log_f, share, df, grad_a, 1 / p.reg()}, rows, pulled);
    team.sweep(step);
  }
  if (team.leads() && !converged) cuda::atomic_or(p.flags(), kFlagNotConverged);
}

template <class T, bool kGrid, bool kImplicit>
__global__ void __launch_bounds__(max_threads(sizeof(T)), 1)
    unbalanced_adjoint_kernel(const __grid_constant__ DeviceProblem<T> batch,
                              const __grid_constant__ AdjointCall<T> call, int first_problem) {
  const int64_t k = first_problem + (kGrid ? 0 : blockIdx.x);
  const One<T> p{batch, k};
  Team<T, kGrid> team(p.all.plan, p.n(), p.m(), p.cost(), p.work());
  const Marginals& held = p.all.marginals;
  const T inverse_reg = 1 / p.reg(), weight = call.value_weight ? call.value_weight[k] : T(0);
  const T* grad_f = call.grad_f ? call.grad_f + k * p.n() : nullptr;
  const T* grad_g = call.grad_g ? call.grad_g + k * p.m() : nullptr;
  const int64_t last = kImplicit ? k : k * p.all.max_iter + *p.n_iter() - 1;
  T *df = call.df + last * p.n(), *grad_a = call.grad_a + k * p.n(), *grad_b = call.grad_b + k * p.m();
  const Damped<T> rows = Damped<T>::rows(p, 0), columns = Damped<T>::columns(p, 0);  // their lambdas alone
  const double least = least_of_kept(p, call, weight, grad_f, grad_g, team);

  double of_columns = 0;
  team.over(team.row_begin, team.row_end, [&](int i) {
    df[i] = first_of_row(p, i, weight, grad_f, &grad_a[i]);
    grad_a[i] = (grad_a[i] + p.reg() * df[i] / rows.lambda) * inverse_or_zero(p.mass_a(i));
    of_columns -= df[i];
  });
  team.over(team.col_begin, team.col_end, [&](int j) {
    grad_b[j] = 0;
    if (grad_g && p.kept_b()[j] > 0) of_columns += grad_g[j];
  });
  ChargeOfColumns charge{team.total(of_columns), rows.lambda, columns.lambda, held};
  if constexpr (kImplicit) {
    charge.held.shifted = true;
    T *mass = team.spare() + p.m(), *dg = call.dg + k * p.m();
    team.over(team.col_begin, team.col_end, [&](int j) { dg[j] = 0; });
    DampedColumnMass<T> column_mass({p, inverse_reg});
    team.sweep(column_mass);
    team.template columns<Sum<T>>([&](int j, const Sum<T>& sums) { mass[j] = sums.sum; });
    team.sync();
  }
  DampedFirst<T> first({p, p.g(), df, inverse_reg, weight * inverse_reg});
  team.sweep(first);
  if constexpr (kImplicit)
    at_the_fixed_point(p, call, grad_a, grad_b, grad_g, least, charge, team);
  else
    unrolled(p, call, grad_a, grad_b, grad_g, least, charge, team);
}

}  // namespace

template <class T>
const char* adjoint_unbalanced(const DeviceProblem<T>& p, const AdjointCall<T>& call, cuda::Stream stream) {
  return call.implicit ? launch_team(unbalanced_adjoint_kernel<T, false, true>,
                                     unbalanced_adjoint_kernel<T, true, true>, p, call, stream)
                       : launch_team(unbalanced_adjoint_kernel<T, false, false>,
                                     unbalanced_adjoint_kernel<T, true, false>, p, call, stream);
}
template const char* adjoint_unbalanced<float>(const DeviceProblem<float>&, const AdjointCall<float>&, cuda::Stream);
template const char* adjoint_unbalanced<double>(const DeviceProblem<double>&, const AdjointCall<double>&, cuda::Stream);

}  // namespace sinkhorn
}  // namespace ucmkd

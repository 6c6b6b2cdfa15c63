// The adjoint sweep on a GPU for problems of any size (adjoint_owned.cu: where threads own the columns), from the
// potentials of each half-step (it cannot overflow). It makes vectors only, t from n_iter down; gradient.cu puts them
// together to dC in one pass over the cost.
//
//   df_t, dg_t: adjoints of f_t, g_t.  R_t, S_t: the softmaxes of the half-steps, made with their log-sums
//   dg_t       = (t = T: value_weight sum_i P_ij (C_ij - alpha_i) / reg + grad_g) - R_t' df_t
//   df_(t-1)   = -S_t dg_t
//
// Both sums of one step share a sweep: the rows' df_(t-1), then at once the columns' dg_(t-1).
// `implicit` is the same at the fixed point, f_t = f, g_t = g, summed until it has converged.
#include "sinkhorn/adjoint_ends.cuh"
#include "sinkhorn/small.cuh"
#include "sinkhorn/team.cuh"

namespace ucmkd {
namespace sinkhorn {
namespace {

template <class T, bool kGrid>
__device__ void unrolled(const One<T>& p, const AdjointCall<T>& call, T* grad_a, T* grad_b, const T* grad_g,
                         double least, Team<T, kGrid>& team) {
  const int64_t last = *p.n_iter(), row = p.k * p.all.max_iter;
  int64_t t = last;
  for (;; --t) {
    T* dg = call.dg + (row + t - 1) * p.m();
    double most = 0;
    team.template columns<Sum<T>>([&](int j, const Sum<T>& sums) {
      const T mass = p.mass_b(j);
      const T mine = mass > 0 ? sums.sum + (t == last && grad_g ? grad_g[j] : T(0)) : T(0);
      const T share = mine * inverse_or_zero(mass);
      dg[j] = mine;
      grad_b[j] += p.reg() * share;
      most = most < magnitude(share) ? magnitude(share) : most;
    });
    most = team.largest(most);
    if (t == 1 || 2 * double(t) * most <= least) break;
    Back<T> back{p, t, p.log_g_at(t), dg, p.g_at(t - 1), call.df + (row + t - 2) * p.n(), grad_a, 1 / p.reg()};
    team.sweep(back);
  }
  if (team.leads()) call.first[p.k] = t;
}

template <class T, bool kGrid>
__device__ void at_the_fixed_point(const One<T>& p, const AdjointCall<T>& call, T* grad_a, T* grad_b, double least,
                                   Team<T, kGrid>& team) {
  T *df = call.df + p.k * p.n(), *dg = call.dg + p.k * p.m();
  T *share = team.spare(), *mass = share + p.m(), *change = mass + p.m();
  sum_at_the_fixed_point(
      p, call, least, team, FixedColumns<T>{mass, change, share, dg, grad_b},
      [&](auto body) { team.template columns<Sum<T>>([&](int j, const Sum<T>& sums) { body(j, sums.sum); }); },
      [&] {
        FixedPoint<T> step{p, p.log_f_at(*p.n_iter()), share, df, grad_a, 1 / p.reg()};
        team.sweep(step);
      });
}

template <class T, bool kGrid, bool kImplicit>
__global__ void __launch_bounds__(max_threads(sizeof(T)), 1)
    adjoint_kernel(const __grid_constant__ DeviceProblem<T> batch, const __grid_constant__ AdjointCall<T> call,
                   int first_problem) {
  const int64_t k = first_problem + (kGrid ? 0 : blockIdx.x);
  const One<T> p{batch, k};
  Team<T, kGrid> team(p.all.plan, p.n(), p.m(), p.cost(), p.work());
  const T inverse_reg = 1 / p.reg(), weight = call.value_weight ? call.value_weight[k] : T(0);
  const T* grad_f = call.grad_f ? call.grad_f + k * p.n() : nullptr;
  const T* grad_g = call.grad_g ? call.grad_g + k * p.m() : nullptr;
  const int64_t last = kImplicit ? k : k * p.all.max_iter + *p.n_iter() - 1;
  T *df = call.df + last * p.n(), *grad_a = call.grad_a + k * p.n(), *grad_b = call.grad_b + k * p.m();
  const double least = least_that_matters(p, call, weight, grad_f, grad_g, team);

  team.over(team.row_begin, team.row_end, [&](int i) {
    const T mass = p.mass_a(i);
    df[i] = grad_f && mass > 0 ? grad_f[i] : T(0);
    grad_a[i] = weight * p.alpha()[i] + p.reg() * df[i] * inverse_or_zero(mass);
  });
  team.over(team.col_begin, team.col_end, [&](int j) { grad_b[j] = 0; });
  if constexpr (kImplicit) {
    T *mass = team.spare() + p.m(), *dg = call.dg + k * p.m();
    team.over(team.col_begin, team.col_end, [&](int j) { dg[j] = 0; });
    ColumnMass<T> columns{p, inverse_reg};
    team.sweep(columns);
    team.template columns<Sum<T>>([&](int j, const Sum<T>& sums) { mass[j] = sums.sum; });
    team.sync();
  } else {
    cuda::sync_block();
  }
  First<T> first{p, p.g(), df, inverse_reg, weight * inverse_reg};
  team.sweep(first);
  if constexpr (kImplicit)
    at_the_fixed_point(p, call, grad_a, grad_b, least, team);
  else
    unrolled(p, call, grad_a, grad_b, grad_g, least, team);
}

}  // namespace

template <class T>
const char* cuda_adjoint(const DeviceProblem<T>& p, const AdjointCall<T>& call, int device, cuda::Stream stream) {
  const cuda::DeviceGuard guard(device);
  if (guard.error()) return guard.error();
  const Plan& plan = p.plan;
  if (!p.marginals.exact())
    return plan.back.threads > 0 && !call.implicit ? adjoint_owned(as_iterated(p), call, stream)
                                                   : adjoint_unbalanced(as_iterated(p), call, stream);
  if constexpr (sizeof(T) == sizeof(float))
    if (makes_gradient(plan, call.implicit)) return small_adjoint(p, call, stream);
  if (plan.back.threads > 0) return adjoint_owned(p, call, stream);
  return call.implicit ? launch_team(adjoint_kernel<T, false, true>, adjoint_kernel<T, true, true>, p, call, stream)
                       : launch_team(adjoint_kernel<T, false, false>, adjoint_kernel<T, true, false>, p, call, stream);
}
template const char* cuda_adjoint<float>(const DeviceProblem<float>&, const AdjointCall<float>&, int, cuda::Stream);
template const char* cuda_adjoint<double>(const DeviceProblem<double>&, const AdjointCall<double>&, int, cuda::Stream);

}  // namespace sinkhorn
}  // namespace ucmkd

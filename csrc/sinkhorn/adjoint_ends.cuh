// What the adjoint kernels share: when a sweep back may stop, the sum at the fixed point, and which kernel takes a problem.
#pragma once
#include "sinkhorn/crew.cuh"
#include "sinkhorn/cuda.h"

namespace ucmkd {
namespace sinkhorn {

// Adjoints over masses are averaged by each half-step, so their maximum does not grow, and t iterations that remain
// change dC / P by at most 2 t times it. That is compared with the weight of the gradient, entry by entry.
template <class T>
__device__ double least_that_matters(const One<T>& p, const AdjointCall<T>& call, T weight, const T* grad_f,
                                     const T* grad_g, Crew& crew) {
  double of_f = 0, of_g = 0;
  auto larger_of = [](double& most, T x) { most = most < magnitude(x) ? magnitude(x) : most; };
  if (grad_f)
    crew.over(crew.row_begin, crew.row_end, [&](int i) { larger_of(of_f, grad_f[i] * inverse_or_zero(p.mass_a(i))); });
  if (grad_g)
    crew.over(crew.col_begin, crew.col_end, [&](int j) { larger_of(of_g, grad_g[j] * inverse_or_zero(p.mass_b(j))); });
  return call.tolerance * (magnitude(weight) + crew.largest(of_f) + crew.largest(of_g));
}

// Of the columns, (m,) each, at the fixed point.
template <class T>
struct FixedColumns {
  const T* mass;   // column sums of the plan: with them, not b, a sweep never expands
  T* change;       // dg of this sweep
  T* share;        // over the masses
  T *dg, *grad_b;  // summed
};

// Sweeps until the sums have converged, and a flag where they do not. columns(body): body(j, sum) for each column of this
// block with what the sweep before has gathered; sweep(): the next one.
template <class T, class Columns, class Sweep>
__device__ void sum_at_the_fixed_point(const One<T>& p, const AdjointCall<T>& call, double least, Crew& crew,
                                       const FixedColumns<T>& at, Columns columns, Sweep sweep) {
  const T* grad_g = call.grad_g ? call.grad_g + p.k * p.m() : nullptr;
  bool converged = false;
  double before = 0;
  for (int64_t sweeps = 0; sweeps < call.max_sweeps; ++sweeps) {
    // (f + c, g - c) is the same plan: the adjoints must sum to zero, and a drift would never decay.
    double drift = 0, total = 0, size = 0;
    columns([&](int j, T sum) {
      at.change[j] = sum + (sweeps == 0 && grad_g && p.mass_b(j) > 0 ? grad_g[j] : T(0));
      drift += at.change[j], total += at.mass[j];
    });
    drift = crew.total(drift), total = crew.total(total);
    const T shift = T(drift / total);
    crew.over(crew.col_begin, crew.col_end, [&](int j) {
      const T mine = at.mass[j] > 0 ? at.change[j] / at.mass[j] - shift : T(0);
      at.share[j] = mine;
      at.dg[j] += mine * p.mass_b(j);
      at.grad_b[j] += p.reg() * mine;
      size = size < magnitude(mine) ? magnitude(mine) : size;
    });
    size = crew.largest(size);
    const double rate = before > 0 && size < before ? size / before : kUnknownRate;
    before = size;
    converged = 2 * size / (1 - rate) <= least;
    if (converged) break;  // the same on every thread
    sweep();
  }
  if (crew.leads() && !converged) cuda::atomic_or(p.flags(), kFlagNotConverged);
}

// Of unbalanced transport (adjoint_unbalanced.cu).
template <class T>
const char* adjoint_unbalanced(const DeviceProblem<T>&, const AdjointCall<T>&, cuda::Stream);
// Where threads own columns (adjoint_owned.cu): Plan::back has threads.
template <class T>
const char* adjoint_owned(const DeviceProblem<T>&, const AdjointCall<T>&, cuda::Stream);

}  // namespace sinkhorn
}  // namespace ucmkd

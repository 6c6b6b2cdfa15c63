// What the adjoint kernels share: when a sweep back may stop, and which kernel takes a problem.
#pragma once
#include "sinkhorn/crew.cuh"
#include "sinkhorn/cuda.h"

namespace ucmkd {
namespace sinkhorn {

// Adjoints over masses are averaged by each half-step, so their maximum does not grow, and t iterations that remain
// change dC / P by at most 2 t times it. That is compared with the weight of the gradient, entry by entry.
template <class T>
__device__ double least_that_matters(const One<T>& p, const AdjointCall<T>& call, T weight, const T* grad_f, const T* grad_g,
                                     Crew& crew) {
  double of_f = 0, of_g = 0;
  auto larger_of = [](double& most, T x) { most = most < magnitude(x) ? magnitude(x) : most; };
  if (grad_f)
    crew.over(crew.row_begin, crew.row_end,
              [&](int i) { larger_of(of_f, grad_f[i] * inverse_or_zero(p.mass_a(i))); });
  if (grad_g)
    crew.over(crew.col_begin, crew.col_end,
              [&](int j) { larger_of(of_g, grad_g[j] * inverse_or_zero(p.mass_b(j))); });
  return call.tolerance * (magnitude(weight) + crew.largest(of_f) + crew.largest(of_g));
}

// Where threads own columns (adjoint_owned.cu): Plan::back has threads.
template <class T>
const char* adjoint_owned(const DeviceProblem<T>&, const AdjointCall<T>&, cuda::Stream);

}  // namespace sinkhorn
}  // namespace ucmkd

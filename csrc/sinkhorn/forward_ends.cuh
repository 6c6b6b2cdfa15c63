// How every forward kernel begins and ends: the masses looked at, the results of a problem written.
#pragma once
#include "sinkhorn/crew.cuh"
#include "sinkhorn/steps.cuh"

namespace ucmkd {
namespace sinkhorn {

// `forgiven`: flags that are no fault.
template <class T>
__device__ void check_masses(const One<T>& p, Crew& crew, double* sum_a, double* sum_b, int forgiven = 0) {
  double sums[2] = {0, 0};
  bool good = true;
  auto look = [&](T mass, int side) {
    good &= is_mass(mass);
    sums[side] += mass;
  };
  crew.over(crew.row_begin, crew.row_end, [&](int i) { look(p.mass_a(i), 0); });
  crew.over(crew.col_begin, crew.col_end, [&](int j) { look(p.mass_b(j), 1); });
  *sum_a = p.all.a ? crew.total(sums[0]) : 1, *sum_b = p.all.b ? crew.total(sums[1]) : 1;
  const int wrong = flags_of_masses<T>(good, *sum_a, *sum_b) & ~forgiven;
  if (wrong) cuda::atomic_or(p.flags(), wrong);
}

// f_0 of this block's rows.
template <class T>
__device__ void start_rows(const One<T>& p, const Crew& crew) {
  const T f_start = -p.reg() * cuda::log_of(T(p.n()));
  crew.over(crew.row_begin, crew.row_end, [&](int i) {
    const T start = p.init_f() ? p.init_f()[i] : f_start;
    p.f_at(0)[i] = p.mass_a(i) > 0 ? start : -T(INFINITY);
  });
  cuda::sync_block();
}

// On one thread, behind a barrier of all that may raise flags.
template <class T>
__device__ void report(const One<T>& p, const ForwardOut<T>& out, bool leads, int64_t t, double value, double dual,
                       double error) {
  if (!leads) return;
  const bool poisoned = *p.flags() & kFlagsThatPoison;
  const T nan = T(NAN);
  out.value[p.k] = poisoned ? nan : T(value);
  out.dual[p.k] = poisoned ? nan : T(dual);
  out.marginal_error[p.k] = poisoned ? nan : T(error);
  *p.n_iter() = t;
  out.n_iter[p.k] = poisoned ? -(*p.flags() & kFlagsThatPoison) : t;
}

// Of unbalanced transport (forward_unbalanced.cu).
template <class T>
const char* forward_unbalanced(const DeviceProblem<T>&, const ForwardOut<T>&, cuda::Stream);
// Where threads own columns (forward_owned.cu): Plan::owned has threads.
template <class T>
const char* forward_owned(const DeviceProblem<T>&, const ForwardOut<T>&, cuda::Stream);

}  // namespace sinkhorn
}  // namespace ucmkd

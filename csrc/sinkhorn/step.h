// What the CUDA kernels do to one element, on host and device alike. -inf in gives -inf out, never NaN.
#pragma once
#include "core/host_device.h"
#include "core/launch.cuh"

namespace ucmkd {
namespace sinkhorn {

constexpr double kLog2E = 1.4426950408889634;

// log sum exp of what was added, with the largest term kept apart: it cannot overflow and loses a term
// only where that is below the rounding of the sum. Empty is (-inf, 0).
template <class T>
struct LogSum {
  using Term = T;
  T top, sum;

  static UK_HOST_DEVICE LogSum empty() { return {-T(INFINITY), T(0)}; }
  static UK_HOST_DEVICE T nothing() { return -T(INFINITY); }
  UK_HOST_DEVICE void add(T x) {
    if (!(x > -T(INFINITY))) return;  // a forbidden pair, or no mass
    const T e = cuda::exp_of(x > top ? top - x : x - top);
    sum = x > top ? sum * e + 1 : sum + e;
    top = x > top ? x : top;
  }
  // Several at once: one exponential each, and one for all that was there.
  template <int kN>
  UK_HOST_DEVICE void add_all(const T (&x)[kN]) {
    T most = top;
#pragma unroll
    for (int k = 0; k < kN; ++k) most = cuda::larger_of(most, x[k]);
    if (!(most > -T(INFINITY))) return;
    sum *= cuda::power_of_two((top - most) * T(kLog2E));
#pragma unroll
    for (int k = 0; k < kN; ++k) sum += cuda::power_of_two((x[k] - most) * T(kLog2E));
    top = most;
  }
  // The same for both orders of the two, so that lanes that swap theirs agree to the last bit.
  UK_HOST_DEVICE void merge(const LogSum& o) {
    if (!(o.top > -T(INFINITY))) return;
    const bool below = top < o.top;
    const T e = cuda::exp_of(below ? top - o.top : o.top - top);
    sum = below ? sum * e + o.sum : sum + o.sum * e;
    top = below ? o.top : top;
  }
  UK_HOST_DEVICE T value() const { return sum > 0 ? top + cuda::log_of(sum) : -T(INFINITY); }
};

template <class T>
struct Sum {
  using Term = T;
  T sum;
  static UK_HOST_DEVICE Sum empty() { return {T(0)}; }
  static UK_HOST_DEVICE T nothing() { return 0; }
  UK_HOST_DEVICE void add(T x) { sum += x; }
  template <int kN>
  UK_HOST_DEVICE void add_all(const T (&x)[kN]) {
#pragma unroll
    for (int k = 0; k < kN; ++k) sum += x[k];
  }
  UK_HOST_DEVICE void merge(const Sum& o) { sum += o.sum; }
};

// (f + g - c) / reg with the rounding of f + g put back (two-sum): where f and g are large against
// f + g - c it loses nothing to cancellation. -inf where f or g is -inf or c is +inf.
template <class T>
UK_HOST_DEVICE T exponent(T f, T g, T c, T inverse_reg) {
  const T both = f + g;
  const T g_part = both - f;
  const T rest = (f - (both - g_part)) + (g - g_part);
  return ((both - c) + (rest == rest ? rest : T(0))) * inverse_reg;
}

// The softmax of a half-step, exp((potential - c) / reg - log_sum), without rounding the large numbers that cancel in it.
template <class T>
UK_HOST_DEVICE T softmax_of(T potential, T c, T log_sum, T reg, T inverse_reg) {
  if (!(log_sum < T(INFINITY))) return 0;  // no mass
  const T other = -reg * log_sum, rest = cuda::fused(-reg, log_sum, -other);
  return cuda::exp_of(exponent(potential, other, c, inverse_reg) +
                      (rest * inverse_reg + log_sum * cuda::fused(reg, inverse_reg, T(-1))));
}

// One half-step: the new potential from the log-sum of the other side. No mass: -inf. +inf: nothing is
// allowed where there is mass.
template <class T>
UK_HOST_DEVICE T half_step(T mass, T log_sum, T reg) {
  return mass > 0 ? reg * (cuda::log_of(mass) - log_sum) : -T(INFINITY);
}

// A half-step that goes half as far again (relaxation.h); -inf stays.
template <class T>
UK_HOST_DEVICE T over_relaxed(T next, T before) {
  return next > -T(INFINITY) ? next + (next - before) / 2 : next;
}

// Potential without its log-mass.
template <class T>
UK_HOST_DEVICE T without_mass(T potential, T mass, T reg) {
  return mass > 0 ? potential - reg * cuda::log_of(mass) : T(0);
}

template <class T>
UK_HOST_DEVICE T inverse_or_zero(T x) {
  return x > 0 ? 1 / x : T(0);
}

template <class T>
UK_HOST_DEVICE T magnitude(T x) {
  return x < 0 ? -x : x;
}

}  // namespace sinkhorn
}  // namespace ucmkd

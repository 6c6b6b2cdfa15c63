// Marginals that may give way: rows of the plan are held to a by rho_a KL(P1 | a), exactly where rho_a is infinite, and
// columns alike (Chizat et al. 2018). With f~ = f - reg log a, g~ = g - reg log b a half-step is damped:
//
//   g~_j = -rho_b / (rho_b + reg) reg LSE_i((f_i - C_ij) / reg)        f~ likewise
//
// and what it leaves of a mass is b_j exp(-g~_j / rho_b): the sum of its column behind that half-step.
#pragma once
#include <math.h>

#include "core/host_device.h"

namespace ucmkd {
namespace sinkhorn {

struct Marginals {
  double rho_a = HUGE_VAL, rho_b = HUGE_VAL;
  bool shifted = false;  // between iterations, by `shift`
  UK_HOST_DEVICE bool exact() const { return !(rho_a < HUGE_VAL) && !(rho_b < HUGE_VAL); }
};

// How far a half-step goes.
UK_HOST_DEVICE double damping(double rho, double reg) { return rho < HUGE_VAL ? rho / (rho + reg) : 1; }
UK_HOST_DEVICE double inverse_of(double rho) { return rho < HUGE_VAL ? 1 / rho : 0; }

// rho_a rho_b / (rho_a + rho_b).
UK_HOST_DEVICE double both_of(double rho_a, double rho_b) {
  const double less = rho_a < rho_b ? rho_a : rho_b, more = rho_a < rho_b ? rho_b : rho_a;
  return less / (1 + (more < HUGE_VAL ? less / more : 0));
}

// What (f + t, g - t), of the same plan, is to be shifted by for the greatest dual value, from the sums of what both
// half-steps left of the masses (Sejourne, Vialard, Peyre 2022, "Faster unbalanced optimal transport: translation
// invariant Sinkhorn and 1-D Frank-Wolfe", proposition 2).
UK_HOST_DEVICE double shift(const Marginals& held, double kept_rows, double kept_columns) {
  const double t = both_of(held.rho_a, held.rho_b) * (log(kept_rows) - log(kept_columns));
  return t - t == 0 ? t : 0;  // nothing is moved at all
}

// The shares of the shift's derivative that fall to f and to g: p_i = kept_i / sum, times these.
UK_HOST_DEVICE double share_of_rows(const Marginals& held) {
  return both_of(held.rho_a, held.rho_b) * inverse_of(held.rho_a);
}
UK_HOST_DEVICE double share_of_columns(const Marginals& held) {
  return both_of(held.rho_a, held.rho_b) * inverse_of(held.rho_b);
}

// What a potential without its mass pays per mass in the dual value.
UK_HOST_DEVICE double paid(double free, double rho) { return rho < HUGE_VAL ? -rho * expm1(-free / rho) : free; }

}  // namespace sinkhorn
}  // namespace ucmkd

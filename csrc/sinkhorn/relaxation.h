// Over-relaxation (Thibault et al. 2021, "Overrelaxed Sinkhorn-Knopp Algorithm for Regularized Optimal
// Transport"): half-steps go omega = 3/2 times as far. The rows of the plan are then not exact, so an iteration
// that could be the last is a plain one.
#pragma once
#include <math.h>
#include <stdint.h>

#include "core/host_device.h"

namespace ucmkd {
namespace sinkhorn {

// Which iterations are over-relaxed, on host and device alike. Half-steps that a CPU has to make in the log domain
// are plain ones all the same.
class Relaxation {
 public:
  static constexpr int64_t kPlainFirst = 3;

  UK_HOST_DEVICE Relaxation(bool wanted, double tol, int64_t last)
      : given_up_(!wanted), pauses_(!wanted), tol_(tol), last_(last) {}
  // Whether iteration t is: no early one, not the last, none behind one that came within the tolerance.
  UK_HOST_DEVICE bool begin(int64_t t) { return relaxed_ = t > kPlainFirst && t < last_ && !pauses_; }
  // As `begin` said of the last one.
  UK_HOST_DEVICE bool relaxed() const { return relaxed_; }
  // That iteration was a plain one after all.
  UK_HOST_DEVICE void cancel() { relaxed_ = false; }
  // The marginal error behind that iteration. Where a relaxed one makes it grow a hundredfold, it was the last such.
  UK_HOST_DEVICE void watch(double error) {
    given_up_ |= relaxed_ && error > 100 * best_;
    pauses_ = given_up_ || error <= tol_;
    best_ = error < best_ ? error : best_;
  }

 private:
  bool relaxed_ = false, given_up_, pauses_;
  double best_ = HUGE_VAL, tol_;
  int64_t last_;
};

}  // namespace sinkhorn
}  // namespace ucmkd

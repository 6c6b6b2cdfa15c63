// The rules that several kernels, or C++ and Python, go by, each written once: limits of a dtype, when a
// sweep back stops, what is refused and in which words. bind/rules.cpp hands them to Python.
#pragma once
#include <stdint.h>

#include "core/host_device.h"

namespace ucmkd {
namespace sinkhorn {

template <class T>
struct Rules {
  static constexpr bool kFloat = sizeof(T) == 4;
  static constexpr T kMax = kFloat ? T(3.402823466e+38) : T(1.7976931348623157e+308);
  // Masses up to this take no part: entries of their plan would leave the range of T, and their inverse
  // overflow.
  static constexpr double kLeastMass = kFloat ? 1e-30 : 1e-290;
  // The sums of the masses may differ by this share of both together.
  static constexpr double kSumsGap = kFloat ? 1e-4 : 1e-6;
  // |log| of a ratio of scalings up to which plain sums are accurate, and e to that power.
  static constexpr T kSafeLog = kFloat ? 20 : 200;
  static constexpr T kSafeRatio = kFloat ? T(4.85e8) : T(7.2e86);
  // |log u_t|, |log v_t| up to which the adjoint takes plain sums, and the gradient on a GPU its product.
  static constexpr T kRangeLimit = kFloat ? 30 : 300;
  // Half the distance from 1 to the next number.
  static constexpr double kRounding = kFloat ? 5.96e-8 : 1.11e-16;
};

// The sweep back may stop where what remains is below rounding, or well below the tolerance asked for.
template <class T>
UK_HOST_DEVICE double adjoint_tolerance(double tol) {
  return tol * 0.1 > Rules<T>::kRounding / 4 ? tol * 0.1 : Rules<T>::kRounding / 4;
}

// Of the sweep at the fixed point.
UK_HOST_DEVICE int64_t max_sweeps(int64_t max_iter) { return max_iter > 100 ? 10 * max_iter : 1000; }

// The rate of convergence that it goes by before there are two sweeps to measure one.
constexpr double kUnknownRate = 0.999;

// Multiply-adds of x y' up to which our own matrix products are used, in one native call. Above, how much is won or lost
// by them depends on the sizes. (Tried at N = M = 128 to 1024, D = 32 to 1024, with AVX2 and AVX-512: up to here own ones are
// 3 to 53 percent faster, but at N = 768 and 1024, where D is 32 or 64: from 14 percent faster to 9 slower.)
constexpr int64_t kOwnProducts = 320 * 320 * 512;

// Bits that the kernels of a GPU raise per problem. The outputs of such a problem are NaN.
enum Flag : int {
  kFlagBadCost = 1,        // NaN or -inf in the cost
  kFlagForbidden = 2,      // a row or a column has mass and every pair of it is forbidden
  kFlagBadMass = 4,        // a mass that is negative, NaN or inf
  kFlagNoMass = 8,         // all masses are 0
  kFlagSums = 16,          // a and b have different sums
  kFlagNotConverged = 32,  // the implicit gradient did not reach its tolerance; its result stands
  kFlagOverflow = 64,      // a distance between features that overflows
};
constexpr int kFlagsThatPoison = ~kFlagNotConverged;

template <class T>
UK_HOST_DEVICE bool is_mass(T x) {
  return x >= 0 && x <= Rules<T>::kMax;  // false for NaN
}
// What is wrong with the masses of a problem: whether each `is_mass`, and the sums of both sides.
template <class T>
UK_HOST_DEVICE int flags_of_masses(bool all_are, double a, double b) {
  const double gap = a > b ? a - b : b - a;
  return (all_are && a < 1e300 && b < 1e300 ? 0 : kFlagBadMass) | (a > 0 && b > 0 ? 0 : kFlagNoMass) |
         (gap <= Rules<T>::kSumsGap * (a + b) ? 0 : kFlagSums);
}

// The sentences of refusal. ops/refusals.py puts in the place of "a negative one, NaN or inf" and the like
// what it finds.
namespace refusals {
constexpr char kBadCost[] = "cost must be a number or +inf (a forbidden pair) everywhere, got NaN or -inf";
// The kernels of a GPU have one flag for both.
constexpr char kBadCostOrLabel[] =
    "cost must be a number or +inf (a forbidden pair) everywhere, got NaN or -inf "
    "(or, with class_cost, a label that is none of its columns)";
constexpr char kBadMass[] = "masses must be finite and >= 0, got a negative one, NaN or inf";
constexpr char kNoMass[] = "masses must not all be 0, got an all-zero vector";
constexpr char kSums[] = "a and b must have equal sums (each is 1 where it is not given), got sums that differ";
constexpr char kOverflow[] = "the distances between x and y must stay in range, got one that overflows";
constexpr char kForbidden[] =
    "every row and column with mass needs a pair of finite cost with mass, got one that has none";
constexpr char kClassCost[] = "class_cost must be a number or +inf (a forbidden class) everywhere, got NaN or -inf";
constexpr char kLabels[] = "y_labels must be columns of class_cost, from 0 to K - 1, got one outside";
constexpr char kRange[] = "costs and potentials must stay in range, got some whose differences overflow";

// That of flags_of_masses, or null.
static inline const char* of_masses(int flags) {
  return flags & kFlagBadMass ? kBadMass : flags & kFlagNoMass ? kNoMass : flags & kFlagSums ? kSums : nullptr;
}
}  // namespace refusals

}  // namespace sinkhorn
}  // namespace ucmkd

// Scalar functions by type, so that templates need not spell float and double apart.
#pragma once
#include <math.h>

namespace ucmkd {
namespace UK_LEVEL {

static inline float log_of(float x) { return ::logf(x); }
static inline double log_of(double x) { return ::log(x); }
static inline float exp_of(float x) { return ::expf(x); }
static inline double exp_of(double x) { return ::exp(x); }
static inline float root(float x) { return __builtin_sqrtf(x); }
static inline double root(double x) { return __builtin_sqrt(x); }

}  // namespace UK_LEVEL
}  // namespace ucmkd

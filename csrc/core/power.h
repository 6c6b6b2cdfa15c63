// x^y of positive normal x, for vectors of any length: of a whole register, or of four rows.
//
// x = 2^e m with m in [sqrt(1/2), sqrt(2)), log2 m by the series of the area tangent, y e exactly (y in two parts), so
// that the rounding does not grow with |log x|: at most 4 units in the last place for |y log2 x| < 120 (float), 1000.
#pragma once
#include "core/simd.h"

namespace ucmkd {
namespace UK_LEVEL {

template <class T>
struct FloatBits;
template <>
struct FloatBits<float> {
  static constexpr int32_t kMantissa = 23, kBias = 127, kRootHalf = 0x3F3504F3, kMagicBits = 0x4B400000;
  static constexpr float kMagic = 12582912.0f, kParts = 2048;
  static constexpr int kTerms = 5, kExpTerms = 7;
};
template <>
struct FloatBits<double> {
  static constexpr int64_t kMantissa = 52, kBias = 1023, kRootHalf = 0x3FE6A09E667F3BCD,
                           kMagicBits = 0x4338000000000000;
  static constexpr double kMagic = 6755399441055744.0, kParts = 1048576;
  static constexpr int kTerms = 11, kExpTerms = 13;
};

// An exponent in two parts: the first times any binary exponent is exact.
template <class T>
struct Exponent {
  explicit Exponent(double y) : whole(T(y)) {
    const T scaled = whole * FloatBits<T>::kParts + FloatBits<T>::kMagic;
    high = (scaled - FloatBits<T>::kMagic) / FloatBits<T>::kParts;
    low = T(y - high);
  }
  T whole, high, low;
};

// |y| <= 1.
template <class T, class V>
static inline V power(V x, const Exponent<T>& y) {
  using B = FloatBits<T>;
  typedef decltype(V{} < V{}) I;
  const I bits = (I)x, e = (bits - B::kRootHalf) >> B::kMantissa;
  const V m = (V)(bits - (e << B::kMantissa)), exponent = __builtin_convertvector(e, V);
  const V s = (m - 1) / (m + 1), square = s * s;
  V series = V{} + 1 / T(2 * B::kTerms - 1);
  for (int k = B::kTerms - 2; k >= 0; --k) series = series * square + 1 / T(2 * k + 1);
  const V log2_m = s * series * T(2.8853900817779268147);
  const V exact = exponent * y.high, rest = exponent * y.low + log2_m * y.whole;
  const V shifted = exact + rest + B::kMagic, n = shifted - B::kMagic;
  const V z = ((exact - n) + rest) * T(0.69314718055994530942);
  V p = V{} + T(1);
  for (int k = B::kExpTerms; k >= 1; --k) p = p * (z * (1 / T(k))) + 1;
  return p * (V)(((I)shifted - B::kMagicBits + B::kBias) << B::kMantissa);
}

}  // namespace UK_LEVEL
}  // namespace ucmkd

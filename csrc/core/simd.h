// Vectors of UK_BYTES bytes in the compiler's own vector extension (gcc, clang; any architecture).
//
// Kernel files are compiled once per instruction-set level; UK_LEVEL names the level and is the
// namespace of everything in them, so that no function built for a newer processor is ever linked
// into the path of an older one. For the same reason what they share with other files is static inline,
// and they call nothing of std::.
#pragma once
#include <stdint.h>

namespace ucmkd {
namespace UK_LEVEL {

template <class T>
struct Lanes;

template <>
struct Lanes<float> {
  static constexpr int W = UK_BYTES / 4;
  typedef float V __attribute__((vector_size(UK_BYTES)));
  typedef float Mem __attribute__((vector_size(UK_BYTES), aligned(4), may_alias));  // unaligned
  typedef int32_t I __attribute__((vector_size(UK_BYTES)));
  typedef uint32_t U __attribute__((vector_size(UK_BYTES)));
  typedef int32_t Int;
  static constexpr float kMax = 3.402823466e38f;
};

template <>
struct Lanes<double> {
  static constexpr int W = UK_BYTES / 8;
  typedef double V __attribute__((vector_size(UK_BYTES)));
  typedef double Mem __attribute__((vector_size(UK_BYTES), aligned(8), may_alias));
  typedef int64_t I __attribute__((vector_size(UK_BYTES)));
  typedef uint64_t U __attribute__((vector_size(UK_BYTES)));
  typedef int64_t Int;
  static constexpr double kMax = 1.7976931348623157e308;
};

template <class T>
using Vec = typename Lanes<T>::V;

template <class T>
static inline Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename Lanes<T>::Mem*>(p);
}
template <class T>
static inline void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename Lanes<T>::Mem*>(p) = v;
}
template <class T>
static inline Vec<T> splat(T x) {
  return x - Vec<T>{};
}
// The first `count` lanes from p, the others `filler`.
template <class T>
static inline Vec<T> load_part(const T* p, int64_t count, T filler) {
  T lanes[Lanes<T>::W];
  for (int k = 0; k < Lanes<T>::W; ++k) lanes[k] = k < count ? p[k] : filler;
  return load(lanes);
}
template <class T>
static inline void store_part(T* p, Vec<T> v, int64_t count) {
  for (int64_t k = 0; k < count; ++k) p[k] = v[k];
}
template <class T>
static inline void copy(const T* from, T* to, int64_t count) {
  for (int64_t k = 0; k < count; ++k) to[k] = from[k];
}
template <class T>
static inline Vec<T> vmax(Vec<T> a, Vec<T> b) {
  return a > b ? a : b;
}

// Four elements: one row of a block each.
template <class T>
struct QuadOf {
  typedef T V __attribute__((vector_size(4 * sizeof(T))));
  typedef T Mem __attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T)), may_alias));
};
template <class T>
using Quad = typename QuadOf<T>::V;
template <class T>
static inline Quad<T> load4(const T* p) {
  return *reinterpret_cast<const typename QuadOf<T>::Mem*>(p);
}
template <class T>
static inline void store4(T* p, Quad<T> q) {
  *reinterpret_cast<typename QuadOf<T>::Mem*>(p) = q;
}

// Four elements, or a whole register.
template <class T, class V>
static inline V load_as(const T* p) {
  if constexpr (sizeof(V) == sizeof(Quad<T>))
    return (V)load4(p);
  else
    return load(p);
}
template <class T, class V>
static inline void store_as(T* p, V v) {
  if constexpr (sizeof(V) == sizeof(Quad<T>))
    store4(p, (Quad<T>)v);
  else
    store(p, v);
}

// Lane sums in a fixed order: the upper half is added to the lower until four lanes are left.
template <class T>
static inline Quad<T> fold(Vec<T> v) {
  if constexpr (Lanes<T>::W == 16) {
    const auto eight = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                       __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
    return __builtin_shufflevector(eight, eight, 0, 1, 2, 3) + __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  } else if constexpr (Lanes<T>::W == 8) {
    return __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
  } else if constexpr (Lanes<T>::W == 4) {
    return v;
  } else {
    return Quad<T>{v[0], v[1], 0, 0};
  }
}
template <class T>
static inline T sum(Vec<T> v) {
  const Quad<T> q = fold<T>(v);
  return (q[0] + q[2]) + (q[1] + q[3]);
}
// The sums of four vectors, at the cost of little more than one.
template <class T>
static inline Quad<T> sum4(Vec<T> a, Vec<T> b, Vec<T> c, Vec<T> d) {
  const Quad<T> p = fold<T>(a), q = fold<T>(b), r = fold<T>(c), s = fold<T>(d);
  const Quad<T> pq = __builtin_shufflevector(p, q, 0, 4, 1, 5) + __builtin_shufflevector(p, q, 2, 6, 3, 7);
  const Quad<T> rs = __builtin_shufflevector(r, s, 0, 4, 1, 5) + __builtin_shufflevector(r, s, 2, 6, 3, 7);
  return __builtin_shufflevector(pq, rs, 0, 1, 4, 5) + __builtin_shufflevector(pq, rs, 2, 3, 6, 7);
}
template <class T>
static inline T greatest(Vec<T> v) {
  T r = v[0];
  for (int k = 1; k < Lanes<T>::W; ++k) r = v[k] > r ? v[k] : r;
  return r;
}
template <class T>
static inline bool any(typename Lanes<T>::I mask) {
  typedef int64_t Wide __attribute__((vector_size(UK_BYTES)));
  const Wide wide = (Wide)mask;
  int64_t r = 0;
  for (int k = 0; k < UK_BYTES / 8; ++k) r |= wide[k];
  return r != 0;
}

// exp, at most 2 ulp on [-87.33, 88.37] (float) and [-708.39, 709.08] (double). Below: exactly 0
// (no subnormal results). Above: +inf. NaN gives NaN.
// x = n ln 2 + r with |r| <= ln(2)/2; exp(r) by its Taylor polynomial; 2^n from its bits, which wrap where x is out of
// range.
static inline Vec<float> exp(Vec<float> x) {
  using U = Lanes<float>::U;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  Vec<float> shifted = x * 1.44269504088896341f + magic;
  Vec<float> n = shifted - magic;
  Vec<float> r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Vec<float> p = splat(1.9841269841e-4f);
  p = p * r + 1.3888888889e-3f;
  p = p * r + 8.3333333333e-3f;
  p = p * r + 4.1666666667e-2f;
  p = p * r + 1.6666666667e-1f;
  p = p * r + 0.5f;
  p = p * (r * r) + r + 1.0f;
  U bits = ((U)shifted - 0x4B400000u + 127u) << 23;
  Vec<float> result = p * (Vec<float>)bits;
  result = x < -87.33f ? Vec<float>{} : result;
  return x > 88.37f ? splat(__builtin_inff()) : result;
}
static inline Vec<double> exp(Vec<double> x) {
  using U = Lanes<double>::U;
  const double magic = 6755399441055744.0;  // 1.5 * 2^52
  Vec<double> shifted = x * 1.4426950408889634074 + magic;
  Vec<double> n = shifted - magic;
  Vec<double> r = x - n * 6.93145751953125e-1;
  r = r - n * 1.42860682030941723212e-6;
  static const double c[] = {1.6059043836821613e-10, 2.0876756987868099e-9, 2.5052108385441719e-8,
                             2.7557319223985888e-7,  2.7557319223985893e-6, 2.4801587301587302e-5,
                             1.9841269841269841e-4,  1.3888888888888889e-3, 8.3333333333333332e-3,
                             4.1666666666666664e-2,  1.6666666666666666e-1, 0.5};
  Vec<double> p = splat(c[0]);
  for (int k = 1; k < 12; ++k) p = p * r + c[k];
  p = p * (r * r) + r + 1.0;
  U bits = ((U)shifted - 0x4338000000000000ULL + 1023ULL) << 52;
  Vec<double> result = p * (Vec<double>)bits;
  result = x < -708.39 ? Vec<double>{} : result;
  return x > 709.08 ? splat(__builtin_inf()) : result;
}

}  // namespace UK_LEVEL
}  // namespace ucmkd

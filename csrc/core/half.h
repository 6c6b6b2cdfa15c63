// Vectors of any type of element, from and to memory: what half precision is read and written by.
//
// x86 from level 3 on has instructions for float16; elsewhere, and for bfloat16, it is shifts.
#pragma once
#if UK_X86_LEVEL >= 3
#include <immintrin.h>
#endif

#include "core/element.h"
#include "core/simd.h"

namespace ucmkd {
namespace UK_LEVEL {

static inline uint32_t bits_of(float x) { return __builtin_bit_cast(uint32_t, x); }
static inline float of_bits(uint32_t x) { return __builtin_bit_cast(float, x); }

// One element.
static inline float number(float x) { return x; }
static inline double number(double x) { return x; }
static inline float number(BFloat16 x) { return of_bits(uint32_t(x.bits) << 16); }
static inline float number(Half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
  if (rest >= 0x7c00) return of_bits(sign | 0x7f800000 | rest << 13);                       // inf, NaN
  if (rest < 0x0400) return of_bits(sign | bits_of(float(rest) * 5.9604644775390625e-8f));  // 2^-24
  return of_bits(sign | ((rest << 13) + (112 << 23)));
}

// To the nearest, ties to even. For numbers of [0, 1] alone.
static inline void put(float x, float* p) { *p = x; }
static inline void put(float x, double* p) { *p = x; }
static inline void put(double x, double* p) { *p = x; }
static inline void put(double x, float* p) { *p = float(x); }
static inline void put(float x, BFloat16* p) {
  const uint32_t bits = bits_of(x);
  p->bits = uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static inline void put(float x, Half* p) {
  const uint32_t bits = bits_of(x);
  const bool small = x < 6.103515625e-5f;  // 2^-14: below the normal ones; added to 1/2 it is rounded
  p->bits =
      uint16_t(small ? bits_of(x + 0.5f) - bits_of(0.5f) : (bits + 0xfff + (bits >> 13 & 1) - (112u << 23)) >> 13);
}
template <class Narrow>
static inline void put(double x, Narrow* p) {
  put(float(x), p);
}

// As many lanes as Vec<T> has.
template <class T, class S>
static inline Vec<T> load_as(const S* p) {
  T lanes[Lanes<T>::W];
  for (int k = 0; k < Lanes<T>::W; ++k) lanes[k] = number(p[k]);
  return load(lanes);
}
template <>
inline Vec<float> load_as<float, float>(const float* p) {
  return load(p);
}
template <>
inline Vec<double> load_as<double, double>(const double* p) {
  return load(p);
}
template <class T, class S>
static inline void store_as(S* p, Vec<T> v) {
  T lanes[Lanes<T>::W];
  store(lanes, v);
  for (int k = 0; k < Lanes<T>::W; ++k) put(lanes[k], p + k);
}
template <>
inline void store_as<float, float>(float* p, Vec<float> v) {
  store(p, v);
}
template <>
inline void store_as<double, double>(double* p, Vec<double> v) {
  store(p, v);
}

typedef uint16_t Shorts __attribute__((vector_size(UK_BYTES / 2)));
typedef uint16_t ShortsInMemory __attribute__((vector_size(UK_BYTES / 2), aligned(2), may_alias));
typedef uint32_t Words __attribute__((vector_size(UK_BYTES)));

template <>
inline Vec<float> load_as<float, BFloat16>(const BFloat16* p) {
  const Shorts bits = *reinterpret_cast<const ShortsInMemory*>(p);
  return (Vec<float>)(__builtin_convertvector(bits, Words) << 16);
}
template <>
inline void store_as<float, BFloat16>(BFloat16* p, Vec<float> v) {
  const Words bits = (Words)v;
  *reinterpret_cast<ShortsInMemory*>(p) = __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, Shorts);
}
#if UK_X86_LEVEL == 3
template <>
inline Vec<float> load_as<float, Half>(const Half* p) {
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
template <>
inline void store_as<float, Half>(Half* p, Vec<float> v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
#elif UK_X86_LEVEL == 4
template <>
inline Vec<float> load_as<float, Half>(const Half* p) {
  return (Vec<float>)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
template <>
inline void store_as<float, Half>(Half* p, Vec<float> v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#endif

// The first `count` lanes, of a tail; the others are `filler`.
template <class T, class S>
static inline Vec<T> load_some(const S* p, int64_t count, T filler) {
  if (count == Lanes<T>::W) return load_as<T>(p);
  T lanes[Lanes<T>::W];
  for (int k = 0; k < Lanes<T>::W; ++k) lanes[k] = k < count ? T(number(p[k])) : filler;
  return load(lanes);
}
template <class T, class S>
static inline void store_some(S* p, Vec<T> v, int64_t count) {
  if (count == Lanes<T>::W) return store_as<T>(p, v);
  for (int64_t k = 0; k < count; ++k) put(v[k], p + k);
}

// body(j, count) over [0, size): whole vectors, and what is left.
template <class T, class Body>
static inline void each_vector(int64_t size, const Body& body) {
  constexpr int W = Lanes<T>::W;
  int64_t j = 0;
  for (; j + W <= size; j += W) body(j, int64_t(W));
  if (j < size) body(j, size - j);
}

}  // namespace UK_LEVEL
}  // namespace ucmkd

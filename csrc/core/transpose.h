// Matrices of a batch and vectors of one matrix per lane: element e of W matrices is one vector.
#pragma once
#include <utility>

#include "core/simd.h"

namespace ucmkd {
namespace UK_LEVEL {

// The lanes of a and b whose bit `kBit` is clear, and those whose bit is set, as a step of a transposition wants them.
template <int kBit, class V, int... lane>
static inline void exchange(V& a, V& b, std::integer_sequence<int, lane...>) {
  constexpr int W = sizeof...(lane);
  const V low = __builtin_shufflevector(a, b, ((lane & kBit) ? W + lane - kBit : lane)...);
  b = __builtin_shufflevector(a, b, ((lane & kBit) ? W + lane : lane + kBit)...);
  a = low;
}
template <class T, int kBit>
static inline void transpose_bit(Vec<T>* rows) {
  constexpr int W = Lanes<T>::W;
#pragma GCC unroll 16
  for (int k = 0; k < W; ++k)
    if (!(k & kBit)) exchange<kBit>(rows[k], rows[k + kBit], std::make_integer_sequence<int, W>());
}
// W vectors, in place: lane l of vector k and lane k of vector l change places.
template <class T>
static inline void transpose(Vec<T>* rows) {
  constexpr int W = Lanes<T>::W;
  if constexpr (W >= 2) transpose_bit<T, 1>(rows);
  if constexpr (W >= 4) transpose_bit<T, 2>(rows);
  if constexpr (W >= 8) transpose_bit<T, 4>(rows);
  if constexpr (W >= 16) transpose_bit<T, 8>(rows);
}

// put(e, vector) for the elements of `count` <= W matrices of `size` elements, one after the other from `from`; lanes
// beyond hold the last matrix.
template <class T, class Put>
static inline void load_lanes(const T* from, int64_t count, int64_t size, const Put& put) {
  constexpr int W = Lanes<T>::W;
  for (int64_t first = 0; first < size; first += W) {
    const int64_t begin = size < W || first + W <= size ? first : size - W;  // the last ones overlap those before
    Vec<T> block[W];
    for (int k = 0; k < W; ++k) {
      const T* at = from + (k < count ? k : count - 1) * size + begin;
      block[k] = size < W ? load_part(at, size, T(0)) : load(at);
    }
    transpose<T>(block);
    for (int k = 0; k < W && begin + k < size; ++k) put(begin + k, block[k]);
  }
}
// The way back: get(e) is a vector.
template <class T, class Get>
static inline void store_lanes(T* to, int64_t count, int64_t size, const Get& get) {
  constexpr int W = Lanes<T>::W;
  for (int64_t first = 0; first < size; first += W) {
    const int64_t begin = size < W || first + W <= size ? first : size - W;
    Vec<T> block[W];
    for (int k = 0; k < W; ++k) block[k] = begin + k < size ? get(begin + k) : Vec<T>{};
    transpose<T>(block);
    for (int k = 0; k < count; ++k) {
      T* at = to + k * size + begin;
      size < W ? store_part(at, block[k], size) : store(at, block[k]);
    }
  }
}

}  // namespace UK_LEVEL
}  // namespace ucmkd

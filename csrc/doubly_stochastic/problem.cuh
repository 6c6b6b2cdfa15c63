// What the CUDA kernels of the projection share: their arguments, and the mathematics of one entry.
#pragma once
#include "core/launch.cuh"
#include "doubly_stochastic/steps.h"

namespace ucmkd {
namespace doubly_stochastic {

// S: how entries are stored; half precision is computed in float.
template <class S>
using Wide = decltype(cuda::wide(S()));

template <class S>
struct Problem {
  using T = Wide<S>;
  Steps s;
  int64_t batch;
  int p, q;                    // the matrix as kernels see it (steps.h)
  const S* logits;             // (batch, n, m)
  const S* upstream;           // (batch, n, m) or null
  S* out;                      // (batch, n, m)
  T eps, of_columns, of_rows;  // 1 over the sums that columns and rows are to have
  int* beyond;                 // (batch,) 1: left to the log domain
  T* work;                     // of kernels that do not keep all in shared memory, or null

  __device__ int size() const { return p * q; }
  __device__ int place(int r, int c) const { return s.transposed ? c * p + r : r * q + c; }
};

template <class T>
constexpr T kMost = sizeof(T) == 8 ? T(1.7976931348623157e308) : T(3.402823466e38);

template <class T>
__device__ inline bool closed(T x) {
  return x < -kMost<T>;
}
// x - y; what its rounding took is added to `lost`.
template <class T>
__device__ inline T minus(T x, T y, T& lost) {
  const T difference = x - y, part = difference - x;
  lost += (x - (difference - part)) - (y + part);
  return difference;
}
// exp(x - c - d), 0 for what is dropped.
template <class T>
__device__ inline T shifted(T x, T c, T d, bool* dropped) {
  T lost = 0;
  const T y = minus(minus(x, c, lost), d, lost);
  if (!(y >= Range<T>::kDropped)) {
    *dropped |= !closed(x);
    return T(0);
  }
  const T e = cuda::exp_of(y);
  return e + e * lost;
}
template <class T>
__device__ inline bool in_range(T x) {
  return x >= Range<T>::kLeast && x <= Range<T>::kMost;
}

}  // namespace doubly_stochastic
}  // namespace ucmkd

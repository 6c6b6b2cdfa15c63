// What the threads of one row share: how its logits are laid over them, and the sums that all of them know.
#pragma once
#include "core/launch.cuh"
#include "core/pack.h"

namespace ucmkd {
namespace label_transport {

constexpr int kWarp = 32;

template <class T>
struct Pair {
  T student, teacher;
};

// The threads of a row: a warp of the block, or with kBlock all of it.
template <class T, bool kBlock>
struct Team {
  int thread, threads;
  T* parts;  // shared, Pair per warp and reduction

  __device__ int warps() const { return threads / kWarp; }

  template <class Join>
  __device__ Pair<T> reduce(Pair<T> x, Join join) {
    for (int mask = kWarp / 2; mask > 0; mask /= 2) {
      x.student = join(x.student, cuda::shuffle_xor(x.student, mask));
      x.teacher = join(x.teacher, cuda::shuffle_xor(x.teacher, mask));
    }
    if (!kBlock) return x;
    Pair<T>* of_warps = reinterpret_cast<Pair<T>*>(parts);
    if (thread % kWarp == 0) of_warps[thread / kWarp] = x;
    cuda::sync_block();
    x = of_warps[0];
    for (int w = 1; w < warps(); ++w) x = {join(x.student, of_warps[w].student), join(x.teacher, of_warps[w].teacher)};
    parts += 2 * warps();  // the next reduction has its own: no second barrier
    return x;
  }
  __device__ Pair<T> largest(Pair<T> x) {
    return reduce(x, [](T a, T b) { return cuda::larger_of(a, b); });
  }
  __device__ Pair<T> sum(Pair<T> x) {
    return reduce(x, [](T a, T b) { return a + b; });
  }
  // All have read what one of them is about to write over.
  __device__ void meet() const {
    if (kBlock)
      cuda::sync_block();
    else
      cuda::sync_warp();
  }
};
constexpr int kReductions = 3;  // of a row: tops, sums of exponentials, sums of logits

// exp(x - top), by the one power that the hardware has. Subtracted before it is scaled: no logit overflows.
template <class T>
__device__ inline T exp_below(T x, T top) {
  return cuda::power_of_two((x - top) * T(1.4426950408889634));
}

// The packs of a thread: each warp has a stretch of the row, V packs for a lane, 32 packs apart.
template <int W, int V>
__device__ inline int first_logit(int thread) {
  return (thread / kWarp * V * kWarp + thread % kWarp) * W;
}

// V packs from logit `first` on; -inf past the end.
template <int W, int V, class S, class T>
__device__ inline void load(const S* z, int k, int first, T (&out)[V * W]) {
  z += first, k -= first;
#pragma unroll
  for (int v = 0; v < V; ++v) {
#pragma unroll
    for (int w = 0; w < W; ++w) out[v * W + w] = -T(INFINITY);
    if (v * kWarp * W < k) {
      const Pack<S, W> pack = *reinterpret_cast<const Pack<S, W>*>(z + v * kWarp * W);
#pragma unroll
      for (int w = 0; w < W; ++w) out[v * W + w] = cuda::wide(pack.e[w]);
    }
  }
}

// scale * e + shift into the places of `load`.
template <int W, int V, class S, class T>
__device__ inline void store(S* z, int k, int first, const T (&e)[V * W], T scale, T shift) {
  z += first, k -= first;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    Pack<S, W> pack;
#pragma unroll
    for (int w = 0; w < W; ++w) pack.e[w] = cuda::narrow<S>(e[v * W + w] * scale + shift);
    if (v * kWarp * W < k) *reinterpret_cast<Pack<S, W>*>(z + v * kWarp * W) = pack;
  }
}

template <class T, int E>
__device__ inline T largest_of(const T (&x)[E]) {
  T top = x[0];
#pragma unroll
  for (int e = 1; e < E; ++e) top = cuda::larger_of(top, x[e]);
  return top;
}

// The sum of the logits of `load` that are there.
template <int W, int V, class T>
__device__ inline T sum_of(const T (&x)[V * W], int k, int first) {
  k -= first;
  T sum = 0;
#pragma unroll
  for (int v = 0; v < V; ++v)
    if (v * kWarp * W < k) {
#pragma unroll
      for (int w = 0; w < W; ++w) sum += x[v * W + w];
    }
  return sum;
}

// x = exp(x - top); their sum.
template <class T, int E>
__device__ inline T exponentiate(T (&x)[E], T top) {
  T sum = 0;
#pragma unroll
  for (int e = 0; e < E; ++e) sum += x[e] = exp_below(x[e], top);
  return sum;
}

}  // namespace label_transport
}  // namespace ucmkd

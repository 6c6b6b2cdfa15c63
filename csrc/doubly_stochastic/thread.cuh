// One small matrix per thread, in its registers.
#pragma once
#include "core/pack.h"
#include "doubly_stochastic/problem.cuh"

namespace ucmkd {
namespace doubly_stochastic {

constexpr int kMatrices = 64;  // of a block

template <class T, int N>
struct InRegisters {
  T a[N][N], u[N], z[N], v[N], w[N];
  bool dropped;
};

template <class T, int N>
__device__ inline void turn(T (&x)[N][N]) {
#pragma unroll
  for (int i = 0; i < N; ++i)
#pragma unroll
    for (int j = 0; j < i; ++j) {
      const T y = x[i][j];
      x[i][j] = x[j][i], x[j][i] = y;
    }
}
template <class S, int N, class T = Wide<S>>
__device__ inline void load_matrix(const Problem<S>& p, const S* from, T (&to)[N][N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const Pack<S, N> row = *reinterpret_cast<const Pack<S, N>*>(from + i * N);
#pragma unroll
    for (int j = 0; j < N; ++j) to[i][j] = cuda::wide(row.e[j]);
  }
  if (p.s.transposed) turn(to);
}
template <class S, int N, class T = Wide<S>>
__device__ inline void store_matrix(const Problem<S>& p, T (&x)[N][N], S* to) {
  if (p.s.transposed) turn(x);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    Pack<S, N> row;
#pragma unroll
    for (int j = 0; j < N; ++j) row.e[j] = cuda::narrow<S>(x[i][j]);
    *reinterpret_cast<Pack<S, N>*>(to + i * N) = row;
  }
}

// Shifts of large logits (README.md); false: a row or column is forbidden.
template <class T, int N>
__device__ inline bool read_shifted(InRegisters<T, N>& x, bool wide, T eps) {
  T c[N], d[N];
  bool open = true;
#pragma unroll
  for (int j = 0; j < N; ++j) {
    c[j] = x.a[0][j];
#pragma unroll
    for (int i = 1; i < N; ++i) c[j] = cuda::larger_of(c[j], x.a[i][j]);
    open = open && !closed(c[j]);
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    d[i] = x.a[i][0] - c[0];
#pragma unroll
    for (int j = 1; j < N; ++j) d[i] = cuda::larger_of(d[i], x.a[i][j] - c[j]);
    open = open && !closed(d[i]);
    d[i] = wide ? d[i] : T(0);
    x.u[i] = cuda::exp_of(d[i]), x.z[i] = eps > 0 ? cuda::exp_of(-d[i]) : T(1);
  }
#pragma unroll
  for (int j = 0; j < N; ++j) {
    c[j] = wide ? c[j] : T(0);
    x.w[j] = eps > 0 ? cuda::exp_of(-c[j]) : T(1);
#pragma unroll
    for (int i = 0; i < N; ++i) x.a[i][j] = shifted(x.a[i][j], c[j], d[i], &x.dropped);
  }
  return open;
}

template <class T, int N>
__device__ inline bool read_softmax(InRegisters<T, N>& x, T eps) {
  bool good = true;
#pragma unroll
  for (int j = 0; j < N; ++j) {
    bool open = false;
#pragma unroll
    for (int i = 0; i < N; ++i) open = open || !closed(x.a[i][j]);
    good = good && open;
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    T top = x.a[i][0], total = 0;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      good = good && x.a[i][j] <= kMost<T>;
      top = cuda::larger_of(top, x.a[i][j]);
    }
    good = good && !closed(top);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const bool shut = closed(x.a[i][j]);
      total += x.a[i][j] = cuda::exp_of(x.a[i][j] - top);
      x.a[i][j] = shut ? T(-1) : x.a[i][j];
    }
    const T share = cuda::quotient(T(1), total);
#pragma unroll
    for (int j = 0; j < N; ++j) x.a[i][j] = x.a[i][j] < 0 ? T(0) : x.a[i][j] * share + eps;
  }
  return good;
}

// a from the logits in its place, and the scalings before the first step; false: refused.
template <class T, int N>
__device__ inline bool read(InRegisters<T, N>& x, bool added, T eps) {
  x.dropped = false;
#pragma unroll
  for (int i = 0; i < N; ++i) x.u[i] = x.z[i] = x.w[i] = T(1);
  if (added) return read_softmax(x, eps);
  T top = 0;
  bool good = true, shut = false;
#pragma unroll
  for (int i = 0; i < N; ++i)
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const T e = x.a[i][j];
      good = good && e <= kMost<T>;
      shut = shut || closed(e);
      top = cuda::larger_of(top, closed(e) ? T(0) : e < 0 ? -e : e);
    }
  const bool wide = top > Range<T>::kNarrow;
  if (wide || shut) return read_shifted(x, wide, eps) && good;
#pragma unroll
  for (int i = 0; i < N; ++i)
#pragma unroll
    for (int j = 0; j < N; ++j) x.a[i][j] = cuda::exp_of(x.a[i][j]);
  return good;
}

// The scalings of each step: u before column step k, and v after it.
template <class T, int N>
struct Kept {
  T* at;
  int64_t apart;  // between steps

  __device__ T* of(int64_t k, int which) const { return at + (2 * k + which) * apart; }
  __device__ void keep(int64_t k, int which, const T (&x)[N]) const {
    if constexpr (N == 4) {
      cuda::store_four(of(k, which), x);
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) of(k, which)[i] = x[i];
    }
  }
  __device__ void get(int64_t k, int which, T (&x)[N]) const {
    if constexpr (N == 4) {
      cuda::load_four(of(k, which), x);
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) x[i] = of(k, which)[i];
    }
  }
};

template <bool kKeep, class S, int N, class T>
__device__ inline void iterate(const Problem<S>& p, InRegisters<T, N>& x, const Kept<T, N>& kept) {
  const int64_t columns = p.s.column_steps(), rows = p.s.row_steps();
#pragma unroll 1
  for (int64_t k = 0; k < columns; ++k) {
    if (kKeep) kept.keep(k, 0, x.u);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      T sum = p.eps * x.w[j];
#pragma unroll
      for (int i = 0; i < N; ++i) sum += x.u[i] * x.a[i][j];
      x.w[j] = sum * p.of_columns;
      x.v[j] = cuda::quotient(T(1), x.w[j]);
    }
    if (kKeep) kept.keep(k, 1, x.v);
    if (k >= rows) break;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      T sum = p.eps * x.z[i];
#pragma unroll
      for (int j = 0; j < N; ++j) sum += x.v[j] * x.a[i][j];
      x.z[i] = sum * p.of_rows;
      x.u[i] = cuda::quotient(T(1), x.z[i]);
    }
  }
}

template <class T, int N>
__device__ inline bool trusted(const InRegisters<T, N>& x) {
  bool good = true;
  T top_u = 0, top_v = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    good = good && in_range(x.u[i]) && in_range(x.v[i]);
    top_u = cuda::larger_of(top_u, x.u[i]), top_v = cuda::larger_of(top_v, x.v[i]);
  }
  return good && (!x.dropped || top_u * top_v <= Range<T>::kPeak);
}

// The gradient of the logits in the place of that of P (README.md).
template <class S, int N, class T>
__device__ inline void adjoint(const Problem<S>& p, InRegisters<T, N>& x, const Kept<T, N>& kept, T (&g)[N][N]) {
  T bar_u[N] = {}, bar_v[N] = {};
  T(&of_z)[N] = x.z;  // these carry eps of_z, eps of_w to the step before
  T(&of_w)[N] = x.w;
#pragma unroll
  for (int i = 0; i < N; ++i) {
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const T ga = g[i][j] * x.a[i][j];
      bar_u[i] += ga * x.v[j];
      bar_v[j] += ga * x.u[i];
      g[i][j] *= x.u[i] * x.v[j];
    }
    of_z[i] = of_w[i] = T(0);
  }
  const int64_t rows = p.s.row_steps();
#pragma unroll 1
  for (int64_t k = p.s.column_steps() - 1; k >= 0; --k) {
    kept.get(k, 1, x.v);
    if (k < rows) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        of_z[i] = (p.eps * of_z[i] - bar_u[i] * x.u[i] * x.u[i]) * p.of_rows;
        bar_u[i] = T(0);
#pragma unroll
        for (int j = 0; j < N; ++j) {
          bar_v[j] += of_z[i] * x.a[i][j];
          g[i][j] += of_z[i] * x.v[j];
        }
      }
    }
    kept.get(k, 0, x.u);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      of_w[j] = (p.eps * of_w[j] - bar_v[j] * x.v[j] * x.v[j]) * p.of_columns;
      bar_v[j] = T(0);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        bar_u[i] += of_w[j] * x.a[i][j];
        g[i][j] += x.u[i] * of_w[j];
      }
    }
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    T total = 0;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (p.s.added) x.a[i][j] = x.a[i][j] > p.eps ? x.a[i][j] - p.eps : T(0);  // the softmax
      total += g[i][j] *= x.a[i][j];
    }
#pragma unroll
    for (int j = 0; j < N; ++j)
      if (p.s.added) g[i][j] -= total * x.a[i][j];
  }
}

// `kept_in_shared`: the scalings of all steps are in shared memory, else in p.work.
template <class S, int N, bool kBackward>
__global__ void __launch_bounds__(kMatrices)
    thread_kernel(const __grid_constant__ Problem<S> p, const bool kept_in_shared) {
  using T = Wide<S>;
  const int64_t k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (k >= p.batch) return;
  InRegisters<T, N> x;
  load_matrix<S, N>(p, p.logits + k * N * N, x.a);
  const bool good = read(x, p.s.added, p.eps);
  Kept<T, N> kept{};
  if (kBackward) {
    const int64_t beside = kept_in_shared ? int64_t(blockDim.x) : int64_t(gridDim.x) * blockDim.x;
    T* all = kept_in_shared ? reinterpret_cast<T*>(cuda::shared_memory()) : p.work;
    kept = {all + (kept_in_shared ? int64_t(threadIdx.x) : k) * N, beside * N};
  }
  iterate<kBackward>(p, x, kept);
  p.beyond[k] = good && !trusted(x);
  T result[N][N];
  if constexpr (kBackward) {
    load_matrix<S, N>(p, p.upstream + k * N * N, result);
    adjoint(p, x, kept, result);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i)
#pragma unroll
      for (int j = 0; j < N; ++j) result[i][j] = x.u[i] * x.a[i][j] * x.v[j];
  }
#pragma unroll
  for (int i = 0; i < N; ++i)
#pragma unroll
    for (int j = 0; j < N; ++j) result[i][j] = good ? result[i][j] : T(NAN);
  store_matrix<S, N>(p, result, p.out + k * N * N);
}

}  // namespace doubly_stochastic
}  // namespace ucmkd

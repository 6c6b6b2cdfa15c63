// The one loop that both the forward iterations and the adjoint are made of:
//
//   d_i = <K_i, v>;  y_i = finish(i, d_i);  s += y_i K_i        one read of K
//
// finish takes the first of four rows and their sums.
//
// Four rows at a time: the latency of the row sums and of finish's division overlaps, and the column
// sums are read and written once per four rows. Everything is padded (params.h): no remainders.
#pragma once
#include "core/parallel.h"
#include "core/simd.h"
#include "sinkhorn/params.h"

namespace ucmkd {
namespace UK_LEVEL {

// Up to V vectors of columns: v, the column sums and the four rows stay in registers.
template <class T, int V, class Finish>
static inline void sweep_narrow(const T* K, const T* v, T* s, int64_t begin, int64_t end, const Finish& finish) {
  constexpr int W = Lanes<T>::W;
  Vec<T> x[V], total[V];
  for (int h = 0; h < V; ++h) x[h] = load(v + h * W), total[h] = load(s + h * W);
  for (int64_t i = begin; i < end; i += 4) {
    Vec<T> k[4][V], d[4] = {};
    for (int r = 0; r < 4; ++r)
      for (int h = 0; h < V; ++h) {
        k[r][h] = load(K + (i + r) * V * W + h * W);
        d[r] += k[r][h] * x[h];
      }
    const Quad<T> y = finish(i, sum4<T>(d[0], d[1], d[2], d[3]));
    const Vec<T> y0 = splat(y[0]), y1 = splat(y[1]), y2 = splat(y[2]), y3 = splat(y[3]);
    for (int h = 0; h < V; ++h) total[h] += (y0 * k[0][h] + y1 * k[1][h]) + (y2 * k[2][h] + y3 * k[3][h]);
  }
  for (int h = 0; h < V; ++h) store(s + h * W, total[h]);
}

// <K_r, v> of four rows of K.
template <class T>
static inline Quad<T> dots_of_four(const T* K, int64_t stride, const T* v) {
  constexpr int W = Lanes<T>::W;
  constexpr int U = sinkhorn::kPad / W >= 2 ? 2 : 1;  // independent sums per row
  const T *k0 = K, *k1 = k0 + stride, *k2 = k1 + stride, *k3 = k2 + stride;
  Vec<T> d[4][U] = {};
  for (int64_t j = 0; j < stride; j += U * W) {
    for (int h = 0; h < U; ++h) {
      const Vec<T> x = load(v + j + h * W);
      d[0][h] += load(k0 + j + h * W) * x;
      d[1][h] += load(k1 + j + h * W) * x;
      d[2][h] += load(k2 + j + h * W) * x;
      d[3][h] += load(k3 + j + h * W) * x;
    }
  }
  for (int r = 0; r < 4; ++r)
    if (U == 2) d[r][0] += d[r][U - 1];
  return sum4<T>(d[0][0], d[1][0], d[2][0], d[3][0]);
}

// s += y_r K_r of four rows.
template <class T>
static inline void add_four(const T* K, int64_t stride, Quad<T> y, T* s) {
  const T *k0 = K, *k1 = k0 + stride, *k2 = k1 + stride, *k3 = k2 + stride;
  const Vec<T> y0 = splat(y[0]), y1 = splat(y[1]), y2 = splat(y[2]), y3 = splat(y[3]);
  for (int64_t j = 0; j < stride; j += Lanes<T>::W)
    store(s + j, load(s + j) + ((y0 * load(k0 + j) + y1 * load(k1 + j)) + (y2 * load(k2 + j) + y3 * load(k3 + j))));
}

template <class T, class Finish>
static inline void sweep_rows(const T* K, int64_t stride, const T* v, T* s, int64_t begin, int64_t end,
                              const Finish& finish) {
  constexpr int W = Lanes<T>::W;
  if (stride == W) return sweep_narrow<T, 1>(K, v, s, begin, end, finish);
  if (stride == 2 * W) return sweep_narrow<T, 2>(K, v, s, begin, end, finish);
  if (stride == 3 * W) return sweep_narrow<T, 3>(K, v, s, begin, end, finish);
  if (stride == 4 * W) return sweep_narrow<T, 4>(K, v, s, begin, end, finish);
  for (int64_t i = begin; i < end; i += 4)
    add_four<T>(K + i * stride, stride, finish(i, dots_of_four(K + i * stride, stride, v)), s);
}

// As sweep_rows, with `finish` on a register of rows: for one that takes long, and is at work while the next rows are
// summed. K of two such blocks fits the first cache.
template <class T, class Finish>
static inline void sweep_registers(const T* K, int64_t stride, const T* v, T* s, int64_t begin, int64_t end,
                                   const Finish& finish) {
  constexpr int W = Lanes<T>::W;
  alignas(64) T sums[2][W] = {}, y[W];
  auto dots = [&](int64_t first, T* out) {
    for (int64_t i = first; i < first + W && i < end; i += 4)
      store4(out + i - first, dots_of_four(K + i * stride, stride, v));
  };
  dots(begin, sums[0]);
  int now = 0;
  for (int64_t first = begin; first < end; first += W, now = 1 - now) {
    store(y, finish(first, load(sums[now])));
    dots(first + W, sums[1 - now]);
    for (int64_t i = first; i < first + W && i < end; i += 4)
      add_four<T>(K + i * stride, stride, load4(y + i - first), s);
  }
}

// Rows [begin, end) of task number `index` of `tasks`, in whole blocks of kRows rows.
struct Range {
  int64_t begin, end;
};
static inline Range task_rows(int64_t n, int tasks, int index) {
  const int64_t blocks = (n + sinkhorn::kRows - 1) / sinkhorn::kRows;
  return {blocks * index / tasks * sinkhorn::kRows, blocks * (index + 1) / tasks * sinkhorn::kRows};
}

// s = the column sums of the tasks, partial (tasks, stride), added in task order: the same for every
// schedule. One task writes to s itself.
template <class T>
static inline void add_partials(const T* partial, int64_t stride, int tasks, T* s) {
  if (tasks == 1) return;
  for (int64_t j = 0; j < stride; j += Lanes<T>::W) {
    Vec<T> total = load(partial + j);
    for (int k = 1; k < tasks; ++k) total += load(partial + k * stride + j);
    store(s + j, total);
  }
}

// rows(s, begin, end) for every task's rows, its column sums from zero; they end in s. partial: (tasks, padded(m)).
template <class T, class Rows>
static inline void sweep_by_tasks(const sinkhorn::View<T>& p, T* s, T* partial, const Rows& rows_of) {
  const int64_t n = p.n, stride = sinkhorn::padded(p.m);
  const int tasks = p.tasks;
  auto body = [&](int index) {
    const Range rows = task_rows(n, tasks, index);
    T* mine = tasks == 1 ? s : partial + index * stride;
    for (int64_t j = 0; j < stride; ++j) mine[j] = 0;
    rows_of(mine, rows.begin, rows.end);
  };
  parallel(tasks, body);
  add_partials(partial, stride, tasks, s);
}

// The sweep over all rows of K, the plan of p.
template <class T, class Finish>
static inline void sweep(const sinkhorn::View<T>& p, const T* v, T* s, T* partial, const Finish& finish) {
  const int64_t stride = sinkhorn::padded(p.m);
  sweep_by_tasks(p, s, partial, [&](T* mine, int64_t begin, int64_t end) {
    sweep_rows(p.saved.plan, stride, v, mine, begin, end, finish);
  });
}

// The same; `finish` takes four rows or a register of them.
template <class T, class Finish>
static inline void sweep_slow_finish(const sinkhorn::View<T>& p, const T* v, T* s, T* partial, const Finish& finish) {
  constexpr int64_t kFirstCache = 32 * 1024;
  const int64_t stride = sinkhorn::padded(p.m), block = 2 * stride * Lanes<T>::W * int64_t(sizeof(T));
  if (Lanes<T>::W < 8 || block > kFirstCache) return sweep(p, v, s, partial, finish);
  sweep_by_tasks(p, s, partial, [&](T* mine, int64_t begin, int64_t end) {
    sweep_registers(p.saved.plan, stride, v, mine, begin, end, finish);
  });
}

}  // namespace UK_LEVEL
}  // namespace ucmkd

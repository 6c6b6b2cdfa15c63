// One iteration in the log domain, for what plain scaling cannot reach; and the kernel matrix
// rebuilt relative to potentials. C is read unpadded; -inf potentials mark rows and columns that
// take no part.
#pragma once
#include "core/math.h"
#include "cost/row.h"
#include "sinkhorn/sweep.h"

namespace ucmkd {
namespace UK_LEVEL {

// Lanes j .. j + W of a row of m elements; +inf (a forbidden pair) beyond its end.
template <class T>
static inline Vec<T> load_cost(const T* row, int64_t j, int64_t m) {
  return j + Lanes<T>::W <= m ? load(row + j) : load_part(row + j, m - j, T(__builtin_inf()));
}

// out_j = -reg LSE_i((f_i - C_ij) / reg) for j in [0, padded(m)); +inf where no pair is allowed.
template <class T>
static inline void column_half(const sinkhorn::View<T>& p, const T* f, T* out) {
  constexpr int W = Lanes<T>::W;
  const int64_t n = p.n, m = p.m;
  const T *C = p.cost, reg = p.reg;
  const T inf = __builtin_inf();
  const T inverse = 1 / reg;
  const int64_t vectors = (m + W - 1) / W;
  auto body = [&](int index) {
    for (int64_t b = vectors * index / p.tasks; b < vectors * (index + 1) / p.tasks; ++b) {
      const int64_t j = b * W;
      Vec<T> top = splat(-inf), total = {};
      for (int64_t i = 0; i < n; ++i)
        if (f[i] > -inf) top = vmax<T>(top, f[i] - load_cost(C + i * m, j, m));
      const Vec<T> shift = top > -inf ? top : Vec<T>{};
      for (int64_t i = 0; i < n; ++i)
        if (f[i] > -inf) total += exp((f[i] - load_cost(C + i * m, j, m) - shift) * inverse);
      for (int k = 0; k < W; ++k) out[j + k] = total[k] > 0 ? -(shift[k] + reg * log_of(total[k])) : inf;
    }
  };
  parallel(p.tasks, body);
}

// out_i = -reg LSE_j((g_j - C_ij) / reg) for i in [0, n); +inf where no pair is allowed. g is padded by -inf.
template <class T>
static inline void row_half(const sinkhorn::View<T>& p, const T* g, T* out) {
  constexpr int W = Lanes<T>::W;
  const int64_t n = p.n, m = p.m;
  const T *C = p.cost, reg = p.reg;
  const T inf = __builtin_inf();
  const T inverse = 1 / reg;
  auto body = [&](int index) {
    for (int64_t i = n * index / p.tasks; i < n * (index + 1) / p.tasks; ++i) {
      const T* row = C + i * m;
      Vec<T> tops = splat(-inf), total = {};
      for (int64_t j = 0; j < m; j += W) tops = vmax<T>(tops, load(g + j) - load_cost(row, j, m));
      const T top = greatest<T>(tops);
      const T shift = top > -inf ? top : 0;
      for (int64_t j = 0; j < m; j += W) total += exp((load(g + j) - load_cost(row, j, m) - shift) * inverse);
      const T sums = sum<T>(total);
      out[i] = sums > 0 ? -(shift + reg * log_of(sums)) : inf;
    }
  };
  parallel(p.tasks, body);
}

// The exponent (f + g - c) / reg with the rounding of f + g put back (two-sum): where f and g are large
// against f + g - c, it loses nothing to cancellation.
template <class T>
static inline Vec<T> exponent(Vec<T> f, Vec<T> g, Vec<T> c, T inverse) {
  const Vec<T> both = f + g;
  const Vec<T> g_part = both - f;
  Vec<T> rest = (f - (both - g_part)) + (g - g_part);
  rest = rest == rest ? rest : Vec<T>{};  // g = -inf
  return ((both - c) + rest) * inverse;
}

// K_ij = exp((F_i + G_j - C_ij) / reg), rows of F = -inf zero, and s_j = sum_i u_i K_ij. F, G, u padded.
// `from_products`: C holds the inner products of the features and becomes the cost on the way. Returns false
// where the cost holds NaN or -inf, or, made from features, overflows.
template <class T>
static inline bool build(const sinkhorn::View<T>& p, bool from_products, const T* F, const T* G, const T* u, T* s,
                         T* partial) {
  constexpr int W = Lanes<T>::W;
  const int64_t n = p.n, m = p.m, stride = sinkhorn::padded(m);
  const int tasks = p.tasks;
  T *const C = p.cost, *const K = p.saved.plan;
  const cost::Features<T>* features = from_products ? &p.features : nullptr;
  const T inverse = 1 / p.reg;
  const T inf = __builtin_inf();
  bool good[kMaxTasks];
  auto body = [&](int index) {
    const Range rows = task_rows(n, tasks, index);
    T* mine = tasks == 1 ? s : partial + index * stride;
    for (int64_t j = 0; j < stride; ++j) mine[j] = 0;
    typename Lanes<T>::I bad = {};
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      T* k = K + i * stride;
      if (features && i < n) finish_cost_row(*features, i, C + i * m);
      const bool takes_part = i < n && F[i] > -inf;
      const Vec<T> Fi = splat(takes_part ? F[i] : 0), ui = splat(takes_part ? u[i] : 0);
      for (int64_t j = 0; j < stride; j += W) {
        if (i >= n) {
          store(k + j, Vec<T>{});
          continue;
        }
        const Vec<T> c = j < m ? load_cost(C + i * m, j, m) : splat(inf);
        bad |= ~(c >= -Lanes<T>::kMax);
        if (features && !features->classes.count && j < m)  // what lies beyond the row's end is +inf, and no overflow
          bad |= ~((j + W <= m ? c : load_part(C + i * m + j, m - j, T(0))) <= Lanes<T>::kMax);
        const Vec<T> value = takes_part ? exp(exponent<T>(Fi, load(G + j), c, inverse)) : Vec<T>{};
        store(k + j, value);
        store(mine + j, load(mine + j) + ui * value);
      }
    }
    good[index] = !any<T>(bad);
  };
  parallel(tasks, body);
  bool all_good = good[0];
  for (int k = 1; k < tasks; ++k) all_good &= good[k];
  add_partials(partial, stride, tasks, s);
  return all_good;
}

}  // namespace UK_LEVEL
}  // namespace ucmkd

// See panel.h. exp is what costs: an iteration takes one an element, relative to the potentials of the
// iteration before, and the sums of a row and its share of the columns' come from the same exponentials while
// they are in the cache. Where a row's sum leaves the safe range, that row is done again relative to its
// maximum.
#include "sinkhorn/panel.h"

#include "core/math.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "cost/row.h"
#include "sinkhorn/log_domain.h"

namespace ucmkd {
namespace UK_LEVEL {
namespace {

using sinkhorn::padded;
using sinkhorn::Panel;
using sinkhorn::PanelGradient;

template <class T>
static inline void finish_row(const Panel<T>& p, int64_t i) {
  if (p.products) finish_cost_row(p.features, i, p.cost + i * p.m);
}

// E_j = exp((f + g_j - C_ij) / reg); returns their sum.
template <class T>
static inline T exponentials(const Panel<T>& p, int64_t i, T f, const T* g, T* E) {
  const T* row = p.cost + i * p.m;
  const T inverse = 1 / p.reg;
  const Vec<T> fi = splat(f);
  Vec<T> total = {};
  for (int64_t j = 0; j < p.m; j += Lanes<T>::W) {
    const Vec<T> e = exp(exponent<T>(fi, load(g + j), load_cost(row, j, p.m), inverse));
    store(E + j, e);
    total += e;
  }
  return sum<T>(total);
}

// max_j (g_j - C_ij).
template <class T>
static inline T row_top(const Panel<T>& p, int64_t i, const T* g) {
  Vec<T> tops = splat(-T(__builtin_inf()));
  for (int64_t j = 0; j < p.m; j += Lanes<T>::W)
    tops = vmax<T>(tops, load(g + j) - load_cost(p.cost + i * p.m, j, p.m));
  return greatest<T>(tops);
}

// s += y_0 E_0 + ... + y_3 E_3, rows of E padded(m) apart.
template <class T>
static inline void add_rows(const T* E, int64_t m, const T* y, T* s) {
  const int64_t stride = padded(m);
  const Vec<T> y0 = splat(y[0]), y1 = splat(y[1]), y2 = splat(y[2]), y3 = splat(y[3]);
  for (int64_t j = 0; j < m; j += Lanes<T>::W)
    store(s + j, load(s + j) + ((y0 * load(E + j) + y1 * load(E + stride + j)) +
                                (y2 * load(E + 2 * stride + j) + y3 * load(E + 3 * stride + j))));
}

template <class T>
static inline void zero(T* x, int64_t count) {
  for (int64_t k = 0; k < count; ++k) x[k] = 0;
}

// body(begin, end, E, columns): some rows, with four rows of work space and zeroed column sums, which are
// added to `sums` in task order.
template <class T, class Body>
static inline void over_rows(const Panel<T>& p, T* sums, const Body& body) {
  const int64_t mp = padded(p.m);
  auto task = [&](int index) {
    T* columns = p.work + index * sinkhorn::panel_work(p.m);
    zero(columns, mp);
    const auto rows = task_rows(p.rows, p.tasks, index);
    body(rows.begin, rows.end < p.rows ? rows.end : p.rows, columns + mp, columns);
  };
  parallel(p.tasks, task);
  for (int k = 0; sums && k < p.tasks; ++k) {
    const T* columns = p.work + k * sinkhorn::panel_work(p.m);
    for (int64_t j = 0; j < p.m; ++j) sums[j] += columns[j];
  }
}

template <class T>
constexpr T safe() {
  return sizeof(T) == 4 ? T(4.85e8) : T(7.2e86);  // e^20, e^200, as in forward.cpp
}

}  // namespace

template <class T>
bool panel_columns(const Panel<T>& p, const T* f, T* top, T* total) {
  constexpr int W = Lanes<T>::W;
  constexpr int64_t kTile = 512;
  const T inverse = 1 / p.reg;
  bool good[kMaxTasks];
  auto finish = [&](int index) {
    good[index] = true;
    for (int64_t i = p.rows * index / p.tasks; i < p.rows * (index + 1) / p.tasks; ++i) {
      finish_row(p, i);
      const T* row = p.cost + i * p.m;
      typename Lanes<T>::I bad = {};
      for (int64_t j = 0; j < p.m; j += W)
        bad |= ~((j + W <= p.m ? load(row + j) : load_part(row + j, p.m - j, T(0))) <= Lanes<T>::kMax);
      good[index] &= !any<T>(bad);
    }
  };
  parallel(p.tasks, finish);
  const int64_t tiles = (p.m + kTile - 1) / kTile;
  auto body = [&](int index) {
    for (int64_t tile = tiles * index / p.tasks; tile < tiles * (index + 1) / p.tasks; ++tile) {
      const int64_t begin = tile * kTile, end = begin + kTile < p.m ? begin + kTile : p.m;
      T before[kTile];
      for (int64_t j = begin; j < end; ++j) before[j - begin] = top[j];
      for (int64_t i = 0; i < p.rows; ++i)
        if (f[i] > -T(__builtin_inf()))
          for (int64_t j = begin; j < end; j += W)
            store(top + j, vmax<T>(load(top + j), f[i] - load_cost(p.cost + i * p.m, j, p.m)));
      for (int64_t j = begin; j < end; ++j)
        total[j] *=
            before[j - begin] > -T(__builtin_inf()) ? exp_of((before[j - begin] - top[j]) * inverse) : 0;
      for (int64_t i = 0; i < p.rows; ++i)
        if (f[i] > -T(__builtin_inf()))
          for (int64_t j = begin; j < end; j += W) {
            const Vec<T> least = load(top + j);
            const Vec<T> e = exp((f[i] - load_cost(p.cost + i * p.m, j, p.m) - least) * inverse);
            store(total + j, load(total + j) + (least > -T(__builtin_inf()) ? e : Vec<T>{}));
          }
    }
  };
  parallel(p.tasks, body);
  bool all = true;
  for (int k = 0; k < p.tasks; ++k) all &= good[k];
  return all;
}

template <class T>
void panel_iterate(const Panel<T>& p, const T* mass, const T* g, T* f, T* sums) {
  const int64_t mp = padded(p.m);
  over_rows(p, sums, [&](int64_t begin, int64_t end, T* E, T* columns) {
    for (int64_t first = begin; first < end; first += 4) {
      T y[4] = {};
      for (int64_t k = 0; k < 4; ++k) {
        const int64_t i = first + k;
        if (i < end) finish_row(p, i);
        if (i >= end || !(mass[i] > 0)) {
          zero(E + k * mp, mp);
          continue;
        }
        T total = exponentials(p, i, f[i], g, E + k * mp);
        if (!(total >= 1 / safe<T>() && total <= safe<T>())) {
          f[i] = -row_top(p, i, g);
          total = exponentials(p, i, f[i], g, E + k * mp);
        }
        y[k] = mass[i] / total;
        f[i] += p.reg * log_of(y[k]);
      }
      add_rows(E, p.m, y, columns);
    }
  });
}

template <class T>
void panel_plan(const Panel<T>& p, const T* f, const T* g, T* alpha, T* row_value, T* first) {
  constexpr int W = Lanes<T>::W;
  over_rows(p, first, [&](int64_t begin, int64_t end, T* E, T* columns) {
    for (int64_t i = begin; i < end; ++i) {
      finish_row(p, i);
      alpha[i] = row_value[i] = 0;
      if (!(f[i] > -T(__builtin_inf()))) continue;
      const T* row = p.cost + i * p.m;
      const T mass = exponentials(p, i, f[i], g, E);
      Vec<T> total = {}, rest = {};
      for (int64_t j = 0; j < p.m; j += W) {
        const Vec<T> plan = load(E + j);
        total += plan > 0 ? plan * load_cost(row, j, p.m) : Vec<T>{};
      }
      row_value[i] = sum<T>(total);
      T mean = mass > 0 ? row_value[i] / mass : 0;
      for (int64_t j = 0; j < p.m; j += W) {  // what rounding left: the adjoint divides it by reg
        const Vec<T> plan = load(E + j);
        rest += plan > 0 ? plan * (load_cost(row, j, p.m) - mean) : Vec<T>{};
      }
      mean += mass > 0 ? sum<T>(rest) / mass : 0;
      alpha[i] = mean;
      for (int64_t j = 0; first && j < p.m; j += W) {
        const Vec<T> plan = load(E + j);
        store(columns + j,
              load(columns + j) + (plan > 0 ? plan * (load_cost(row, j, p.m) - mean) : Vec<T>{}));
      }
    }
  });
}

template <class T>
void panel_adjoint(const Panel<T>& p, const T* f, const T* g, const T* sigma, const T* factor, T* d,
                   T* sums) {
  constexpr int W = Lanes<T>::W;
  const int64_t mp = padded(p.m);
  over_rows(p, sums, [&](int64_t begin, int64_t end, T* E, T* columns) {
    for (int64_t first = begin; first < end; first += 4) {
      T y[4] = {};
      for (int64_t k = 0; k < 4; ++k) {
        const int64_t i = first + k;
        if (i < end) finish_row(p, i), d[i] = 0;
        if (i >= end || !(f[i] > -T(__builtin_inf()))) {
          zero(E + k * mp, mp);
          continue;
        }
        const Vec<T> fi = splat(f[i]);
        Vec<T> dot = {};
        for (int64_t j = 0; j < p.m; j += W) {
          const Vec<T> plan =
              exp(exponent<T>(fi, load(g + j), load_cost(p.cost + i * p.m, j, p.m), 1 / p.reg));
          store(E + k * mp + j, plan);
          dot += plan * load(sigma + j);
        }
        d[i] = sum<T>(dot);
        y[k] = -d[i] * factor[i];
      }
      add_rows(E, p.m, y, columns);
    }
  });
}

template <class T>
void panel_adjoint_log(const Panel<T>& p, const T* f, const T* g, const T* share, const T* g_before,
                       const T* inverse, T* fbar, T* sums) {
  constexpr int W = Lanes<T>::W;
  over_rows(p, sums, [&](int64_t begin, int64_t end, T* E, T* columns) {
    for (int64_t i = begin; i < end; ++i) {
      finish_row(p, i);
      fbar[i] = 0;
      if (!(f[i] > -T(__builtin_inf()))) continue;
      exponentials(p, i, f[i], g, E);
      Vec<T> total = {};
      for (int64_t j = 0; j < p.m; j += W) total += load(E + j) * load(share + j);
      fbar[i] = -sum<T>(total);
      exponentials(p, i, f[i], g_before, E);
      const Vec<T> weight = splat(fbar[i] * inverse[i]);
      for (int64_t j = 0; j < p.m; j += W) store(columns + j, load(columns + j) - weight * load(E + j));
    }
  });
}

template <class T>
void panel_gradient(const Panel<T>& p, const PanelGradient<T>& q) {
  constexpr int W = Lanes<T>::W;
  const int64_t m = p.m, mp = padded(m);
  const T inverse = 1 / p.reg;
  over_rows(p, q.weight_cols, [&](int64_t begin, int64_t end, T* E, T* columns) {
    for (int64_t i = begin; i < end; ++i) {
      finish_row(p, i);
      T* out = q.out + i * m;
      const T* row = p.cost + i * m;
      if (!(q.f[i] > -T(__builtin_inf()))) {
        zero(out, m);
        q.weight_rows[i] = weigh_row(p.features, i, row, out, columns);
        continue;
      }
      exponentials(p, i, q.f[i], q.g, E);
      const Vec<T> shift = splat(q.alpha ? q.alpha[i] : T(0)), along = splat(q.row_sum ? q.row_sum[i] : T(0));
      T* sum_row = E + mp;  // padded: the part of dC that is there whatever comes from the history
      for (int64_t j = 0; j < m; j += W) {
        const Vec<T> plan = load(E + j);
        Vec<T> d = q.weight * plan;
        if (q.alpha) {
          Vec<T> Z = q.weight * (load_cost(row, j, m) - shift);
          if (q.row_sum)
            Z += along + load(q.col_sum + j);
          else if (!q.depth)
            Z += j + W <= m ? load(out + j) : load_part(out + j, m - j, T(0));
          d = plan * (q.weight - Z * inverse);
        }
        store(sum_row + j, plan > 0 ? d : Vec<T>{});
      }
      for (int64_t t = 0; t < q.depth; ++t) {
        const T* g = q.hist_g + t * mp;
        const T* share = q.share_g + t * mp;
        const Vec<T> before = splat(q.hist_before[t * q.stride + i]), f = splat(q.hist_f[t * q.stride + i]),
                     weight = splat(q.share_f[t * q.stride + i]);
        for (int64_t j = 0; j < m; j += W) {
          const Vec<T> c = load_cost(row, j, m), gj = load(g + j);
          store(sum_row + j, load(sum_row + j) + exp(exponent<T>(before, gj, c, inverse)) * load(share + j) +
                                 exp(exponent<T>(f, gj, c, inverse)) * weight);
        }
      }
      copy(sum_row, out, m);
      q.weight_rows[i] = weigh_row(p.features, i, row, out, columns);
    }
  });
}

#define UK_INSTANTIATE(T)                                                                                   \
  template bool panel_columns<T>(const Panel<T>&, const T*, T*, T*);                                        \
  template void panel_iterate<T>(const Panel<T>&, const T*, const T*, T*, T*);                              \
  template void panel_plan<T>(const Panel<T>&, const T*, const T*, T*, T*, T*);                             \
  template void panel_adjoint<T>(const Panel<T>&, const T*, const T*, const T*, const T*, T*, T*);          \
  template void panel_adjoint_log<T>(const Panel<T>&, const T*, const T*, const T*, const T*, const T*, T*, \
                                     T*);                                                                   \
  template void panel_gradient<T>(const Panel<T>&, const PanelGradient<T>&);
UK_INSTANTIATE(float)
UK_INSTANTIATE(double)

}  // namespace UK_LEVEL
}  // namespace ucmkd

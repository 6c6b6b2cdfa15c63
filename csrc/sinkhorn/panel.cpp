// See panel.h. exp is what costs: an iteration takes one an element, relative to the potentials of the
// iteration before, and the sums of a row and its share of the columns' come from the same exponentials while
// they are in the cache. Where a row's sum leaves the safe range, that row is done again relative to its
// maximum.
#include "sinkhorn/panel.h"

#include "core/level_table.h"
#include "core/math.h"
#include "core/packed.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "cost/row.h"
#include "sinkhorn/log_domain.h"
#include "sinkhorn/rules.h"

namespace ucmkd {
namespace UK_LEVEL {
namespace {

using sinkhorn::padded;
using sinkhorn::PanelGradient;
using sinkhorn::PanelLogStep;
using sinkhorn::PanelStep;
using sinkhorn::Panels;

// The rows of one panel and their cost, +inf behind the m-th column.
template <class T>
struct Rows {
  int64_t begin, end, stride;
  cost::Features<T> features;  // of these rows alone
  T* cost;
  T* row(int64_t i) const { return cost + (i - begin) * stride; }
};

template <class T>
static inline void make_costs(const Panels<T>& p, const Rows<T>& r) {
  if (p.packed) packed_products(r.features.x, r.end - r.begin, p.features.d, p.packed, p.m, r.cost, r.stride);
  for (int64_t i = r.begin; i < r.end; ++i) {
    finish_cost_row(r.features, i - r.begin, r.row(i));
    for (int64_t j = p.m; j < r.stride; ++j) r.row(i)[j] = T(__builtin_inf());
  }
}

// body(rows with their cost) for every panel of a task; `distances`: their features have those as well.
template <class T, class Body>
static inline void each_panel(const Panels<T>& p, int index, bool distances, const Body& body) {
  const int64_t stride = product::packed_columns(p.m);
  T* space = p.work + index * panels_work(p) + 6 * padded(p.m);
  const auto all = task_rows(p.n, p.tasks, index);
  for (int64_t first = all.begin; first < all.end && first < p.n; first += p.rows) {
    int64_t end = first + p.rows < all.end ? first + p.rows : all.end;
    end = end < p.n ? end : p.n;
    Rows<T> r{first, end, stride, {}, p.kept && !distances ? p.kept + first * stride : space};
    r.features = rows_of(p.features, first, end - first);
    r.features.classes.distance = distances ? space + p.rows * stride : nullptr;
    if (r.cost == space || !p.made) make_costs(p, r);
    body(r);
  }
}

// E_j = exp((f + g_j - C_ij) / reg); returns their sum.
template <class T>
static inline T exponentials(const Panels<T>& p, const T* row, T f, const T* g, T* E) {
  const T inverse = 1 / p.reg;
  const Vec<T> fi = splat(f);
  Vec<T> total = {};
  for (int64_t j = 0; j < p.m; j += Lanes<T>::W) {
    const Vec<T> e = exp(exponent<T>(fi, load(g + j), load(row + j), inverse));
    store(E + j, e);
    total += e;
  }
  return sum<T>(total);
}

// max_j (g_j - C_ij).
template <class T>
static inline T row_top(const Panels<T>& p, const T* row, const T* g) {
  Vec<T> tops = splat(-T(__builtin_inf()));
  for (int64_t j = 0; j < p.m; j += Lanes<T>::W) tops = vmax<T>(tops, load(g + j) - load(row + j));
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

// body(rows, E, columns): a panel, with five rows of work space and the task's column sums, which begin as
// zeros and are added to `sums` in task order.
template <class T, class Body>
static inline void over_panels(const Panels<T>& p, bool distances, T* sums, const Body& body) {
  const int64_t mp = padded(p.m), each = panels_work(p);
  auto task = [&](int index) {
    T* columns = p.work + index * each;
    zero(columns, mp);
    each_panel(p, index, distances, [&](const Rows<T>& r) { body(r, columns + mp, columns); });
  };
  parallel(p.tasks, task);
  for (int k = 0; sums && k < p.tasks; ++k) {
    const T* columns = p.work + k * each;
    for (int64_t j = 0; j < p.m; ++j) sums[j] += columns[j];
  }
}

// A vector of sums relative to `before`, made relative to `after`, which is no less; 0 where that is -inf.
template <class T>
static inline void rescale(T* sums, Vec<T> before, Vec<T> after, T inverse) {
  const Vec<T> factor = exp((before - after) * inverse);
  store(sums, after > -T(__builtin_inf()) ? load(sums) * factor : Vec<T>{});
}

template <class T>
bool columns(const Panels<T>& p, const T* f, T* top, T* total) {
  constexpr int W = Lanes<T>::W;
  constexpr int64_t kTile = 512;
  const T inverse = 1 / p.reg, inf = __builtin_inf();
  const int64_t mp = padded(p.m), each = panels_work(p);
  bool good[kMaxTasks];
  auto task = [&](int index) {
    T *mine = p.work + index * each, *tops = mine + mp;
    for (int64_t j = 0; j < mp; ++j) mine[j] = 0, tops[j] = -inf;
    typename Lanes<T>::I bad = {};
    each_panel(p, index, false, [&](const Rows<T>& r) {
      for (int64_t i = r.begin; i < r.end; ++i)
        for (int64_t j = 0; j < p.m; j += W) {
          const Vec<T> c = j + W <= p.m ? load(r.row(i) + j) : load_part(r.row(i) + j, p.m - j, T(0));
          bad |= r.features.classes.count ? ~(c == c) : ~(c <= Lanes<T>::kMax);
        }
      for (int64_t begin = 0; begin < mp; begin += kTile) {
        const int64_t end = begin + kTile < mp ? begin + kTile : mp;
        T before[kTile];
        copy(tops + begin, before, end - begin);
        for (int64_t i = r.begin; i < r.end; ++i)
          if (f[i] > -inf)
            for (int64_t j = begin; j < end; j += W)
              store(tops + j, vmax<T>(load(tops + j), f[i] - load(r.row(i) + j)));
        for (int64_t j = begin; j < end; j += W) rescale(mine + j, load(before + j - begin), load(tops + j), inverse);
        for (int64_t i = r.begin; i < r.end; ++i)
          if (f[i] > -inf)
            for (int64_t j = begin; j < end; j += W) {
              const Vec<T> most = load(tops + j);
              const Vec<T> e = exp((f[i] - load(r.row(i) + j) - most) * inverse);
              store(mine + j, load(mine + j) + (most > -inf ? e : Vec<T>{}));
            }
      }
    });
    good[index] = !any<T>(bad);
  };
  parallel(p.tasks, task);
  bool all = true;
  for (int64_t j = 0; j < mp; ++j) top[j] = -inf, total[j] = 0;
  for (int k = 0; k < p.tasks; ++k) {
    T *mine = p.work + k * each, *tops = mine + mp;
    all &= good[k];
    for (int64_t j = 0; j < mp; j += W) {
      const Vec<T> before = load(top + j), most = vmax<T>(before, load(tops + j));
      rescale(total + j, before, most, inverse);
      rescale(mine + j, load(tops + j), most, inverse);
      store(total + j, load(total + j) + load(mine + j));
      store(top + j, most);
    }
  }
  return all;
}

template <class T>
void iterate(const Panels<T>& p, const PanelStep& step, const T* mass, const T* g, T* f, T* sums) {
  constexpr T safe = sinkhorn::Rules<T>::kSafeRatio;
  const int64_t mp = padded(p.m);
  const T damping = T(step.damping), left = T((1 - step.damping) / p.reg);
  over_panels(p, false, sums, [&](const Rows<T>& r, T* E, T* columns) {
    for (int64_t first = r.begin; first < r.end; first += 4) {
      T y[4] = {};
      for (int64_t k = 0; k < 4; ++k) {
        const int64_t i = first + k;
        if (i >= r.end || !(mass[i] > 0)) {
          zero(E + k * mp, mp);
          continue;
        }
        T total = exponentials(p, r.row(i), f[i], g, E + k * mp);
        const bool in_range = total >= 1 / safe && total <= safe;
        if (!in_range) {
          f[i] = -row_top(p, r.row(i), g);
          total = exponentials(p, r.row(i), f[i], g, E + k * mp);
        }
        if (step.damping < 1) {
          const T moved = log_of(mass[i]) - damping * log_of(total) - left * f[i];
          f[i] += p.reg * moved;
          y[k] = exp_of(moved);
          continue;
        }
        y[k] = mass[i] / total;
        if (step.relaxed && in_range) y[k] *= root(y[k]);
        f[i] += p.reg * log_of(y[k]);
      }
      add_rows(E, p.m, y, columns);
    }
  });
}

template <class T>
void plan(const Panels<T>& p, double damping, const T* f, const T* g, T* alpha, T* row_value, T* first) {
  constexpr int W = Lanes<T>::W;
  const T part = T(damping);
  over_panels(p, false, first, [&](const Rows<T>& r, T* E, T* columns) {
    for (int64_t i = r.begin; i < r.end; ++i) {
      alpha[i] = row_value[i] = 0;
      if (!(f[i] > -T(__builtin_inf()))) continue;
      const T* row = r.row(i);
      const T mass = exponentials(p, r.row(i), f[i], g, E);
      Vec<T> total = {}, rest = {};
      for (int64_t j = 0; j < p.m; j += W) {
        const Vec<T> plan = load(E + j);
        total += plan > 0 ? plan * load(row + j) : Vec<T>{};
      }
      row_value[i] = sum<T>(total);
      T mean = mass > 0 ? row_value[i] / mass : 0;
      for (int64_t j = 0; j < p.m; j += W) {  // what rounding left: the adjoint divides it by reg
        const Vec<T> plan = load(E + j);
        rest += plan > 0 ? plan * (load(row + j) - mean) : Vec<T>{};
      }
      mean += mass > 0 ? sum<T>(rest) / mass : 0;
      alpha[i] = mean;
      for (int64_t j = 0; first && j < p.m; j += W) {
        const Vec<T> plan = load(E + j);
        store(columns + j, load(columns + j) + (plan > 0 ? plan * (load(row + j) - part * mean) : Vec<T>{}));
      }
    }
  });
}

template <class T>
void adjoint(const Panels<T>& p, const T* f, const T* g, const T* sigma, const T* factor, T* d, T* sums) {
  constexpr int W = Lanes<T>::W;
  const int64_t mp = padded(p.m);
  over_panels(p, false, sums, [&](const Rows<T>& r, T* E, T* columns) {
    for (int64_t first = r.begin; first < r.end; first += 4) {
      T y[4] = {};
      for (int64_t k = 0; k < 4; ++k) {
        const int64_t i = first + k;
        if (i < r.end) d[i] = 0;
        if (i >= r.end || !(f[i] > -T(__builtin_inf()))) {
          zero(E + k * mp, mp);
          continue;
        }
        const Vec<T> fi = splat(f[i]);
        Vec<T> dot = {};
        for (int64_t j = 0; j < p.m; j += W) {
          const Vec<T> plan = exp(exponent<T>(fi, load(g + j), load(r.row(i) + j), 1 / p.reg));
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
void adjoint_log(const Panels<T>& p, const PanelLogStep<T>& s, T* fbar, T* sums) {
  constexpr int W = Lanes<T>::W;
  over_panels(p, false, sums, [&](const Rows<T>& r, T* E, T* columns) {
    for (int64_t i = r.begin; i < r.end; ++i) {
      fbar[i] = 0;
      if (!(s.f[i] > -T(__builtin_inf()))) continue;
      exponentials(p, r.row(i), s.f[i], s.g, E);
      Vec<T> total = {};
      for (int64_t j = 0; j < p.m; j += W) total += load(E + j) * load(s.share + j);
      fbar[i] = -sum<T>(total);
      exponentials(p, r.row(i), s.f[i], s.g_before, E);
      const Vec<T> weight = splat(fbar[i] * s.inverse[i]);
      for (int64_t j = 0; j < p.m; j += W) store(columns + j, load(columns + j) - weight * load(E + j));
    }
  });
}

template <class T>
void gradient(const Panels<T>& p, const PanelGradient<T>& q) {
  constexpr int W = Lanes<T>::W;
  const int64_t m = p.m, mp = padded(m);
  const T inverse = 1 / p.reg, weight = T(q.weight);
  over_panels(p, reads_distance(p.features), q.weight_cols, [&](const Rows<T>& r, T* E, T* columns) {
    for (int64_t i = r.begin; i < r.end; ++i) {
      T* out = q.out + i * m;
      const T* row = r.row(i);
      if (q.distance)
        copy(r.features.classes.distance ? r.features.classes.distance + (i - r.begin) * m : row, q.distance + i * m,
             m);
      if (!(q.f[i] > -T(__builtin_inf()))) {
        zero(out, m);
        q.weight_rows[i] = weigh_row(r.features, i - r.begin, row, out, columns);
        continue;
      }
      exponentials(p, r.row(i), q.f[i], q.g, E);
      const Vec<T> shift = splat(q.alpha ? q.alpha[i] : T(0)), along = splat(q.row_sum ? q.row_sum[i] : T(0));
      T* sum_row = E + mp;  // padded: the part of dC that is there whatever comes from the history
      for (int64_t j = 0; j < m; j += W) {
        const Vec<T> plan = load(E + j);
        Vec<T> d = weight * plan;
        if (q.alpha) {
          Vec<T> Z = weight * (load(row + j) - shift);
          if (q.row_sum)
            Z += along + load(q.col_sum + j);
          else if (!q.depth)
            Z += j + W <= m ? load(out + j) : load_part(out + j, m - j, T(0));
          d = plan * (weight - Z * inverse);
        }
        store(sum_row + j, plan > 0 ? d : Vec<T>{});
      }
      for (int64_t t = 0; t < q.depth; ++t) {
        const T* g = q.hist_g + t * mp;
        const T* share = q.share_g + t * mp;
        const Vec<T> before = splat(q.hist_before[t * q.stride + i]), f = splat(q.hist_f[t * q.stride + i]),
                     share_f = splat(q.share_f[t * q.stride + i]);
        for (int64_t j = 0; j < m; j += W) {
          const Vec<T> c = load(row + j), gj = load(g + j);
          store(sum_row + j, load(sum_row + j) + exp(exponent<T>(before, gj, c, inverse)) * load(share + j) +
                                 exp(exponent<T>(f, gj, c, inverse)) * share_f);
        }
      }
      copy(sum_row, out, m);
      q.weight_rows[i] = weigh_row(r.features, i - r.begin, row, out, columns);
    }
  });
}

template <class T>
constexpr sinkhorn::PanelKernels<T> kTable = {columns<T>, iterate<T>, plan<T>, adjoint<T>, adjoint_log<T>, gradient<T>};

}  // namespace

const ByType<sinkhorn::PanelKernels> panel_kernels = {kTable<float>, kTable<double>};

}  // namespace UK_LEVEL
}  // namespace ucmkd

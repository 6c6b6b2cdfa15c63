// The sweeps back in the log domain: row and column softmaxes rebuilt from the potentials (README.md, "Gradients").
#pragma once
#include "sinkhorn/adjoint_parts.h"

namespace ucmkd {
namespace UK_LEVEL {

template <class T>
static void log_domain(const sinkhorn::View<T>& p, const sinkhorn::Seed<T>& seed, const sinkhorn::Gradients<T>& out,
                       T* work) {
  constexpr int W = Lanes<T>::W;
  const T inf = __builtin_inf();
  const int64_t n = p.n, m = p.m, np = sinkhorn::padded(n), mp = sinkhorn::padded(m), last = p.saved.info->n_iter;
  const T *P = p.saved.plan, *alpha = p.saved.alpha;
  const int tasks = p.tasks;
  Shelf<T> shelf(work);
  BothMasses<T> masses(shelf, p);
  const T *a = masses.a.mass, *ia = masses.a.inverse, *b = masses.b.mass, *ib = masses.b.inverse;
  T *F = shelf.take(np), *f = shelf.take(np), *fbar = shelf.take(np), *none = shelf.take(np),
    *grad_a = out.a ? out.a : shelf.take(np);
  T *G = shelf.take(mp), *g = shelf.take(mp), *g_before = shelf.take(mp), *gbar = shelf.take(mp),
    *gbar_next = shelf.take(mp), *grad_b = out.b ? out.b : shelf.take(mp);
  T* partial = shelf.take(tasks * mp);
  const T inverse = 1 / p.reg;
  const T least = least_that_matters(p, seed, masses);
  const bool shifted = p.marginals.shifted && !p.marginals.exact();
  const bool scalings = p.saved.info->history == sinkhorn::History::kScalings;
  for (int64_t i = 0; i < n; ++i) {
    F[i] = scalings && p.init_f && a[i] > 0 ? p.init_f[i] - p.reg * log_of(a[i]) : 0;
    fbar[i] = first_of_row(p, seed, masses.a, i);
    grad_a[i] = first_of_mass(p, seed, masses.a, i);
  }
  for (int64_t j = 0; j < m; ++j) G[j] = scalings && p.init_g && b[j] > 0 ? p.init_g[j] - p.reg * log_of(b[j]) : 0;
  auto potential_f = [&](int64_t t, T* into) {
    for (int64_t i = 0; i < n; ++i) {
      const T h = p.saved.hist_u[t * n + i];
      into[i] = a[i] > 0 ? (scalings ? F[i] + p.reg * log_of(h) : h) : -inf;
    }
  };
  auto potential_g = [&](int64_t t, T* into) {
    for (int64_t j = 0; j < mp; ++j) {
      const T h = j < m && b[j] > 0 ? p.saved.hist_v[(t - 1) * m + j] : 1;
      into[j] = b[j] > 0 ? (scalings ? G[j] + p.reg * log_of(h) : h) : -inf;
    }
  };

  // dC = P (weight - weight (C - alpha) / reg); the first gbar.
  auto begin = [&](int index) {
    const Range rows = task_rows(n, tasks, index);
    for (int64_t i = rows.begin; i < rows.end && i < n; ++i)
      for (int64_t j = 0; j < m; ++j) {
        const T plan = P[i * mp + j];
        out.cost[i * m + j] = plan > 0 ? seed.value_weight * plan * (1 - (p.cost[i * m + j] - alpha[i]) * inverse) : 0;
      }
  };
  parallel(tasks, begin);
  first_columns(p, seed.value_weight, none, gbar, partial);
  for (int64_t j = 0; j < m; ++j) {
    gbar[j] = gbar[j] * inverse + (seed.grad_g && b[j] > 0 ? seed.grad_g[j] : 0);
    grad_b[j] = 0;
  }

  // rows(t): gbar -= R_t' fbar with R_t the row softmax of g_t - C; columns(t): fbar = -S_t gbar with S_t the
  // column softmax of f_(t-1) - C. Both add their softmax's share to dC.
  auto row_softmax = [&](int64_t i, const T* g_t, T* into) {
    const T weight = fbar[i] * ia[i];
    const Vec<T> fi = splat(f[i]), wi = splat(weight);
    for (int64_t j = 0; j < m; j += W) {
      const Vec<T> term = exp(exponent<T>(fi, load(g_t + j), load_cost(p.cost + i * m, j, m), inverse)) * wi;
      T* dC = out.cost + i * m + j;
      if (m - j >= W)
        store(dC, load(dC) + term);
      else
        for (int64_t k = 0; k < m - j; ++k) dC[k] += term[k];
      store(into + j, load(into + j) - term);
    }
  };
  auto all_rows = [&](const T* g_t) {
    auto body = [&](int index) {
      const Range rows = task_rows(n, tasks, index);
      T* mine = partial + index * mp;
      for (int64_t j = 0; j < mp; ++j) mine[j] = 0;
      for (int64_t i = rows.begin; i < rows.end && i < n; ++i)
        if (a[i] > 0) row_softmax(i, g_t, mine);
    };
    parallel(tasks, body);
  };
  auto reduce = [&](T* into) {
    for (int64_t j = 0; j < mp; ++j)
      for (int k = 0; k < tasks; ++k) into[j] += partial[k * mp + j];
  };

  Charge<T> charge(p, seed, fbar, masses, 1);
  potential_f(last, f);
  potential_g(last, g);
  if (seed.grad_f || !p.marginals.exact()) {
    all_rows(g);
    reduce(gbar);
  }
  for (int64_t t = last; t >= 1; --t) {
    masses.b.at(t);
    if (!p.marginals.exact()) {  // gbar is the adjoint itself, not times reg
      const T rounding = T(charge.excess(gbar, nullptr, masses.b));
      for (int64_t j = 0; j < m; ++j) gbar[j] -= b[j] > 0 ? rounding * masses.b.kept[j] : gbar[j];
    }
    for (int64_t i = 0; i < n; ++i) grad_a[i] += p.reg * fbar[i] * masses.a.per_mass[i];
    for (int64_t j = 0; j < mp; ++j) {
      if (j < m) grad_b[j] += p.reg * gbar[j] * masses.b.per_mass[j];
      gbar_next[j] = gbar[j] * ib[j];  // weights of S_t while the rows are visited
    }
    const bool more = t > 1 && 2 * T(t) * p.reg * greatest_share(gbar, ib, m) > least;
    potential_f(t - 1, f);
    if (more) potential_g(t - 1, g_before), masses.a.at(t - 1);
    auto body = [&](int index) {
      const Range rows = task_rows(n, tasks, index);
      T* mine = partial + index * mp;
      for (int64_t j = 0; j < mp; ++j) mine[j] = 0;
      for (int64_t i = rows.begin; i < rows.end && i < n; ++i) {
        if (!(a[i] > 0)) continue;
        const Vec<T> fi = splat(f[i]);
        Vec<T> total = {};
        for (int64_t j = 0; j < m; j += W) {
          const Vec<T> S = exp(exponent<T>(fi, load(g + j), load_cost(p.cost + i * m, j, m), inverse));
          const Vec<T> term = S * load(gbar_next + j);
          T* dC = out.cost + i * m + j;
          if (m - j >= W)
            store(dC, load(dC) + term);
          else
            for (int64_t k = 0; k < m - j; ++k) dC[k] += term[k];
          total += term;
        }
        fbar[i] = -sum<T>(total);
        if (more && !shifted) row_softmax(i, g_before, mine);
      }
    };
    parallel(tasks, body);
    if (!more) break;
    double from_shift = 0;
    charge.of_rows();
    if (!shifted) charge.of_columns();
    if (shifted) {
      masses.b.at(t - 1);
      const ShiftBack<T> back(p.marginals, charge.sum, masses.a, masses.b.total);
      charge.of_columns(back, masses.a.total, masses.b.total);
      for (int64_t i = 0; i < n; ++i) fbar[i] -= T(back.rows) * masses.a.kept[i];
      from_shift = back.columns;
      add_to_masses(back.of_mass, masses.a, grad_a);
      add_to_masses(-back.of_mass, masses.b, grad_b);
      all_rows(g_before);
    }
    for (int64_t j = 0; j < mp; ++j) gbar[j] = from_shift != 0 && j < m ? T(from_shift) * masses.b.kept[j] : 0;
    reduce(gbar);
    T* swap = g;
    g = g_before, g_before = swap;
  }
}

}  // namespace UK_LEVEL
}  // namespace ucmkd

// What the iterations of balanced and of unbalanced transport have in common.
#pragma once
#include "sinkhorn/log_domain.h"

namespace ucmkd {
namespace UK_LEVEL {

// Every element whose mass is positive lies in [least, greatest]. All padded.
template <class T>
static inline bool in_range(const T* x, const T* mass, int64_t count, T least, T greatest) {
  typename Lanes<T>::I bad = {};
  for (int64_t k = 0; k < count; k += Lanes<T>::W) {
    const Vec<T> value = load(x + k);
    bad |= (load(mass + k) > 0) & ~((value >= least) & (value <= greatest));
  }
  return !any<T>(bad);
}

// Writes the history that the gradient reads, where there is to be one (params.h).
template <class T>
class Recorder {
 public:
  explicit Recorder(const sinkhorn::View<T>& problem)
      : p(problem), hist_u(p.saved.hist_u), hist_v(p.saved.hist_v), steady(p.max_iter) {}

  void start(const T* u) {
    if (hist_u) copy(u, hist_u, p.n);
  }
  void iteration(int64_t t, const T* u, const T* v) {
    if (!hist_u) return;
    copy(u, hist_u + t * p.n, p.n);
    copy(v, hist_v + (t - 1) * p.m, p.m);
  }
  // Iterations from t on are equal.
  void repeat_from(int64_t t, const T* u, const T* v) {
    steady = t;
    while (++t <= p.max_iter) iteration(t, u, v);
  }
  // From iteration t on only a constant moves (settling.h).
  void settled(int64_t t) { settled_at = t; }
  // Before iteration t moves F, G: what was written relative to them becomes potentials.
  void leave_epoch(int64_t t, const T* F, const T* G) {
    const int64_t n = p.n, m = p.m;
    if (hist_u) {
      for (int64_t k = epoch; k < t; ++k) {
        T *hu = hist_u + k * n, *hv = hist_v + (k - 1) * m;
        if (k > steady) {
          copy(hu - n, hu, n), copy(hv - m, hv, m);
          continue;
        }
        for (int64_t i = 0; i < n; ++i) hu[i] = F[i] + p.reg * log_of(hu[i]);
        if (k > 0)
          for (int64_t j = 0; j < m; ++j) hv[j] = G[j] + p.reg * log_of(hv[j]);
      }
    }
    epoch = t;
    history = sinkhorn::History::kPotentials;
  }
  // Behind the last of n_iter iterations.
  void finish(int64_t n_iter, const T* F, const T* G) {
    if (history == sinkhorn::History::kPotentials) leave_epoch(n_iter + 1, F, G);
    *p.saved.info = {n_iter, history, settled_at};
  }

 private:
  const sinkhorn::View<T>& p;
  T *const hist_u, *const hist_v;
  sinkhorn::History history = sinkhorn::History::kScalings;
  int64_t epoch = 0;  // first iteration whose history is relative to the present F, G
  int64_t steady;     // from here on, iterations are the same
  int64_t settled_at = 0;
};

// What is missing from `mean` as the mean cost of a row of P: rounding, which the adjoint divides by reg.
template <class T>
static inline T centre(const T* plan, const T* cost, int64_t m, T mean, T row_mass) {
  Vec<T> rest = {};
  for (int64_t j = 0; j < m; j += Lanes<T>::W) {
    const Vec<T> share = load(plan + j);
    rest += share > 0 ? share * (load_cost(cost, j, m) - mean) : Vec<T>{};
  }
  return row_mass > 0 ? sum<T>(rest) / row_mass : 0;
}

// P = u K v, in its place where `save`; of its rows <P_i, C_i> to `moved` (n,), and alpha.
template <class T>
static inline void finish_plan(const sinkhorn::View<T>& p, bool save, const T* u, const T* v, T* moved) {
  const int64_t n = p.n, m = p.m, mp = sinkhorn::padded(m);
  auto body = [&](int index) {
    const Range rows = task_rows(n, p.tasks, index);
    for (int64_t i = rows.begin; i < rows.end && i < n; ++i) {
      T* k = p.saved.plan + i * mp;
      const Vec<T> ui = splat(u[i]);
      Vec<T> total = {}, mass = {};
      for (int64_t j = 0; j < m; j += Lanes<T>::W) {
        const Vec<T> plan = ui * load(k + j) * load(v + j);
        total += plan > 0 ? plan * load_cost(p.cost + i * m, j, m) : Vec<T>{};
        mass += plan;
        if (save) store(k + j, plan);
      }
      moved[i] = sum<T>(total);
      const T row_mass = sum<T>(mass);
      T mean = row_mass > 0 ? moved[i] / row_mass : 0;
      if (save) mean += centre(k, p.cost + i * m, m, mean, row_mass);
      p.saved.alpha[i] = mean;
    }
  };
  parallel(p.tasks, body);
}

}  // namespace UK_LEVEL
}  // namespace ucmkd

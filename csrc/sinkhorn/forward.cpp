// The iterations on a CPU: stabilised scaling, with log-domain iterations where it does not reach.
//
//   K = exp((F + G - C) / reg)      relative to absorbed potentials F, G (without the masses)
//   v = b / s,  r = K v,  u = a / r,  s = K'u        one sweep over K per iteration
//
// 1 / s and 1 / r say how far the potentials have moved from F, G. While both stay inside
// [e^-R, e^R], what underflowed in K is negligible: at most M e^2R FLT_MIN of a row's sum. When one
// leaves, the iteration is done again in the log domain and K is rebuilt around its outcome; where
// columns of the new K underflow, the next iteration is a log-domain one too, and so on.
//
// Over-relaxation (relaxation.h) costs one square root an element.
#include "core/level_table.h"
#include "core/shelf.h"
#include "sinkhorn/log_domain.h"
#include "sinkhorn/relaxation.h"
#include "sinkhorn/rules.h"
#include "sinkhorn/sweep.h"

namespace ucmkd {
namespace UK_LEVEL {
namespace {

using sinkhorn::History;
using sinkhorn::Outputs;
using sinkhorn::padded;
using sinkhorn::Rules;
using sinkhorn::Status;
using sinkhorn::View;

// Every element whose mass is positive lies in [least, greatest]. All padded.
template <class T>
bool in_range(const T* x, const T* mass, int64_t count, T least, T greatest) {
  typename Lanes<T>::I bad = {};
  for (int64_t k = 0; k < count; k += Lanes<T>::W) {
    const Vec<T> value = load(x + k);
    bad |= (load(mass + k) > 0) & ~((value >= least) & (value <= greatest));
  }
  return !any<T>(bad);
}

template <class T>
class Run {
 public:
  Run(const View<T>& problem, bool save_plan, const Outputs<T>& outputs, T* work)
      : p(problem), out(outputs), save(save_plan), n(p.n), m(p.m), np(padded(n)), mp(padded(m)) {
    Shelf<T> shelf(work);
    a = shelf.take(np), u = shelf.take(np), u_before = shelf.take(np), r = shelf.take(np), F = shelf.take(np),
    f = shelf.take(np), f_new = shelf.take(np);
    b = shelf.take(mp), v = shelf.take(mp), v_before = shelf.take(mp), s = shelf.take(mp), G = shelf.take(mp),
    g = shelf.take(mp), g_new = shelf.take(mp);
    partial = shelf.take(p.tasks * mp);
  }

  Status all() {
    start();
    if (!build(p, has_features(p), F, G, u, s, partial)) return Status::kBadCost;
    T error = 0;
    for (t = 1; t <= p.max_iter; ++t) {
      T* swap = u;
      u = u_before, u_before = swap;
      relaxation.begin(t);
      const bool scaled = scaling_iteration();
      if (!scaled) {
        relaxation.cancel();
        const Status status = log_iteration();
        if (status != Status::kOk) return status;
      }
      record();
      if (scaled && tol == 0 && !p.relax && unchanged()) repeat_to_the_end();
      if (tol > 0 || p.relax || t == p.max_iter) {
        error = column_error();
        if (tol > 0 && error <= tol && !relaxation.relaxed()) break;
        relaxation.watch(error);
      }
    }
    if (out.marginal_error) *out.marginal_error = error;
    return finish(t < p.max_iter ? t : p.max_iter);
  }

 private:
  void start() {
    const T inf = __builtin_inf();
    for (int64_t i = 0; i < np; ++i) {
      a[i] = i < n ? (p.a ? p.a[i] : T(1) / T(n)) : 0;
      const bool part = a[i] > 0;
      u[i] = part ? (p.init_f ? a[i] : T(1) / T(n)) : 0;
      F[i] = part ? (p.init_f ? p.init_f[i] - p.reg * log_of(a[i]) : 0) : -inf;
      u_before[i] = r[i] = 0;
    }
    for (int64_t j = 0; j < mp; ++j) {
      b[j] = j < m ? (p.b ? p.b[j] : T(1) / T(m)) : 0;
      G[j] = b[j] > 0 ? (p.init_g ? p.init_g[j] - p.reg * log_of(b[j]) : 0) : -inf;
    }
    if (hist_u) copy(u, hist_u, n);
  }

  // v from s, u from K v, s from K'u. False: out of range, u and v are not valid (u_before is).
  bool scaling_iteration() {
    if (!in_range(s, b, mp, least, greatest)) return false;
    for (int64_t j = 0; j < mp; j += Lanes<T>::W) {
      const Vec<T> mass = load(b + j);
      store(v + j, mass > 0 ? mass / load(s + j) : Vec<T>{});
    }
    if (relaxation.relaxed())
      for (int64_t j = 0; j < m; ++j)
        if (b[j] > 0) v[j] *= root(v[j] / v_before[j]);
    if (p.relax)
      for (int64_t j = 0; j < m; ++j) v_before[j] = v[j];
    const T *masses = a, *before = relaxation.relaxed() ? u_before : nullptr;
    T *sums = r, *scaling = u;
    sweep(p, v, s, partial, [=](int64_t i, Quad<T> dots) {
      const Quad<T> mass = load4(masses + i);
      Quad<T> y = mass > 0 ? mass / dots : Quad<T>{};
      for (int k = 0; before && k < 4; ++k)
        if (y[k] > 0) y[k] *= root(y[k] / before[i + k]);
      store4(sums + i, dots);
      store4(scaling + i, y);
      return y;
    });
    return in_range(r, a, np, least, greatest);
  }

  // The same iteration from f_(t-1) in the log domain, then K rebuilt around its outcome.
  Status log_iteration() {
    leave_epoch();
    const T inf = __builtin_inf();
    for (int64_t i = 0; i < np; ++i) f[i] = u_before[i] > 0 ? F[i] + p.reg * log_of(u_before[i]) : -inf;
    column_half(p, f, g_new);
    for (int64_t j = 0; j < mp; ++j) {
      if (b[j] > 0 && g_new[j] == inf) return Status::kForbidden;
      G[j] = b[j] > 0 ? g_new[j] : -inf;
      g[j] = b[j] > 0 ? g_new[j] + p.reg * log_of(b[j]) : -inf;
      v[j] = v_before[j] = b[j];
    }
    row_half(p, g, f_new);
    for (int64_t i = 0; i < np; ++i) {
      if (a[i] > 0 && f_new[i] == inf) return Status::kForbidden;
      F[i] = a[i] > 0 ? f_new[i] : -inf;
      u[i] = a[i];
    }
    return build(p, false, F, G, u, s, partial) ? Status::kOk : Status::kBadCost;
  }

  void record() {
    if (!hist_u) return;
    copy(u, hist_u + t * n, n);
    copy(v, hist_v + (t - 1) * m, m);
  }

  // Not a bit of u has changed: nor will anything, in any later iteration.
  bool unchanged() const {
    typename Lanes<T>::I moved = {};
    for (int64_t i = 0; i < np; i += Lanes<T>::W) moved |= load(u + i) != load(u_before + i);
    return !any<T>(moved);
  }

  void repeat_to_the_end() {
    steady = t;
    while (t < p.max_iter) {
      ++t;
      record();
    }
  }

  // History that was written relative to the present F, G becomes potentials.
  void leave_epoch() {
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
    history = History::kPotentials;
  }

  T column_error() const {
    double error = 0;
    for (int64_t j = 0; j < m; ++j)
      if (b[j] > 0) error += fabs(double(v[j]) * s[j] - b[j]);
    return T(error);
  }

  // What is missing from `mean` as the mean cost of a row of P: rounding, which the adjoint divides by reg.
  T centre(const T* plan, const T* cost, T mean, T row_mass) const {
    Vec<T> rest = {};
    for (int64_t j = 0; j < m; j += Lanes<T>::W) {
      const Vec<T> share = load(plan + j);
      rest += share > 0 ? share * (load_cost(cost, j, m) - mean) : Vec<T>{};
    }
    return row_mass > 0 ? sum<T>(rest) / row_mass : 0;
  }

  Status finish(int64_t n_iter) {
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
        r[i] = sum<T>(total);
        const T row_mass = sum<T>(mass);
        T mean = row_mass > 0 ? r[i] / row_mass : 0;
        if (save) mean += centre(k, p.cost + i * m, mean, row_mass);
        p.saved.alpha[i] = mean;
      }
    };
    parallel(p.tasks, body);
    double value = 0, dual = 0, sum_a = 0, sum_b = 0;
    for (int64_t i = 0; i < n; ++i) {
      value += r[i];
      sum_a += a[i];
      const T free = a[i] > 0 ? F[i] + p.reg * log_of(u[i] / a[i]) : 0;
      dual += double(free) * a[i];
      if (out.f) out.f[i] = a[i] > 0 ? free + p.reg * log_of(a[i]) : -T(__builtin_inf());
    }
    for (int64_t j = 0; j < m; ++j) {
      sum_b += b[j];
      const T free = b[j] > 0 ? G[j] + p.reg * log_of(v[j] / b[j]) : 0;
      dual += double(free) * b[j];
      if (out.g) out.g[j] = b[j] > 0 ? free + p.reg * log_of(b[j]) : -T(__builtin_inf());
    }
    *out.value = T(value);
    if (out.dual) *out.dual = T(dual - p.reg * (sum_a - sum_a * sum_b));
    if (history == History::kPotentials) {
      t = n_iter + 1;  // the last epoch ends after iteration n_iter
      leave_epoch();
    }
    *p.saved.info = {n_iter, history};
    if (out.n_iter) *out.n_iter = n_iter;
    return value == value && dual == dual ? Status::kOk : Status::kOverflow;
  }

  const View<T>& p;
  const Outputs<T>& out;
  const bool save;
  const int64_t n, m, np, mp;
  const T tol = T(p.tol);
  T *const hist_u = p.saved.hist_u, *const hist_v = p.saved.hist_v;
  T *a, *u, *u_before, *r, *F, *f, *f_new;
  T *b, *v, *v_before, *s, *G, *g, *g_new, *partial;
  sinkhorn::Relaxation relaxation{p.relax, tol, p.max_iter};
  const T greatest = exp_of(Rules<T>::kSafeLog), least = 1 / greatest;
  History history = History::kScalings;
  int64_t t = 0;
  int64_t epoch = 0;            // first iteration whose history is relative to the present F, G
  int64_t steady = p.max_iter;  // from here on, iterations are the same
};

template <class T>
Status solve(const View<T>& p, bool save_plan, const Outputs<T>& out, T* work) {
  return Run<T>(p, save_plan, out, work).all();
}
template <class T>
constexpr sinkhorn::ForwardKernels<T> kTable = {solve<T>};

}  // namespace

const ByType<sinkhorn::ForwardKernels> forward_kernels = {kTable<float>, kTable<double>};

}  // namespace UK_LEVEL
}  // namespace ucmkd

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
#include "sinkhorn/forward_parts.h"
#include "sinkhorn/relaxation.h"
#include "sinkhorn/rules.h"
#include "sinkhorn/sweep.h"

namespace ucmkd {
namespace UK_LEVEL {
namespace {

using sinkhorn::Outputs;
using sinkhorn::padded;
using sinkhorn::Rules;
using sinkhorn::Status;
using sinkhorn::View;

// Not a bit differs. Padded.
template <class T>
static inline bool equal(const T* x, const T* y, int64_t count) {
  typename Lanes<T>::I moved = {};
  for (int64_t k = 0; k < count; k += Lanes<T>::W) moved |= load(x + k) != load(y + k);
  return !any<T>(moved);
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
      recorder.iteration(t, u, v);
      if (scaled && tol == 0 && !p.relax && equal(u, u_before, np)) {  // nor will anything change later
        recorder.repeat_from(t, u, v);
        t = p.max_iter;
      }
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
    recorder.start(u);
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
    recorder.leave_epoch(t, F, G);
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

  T column_error() const {
    double error = 0;
    for (int64_t j = 0; j < m; ++j)
      if (b[j] > 0) error += fabs(double(v[j]) * s[j] - b[j]);
    return T(error);
  }

  Status finish(int64_t n_iter) {
    finish_plan(p, save, u, v, r);
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
    recorder.finish(n_iter, F, G);
    if (out.n_iter) *out.n_iter = n_iter;
    return value == value && dual == dual ? Status::kOk : Status::kOverflow;
  }

  const View<T>& p;
  const Outputs<T>& out;
  const bool save;
  const int64_t n, m, np, mp;
  const T tol = T(p.tol);
  T *a, *u, *u_before, *r, *F, *f, *f_new;
  T *b, *v, *v_before, *s, *G, *g, *g_new, *partial;
  sinkhorn::Relaxation relaxation{p.relax, tol, p.max_iter};
  const T greatest = exp_of(Rules<T>::kSafeLog), least = 1 / greatest;
  Recorder<T> recorder{p};
  int64_t t = 0;
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

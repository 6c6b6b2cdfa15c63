// A small problem between features as one call each way: costs, iterations, gradients, and the matrix
// products between them. Large ones leave the products to the caller's BLAS (ops/_cpu/losses.py).
#include <math.h>

#include <limits>

#include "sinkhorn/one.h"

namespace ucmkd {
namespace sinkhorn {
namespace {

template <class T>
View<T> the_one(const Problem& p) {
  return view_at<T>(p, place_of(p, 0), tasks_for(p.n, p.m));
}

double work_of(const Problem& p) {
  const int64_t d = p.features.d;
  return loss_work(times(p.n, p.m), p.max_iter, d) + kPassWork * times(p.n + p.m, d);
}
double gradient_work_of(const Problem& p, Grad grad, bool of_x, bool of_y) {
  return gradient_work(times(p.n, p.m), p.max_iter, p.features.d, grad, of_x + of_y);
}

// The dual value is <f~, a> + <g~, b> and terms of the masses alone: f and g have the masses as upstream.
// (Unbalanced, what the half-steps left of them: a damped one left its rows 1 / lambda times as much weight.)
// `uniform`: n + m elements.
template <class T>
Seed<T> seed_of_dual(const View<T>& p, T* uniform) {
  if (!p.marginals.exact()) {
    const T* kept = last_kept_rows(p);
    const T more = T(1 / damping(p.marginals.rho_a, p.reg));
    for (int64_t i = 0; i < p.n; ++i) uniform[i] = kept[i] * more;
    return {0, uniform, last_kept_columns(p)};
  }
  std::fill(uniform, uniform + p.n, 1 / T(p.n));
  std::fill(uniform + p.n, uniform + p.n + p.m, 1 / T(p.m));
  return {0, p.a ? p.a : uniform, p.b ? p.b : uniform + p.n};
}

// Where the cost of a unit of mass is known to no better than reg, nothing determines the plan. (As `look` of
// ops/not_converged.py: costs of normalised features come from products of about 1.)
template <class T>
bool above_rounding(const View<T>& p, double reg, T value) {
  double mass = p.a ? 0 : 1;
  for (int64_t i = 0; p.a && i < p.n; ++i) mass += p.a[i];
  const double known = fmax(fabs(double(value)), cost::normalised(p.features.metric) ? mass : 0);
  return !(std::numeric_limits<T>::epsilon() * known > reg * mass);
}

template <class T>
const char* solve_unscaled(const Problem& p, const View<T>& one, bool own_products, bool save_plan,
                           const Outputs<T>& out) {
  const char* refused =
      cost::scales(one.features, static_cast<T*>(p.features.scale_x), static_cast<T*>(p.features.scale_y));
  return refused ? refused : solve_features(one, own_products, save_plan, out);
}

}  // namespace

template <class T>
const char* loss_forward(const Problem& p, bool own_products, bool save_plan, const Outputs<T>& out) {
  const View<T> one = the_one<T>(p);
  return with_helpers(work_of(p), [&] { return solve_unscaled(p, one, own_products, save_plan, out); });
}

template <class T>
bool loss_backward(const Problem& p, Grad grad, const Upstream& up, const FeatureGradients<T>& out) {
  const View<T> one = the_one<T>(p);
  const Seed<T> seed = seed_at<T>(up, place_of(p, 0));
  return with_helpers(gradient_work_of(p, grad, out.x, out.y),
                      [&] { return feature_gradients_one(one, grad, seed, out); });
}

template <class T>
const char* loss_and_gradient(const LossSettings& s, Problem p, const LossOutputs<T>& out, Remarks* remarks) {
  p.f64 = s.f64, p.batch = 1, p.max_iter = s.max_iter, p.reg = s.reg, p.tol = s.tol, p.relax = s.relax;
  const bool back = out.dx || out.dy;
  p.history = back && s.grad == Grad::kUnrolled, p.marginals = s.marginals;
  cost::FeatureSet& f = p.features;
  f.metric = s.metric, f.n = p.n, f.m = p.m;
  const int64_t n = p.n, m = p.m, d = f.d;
  const int64_t head = padded(n * m + n + m), rest = padded(n + m + 1);
  const int64_t saved = saved_size(n, m, p.max_iter, p.history, !p.marginals.exact());
  const bool centred = cost::centred(f.metric);
  Scratch<T> memory(head + saved + rest + (centred ? padded(n * d) + m * d : 0));
  T *cost = memory.data(), *uniform = cost + head + saved, *value = uniform + n + m;
  p.cost = cost, f.scale_x = cost + n * m, f.scale_y = cost + n * m + n, p.saved = cost + head;
  if (centred) {
    T *x = uniform + rest, *y = x + padded(n * d);  // no vector across cache lines
    cost::centre(cost::features_of<T>(f), x, y);
    f.given_x = f.x, f.given_y = f.y, f.x = x, f.y = y;
  }
  const View<T> one = the_one<T>(p);
  const bool dual = s.regularized && s.grad != Grad::kEnvelope;
  T error = 0;
  const double work = work_of(p) + (back ? gradient_work_of(p, s.grad, out.dx, out.dy) : 0);
  return with_helpers(work, [&]() -> const char* {
    const Outputs<T> both{nullptr, nullptr, value, s.regularized ? out.loss : nullptr, &error, out.n_iter};
    if (const char* refused = solve_unscaled(p, one, true, back, both)) return refused;
    if (back) {
      const Seed<T> seed = dual ? seed_of_dual(one, uniform) : Seed<T>{1, nullptr, nullptr};
      remarks->gradient_converged = feature_gradients_one(one, s.grad, seed, {out.dx, out.dy, nullptr, nullptr});
    }
    remarks->reached_tol = !(s.tol > 0 && error > T(s.tol));
    remarks->above_rounding = above_rounding(one, s.reg, *value);
    if (!s.regularized) *out.loss = *value;
    if (out.marginal_error) *out.marginal_error = error;
    return nullptr;
  });
}

#define UK_INSTANTIATE(T)                                                                            \
  template const char* loss_forward<T>(const Problem&, bool, bool, const Outputs<T>&);               \
  template bool loss_backward<T>(const Problem&, Grad, const Upstream&, const FeatureGradients<T>&); \
  template const char* loss_and_gradient<T>(const LossSettings&, Problem, const LossOutputs<T>&, Remarks*);
UK_INSTANTIATE(float)
UK_INSTANTIATE(double)

}  // namespace sinkhorn
}  // namespace ucmkd

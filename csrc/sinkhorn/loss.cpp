// A small problem between features as one call each way: costs, iterations, gradients, and the matrix
// products between them. Large ones leave the products to the caller's BLAS (ops/_solve.py).
#include <math.h>

#include <limits>

#include "core/levels.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "cost/entry.h"
#include "sinkhorn/entry.h"
#include "sinkhorn/tasks.h"

namespace ucmkd {
namespace sinkhorn {
namespace {

// The product of the adjoint's vectors, where there is one, and dC from it: the weights (n, m) and their
// sums.
template <class T>
void unrolled(const Problem& p, const Upstream& up, const Gradients<T>& out) {
  Scratch<T> memory(2 * p.max_iter * (p.n + p.m));
  T *left = memory.data(), *right = left + 2 * p.max_iter * p.n;
  int64_t depth;
  const int64_t rows = adjoint<T>(p, up, left, right, out, &depth);
  if (rows > 0)
    kernels<T>().product.plain(
        {p.n, p.m, rows, left, 1, p.n, right, out.cost, product_tasks(p.n, p.m, rows)});
  adjoint_finish<T>(p, up, &depth, out);
}

// The dual value is <f~, a> + <g~, b> and terms of the masses alone: f and g have the masses as upstream.
// `work`: n + m elements.
template <class T>
Upstream upstream_of_dual(const Problem& p, T* work) {
  for (int64_t k = 0; k < p.n + p.m; ++k) work[k] = 1 / T(k < p.n ? p.n : p.m);
  return {nullptr, p.a ? p.a : work, p.b ? p.b : work + p.n};
}

double loss_work(const Problem& p, bool own_products) {
  return solve_work(p) + (own_products ? times(p.n, p.m, p.d) : 0) + kPassWork * times(p.n + p.m, p.d);
}

double gradient_work(const Problem& p, Grad grad, bool of_x, bool of_y) {
  const double elements = times(p.n, p.m);
  return sweeps_back_work(p) + last_work(p) + (grad == Grad::kUnrolled ? 2 * elements * double(p.max_iter) : 0) +
         elements * double(p.d) * (of_x + of_y);
}

// Where the cost of a unit of mass is known to no better than reg, nothing determines the plan. (As `look` of
// ops/_not_converged.py: costs of normalised features come from products of about 1.)
template <class T>
bool above_rounding(const Problem& p, T value) {
  double mass = p.a ? 0 : 1;
  for (int64_t i = 0; p.a && i < p.n; ++i) mass += static_cast<const T*>(p.a)[i];
  const double known = fmax(fabs(double(value)), cost::normalised(static_cast<cost::Metric>(p.metric)) ? mass : 0);
  return !(std::numeric_limits<T>::epsilon() * known > p.reg * mass);
}

}  // namespace

template <class T>
const char* loss_forward(const Problem& p, bool own_products, bool save_plan, T* f, T* g, T* value, T* dual,
                         T* marginal_error, int64_t* n_iter) {
  return with_helpers(loss_work(p, own_products), [&]() -> const char* {
    if (const char* refused =
            cost::scales<T>(cost::features_of<T>(p), static_cast<T*>(const_cast<void*>(p.scale_x)),
                            static_cast<T*>(const_cast<void*>(p.scale_y))))
      return refused;
    if (own_products && static_cast<cost::Metric>(p.metric) != cost::Metric::kL1)
      kernels<T>().product.inner({p.n, p.m, p.d, static_cast<const T*>(p.x), static_cast<const T*>(p.y),
                                  static_cast<T*>(p.cost), product_tasks(p.n, p.m, p.d)});
    return forward<T>(p, save_plan, f, g, value, dual, marginal_error, n_iter);
  });
}

template <class T>
bool loss_backward(const Problem& p, Grad grad, const Upstream& up, T* grad_a, T* grad_b, T* dx, T* dy) {
  return with_helpers(gradient_work(p, grad, dx, dy), [&] {
    Scratch<T> memory(p.n * p.m + p.n + p.m);
    T *weights = memory.data(), *row_sum = weights + p.n * p.m, *col_sum = row_sum + p.n;
    const Gradients<T> out{weights, grad_a, grad_b, row_sum, col_sum};
    bool converged = true;
    if (grad == Grad::kUnrolled) unrolled<T>(p, up, out);
    if (grad == Grad::kImplicit) converged = implicit<T>(p, up, out);
    if (grad == Grad::kEnvelope) envelope<T>(p, up, out);
    cost::gradients<T>(cost::features_of<T>(p), static_cast<const T*>(p.cost), weights, row_sum, col_sum, dx, dy);
    return converged;
  });
}

template <class T>
const char* loss_and_gradient(const LossSettings& s, Problem p, T* loss, T* marginal_error, int64_t* n_iter, T* dx,
                              T* dy, Remarks* remarks) {
  p.f64 = s.f64, p.batch = 1, p.max_iter = s.max_iter, p.reg = s.reg, p.tol = s.tol, p.relax = s.relax;
  p.metric = s.metric, p.history = s.grad == Grad::kUnrolled;
  const int64_t head = padded(p.n * p.m + p.n + p.m), saved = saved_size(p.n, p.m, p.max_iter, p.history);
  const bool centred = cost::centred(static_cast<cost::Metric>(p.metric));
  Scratch<T> memory(head + saved + p.n + p.m + 2 + (centred ? (p.n + p.m) * p.d : 0));
  T *cost = memory.data(), *uniform = cost + head + saved, *one = uniform + p.n + p.m, *other = one + 1;
  if (centred) {
    T *x = other + 1, *y = x + p.n * p.d;
    cost::centre<T>(p.n, p.m, p.d, static_cast<const T*>(p.x), static_cast<const T*>(p.y), x, y);
    p.given_x = p.x, p.given_y = p.y, p.x = x, p.y = y;
  }
  p.cost = cost, p.scale_x = cost + p.n * p.m, p.scale_y = cost + p.n * p.m + p.n, p.saved = cost + head;
  *one = 1;
  Upstream up{one, nullptr, nullptr};
  if (s.regularized && s.grad != Grad::kEnvelope) up = upstream_of_dual(p, uniform);
  T* value = s.regularized ? other : loss;
  T error = 0;
  return with_helpers(loss_work(p, true) + gradient_work(p, s.grad, dx, dy), [&]() -> const char* {
    if (const char* refused = loss_forward<T>(p, true, true, nullptr, nullptr, value, s.regularized ? loss : nullptr,
                                              &error, n_iter))
      return refused;
    remarks->gradient_converged = loss_backward<T>(p, s.grad, up, nullptr, nullptr, dx, dy);
    remarks->reached_tol = !(s.tol > 0 && error > T(s.tol));
    remarks->above_rounding = above_rounding(p, *value);
    if (marginal_error) *marginal_error = error;
    return nullptr;
  });
}

#define UK_INSTANTIATE(T)                                                                         \
  template const char* loss_forward<T>(const Problem&, bool, bool, T*, T*, T*, T*, T*, int64_t*); \
  template bool loss_backward<T>(const Problem&, Grad, const Upstream&, T*, T*, T*, T*);          \
  template const char* loss_and_gradient<T>(const LossSettings&, Problem, T*, T*, int64_t*, T*, T*, Remarks*);
UK_INSTANTIATE(float)
UK_INSTANTIATE(double)

}  // namespace sinkhorn
}  // namespace ucmkd

// One problem each way: what batches of costs, losses between features and ragged lists call. Memory is taken
// here; the helpers (core/parallel.h) are the caller's, and a problem's numbers do not depend on who runs it.
#pragma once
#include <algorithm>

#include "core/levels.h"
#include "core/scratch.h"
#include "cost/entry.h"
#include "sinkhorn/entry.h"
#include "sinkhorn/rules.h"
#include "sinkhorn/tasks.h"

namespace ucmkd {
namespace sinkhorn {

// Where one problem of a call lies: number k of a batch, or of a ragged list.
struct Place {
  int64_t k, n, m;
  int64_t x, y;         // rows and columns before it
  int64_t cost, saved;  // elements before it
};
static inline Place place_of(const Problem& p, int64_t k) {
  const int64_t saved = saved_size(p.n, p.m, p.max_iter, p.history, !p.marginals.exact());
  return {k, p.n, p.m, k * p.n, k * p.m, k * p.n * p.m, k * saved};
}

// A block of memory: plan, alpha, n_iter and the kind of history, hist_u, hist_v, what was kept (`saved_size`).
template <class T>
Saved<T> saved_in(T* block, const Place& at, const Problem& p) {
  Saved<T> s{};
  s.plan = block;
  s.alpha = s.plan + padded(at.n) * padded(at.m);
  T *info = s.alpha + padded(at.n), *rest = info + kPad;
  s.info = reinterpret_cast<typename Saved<T>::Info*>(info);
  if (p.history) s.hist_u = rest, s.hist_v = rest + padded((p.max_iter + 1) * at.n);
  if (!p.marginals.exact()) {
    s.kept_rows = p.history ? s.hist_v + padded(p.max_iter * at.m) : rest;
    s.kept_columns = s.kept_rows + padded((p.history ? p.max_iter : 1) * at.n);
  }
  return s;
}

template <class T>
View<T> view_at(const Problem& p, const Place& at, int tasks) {
  View<T> v{};
  v.n = at.n, v.m = at.m, v.max_iter = p.max_iter, v.reg = T(p.reg), v.tol = p.tol, v.relax = p.relax;
  v.marginals = p.marginals;
  v.a = offset<T>(p.a, p.a_shared ? 0 : at.x), v.init_f = offset<T>(p.init_f, at.x);
  v.b = offset<T>(p.b, p.b_shared ? 0 : at.y), v.init_g = offset<T>(p.init_g, at.y);
  v.features = cost::part_of<T>(p.features, at.n, at.m, at.x, at.y, at.cost);
  v.cost = offset<T>(p.cost, at.cost);
  v.saved = saved_in(offset<T>(p.saved, at.saved), at, p);
  v.tasks = tasks;
  return v;
}
template <class T>
Seed<T> seed_at(const Upstream& up, const Place& at) {
  return {up.value ? *offset<T>(up.value, at.k) : T(0), offset<T>(up.f, at.x), offset<T>(up.g, at.y)};
}
template <class T>
Outputs<T> outputs_at(const Outputs<T>& out, const Place& at) {
  return {offset<T>(out.f, at.x),
          offset<T>(out.g, at.y),
          out.value + at.k,
          offset<T>(out.dual, at.k),
          offset<T>(out.marginal_error, at.k),
          offset<int64_t>(out.n_iter, at.k)};
}
template <class T>
Gradients<T> gradients_at(const Gradients<T>& out, const Place& at) {
  return {offset<T>(out.cost, at.cost), offset<T>(out.a, at.x), offset<T>(out.b, at.y), out.weight_rows,
          out.weight_cols};
}

// Null, or a sentence on masses; null pointers are uniform.
template <class T>
const char* check_masses(const View<T>& p) {
  double sums[2] = {1, 1};
  const T* masses[2] = {p.a, p.b};
  const int64_t sizes[2] = {p.n, p.m};
  for (int side = 0; side < 2; ++side) {
    if (!masses[side]) continue;
    double total = 0;
    bool good = true;
    for (int64_t k = 0; k < sizes[side]; ++k) good &= is_mass(masses[side][k]), total += masses[side][k];
    if (const char* refused = refusals::of_masses(flags_of_masses<T>(good, total, total))) return refused;
    sums[side] = total;
  }
  return p.marginals.exact() ? refusals::of_masses(flags_of_masses<T>(true, sums[0], sums[1])) : nullptr;
}

// Null, or a sentence on the term by class.
template <class T>
const char* check_classes(const View<T>& p) {
  const cost::Classes<T>& classes = p.features.classes;
  bool good = true;
  for (int64_t k = 0; k < p.n * classes.count; ++k) good &= classes.cost[k] > -T(__builtin_inf());  // false for NaN
  if (!good) return refusals::kClassCost;
  for (int64_t j = 0; classes.count && j < p.m; ++j) good &= classes.label[j] >= 0 && classes.label[j] < classes.count;
  return good ? nullptr : refusals::kLabels;
}

template <class T>
const char* check(const View<T>& p) {
  const char* refused = check_masses(p);
  return refused ? refused : check_classes(p);
}

// The iterations. Null, or a sentence on the cost.
template <class T>
const char* solve_one(const View<T>& p, bool save_plan, const Outputs<T>& out) {
  T* info = p.saved.alpha + padded(p.n);
  std::fill(info, info + kPad, T(0));
  Scratch<T> work(forward_work(p));
  const ForwardKernels<T>& forward = p.marginals.exact() ? kernels<T>().forward : kernels<T>().unbalanced;
  switch (forward.solve(p, save_plan, out, work.data())) {
    case Status::kBadCost: return has_features(p) ? refusals::kOverflow : refusals::kBadCost;
    case Status::kForbidden: return refusals::kForbidden;
    case Status::kOverflow: return refusals::kRange;
    case Status::kOk: break;
  }
  return nullptr;
}

// From features, whose scales are known; their inner products are there already, or made here.
template <class T>
const char* solve_features(const View<T>& p, bool own_products, bool save_plan, const Outputs<T>& out) {
  if (const char* refused = check(p)) return refused;
  if (own_products) cost::inner_products(p.features, p.cost);
  return solve_one(p, save_plan, out);
}

// The sweep back by plain sums; returns the rows of left and right in use, or -1: it takes the log domain.
template <class T>
int64_t adjoint_one(const View<T>& p, const Seed<T>& seed, T* left, T* right, const Gradients<T>& out) {
  Scratch<T> work(adjoint_work(p));
  return kernels<T>().adjoint.plain(p, seed, left, right, out, work.data());
}

template <class T>
void last_pass_one(const View<T>& p, T value_weight, const LastPass<T>& pass, const Gradients<T>& out) {
  Scratch<T> work(last_pass_work(p));
  kernels<T>().gradient.rows(p, value_weight, pass, out, work.data());
}

// The gradient of the cost, from the product left' right in its place, or by the log domain where depth < 0.
template <class T>
void adjoint_finish_one(const View<T>& p, const Seed<T>& seed, int64_t depth, const Gradients<T>& out) {
  if (depth >= 0) return last_pass_one(p, seed.value_weight, {Grad::kUnrolled, 0, p.n, nullptr, nullptr}, out);
  Scratch<T> work(adjoint_work(p));
  kernels<T>().adjoint.log_domain(p, seed, out, work.data());
  if (has_features(p))
    kernels<T>().cost.weigh(p.features, p.cost, out.cost, out.weight_rows, out.weight_cols, work.data(), p.tasks);
}

// As `implicit` (entry.h).
template <class T>
bool implicit_one(const View<T>& p, const Seed<T>& seed, const Gradients<T>& out) {
  Scratch<T> work(adjoint_work(p)), sums(out.cost ? p.n + p.m : 0);
  T* row_sum = out.cost ? sums.data() : out.weight_rows;
  T* col_sum = out.cost ? row_sum + p.n : out.weight_cols;
  const bool converged = kernels<T>().adjoint.fixed_point(p, seed, row_sum, col_sum, out, work.data());
  if (out.cost) last_pass_one(p, seed.value_weight, {Grad::kImplicit, 0, p.n, row_sum, col_sum}, out);
  return converged;
}

template <class T>
void envelope_one(const View<T>& p, const Seed<T>& seed, const Gradients<T>& out) {
  last_pass_one(p, seed.value_weight, {Grad::kEnvelope, 0, p.n, nullptr, nullptr}, out);
}

// The gradient of the cost, and the matrix product on the way to it; false where `implicit` did not converge.
template <class T>
bool gradient_one(const View<T>& p, Grad grad, const Seed<T>& seed, const Gradients<T>& out) {
  if (grad == Grad::kImplicit) return implicit_one(p, seed, out);
  if (grad == Grad::kEnvelope) return envelope_one(p, seed, out), true;
  const int64_t rows = 2 * p.saved.info->n_iter;
  Scratch<T> left(rows * p.n), right(rows * p.m);
  const int64_t depth = adjoint_one(p, seed, left.data(), right.data(), out);
  if (depth > 0)
    kernels<T>().product.plain(
        {p.n, p.m, depth, left.data(), 1, p.n, right.data(), out.cost, product_tasks(p.n, p.m, depth)});
  adjoint_finish_one(p, seed, depth, out);
  return true;
}

// The gradients of features and masses.
template <class T>
bool feature_gradients_one(const View<T>& p, Grad grad, const Seed<T>& seed, const FeatureGradients<T>& out) {
  Scratch<T> weights(p.n * p.m + p.n + p.m);
  T *row_sum = weights.data() + p.n * p.m, *col_sum = row_sum + p.n;
  const bool converged = gradient_one(p, grad, seed, {weights.data(), out.a, out.b, row_sum, col_sum});
  cost::gradients<T>(p.features, p.cost, weights.data(), row_sum, col_sum, out.x, out.y);
  return converged;
}

}  // namespace sinkhorn
}  // namespace ucmkd

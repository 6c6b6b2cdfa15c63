// Calls of the Sinkhorn entry functions for one problem or a batch of equal ones, on buffers of exactly the
// stated sizes, outputs poisoned: what fuzz.cpp and races.cpp share with call_ragged.h, call_panel.h and
// call_rest.h. Buffers start `shift` elements off any vector's alignment, as a user's view may.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "core/levels.h"
#include "cost/entry.h"
#include "sinkhorn/entry.h"
#include "sinkhorn/params.h"

namespace ucmkd {
namespace test {

template <class T>
class Buffer {
 public:
  // shift: elements before the first, 0 for what the library allocates itself.
  explicit Buffer(int64_t count, T fill = T(NAN), int64_t shift = 1) : count_(count), shift_(shift) {
    if (count < 0) std::abort();
    block_ = static_cast<T*>(std::malloc((count + shift) * sizeof(T)));
    for (int64_t k = 0; k < count; ++k) data()[k] = fill;
  }
  ~Buffer() { std::free(block_); }
  Buffer(const Buffer&) = delete;
  T* data() { return block_ + shift_; }
  T& operator[](int64_t k) { return data()[k]; }
  int64_t count() const { return count_; }

 private:
  T* block_;
  int64_t count_, shift_;
};

// Which gradients a call is asked for.
enum Wanted : int { kX = 1, kY = 2, kA = 4, kB = 8, kAll = 15 };

// A problem in a few numbers; `cost` (batch, n, m), or features x (n, d), y (m, d) where metric >= 0.
struct Shape {
  int64_t batch, n, m, max_iter, d;
  double reg, tol;
  int metric;
  bool masses, shared_masses, init, relax, history;
  int64_t classes = 0;  // of a term by class, with features
  int64_t shift = 1;
  int wanted = kAll;
  sinkhorn::Marginals marginals;  // exact, or unbalanced
};

// Features as they were given, without classes.
template <class T>
cost::Features<T> features(const Shape& s, const T* x, const T* y, const T* scale_x = nullptr,
                           const T* scale_y = nullptr) {
  return {static_cast<cost::Metric>(s.metric), s.n, s.m, s.d, x, y, scale_x, scale_y, x, y, {}};
}

template <class T>
struct Inputs {
  Buffer<T> cost, x, y, a, b, f, g, class_cost;
  Buffer<int64_t> label;
  explicit Inputs(const Shape& s)
      : cost(s.batch * s.n * s.m, 0, s.shift), x(s.n * s.d, 0, s.shift), y(s.m * s.d, 0, s.shift),
        a((s.shared_masses ? 1 : s.batch) * s.n, T(1) / T(s.n), s.shift),
        b((s.shared_masses ? 1 : s.batch) * s.m, T(1) / T(s.m), s.shift), f(s.batch * s.n, 0, s.shift),
        g(s.batch * s.m, 0, s.shift), class_cost(s.n * s.classes, 0, s.shift), label(s.m, 0, s.shift) {}
};

template <class T>
struct Answer {
  std::string refused;  // or empty
  std::vector<T> value, dual, gradient;
  static void keep(Buffer<T>& values, std::vector<T>& into) {
    into.insert(into.end(), values.data(), values.data() + values.count());
  }
};

template <class T>
cost::FeatureSet feature_set(const Shape& s, Inputs<T>& in, Buffer<T>& scale_x, Buffer<T>& scale_y) {
  return {sizeof(T) == 8,
          static_cast<cost::Metric>(s.metric),
          s.n,
          s.m,
          s.d,
          in.x.data(),
          in.y.data(),
          scale_x.data(),
          scale_y.data(),
          nullptr,
          nullptr,
          {}};
}

template <class T>
sinkhorn::Problem problem_of(const Shape& s, Inputs<T>& in, Buffer<T>& cost, Buffer<T>& saved, Buffer<T>& scale_x,
                             Buffer<T>& scale_y) {
  sinkhorn::Problem p{};
  p.f64 = sizeof(T) == 8, p.batch = s.batch, p.n = s.n, p.m = s.m, p.max_iter = s.max_iter;
  p.reg = s.reg, p.tol = s.tol, p.cost = cost.data();
  if (s.masses) {
    p.a = in.a.data(), p.b = in.b.data();
    p.a_shared = p.b_shared = s.shared_masses;
  }
  if (s.init) p.init_f = in.f.data(), p.init_g = in.g.data();
  p.relax = s.relax, p.history = s.history, p.saved = saved.data();
  p.marginals = s.marginals;
  p.features = feature_set(s, in, scale_x, scale_y);
  return p;
}

// x (n, d) against y (m, d): what a caller's BLAS makes where the library does not.
template <class T>
void products(int64_t n, int64_t m, int64_t d, const T* x, const T* y, T* out) {
  kernels<T>().product.inner({n, m, d, x, y, out, 1});
}

// The loss and its gradient in one call, of either value.
template <class T>
void solve_at_once(const Shape& s, Inputs<T>& in, const sinkhorn::Problem& p, Answer<T>& answer) {
  using namespace sinkhorn;
  Buffer<T> loss(1), error(1), dx(s.n * s.d), dy(s.m * s.d);
  Buffer<int64_t> n_iter(1, -1);
  Problem given{};
  given.n = p.n, given.m = p.m, given.features.d = s.d, given.features.x = in.x.data();
  given.features.y = in.y.data();
  given.a = p.a, given.b = p.b, given.init_f = p.init_f, given.init_g = p.init_g;
  Remarks remarks{};
  for (bool regularized : {false, true}) {
    const Grad grad = s.history ? Grad::kUnrolled : Grad::kEnvelope;
    const LossSettings settings{p.f64, p.features.metric, regularized, p.reg,      p.max_iter,
                                p.tol, p.relax,           grad,        p.marginals};
    const char* problem =
        loss_and_gradient<T>(settings, given,
                             {loss.data(), error.data(), n_iter.data(), s.wanted & kX ? dx.data() : nullptr,
                              s.wanted & kY ? dy.data() : nullptr},
                             &remarks);
    if (problem) answer.refused = problem;
    answer.keep(loss, answer.value), answer.keep(dx, answer.gradient), answer.keep(dy, answer.gradient);
  }
}

// From features: the loss, then the unrolled (or implicit) and the envelope gradients of its value.
template <class T>
Answer<T> solve_features(const Shape& s, Inputs<T>& in) {
  using namespace sinkhorn;
  Buffer<T> cost(s.n * s.m), scale_x(s.n), scale_y(s.m), distance(s.n * s.m), grad_class(s.n * s.classes);
  Buffer<T> saved(saved_size(s.n, s.m, s.max_iter, s.history, !s.marginals.exact()), T(NAN), 0);
  Problem p = problem_of(s, in, cost, saved, scale_x, scale_y);
  if (s.classes) {
    p.features.classes = {s.classes, in.class_cost.data(), in.label.data(), distance.data(), grad_class.data()};
  }
  Buffer<T> f(s.n), g(s.m), value(1), dual(1), one(1, 1);
  const bool own_products = s.d % 2;
  if (!own_products) products(s.n, s.m, s.d, in.x.data(), in.y.data(), cost.data());
  Answer<T> answer;
  if (const char* sentence =
          loss_forward<T>(p, own_products, true, {f.data(), g.data(), value.data(), dual.data(), nullptr, nullptr})) {
    answer.refused = sentence;
    return answer;
  }
  Buffer<T> dx(s.n * s.d), dy(s.m * s.d), grad_a(s.n), grad_b(s.m);
  const Upstream up{one.data(), nullptr, nullptr};
  auto wanted = [&](Wanted which, Buffer<T>& out) { return s.wanted & which ? out.data() : nullptr; };
  for (Grad grad : {Grad::kEnvelope, s.history ? Grad::kUnrolled : Grad::kImplicit}) {
    loss_backward<T>(p, grad, up, {wanted(kX, dx), wanted(kY, dy), wanted(kA, grad_a), wanted(kB, grad_b)});
    answer.keep(dx, answer.gradient), answer.keep(dy, answer.gradient);
  }
  // The gradient of the cost a block of rows at a time, from sums that serve as row and column sums here.
  Buffer<T> block(s.n * s.m, T(0.01)), rows(s.n), columns(s.m), ones(s.n + s.m, 1);
  const Gradients<T> out{block.data(), nullptr, nullptr, rows.data(), columns.data()};
  for (Grad grad : {Grad::kEnvelope, Grad::kUnrolled, Grad::kImplicit})
    for (int64_t begin = 0, end; begin < s.n; begin = end) {
      end = begin + (s.n + 2) / 3 < s.n ? begin + (s.n + 2) / 3 : s.n;
      const T* sums = grad == Grad::kImplicit ? ones.data() : nullptr;
      gradient_rows<T>(p, up, {grad, begin, end, sums, sums}, out);
      answer.keep(columns, answer.gradient);
    }
  answer.keep(value, answer.value), answer.keep(dual, answer.dual);
  if (!s.classes) solve_at_once(s, in, p, answer);
  return answer;
}

// From costs: forward, then the unrolled (or implicit) and the envelope gradients of sum(value) + sum(f).
template <class T>
Answer<T> solve_costs(const Shape& s, Inputs<T>& in) {
  using namespace sinkhorn;
  const int64_t cells = s.batch * s.n * s.m, rows = 2 * s.max_iter;
  Buffer<T> saved(s.batch * saved_size(s.n, s.m, s.max_iter, s.history, !s.marginals.exact()), T(NAN), 0);
  const Problem p = problem_of(s, in, in.cost, saved, in.x, in.y);
  Buffer<T> f(s.batch * s.n), g(s.batch * s.m), value(s.batch), dual(s.batch), error(s.batch);
  Buffer<int64_t> n_iter(s.batch, -1), depth(s.batch, -2);
  Answer<T> answer;
  if (const char* sentence =
          forward<T>(p, true, {f.data(), g.data(), value.data(), dual.data(), error.data(), n_iter.data()})) {
    answer.refused = sentence;
    return answer;
  }
  Buffer<T> grad(cells), grad_a(s.batch * s.n), grad_b(s.batch * s.m);
  const Gradients<T> out{grad.data(), grad_a.data(), grad_b.data(), nullptr, nullptr};
  Buffer<T> ones(s.batch, 1), up_f(s.batch * s.n, 1);
  const Upstream up{ones.data(), up_f.data(), nullptr};
  envelope<T>(p, {ones.data(), nullptr, nullptr}, out);
  if (s.history) {
    Buffer<T> left(s.batch * rows * s.n), right(s.batch * rows * s.m);
    const int64_t deepest = adjoint<T>(p, up, left.data(), right.data(), out, depth.data());
    for (int64_t k = 0; k < s.batch; ++k)
      for (int64_t i = 0; i < s.n; ++i)
        for (int64_t j = 0; j < s.m; ++j) {
          T total = 0;
          for (int64_t t = 0; t < deepest; ++t)
            total += left[(k * rows + t) * s.n + i] * right[(k * rows + t) * s.m + j];
          grad[(k * s.n + i) * s.m + j] = total;
        }
    adjoint_finish<T>(p, up, depth.data(), out);
  } else {
    implicit<T>(p, up, out);
  }
  answer.keep(value, answer.value), answer.keep(dual, answer.dual), answer.keep(grad, answer.gradient);
  return answer;
}

template <class T>
Answer<T> solve(const Shape& s, Inputs<T>& in) {
  return s.metric < 0 ? solve_costs(s, in) : solve_features(s, in);
}

}  // namespace test
}  // namespace ucmkd

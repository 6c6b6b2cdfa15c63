// One call of each entry function on buffers of exactly the stated sizes, outputs poisoned: what fuzz.cpp
// and races.cpp share. Buffers start one element off any vector's alignment, as a user's view may.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "label_transport/entry.h"
#include "sinkhorn/entry.h"
#include "sinkhorn/params.h"

namespace ucmkd {
namespace test {

template <class T>
class Buffer {
 public:
  // shift: elements before the first, 0 for what the library allocates itself.
  explicit Buffer(int64_t count, T fill = T(NAN), int64_t shift = 1) : count_(count), shift_(shift) {
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

// A problem in a few numbers; `cost` (batch, n, m), or features x (n, d), y (m, d) where metric >= 0.
struct Shape {
  int64_t batch, n, m, max_iter, d;
  double reg, tol;
  int metric;
  bool masses, shared_masses, init, relax, history;
};

template <class T>
struct Inputs {
  Buffer<T> cost, x, y, a, b, f, g;
  explicit Inputs(const Shape& s)
      : cost(s.batch * s.n * s.m, 0),
        x(s.n * s.d, 0),
        y(s.m * s.d, 0),
        a((s.shared_masses ? 1 : s.batch) * s.n, T(1) / T(s.n)),
        b((s.shared_masses ? 1 : s.batch) * s.m, T(1) / T(s.m)),
        f(s.batch * s.n, 0),
        g(s.batch * s.m, 0) {}
};

template <class T>
struct Answer {
  std::string refused;  // or empty
  std::vector<T> value, dual, gradient;
  void keep(Buffer<T>& values, std::vector<T>& into) { into.assign(values.data(), values.data() + values.count()); }
};

template <class T>
sinkhorn::Problem problem_of(const Shape& s, Inputs<T>& in, Buffer<T>& cost, Buffer<T>& saved, Buffer<T>& scale_x,
                             Buffer<T>& scale_y) {
  sinkhorn::Problem p{};
  p.f64 = sizeof(T) == 8, p.batch = s.batch, p.n = s.n, p.m = s.m, p.max_iter = s.max_iter;
  p.reg = s.reg, p.tol = s.tol, p.cost = cost.data();
  if (s.masses) {
    p.a = in.a.data(), p.a_stride = s.shared_masses ? 0 : s.n;
    p.b = in.b.data(), p.b_stride = s.shared_masses ? 0 : s.m;
  }
  if (s.init) p.init_f = in.f.data(), p.init_g = in.g.data();
  p.relax = s.relax, p.history = s.history, p.saved = saved.data(), p.metric = s.metric, p.d = s.d;
  p.x = in.x.data(), p.y = in.y.data(), p.scale_x = scale_x.data(), p.scale_y = scale_y.data();
  return p;
}

// From features: the loss, then the unrolled (or implicit) and the envelope gradients of its value.
template <class T>
Answer<T> solve_features(const Shape& s, Inputs<T>& in) {
  using namespace sinkhorn;
  Buffer<T> cost(s.n * s.m), scale_x(s.n), scale_y(s.m);
  Buffer<T> saved(saved_size(s.n, s.m, s.max_iter, s.history), T(NAN), 0);
  const Problem p = problem_of(s, in, cost, saved, scale_x, scale_y);
  Buffer<T> f(s.n), g(s.m), value(1), dual(1), one(1, 1);
  Answer<T> answer;
  if (const char* sentence = loss_forward<T>(p, true, true, f.data(), g.data(), value.data(), dual.data(),
                                             nullptr, nullptr)) {
    answer.refused = sentence;
    return answer;
  }
  Buffer<T> dx(s.n * s.d), dy(s.m * s.d), grad_a(s.n), grad_b(s.m);
  const Upstream up{one.data(), nullptr, nullptr};
  loss_backward<T>(p, Grad::kEnvelope, up, nullptr, nullptr, dx.data(), dy.data());
  loss_backward<T>(p, s.history ? Grad::kUnrolled : Grad::kImplicit, up, grad_a.data(), grad_b.data(),
                   dx.data(), dy.data());
  answer.keep(value, answer.value), answer.keep(dual, answer.dual), answer.keep(dx, answer.gradient);
  return answer;
}

// From costs: forward, then the unrolled (or implicit) and the envelope gradients of sum(value) + sum(f).
template <class T>
Answer<T> solve_costs(const Shape& s, Inputs<T>& in) {
  using namespace sinkhorn;
  const int64_t cells = s.batch * s.n * s.m, rows = 2 * s.max_iter;
  Buffer<T> saved(s.batch * saved_size(s.n, s.m, s.max_iter, s.history), T(NAN), 0);
  const Problem p = problem_of(s, in, in.cost, saved, in.x, in.y);
  Buffer<T> f(s.batch * s.n), g(s.batch * s.m), value(s.batch), dual(s.batch), error(s.batch);
  Buffer<int64_t> n_iter(s.batch, -1), depth(s.batch, -2);
  Answer<T> answer;
  if (const char* sentence = forward<T>(p, true, f.data(), g.data(), value.data(), dual.data(), error.data(),
                                        n_iter.data())) {
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

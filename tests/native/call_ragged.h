// Problems of different sizes in one call (sinkhorn/ragged.h), some without rows on a side.
#pragma once
#include "call.h"
#include "sinkhorn/ragged.h"

namespace ucmkd {
namespace test {

// Sizes by problem; the numbers of all problems lie one behind the other in `in`, which has the size of their sum.
struct Sizes {
  std::vector<int64_t> n, m;
  static int64_t total(const std::vector<int64_t>& sizes) {
    int64_t sum = 0;
    for (int64_t size : sizes) sum += size;
    return sum;
  }
};

template <class T>
Answer<T> solve_ragged(const Shape& s, const Sizes& sizes, Inputs<T>& in) {
  using namespace sinkhorn;
  const int64_t batch = int64_t(sizes.n.size());
  Buffer<int64_t> x_offsets(batch + 1, 0), y_offsets(batch + 1, 0), n_iter(batch, -1);
  for (int64_t k = 0; k < batch; ++k) {
    x_offsets[k + 1] = x_offsets[k] + sizes.n[k];
    y_offsets[k + 1] = y_offsets[k] + sizes.m[k];
  }
  Buffer<T> scale_x(s.n), scale_y(s.m);
  Answer<T> answer;
  if (const char* which = cost::scales<T>(features<T>(s, in.x.data(), in.y.data()), scale_x.data(), scale_y.data())) {
    answer.refused = which;
    return answer;
  }
  Ragged r{};
  Buffer<T> none(0);
  r.all = problem_of(s, in, none, none, scale_x, scale_y);
  r.all.batch = batch;
  r.x_offsets = x_offsets.data(), r.y_offsets = y_offsets.data();
  const RaggedSizes space = ragged_sizes(r);
  Buffer<T> cost(space.cost), saved(space.saved, T(NAN), 0);
  r.all.cost = cost.data(), r.all.saved = saved.data();
  Buffer<T> f(s.n), g(s.m), value(batch), dual(batch), error(batch);
  answer.refused =
      ragged_forward<T>(r, true, {f.data(), g.data(), value.data(), dual.data(), error.data(), n_iter.data()});
  if (!answer.refused.empty()) return answer;
  Buffer<T> dx(s.n * s.d), dy(s.m * s.d), grad_a(s.n), grad_b(s.m), ones(batch, 1), up_f(s.n, 1), up_g(s.m, 1);
  auto wanted = [&](Wanted which, Buffer<T>& out) { return s.wanted & which ? out.data() : nullptr; };
  const FeatureGradients<T> out{wanted(kX, dx), wanted(kY, dy), wanted(kA, grad_a), wanted(kB, grad_b)};
  ragged_backward<T>(r, Grad::kEnvelope, {ones.data(), nullptr, nullptr}, out);
  answer.keep(dx, answer.gradient), answer.keep(dy, answer.gradient);
  ragged_backward<T>(r, s.history ? Grad::kUnrolled : Grad::kImplicit, {ones.data(), up_f.data(), up_g.data()}, out);
  answer.keep(dx, answer.gradient), answer.keep(dy, answer.gradient);
  answer.keep(value, answer.value), answer.keep(dual, answer.dual);
  return answer;
}

}  // namespace test
}  // namespace ucmkd

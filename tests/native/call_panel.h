// A problem by panels (sinkhorn/panel_entry.h), in the order in which ops/_cpu/panels.py calls them: every kind
// of sweep, and of gradient in two blocks of rows; the cost is kept between sweeps where d is odd.
#pragma once

#include "call.h"
#include "sinkhorn/panel_entry.h"

namespace ucmkd {
namespace test {

template <class T>
class Panels {
 public:
  Panels(const Shape& s, Inputs<T>& in)
      : s_(s), in_(in), scale_x_(s.n), scale_y_(s.m), packed_(product::packed_size(s.m, s.d), T(NAN), 0),
        kept_(s.d % 2 ? s.n * product::packed_columns(s.m) : 0, T(NAN), 0), grad_class_(s.n * s.classes) {}

  // Null, or which features are refused.
  const char* prepare() {
    const char* refused =
        cost::scales<T>(features<T>(s_, in_.x.data(), in_.y.data()), scale_x_.data(), scale_y_.data());
    if (!refused) sinkhorn::panels_pack<T>(s_.m, s_.d, in_.y.data(), packed_.data());
    return refused;
  }
  // Rows [begin, end); the first sweep over all of them makes what is kept.
  sinkhorn::PanelsOf rows(int64_t begin, int64_t end, bool last = false) {
    sinkhorn::PanelsOf p{};
    p.features = feature_set(s_, in_, scale_x_, scale_y_);
    p.features.n = end - begin, p.features.x = in_.x.data() + begin * s_.d,
    p.features.scale_x = scale_x_.data() + begin;
    p.reg = s_.reg, p.room = 4 + s_.n / 2;
    p.packed = cost::summed(p.features.metric) ? nullptr : packed_.data();
    p.kept = kept_.count() ? kept_.data() + begin * product::packed_columns(s_.m) : nullptr;
    p.made = made_, made_ = kept_.count();
    if (s_.classes)
      p.features.classes = {s_.classes, in_.class_cost.data() + begin * s_.classes, in_.label.data(), nullptr,
                            last ? grad_class_.data() + begin * s_.classes : nullptr};
    return p;
  }
  sinkhorn::PanelsOf all() { return rows(0, s_.n); }

 private:
  const Shape& s_;
  Inputs<T>& in_;
  Buffer<T> scale_x_, scale_y_, packed_, kept_, grad_class_;
  bool made_ = false;
};

template <class T>
Answer<T> solve_panels(const Shape& s, Inputs<T>& in) {
  using namespace sinkhorn;
  const T inf = T(INFINITY), reg = T(s.reg);
  const int64_t mp = padded(s.m);
  Panels<T> panels(s, in);
  Answer<T> answer;
  if (const char* which = panels.prepare()) {
    answer.refused = which;
    return answer;
  }
  Buffer<T> a(s.n), b(mp, 0, 0), f(s.n), g(mp, -inf, 0), top(mp, 0, 0), total(mp, 0, 0), sums(mp, 0, 0);
  for (int64_t i = 0; i < s.n; ++i) a[i] = s.masses ? in.a[i] : T(1) / T(s.n);
  for (int64_t j = 0; j < s.m; ++j) b[j] = s.masses ? in.b[j] : T(1) / T(s.m);
  for (int64_t i = 0; i < s.n; ++i) f[i] = a[i] > 0 ? -reg * std::log(T(s.n)) : -inf;
  bool good = true;
  auto sweep = [&](const auto& body) { return sweep_panels<T>(panels.all(), body); };
  auto columns = [&] {
    for (int64_t j = 0; j < mp; ++j) top[j] = -inf, total[j] = 0;
    good &= sweep([&](auto& kernels, auto& all) { return kernels.columns(all, f.data(), top.data(), total.data()); });
    for (int64_t j = 0; j < s.m; ++j) g[j] = b[j] > 0 ? reg * (std::log(b[j]) - std::log(total[j])) - top[j] : -inf;
  };
  columns();
  if (!good) {
    answer.refused = "an overflow";
    return answer;
  }
  Buffer<T> before(s.n), g_before(mp, -inf, 0);
  for (int64_t t = 0; t < s.max_iter; ++t) {
    for (int64_t i = 0; i < s.n; ++i) before[i] = f[i];
    for (int64_t j = 0; j < mp; ++j) sums[j] = 0, g_before[j] = g[j];
    sweep([&](auto& kernels, auto& all) { kernels.iterate(all, {s.relax, 1}, a.data(), g.data(), f.data(), sums.data()); });
    if (t + 1 == s.max_iter) break;
    if (t % 2)
      columns();
    else
      for (int64_t j = 0; j < s.m; ++j) g[j] = b[j] > 0 ? g[j] + reg * std::log(b[j] / sums[j]) : -inf;
  }
  Buffer<T> alpha(s.n), row_value(s.n), first_sums(mp, 0, 0), d(s.n), share(mp, 0, 0), inverse(s.n);
  for (int64_t i = 0; i < s.n; ++i) inverse[i] = a[i] > 0 ? 1 / a[i] : T(0);
  for (int64_t j = 0; j < s.m; ++j) share[j] = b[j] - sums[j];
  sweep([&](auto& kernels, auto& all) {
    kernels.plan(all, 1, f.data(), g.data(), alpha.data(), row_value.data(), s.wanted & kB ? first_sums.data() : nullptr);
  });
  sweep([&](auto& kernels, auto& all) {
    kernels.adjoint(all, f.data(), g.data(), share.data(), inverse.data(), d.data(), sums.data());
  });
  sweep([&](auto& kernels, auto& all) {
    kernels.adjoint_log(all, {f.data(), g.data(), share.data(), g_before.data(), inverse.data()}, d.data(),
                        sums.data());
  });
  Buffer<T> distance(s.n * s.m), history(2 * s.n, 0), weight_rows(s.n), weight_cols(mp, 0, 0),
      columns_history(2 * mp, -inf, 0), columns_share(2 * mp, 0, 0), out(s.n * s.m, T(0.01));
  for (int64_t i = 0; i < s.n; ++i) history[i] = before[i], history[s.n + i] = f[i];
  for (int64_t j = 0; j < s.m; ++j)
    columns_history[j] = g_before[j], columns_history[mp + j] = g[j],
    columns_share[j] = columns_share[mp + j] = share[j];
  for (int form = 0; form < 4; ++form) {  // weight P; a product; sums; a history in the log domain
    for (int64_t first = 0, end; first < s.n; first = end) {
      end = first + (s.n + 1) / 2 < s.n ? first + (s.n + 1) / 2 : s.n;
      PanelGradient<T> q{};
      q.f = f.data() + first, q.g = g.data(), q.alpha = form ? alpha.data() + first : nullptr, q.weight = 1;
      if (form == 2) q.row_sum = d.data() + first, q.col_sum = share.data();
      if (form == 3) {
        q.depth = 2, q.stride = s.n;
        q.hist_before = q.hist_f = history.data() + first, q.share_f = history.data() + first;
        q.hist_g = columns_history.data(), q.share_g = columns_share.data();
      }
      q.out = out.data() + first * s.m, q.weight_rows = weight_rows.data() + first;
      q.weight_cols = weight_cols.data(), q.distance = distance.data() + first * s.m;
      sweep_panels<T>(panels.rows(first, end, true), [&](auto& kernels, auto& rows) { kernels.gradient(rows, q); });
    }
    answer.keep(out, answer.gradient), answer.keep(distance, answer.gradient);
  }
  answer.keep(row_value, answer.value);
  return answer;
}

}  // namespace test
}  // namespace ucmkd

// The Python entries of costs from features, and the term by class of whatever has features.
#pragma once
#include "bind.h"
#include "cost/entry.h"

namespace ucmkd {

template <class Of>  // sinkhorn's Problem, Ragged or PanelsOf
void set_classes(Of& p, int64_t count, Address cost, Address label, Address distance, Address grad) {
  p.classes = {count, cost, label, distance, grad};
}

template <class T>
cost::Features<T> features(int metric, int64_t n, int64_t m, int64_t d, Address x, Address y, Address scale_x,
                           Address scale_y) {
  return {static_cast<cost::Metric>(metric), n, m, d, x, y, scale_x, scale_y, {}};
}

inline void bind_cost(py::module_& module) {
  module.def(
      "cost_scales",
      [](bool f64, int metric, int64_t n, int64_t m, int64_t d, Address x, Address y, Address scale_x,
         Address scale_y) {
        return by_type(f64, [&](auto t) {
          const auto all = features<decltype(t)>(metric, n, m, d, x, y, scale_x, scale_y);
          return cost::scales<decltype(t)>(all, scale_x, scale_y);
        });
      },
      Unlocked());
  module.def(
      "cost_finish",
      [](bool f64, int metric, int64_t n, int64_t m, int64_t d, Address x, Address y, Address scale_x,
         Address scale_y, Address c) {
        by_type(f64, [&](auto t) {
          const auto all = features<decltype(t)>(metric, n, m, d, x, y, scale_x, scale_y);
          cost::finish<decltype(t)>(all, c);
        });
      },
      Unlocked());
  module.def(
      "cost_weigh",
      [](bool f64, int metric, int64_t n, int64_t m, int64_t d, Address x, Address y, Address scale_x,
         Address scale_y, Address c, Address dc, Address row_sum, Address col_sum) {
        by_type(f64, [&](auto t) {
          const auto all = features<decltype(t)>(metric, n, m, d, x, y, scale_x, scale_y);
          cost::weigh<decltype(t)>(all, c, dc, row_sum, col_sum);
        });
      },
      Unlocked());
  module.def(
      "cost_finish_gradient",
      [](bool f64, int metric, int64_t n, int64_t m, int64_t d, Address x, Address y, Address scale_x,
         Address scale_y, Address sums, bool of_y, Address g) {
        by_type(f64, [&](auto t) {
          const auto all = features<decltype(t)>(metric, n, m, d, x, y, scale_x, scale_y);
          cost::finish_gradient<decltype(t)>(all, sums, of_y, g);
        });
      },
      Unlocked());
  module.def(
      "cost_l1_backward",
      [](bool f64, int64_t n, int64_t m, int64_t d, Address x, Address y, Address dc, bool transposed,
         Address dx) {
        by_type(f64, [&](auto t) { cost::l1_backward<decltype(t)>(n, m, d, x, y, dc, transposed, dx); });
      },
      Unlocked());
}

}  // namespace ucmkd

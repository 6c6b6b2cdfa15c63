// The Python entries of costs from features, and the term by class of whatever has features.
#pragma once
#include "bind.h"
#include "cost/entry.h"
#include "sinkhorn/panel_entry.h"
#include "sinkhorn/ragged.h"

namespace ucmkd {

// The features of sinkhorn's Problem, Ragged or PanelsOf.
inline cost::FeatureSet& features_in(sinkhorn::Problem& p) { return p.features; }
inline cost::FeatureSet& features_in(sinkhorn::Ragged& r) { return r.all.features; }
inline cost::FeatureSet& features_in(sinkhorn::PanelsOf& p) { return p.features; }

template <class Of>
void set_classes(Of& p, int64_t count, Address cost, Address label, Address distance, Address grad) {
  features_in(p).classes = {count, cost, label, distance, grad};
}

// x and y before they were centred.
template <class Of>
void set_given(Of& p, Address x, Address y) {
  features_in(p).given_x = x, features_in(p).given_y = y;
}

using cost::features_of;
using CostFeatures = cost::FeatureSet;

inline void bind_cost(py::module_& module) {
  py::class_<CostFeatures>(module, "CostFeatures", "Addresses and sizes of two sets of features; it owns nothing.")
      .def(py::init([](bool f64, int metric, int64_t n, int64_t m, int64_t d, Address x, Address y, Address scale_x,
                       Address scale_y, Address given_x, Address given_y) {
        return CostFeatures{f64, static_cast<cost::Metric>(metric), n, m, d, x, y, scale_x, scale_y, given_x, given_y, {}};
      }));
  module.def(
      "cost_centre",
      [](bool f64, int64_t n, int64_t m, int64_t d, Address x, Address y, Address out_x, Address out_y) {
        by_type(f64, [&](auto t) { cost::centre<decltype(t)>(n, m, d, x, y, out_x, out_y); });
      },
      Unlocked());
  module.def(
      "cost_scales",
      [](const CostFeatures& f, Address scale_x, Address scale_y) {
        return by_type(f.f64, [&](auto t) {
          return cost::scales<decltype(t)>(features_of<decltype(t)>(f), scale_x, scale_y);
        });
      },
      Unlocked());
  module.def(
      "cost_finish",
      [](const CostFeatures& f, Address c) {
        by_type(f.f64, [&](auto t) { cost::finish<decltype(t)>(features_of<decltype(t)>(f), c); });
      },
      Unlocked());
  module.def(
      "cost_weigh",
      [](const CostFeatures& f, Address c, Address dc, Address row_sum, Address col_sum) {
        by_type(f.f64, [&](auto t) {
          cost::weigh<decltype(t)>(features_of<decltype(t)>(f), c, dc, row_sum, col_sum);
        });
      },
      Unlocked());
  module.def(
      "cost_set_apart",
      [](const CostFeatures& f, Address distance, Address weights, Address g_x, Address g_y) {
        by_type(f.f64, [&](auto t) {
          cost::set_apart<decltype(t)>(features_of<decltype(t)>(f), distance, weights, g_x, g_y);
        });
      },
      Unlocked());
  module.def(
      "cost_finish_gradient",
      [](const CostFeatures& f, Address sums, bool of_y, Address g) {
        by_type(f.f64, [&](auto t) {
          cost::finish_gradient<decltype(t)>(features_of<decltype(t)>(f), sums, of_y, g);
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

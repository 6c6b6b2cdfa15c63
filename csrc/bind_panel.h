// The Python entries of sweeps over panels.
#pragma once
#include "bind.h"
#include "bind_cost.h"
#include "sinkhorn/panel_entry.h"
#include "sinkhorn/relaxation.h"

namespace ucmkd {

inline void bind_panel(py::module_& module) {
  using sinkhorn::PanelsOf;
  py::class_<PanelsOf>(module, "SinkhornPanels", "Addresses and sizes of rows in panels; it owns nothing.")
      .def(py::init([](bool f64, double reg, int64_t room, int metric, int64_t n, int64_t m, int64_t d,
                       Address x, Address y, Address scale_x, Address scale_y, Address packed, Address kept,
                       bool made) {
        PanelsOf p{};
        p.f64 = f64, p.reg = reg, p.room = room, p.metric = metric, p.n = n, p.m = m, p.d = d;
        p.x = x, p.y = y, p.scale_x = scale_x, p.scale_y = scale_y;
        p.packed = packed, p.kept = kept, p.made = made;
        return p;
      }))
      .def("set_classes", &set_classes<PanelsOf>)
      .def("set_given", &set_given<PanelsOf>);
  using sinkhorn::Relaxation;
  py::class_<Relaxation>(module, "SinkhornRelaxation", "Which iterations are over-relaxed.")
      .def(py::init<bool, double, int64_t>())
      .def_readonly_static("plain_first", &Relaxation::kPlainFirst)
      .def("begin", &Relaxation::begin)
      .def("watch", &Relaxation::watch);
  module.def("panels_columns", &product::packed_columns);
  module.def("panels_packed_size", &product::packed_size);
  module.def(
      "panels_pack",
      [](bool f64, int64_t m, int64_t d, Address y, Address packed) {
        by_type(f64, [&](auto t) { sinkhorn::panels_pack<decltype(t)>(m, d, y, packed); });
      },
      Unlocked());
  module.def(
      "panel_columns",
      [](const PanelsOf& p, Address f, Address top, Address total) {
        return by_type(p.f64, [&](auto t) { return sinkhorn::panel_columns<decltype(t)>(p, f, top, total); });
      },
      Unlocked());
  module.def(
      "panel_iterate",
      [](const PanelsOf& p, bool relaxed, Address mass, Address g, Address f, Address sums) {
        by_type(p.f64, [&](auto t) { sinkhorn::panel_iterate<decltype(t)>(p, relaxed, mass, g, f, sums); });
      },
      Unlocked());
  module.def(
      "panel_plan",
      [](const PanelsOf& p, Address f, Address g, Address alpha, Address row_value, Address first) {
        by_type(p.f64, [&](auto t) { sinkhorn::panel_plan<decltype(t)>(p, f, g, alpha, row_value, first); });
      },
      Unlocked());
  module.def(
      "panel_adjoint",
      [](const PanelsOf& p, Address f, Address g, Address sigma, Address factor, Address d, Address sums) {
        by_type(p.f64,
                [&](auto t) { sinkhorn::panel_adjoint<decltype(t)>(p, f, g, sigma, factor, d, sums); });
      },
      Unlocked());
  module.def(
      "panel_adjoint_log",
      [](const PanelsOf& p, Address f, Address g, Address share, Address g_before, Address inverse,
         Address fbar, Address sums) {
        by_type(p.f64, [&](auto t) {
          sinkhorn::panel_adjoint_log<decltype(t)>(p, f, g, share, g_before, inverse, fbar, sums);
        });
      },
      Unlocked());
  module.def(
      "panel_gradient",
      [](const PanelsOf& p, Address f, Address g, Address alpha, double weight, Address row_sum,
         Address col_sum, int64_t depth, int64_t stride, Address hist_before, Address hist_f, Address share_f,
         Address hist_g, Address share_g, Address out, Address weight_rows, Address weight_cols, Address distance) {
        by_type(p.f64, [&](auto t) {
          using T = decltype(t);
          sinkhorn::PanelGradient<T> q{};
          q.f = f, q.g = g, q.alpha = alpha, q.weight = T(weight);
          q.row_sum = row_sum, q.col_sum = col_sum;
          q.depth = depth, q.stride = stride;
          q.hist_before = hist_before, q.hist_f = hist_f, q.share_f = share_f;
          q.hist_g = hist_g, q.share_g = share_g;
          q.out = out, q.weight_rows = weight_rows, q.weight_cols = weight_cols, q.distance = distance;
          sinkhorn::panel_gradient<T>(p, q);
        });
      },
      Unlocked());
}

}  // namespace ucmkd

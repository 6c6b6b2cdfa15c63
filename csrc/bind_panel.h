// The Python entries of sweeps over panels.
#pragma once
#include "bind.h"
#include "bind_cost.h"
#include "sinkhorn/panel_entry.h"
#include "sinkhorn/relaxation.h"

namespace ucmkd {

template <class Body>
auto sweep(const sinkhorn::PanelsOf& p, const Body& body) {
  return by_type(p.features.f64, [&](auto t) { return sinkhorn::sweep_panels<decltype(t)>(p, body); });
}

inline void bind_panel(py::module_& module) {
  using sinkhorn::PanelsOf;
  py::class_<PanelsOf>(module, "SinkhornPanels", "Addresses and sizes of rows in panels; it owns nothing.")
      .def(py::init([](bool f64, double reg, int64_t room, int metric, int64_t n, int64_t m, int64_t d,
                       Address x, Address y, Address scale_x, Address scale_y, Address packed, Address kept,
                       bool made) {
        PanelsOf p{};
        p.features = {f64, static_cast<cost::Metric>(metric), n, m, d, x, y, scale_x, scale_y, nullptr, nullptr, {}};
        p.reg = reg, p.room = room;
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
        return sweep(p, [&](auto& kernels, auto& panels) { return kernels.columns(panels, f, top, total); });
      },
      Unlocked());
  module.def(
      "panel_iterate",
      [](const PanelsOf& p, bool relaxed, Address mass, Address g, Address f, Address sums) {
        sweep(p, [&](auto& kernels, auto& panels) { kernels.iterate(panels, relaxed, mass, g, f, sums); });
      },
      Unlocked());
  module.def(
      "panel_plan",
      [](const PanelsOf& p, Address f, Address g, Address alpha, Address row_value, Address first) {
        sweep(p, [&](auto& kernels, auto& panels) { kernels.plan(panels, f, g, alpha, row_value, first); });
      },
      Unlocked());
  module.def(
      "panel_adjoint",
      [](const PanelsOf& p, Address f, Address g, Address sigma, Address factor, Address d, Address sums) {
        sweep(p, [&](auto& kernels, auto& panels) { kernels.adjoint(panels, f, g, sigma, factor, d, sums); });
      },
      Unlocked());
  module.def(
      "panel_adjoint_log",
      [](const PanelsOf& p, Address f, Address g, Address share, Address g_before, Address inverse,
         Address fbar, Address sums) {
        sweep(p, [&](auto& kernels, auto& panels) {
          kernels.adjoint_log(panels, f, g, share, g_before, inverse, fbar, sums);
        });
      },
      Unlocked());
  module.def(
      "panel_gradient",
      [](const PanelsOf& p, Address f, Address g, Address alpha, double weight, Address row_sum,
         Address col_sum, int64_t depth, int64_t stride, Address hist_before, Address hist_f, Address share_f,
         Address hist_g, Address share_g, Address out, Address weight_rows, Address weight_cols, Address distance) {
        sweep(p, [&](auto& kernels, const auto& panels) {
          kernels.gradient(panels, {f, g, alpha, weight, row_sum, col_sum, depth, stride, hist_before, hist_f, share_f,
                                    hist_g, share_g, out, weight_rows, weight_cols, distance});
        });
      },
      Unlocked());
}

}  // namespace ucmkd

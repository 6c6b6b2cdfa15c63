// Sweeps over panels of rows.
#include "bind/define.h"
#include "sinkhorn/panel_entry.h"
#include "sinkhorn/relaxation.h"

namespace ucmkd {

namespace {

// body(kernels, panels) and what it returns.
template <class Body>
auto sweep(const sinkhorn::PanelsOf& p, const Body& body) {
  return by_type(p.features.f64, [&](auto t) { return sinkhorn::sweep_panels<decltype(t)>(p, body); });
}

}  // namespace

void bind_panels(py::module_& module) {
  using sinkhorn::PanelsOf;
  // Addresses and sizes of rows in panels; it owns nothing.
  define_record(
      module, "Panels",
      [](const cost::FeatureSet& features, double reg, int64_t room, Address packed, Address kept, bool made) {
        return PanelsOf{features, reg, room, packed, kept, made};
      },
      py::kw_only(), "features"_a, "reg"_a, "room"_a, "packed"_a = 0, "kept"_a = 0, "made"_a = false);
  using sinkhorn::Relaxation;
  py::class_<Relaxation>(module, "Relaxation", "Which iterations are over-relaxed.")
      .def(py::init<bool, double, int64_t>(), "wanted"_a, "tol"_a, "last"_a)
      .def_readonly_static("plain_first", &Relaxation::kPlainFirst)
      .def("begin", &Relaxation::begin, "t"_a)
      .def("watch", &Relaxation::watch, "error"_a);
  module.def("panels_columns", &product::packed_columns, "m"_a);
  module.def("panels_packed_size", &product::packed_size, "m"_a, "d"_a);
  define(
      module, "panels_pack",
      [](bool f64, int64_t m, int64_t d, Address y, Address packed) {
        by_type(f64, [&](auto t) { sinkhorn::panels_pack<decltype(t)>(m, d, y, packed); });
      },
      py::kw_only(), "f64"_a, "m"_a, "d"_a, "y"_a, "packed"_a, Unlocked());
  define(
      module, "panel_columns",
      [](const PanelsOf& p, Address f, Address top, Address total) {
        return sweep(p, [&](auto& kernels, const auto& panels) { return kernels.columns(panels, f, top, total); });
      },
      "panels"_a, py::kw_only(), "f"_a, "top"_a, "total"_a, Unlocked());
  define(
      module, "panel_iterate",
      [](const PanelsOf& p, bool relaxed, double damping, Address mass, Address g, Address f, Address sums) {
        sweep(p, [&](auto& kernels, const auto& panels) {
          kernels.iterate(panels, {relaxed, damping}, mass, g, f, sums);
        });
      },
      "panels"_a, py::kw_only(), "relaxed"_a, "damping"_a, "mass"_a, "g"_a, "f"_a, "sums"_a, Unlocked());
  define(
      module, "panel_plan",
      [](const PanelsOf& p, double damping, Address f, Address g, Address alpha, Address row_value, Address first) {
        sweep(p,
              [&](auto& kernels, const auto& panels) { kernels.plan(panels, damping, f, g, alpha, row_value, first); });
      },
      "panels"_a, py::kw_only(), "damping"_a, "f"_a, "g"_a, "alpha"_a, "row_value"_a, "first"_a, Unlocked());
  define(
      module, "panel_adjoint",
      [](const PanelsOf& p, Address f, Address g, Address sigma, Address factor, Address d, Address sums) {
        sweep(p, [&](auto& kernels, const auto& panels) { kernels.adjoint(panels, f, g, sigma, factor, d, sums); });
      },
      "panels"_a, py::kw_only(), "f"_a, "g"_a, "sigma"_a, "factor"_a, "d"_a, "sums"_a, Unlocked());
  define(
      module, "panel_adjoint_log",
      [](const PanelsOf& p, Address f, Address g, Address share, Address g_before, Address inverse, Address fbar,
         Address sums) {
        sweep(p, [&](auto& kernels, const auto& panels) {
          kernels.adjoint_log(panels, {f, g, share, g_before, inverse}, fbar, sums);
        });
      },
      "panels"_a, py::kw_only(), "f"_a, "g"_a, "share"_a, "g_before"_a, "inverse"_a, "fbar"_a, "sums"_a, Unlocked());
  define(
      module, "panel_gradient",
      [](const PanelsOf& p, Address f, Address g, Address alpha, double weight, Address out, Address row_sums,
         Address column_sums, Address row_sum, Address col_sum, int64_t depth, int64_t stride, Address hist_before,
         Address hist_f, Address share_f, Address hist_g, Address share_g, Address distance) {
        sweep(p, [&](auto& kernels, const auto& panels) {
          kernels.gradient(panels, {f, g, alpha, weight, row_sum, col_sum, depth, stride, hist_before, hist_f, share_f,
                                    hist_g, share_g, out, row_sums, column_sums, distance});
        });
      },
      "panels"_a, py::kw_only(), "f"_a, "g"_a, "alpha"_a, "weight"_a, "out"_a, "row_sums"_a, "column_sums"_a,
      "row_sum"_a = 0, "col_sum"_a = 0, "depth"_a = 0, "stride"_a = 0, "hist_before"_a = 0, "hist_f"_a = 0,
      "share_f"_a = 0, "hist_g"_a = 0, "share_g"_a = 0, "distance"_a = 0, Unlocked());
}

}  // namespace ucmkd

// Sweeps over panels of rows.
#include "bind/bind.h"
#include "sinkhorn/panel_entry.h"
#include "sinkhorn/relaxation.h"

namespace ucmkd {

void bind_panels(py::module_& module) {
  using sinkhorn::PanelsOf;
  py::class_<PanelsOf>(module, "Panels", "Addresses and sizes of rows in panels; it owns nothing.")
      .def(py::init([](const Features& features, double reg, int64_t room, Address packed, Address kept,
                       bool made) {
             PanelsOf p{};
             p.f64 = features.f64, p.n = features.n, p.m = features.m;
             p.reg = reg, p.room = room, p.packed = packed, p.kept = kept, p.made = made;
             features.put_into(p);
             return p;
           }),
           py::kw_only(), "features"_a, "reg"_a, "room"_a, "packed"_a = 0, "kept"_a = 0, "made"_a = false);
  using sinkhorn::Relaxation;
  py::class_<Relaxation>(module, "Relaxation", "Which iterations are over-relaxed.")
      .def(py::init<bool, double, int64_t>(), "wanted"_a, "tol"_a, "last"_a)
      .def_readonly_static("plain_first", &Relaxation::kPlainFirst)
      .def("begin", &Relaxation::begin, "t"_a)
      .def("watch", &Relaxation::watch, "error"_a);
  module.def("panels_columns", &product::packed_columns, "m"_a);
  module.def("panels_packed_size", &product::packed_size, "m"_a, "d"_a);
  module.def(
      "panels_pack",
      [](bool f64, int64_t m, int64_t d, Address y, Address packed) {
        by_type(f64, [&](auto t) { sinkhorn::panels_pack<decltype(t)>(m, d, y, packed); });
      },
      py::kw_only(), "f64"_a, "m"_a, "d"_a, "y"_a, "packed"_a, Unlocked());
  module.def(
      "panel_columns",
      [](const PanelsOf& p, Address f, Address top, Address total) {
        return by_type(p.f64, [&](auto t) { return sinkhorn::panel_columns<decltype(t)>(p, f, top, total); });
      },
      "panels"_a, py::kw_only(), "f"_a, "top"_a, "total"_a, Unlocked());
  module.def(
      "panel_iterate",
      [](const PanelsOf& p, bool relaxed, Address mass, Address g, Address f, Address sums) {
        by_type(p.f64, [&](auto t) { sinkhorn::panel_iterate<decltype(t)>(p, relaxed, mass, g, f, sums); });
      },
      "panels"_a, py::kw_only(), "relaxed"_a, "mass"_a, "g"_a, "f"_a, "sums"_a, Unlocked());
  module.def(
      "panel_plan",
      [](const PanelsOf& p, Address f, Address g, Address alpha, Address row_value, Address first) {
        by_type(p.f64, [&](auto t) { sinkhorn::panel_plan<decltype(t)>(p, f, g, alpha, row_value, first); });
      },
      "panels"_a, py::kw_only(), "f"_a, "g"_a, "alpha"_a, "row_value"_a, "first"_a, Unlocked());
  module.def(
      "panel_adjoint",
      [](const PanelsOf& p, Address f, Address g, Address sigma, Address factor, Address d, Address sums) {
        by_type(p.f64,
                [&](auto t) { sinkhorn::panel_adjoint<decltype(t)>(p, f, g, sigma, factor, d, sums); });
      },
      "panels"_a, py::kw_only(), "f"_a, "g"_a, "sigma"_a, "factor"_a, "d"_a, "sums"_a, Unlocked());
  module.def(
      "panel_adjoint_log",
      [](const PanelsOf& p, Address f, Address g, Address share, Address g_before, Address inverse,
         Address fbar, Address sums) {
        by_type(p.f64, [&](auto t) {
          sinkhorn::panel_adjoint_log<decltype(t)>(p, f, g, share, g_before, inverse, fbar, sums);
        });
      },
      "panels"_a, py::kw_only(), "f"_a, "g"_a, "share"_a, "g_before"_a, "inverse"_a, "fbar"_a, "sums"_a,
      Unlocked());
  module.def(
      "panel_gradient",
      [](const PanelsOf& p, Address f, Address g, Address alpha, double weight, Address out, Address row_sums,
         Address column_sums, Address row_sum, Address col_sum, int64_t depth, int64_t stride,
         Address hist_before, Address hist_f, Address share_f, Address hist_g, Address share_g,
         Address distance) {
        by_type(p.f64, [&](auto t) {
          using T = decltype(t);
          sinkhorn::PanelGradient<T> q{};
          q.f = f, q.g = g, q.alpha = alpha, q.weight = T(weight);
          q.row_sum = row_sum, q.col_sum = col_sum;
          q.depth = depth, q.stride = stride;
          q.hist_before = hist_before, q.hist_f = hist_f, q.share_f = share_f;
          q.hist_g = hist_g, q.share_g = share_g;
          q.out = out, q.weight_rows = row_sums, q.weight_cols = column_sums, q.distance = distance;
          sinkhorn::panel_gradient<T>(p, q);
        });
      },
      "panels"_a, py::kw_only(), "f"_a, "g"_a, "alpha"_a, "weight"_a, "out"_a, "row_sums"_a, "column_sums"_a,
      "row_sum"_a = 0, "col_sum"_a = 0, "depth"_a = 0, "stride"_a = 0, "hist_before"_a = 0, "hist_f"_a = 0,
      "share_f"_a = 0, "hist_g"_a = 0, "share_g"_a = 0, "distance"_a = 0, Unlocked());
}

}  // namespace ucmkd

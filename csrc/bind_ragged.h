// The Python entries of many problems of different sizes in one call.
#pragma once
#include <utility>

#include "bind.h"
#include "bind_cost.h"
#include "sinkhorn/ragged.h"

namespace ucmkd {

inline void bind_ragged(py::module_& module) {
  using sinkhorn::Ragged;
  py::class_<Ragged>(module, "SinkhornRagged", "Addresses and sizes of a ragged batch; it owns nothing.")
      .def(py::init([](bool f64, int64_t batch, int64_t d, int64_t max_iter, double reg, double tol,
                       bool relax, bool history, int metric, Address x_offsets, Address y_offsets, Address x,
                       Address y, Address scale_x, Address scale_y, Address a, Address b, Address init_f,
                       Address init_g) {
        Ragged r{};
        sinkhorn::Problem& p = r.all;
        p.f64 = f64, p.batch = batch, p.max_iter = max_iter, p.reg = reg, p.tol = tol;
        p.relax = relax, p.history = history;
        p.a = a, p.b = b, p.init_f = init_f, p.init_g = init_g;
        p.features = {f64, static_cast<cost::Metric>(metric), 0, 0, d, x, y, scale_x, scale_y, nullptr, nullptr, {}};
        r.x_offsets = x_offsets, r.y_offsets = y_offsets;
        return r;
      }))
      .def("sizes",
           [](const Ragged& r) {
             const auto sizes = sinkhorn::ragged_sizes(r);
             return std::make_pair(sizes.cost, sizes.saved);
           })
      .def("cost_offset", &sinkhorn::ragged_cost_offset)
      .def("set_classes", &set_classes<Ragged>)
      .def("set_given", &set_given<Ragged>)
      .def("memory", [](Ragged& r, Address cost, Address saved) { r.all.cost = cost, r.all.saved = saved; });
  module.def(
      "sinkhorn_ragged_forward",
      [](const Ragged& r, bool save_plan, Address f, Address g, Address value, Address dual,
         Address marginal_error, Address n_iter) {
        return by_type(r.all.f64, [&](auto t) {
          return sinkhorn::ragged_forward<decltype(t)>(r, save_plan,
                                                       {f, g, value, dual, marginal_error, n_iter});
        });
      },
      Unlocked());
  module.def(
      "sinkhorn_ragged_backward",
      [](const Ragged& r, int grad, Address up_value, Address up_f, Address up_g, Address x, Address y,
         Address a, Address b) {
        return by_type(r.all.f64, [&](auto t) {
          return sinkhorn::ragged_backward<decltype(t)>(r, static_cast<sinkhorn::Grad>(grad),
                                                        {up_value, up_f, up_g}, {x, y, a, b});
        });
      },
      Unlocked());
}

}  // namespace ucmkd

// The Python entries of Sinkhorn on a batch of costs, and of the loss between features as one call each way.
#pragma once
#include "bind.h"
#include "bind_cost.h"
#include "sinkhorn/entry.h"
#include "sinkhorn/params.h"

namespace ucmkd {

// The steps between which Python allocates, and multiplies by torch's products.
inline void bind_sinkhorn_steps(py::module_& module) {
  using sinkhorn::Problem;
  module.def("padded", &sinkhorn::padded);
  module.def("sinkhorn_saved_size", &sinkhorn::saved_size);
  py::class_<Problem>(module, "SinkhornProblem", "Addresses and sizes of one batch; it owns nothing.")
      .def(py::init([](bool f64, int64_t batch, int64_t n, int64_t m, int64_t max_iter, double reg,
                       double tol, Address cost, Address a, bool a_shared, Address b, bool b_shared,
                       Address init_f, Address init_g, bool relax, bool history, Address saved, int metric,
                       int64_t d, Address x, Address y, Address scale_x, Address scale_y) {
        Problem p{};
        p.f64 = f64, p.batch = batch, p.n = n, p.m = m, p.max_iter = max_iter, p.reg = reg, p.tol = tol;
        p.cost = cost;
        p.a = a, p.a_shared = a_shared;
        p.b = b, p.b_shared = b_shared;
        p.init_f = init_f, p.init_g = init_g, p.relax = relax, p.history = history, p.saved = saved;
        p.features = {f64, static_cast<cost::Metric>(metric), n, m, d, x, y, scale_x, scale_y, nullptr, nullptr, {}};
        return p;
      }))
      .def("set_classes", &set_classes<Problem>)
      .def("set_given", &set_given<Problem>);
  module.def(
      "sinkhorn_forward",
      [](const Problem& p, bool save_plan, Address f, Address g, Address value, Address dual,
         Address marginal_error, Address n_iter) {
        return by_type(p.f64, [&](auto t) {
          return sinkhorn::forward<decltype(t)>(p, save_plan, {f, g, value, dual, marginal_error, n_iter});
        });
      },
      Unlocked());
  module.def(
      "sinkhorn_adjoint",
      [](const Problem& p, Address up_value, Address up_f, Address up_g, Address left, Address right,
         Address grad_a, Address grad_b, Address depth) {
        return by_type(p.f64, [&](auto t) {
          return sinkhorn::adjoint<decltype(t)>(p, {up_value, up_f, up_g}, left, right,
                                                {nullptr, grad_a, grad_b, nullptr, nullptr}, depth);
        });
      },
      Unlocked());
  module.def(
      "sinkhorn_adjoint_finish",
      [](const Problem& p, Address up_value, Address up_f, Address up_g, Address depth, Address grad_cost,
         Address grad_a, Address grad_b, Address rows, Address cols) {
        by_type(p.f64, [&](auto t) {
          sinkhorn::adjoint_finish<decltype(t)>(p, {up_value, up_f, up_g}, depth,
                                                {grad_cost, grad_a, grad_b, rows, cols});
        });
      },
      Unlocked());
  module.def(
      "sinkhorn_implicit",
      [](const Problem& p, Address up_value, Address up_f, Address up_g, Address grad_cost, Address grad_a,
         Address grad_b, Address rows, Address cols) {
        return by_type(p.f64, [&](auto t) {
          return sinkhorn::implicit<decltype(t)>(p, {up_value, up_f, up_g},
                                                 {grad_cost, grad_a, grad_b, rows, cols});
        });
      },
      Unlocked());
  module.def(
      "sinkhorn_envelope",
      [](const Problem& p, Address up_value, Address grad_cost, Address rows, Address cols) {
        by_type(p.f64, [&](auto t) {
          sinkhorn::envelope<decltype(t)>(p, {up_value, nullptr, nullptr},
                                          {grad_cost, nullptr, nullptr, rows, cols});
        });
      },
      Unlocked());
  module.def(
      "sinkhorn_gradient_rows",
      [](const Problem& p, int grad, Address up_value, int64_t begin, int64_t end, Address row_sum,
         Address col_sum, Address grad_cost, Address rows, Address cols) {
        by_type(p.f64, [&](auto t) {
          sinkhorn::gradient_rows<decltype(t)>(p, {up_value, nullptr, nullptr},
                                               {static_cast<sinkhorn::Grad>(grad), begin, end, row_sum, col_sum},
                                               {grad_cost, nullptr, nullptr, rows, cols});
        });
      },
      Unlocked());
}

inline void bind_sinkhorn_loss(py::module_& module) {
  using sinkhorn::Grad;
  using sinkhorn::LossSettings;
  using sinkhorn::Problem;
  module.def(
      "sinkhorn_loss_forward",
      [](const Problem& p, bool own_products, bool save_plan, Address f, Address g, Address value,
         Address dual, Address marginal_error, Address n_iter) {
        return by_type(p.f64, [&](auto t) {
          return sinkhorn::loss_forward<decltype(t)>(p, own_products, save_plan,
                                                     {f, g, value, dual, marginal_error, n_iter});
        });
      },
      Unlocked());
  module.def(
      "sinkhorn_loss_backward",
      [](const Problem& p, int grad, Address up_value, Address up_f, Address up_g, Address grad_a,
         Address grad_b, Address dx, Address dy) {
        return by_type(p.f64, [&](auto t) {
          return sinkhorn::loss_backward<decltype(t)>(p, static_cast<Grad>(grad), {up_value, up_f, up_g},
                                                      {dx, dy, grad_a, grad_b});
        });
      },
      Unlocked());
  py::class_<LossSettings>(module, "SinkhornLossSettings", "What many calls share.")
      .def(py::init([](bool f64, int metric, bool regularized, double reg, int64_t max_iter, double tol,
                       bool relax, int grad) {
        return LossSettings{f64, static_cast<cost::Metric>(metric), regularized, reg, max_iter, tol, relax, static_cast<Grad>(grad)};
      }));
  module.def(
      "sinkhorn_loss_and_gradient",
      [](const LossSettings& settings, int64_t n, int64_t d, int64_t m, Address x, Address y, Address a,
         Address b, Address init_f, Address init_g, Address loss, Address marginal_error, Address n_iter,
         Address dx, Address dy) -> py::object {
        Problem p{};
        p.n = n, p.m = m, p.features.d = d, p.features.x = x, p.features.y = y, p.a = a, p.b = b, p.init_f = init_f, p.init_g = init_g;
        sinkhorn::Remarks remarks{true, true, true};
        const char* refused = [&] {
          py::gil_scoped_release unlocked;
          return by_type(settings.f64, [&](auto t) {
            return sinkhorn::loss_and_gradient<decltype(t)>(settings, p, {loss, marginal_error, n_iter, dx, dy},
                                                            &remarks);
          });
        }();
        if (refused) return py::str(refused);
        if (!remarks.any()) return py::none();
        return py::make_tuple(remarks.gradient_converged, remarks.reached_tol, remarks.above_rounding);
      });
}

inline void bind_sinkhorn(py::module_& module) {
  bind_sinkhorn_steps(module);
  bind_sinkhorn_loss(module);
}

}  // namespace ucmkd

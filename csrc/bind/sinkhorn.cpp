// Sinkhorn on a batch of costs, and the loss between features.
#include "bind/define.h"
#include "sinkhorn/entry.h"

namespace ucmkd {
namespace {

using sinkhorn::Grad;
using sinkhorn::LossSettings;
using sinkhorn::Problem;
using sinkhorn::Upstream;

void bind_records(py::module_& module) {
  // Addresses and sizes of one problem or a batch; it owns nothing.
  define_record(
      module, "Problem",
      [](bool f64, int64_t n, int64_t m, double reg, int64_t max_iter, double tol, double rho_a, double rho_b,
         bool shifted, Address cost, Address saved, int64_t batch, Address a, bool a_shared, Address b, bool b_shared,
         Address init_f, Address init_g, bool relax, bool history, const cost::FeatureSet* features) {
        Problem p{};
        p.f64 = f64, p.batch = batch, p.n = n, p.m = m, p.max_iter = max_iter, p.reg = reg, p.tol = tol;
        p.cost = cost, p.saved = saved;
        p.a = a, p.a_shared = a_shared, p.b = b, p.b_shared = b_shared;
        p.init_f = init_f, p.init_g = init_g, p.relax = relax, p.history = history;
        p.marginals = {rho_a, rho_b, shifted};
        if (features) p.features = *features;
        return p;
      },
      py::kw_only(), "f64"_a, "n"_a, "m"_a, "reg"_a, "max_iter"_a, "tol"_a, "rho_a"_a, "rho_b"_a, "shifted"_a, "cost"_a,
      "saved"_a, "batch"_a = 1, "a"_a = 0, "a_shared"_a = true, "b"_a = 0, "b_shared"_a = true, "init_f"_a = 0,
      "init_g"_a = 0, "relax"_a = false, "history"_a = false, "features"_a = py::none());
  // Gradients that arrive at the outputs.
  define_record(
      module, "Upstream", [](Address value, Address f, Address g) { return Upstream{value, f, g}; }, py::kw_only(),
      "value"_a = 0, "f"_a = 0, "g"_a = 0);
  // What many calls of a loss between features share.
  define_record(
      module, "LossSettings",
      [](bool f64, int metric, bool regularized, double reg, int64_t max_iter, double tol, bool relax, int grad,
         double rho_a, double rho_b, bool shifted) {
        return LossSettings{f64,
                            static_cast<cost::Metric>(metric),
                            regularized,
                            reg,
                            max_iter,
                            tol,
                            relax,
                            static_cast<Grad>(grad),
                            {rho_a, rho_b, shifted}};
      },
      py::kw_only(), "f64"_a, "metric"_a, "regularized"_a, "reg"_a, "max_iter"_a, "tol"_a, "relax"_a, "grad"_a,
      "rho_a"_a, "rho_b"_a, "shifted"_a);
}

void bind_steps(py::module_& module) {
  define(
      module, "sinkhorn_forward",
      [](const Problem& p, bool save_plan, Address f, Address g, Address value, Address dual, Address marginal_error,
         Address n_iter) {
        return by_type(p.f64, [&](auto t) {
          return sinkhorn::forward<decltype(t)>(p, save_plan, {f, g, value, dual, marginal_error, n_iter});
        });
      },
      "problem"_a, py::kw_only(), "save_plan"_a, "f"_a, "g"_a, "value"_a, "dual"_a, "marginal_error"_a, "n_iter"_a,
      Unlocked());
  define(
      module, "sinkhorn_adjoint",
      [](const Problem& p, const Upstream& up, Address left, Address right, Address grad_a, Address grad_b,
         Address depth) {
        return by_type(p.f64, [&](auto t) {
          return sinkhorn::adjoint<decltype(t)>(p, up, left, right, {nullptr, grad_a, grad_b, nullptr, nullptr}, depth);
        });
      },
      "problem"_a, "upstream"_a, py::kw_only(), "left"_a, "right"_a, "grad_a"_a, "grad_b"_a, "depth"_a, Unlocked());
  define(
      module, "sinkhorn_adjoint_finish",
      [](const Problem& p, const Upstream& up, Address depth, Address grad_cost, Address grad_a, Address grad_b,
         Address row_sums, Address column_sums) {
        by_type(p.f64, [&](auto t) {
          sinkhorn::adjoint_finish<decltype(t)>(p, up, depth, {grad_cost, grad_a, grad_b, row_sums, column_sums});
        });
      },
      "problem"_a, "upstream"_a, py::kw_only(), "depth"_a, "grad_cost"_a, "grad_a"_a, "grad_b"_a, "row_sums"_a = 0,
      "column_sums"_a = 0, Unlocked());
  define(
      module, "sinkhorn_implicit",
      [](const Problem& p, const Upstream& up, Address grad_cost, Address grad_a, Address grad_b, Address row_sums,
         Address column_sums) {
        return by_type(p.f64, [&](auto t) {
          return sinkhorn::implicit<decltype(t)>(p, up, {grad_cost, grad_a, grad_b, row_sums, column_sums});
        });
      },
      "problem"_a, "upstream"_a, py::kw_only(), "grad_cost"_a, "grad_a"_a, "grad_b"_a, "row_sums"_a = 0,
      "column_sums"_a = 0, Unlocked());
  define(
      module, "sinkhorn_envelope",
      [](const Problem& p, const Upstream& up, Address grad_cost) {
        by_type(p.f64, [&](auto t) {
          sinkhorn::envelope<decltype(t)>(p, up, {grad_cost, nullptr, nullptr, nullptr, nullptr});
        });
      },
      "problem"_a, "upstream"_a, py::kw_only(), "grad_cost"_a, Unlocked());
  define(
      module, "sinkhorn_gradient_rows",
      [](const Problem& p, const Upstream& up, int grad, int64_t begin, int64_t end, Address row_sum, Address col_sum,
         Address grad_cost, Address row_sums, Address column_sums) {
        by_type(p.f64, [&](auto t) {
          sinkhorn::gradient_rows<decltype(t)>(p, up, {static_cast<Grad>(grad), begin, end, row_sum, col_sum},
                                               {grad_cost, nullptr, nullptr, row_sums, column_sums});
        });
      },
      "problem"_a, "upstream"_a, py::kw_only(), "grad"_a, "begin"_a, "end"_a, "row_sum"_a, "col_sum"_a, "grad_cost"_a,
      "row_sums"_a, "column_sums"_a, Unlocked());
}

// None, a refusal, or (gradient_converged, reached_tol, above_rounding).
py::object loss_and_gradient(const LossSettings& settings, int64_t n, int64_t m, int64_t d, Address x, Address y,
                             Address a, Address b, Address init_f, Address init_g, Address loss, Address marginal_error,
                             Address n_iter, Address grad_x, Address grad_y) {
  Problem p{};
  p.n = n, p.m = m, p.features.d = d, p.features.x = x, p.features.y = y, p.a = a, p.b = b, p.init_f = init_f,
  p.init_g = init_g;
  sinkhorn::Remarks remarks{true, true, true};
  const char* refused = [&] {
    py::gil_scoped_release unlocked;
    return by_type(settings.f64, [&](auto t) {
      return sinkhorn::loss_and_gradient<decltype(t)>(settings, p, {loss, marginal_error, n_iter, grad_x, grad_y},
                                                      &remarks);
    });
  }();
  if (refused) return py::str(refused);
  if (!remarks.any()) return py::none();
  return py::make_tuple(remarks.gradient_converged, remarks.reached_tol, remarks.above_rounding);
}

void bind_loss(py::module_& module) {
  define(
      module, "loss_forward",
      [](const Problem& p, bool own_products, bool save_plan, Address f, Address g, Address value, Address dual,
         Address marginal_error, Address n_iter) {
        return by_type(p.f64, [&](auto t) {
          return sinkhorn::loss_forward<decltype(t)>(p, own_products, save_plan,
                                                     {f, g, value, dual, marginal_error, n_iter});
        });
      },
      "problem"_a, py::kw_only(), "own_products"_a, "save_plan"_a, "f"_a, "g"_a, "value"_a, "dual"_a,
      "marginal_error"_a, "n_iter"_a, Unlocked());
  define(
      module, "loss_backward",
      [](const Problem& p, const Upstream& up, int grad, Address grad_a, Address grad_b, Address grad_x,
         Address grad_y) {
        return by_type(p.f64, [&](auto t) {
          return sinkhorn::loss_backward<decltype(t)>(p, static_cast<Grad>(grad), up, {grad_x, grad_y, grad_a, grad_b});
        });
      },
      "problem"_a, "upstream"_a, py::kw_only(), "grad"_a, "grad_a"_a, "grad_b"_a, "grad_x"_a, "grad_y"_a, Unlocked());
  define(module, "loss_and_gradient", &loss_and_gradient, "settings"_a, py::kw_only(), "n"_a, "m"_a, "d"_a, "x"_a,
         "y"_a, "a"_a, "b"_a, "init_f"_a, "init_g"_a, "loss"_a, "marginal_error"_a, "n_iter"_a, "grad_x"_a, "grad_y"_a);
}

}  // namespace

void bind_sinkhorn(py::module_& module) {
  bind_records(module);
  bind_steps(module);
  bind_loss(module);
}

}  // namespace ucmkd

// Many problems of different sizes in one call.
#include "sinkhorn/ragged.h"

#include <optional>
#include <string>
#include <utility>

#include "bind/define.h"

namespace ucmkd {

void bind_ragged(py::module_& module) {
  using sinkhorn::Ragged;
  using sinkhorn::Upstream;
  // Addresses and sizes of a ragged list of problems; it owns nothing.
  define_record(
      module, "Ragged",
      [](const cost::FeatureSet& features, int64_t batch, Address x_offsets, Address y_offsets, double reg,
         int64_t max_iter, double tol, double rho_a, double rho_b, bool shifted, Address a, Address b, Address init_f,
         Address init_g, bool relax, bool history, Address cost, Address saved) {
        Ragged r{{}, x_offsets, y_offsets};
        sinkhorn::Problem& p = r.all;
        p.f64 = features.f64, p.batch = batch, p.max_iter = max_iter, p.reg = reg, p.tol = tol;
        p.relax = relax, p.history = history, p.marginals = {rho_a, rho_b, shifted};
        p.a = a, p.b = b, p.init_f = init_f, p.init_g = init_g;
        p.cost = cost, p.saved = saved, p.features = features;
        return r;
      },
      py::kw_only(), "features"_a, "batch"_a, "x_offsets"_a, "y_offsets"_a, "reg"_a, "max_iter"_a, "tol"_a, "rho_a"_a,
      "rho_b"_a, "shifted"_a, "a"_a = 0, "b"_a = 0, "init_f"_a = 0, "init_g"_a = 0, "relax"_a = false,
      "history"_a = false, "cost"_a = 0, "saved"_a = 0);
  module.def(
      "ragged_sizes",
      [](int64_t batch, Address x_offsets, Address y_offsets, int64_t max_iter, bool history, bool unbalanced) {
        Ragged r{{}, x_offsets, y_offsets};
        r.all.batch = batch, r.all.max_iter = max_iter, r.all.history = history;
        if (unbalanced) r.all.marginals = {1, 1, false};
        const auto sizes = sinkhorn::ragged_sizes(r);
        return std::make_pair(sizes.cost, sizes.saved);
      },
      "batch"_a, "x_offsets"_a, "y_offsets"_a, "max_iter"_a, "history"_a, "unbalanced"_a = false);
  define(
      module, "ragged_forward",
      [](const Ragged& r, bool save_plan, Address f, Address g, Address value, Address dual, Address marginal_error,
         Address n_iter) {
        std::string refused = by_type(r.all.f64, [&](auto t) {
          return sinkhorn::ragged_forward<decltype(t)>(r, save_plan, {f, g, value, dual, marginal_error, n_iter});
        });
        return refused.empty() ? std::nullopt : std::make_optional(refused);
      },
      "ragged"_a, py::kw_only(), "save_plan"_a, "f"_a, "g"_a, "value"_a, "dual"_a, "marginal_error"_a, "n_iter"_a,
      Unlocked());
  define(
      module, "ragged_backward",
      [](const Ragged& r, const Upstream& up, int grad, Address grad_x, Address grad_y, Address grad_a,
         Address grad_b) {
        return by_type(r.all.f64, [&](auto t) {
          return sinkhorn::ragged_backward<decltype(t)>(r, static_cast<sinkhorn::Grad>(grad), up,
                                                        {grad_x, grad_y, grad_a, grad_b});
        });
      },
      "ragged"_a, "upstream"_a, py::kw_only(), "grad"_a, "grad_x"_a, "grad_y"_a, "grad_a"_a, "grad_b"_a, Unlocked());
}

}  // namespace ucmkd

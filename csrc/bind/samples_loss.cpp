// The Sinkhorn divergence between sampled measures.
#include "bind/define.h"
#include "samples_loss/entry.h"

namespace ucmkd {
namespace {

template <class T>
samples_loss::Measures<T> measures(int64_t batch, int64_t n, int64_t m, int64_t d, Address a, Address x, Address b,
                                   Address y) {
  return {batch, n, m, d, a, x, b, y};
}

// (diagonal, weights) of params.h.
py::object samples_look(bool f64, int64_t batch, int64_t n, int64_t m, int64_t d, Address a, Address x, Address b,
                        Address y) {
  return by_type(f64, [&](auto t) {
    samples_loss::Look seen;
    {
      py::gil_scoped_release unlocked;
      seen = samples_loss::look(measures<decltype(t)>(batch, n, m, d, a, x, b, y));
    }
    return py::object(py::make_tuple(seen.diagonal, seen.weights));
  });
}

void samples_forward(bool f64, int64_t batch, int64_t n, int64_t m, int64_t d, Address a, Address x, Address b,
                     Address y, int p, std::vector<double> eps, double rho, bool debias, bool potentials,
                     bool keep_costs, Address loss, Address term_x, Address term_y, Address slope_x, Address slope_y) {
  by_type(f64, [&](auto t) {
    using T = decltype(t);
    samples_loss::Forward<T> call{};
    call.given = measures<T>(batch, n, m, d, a, x, b, y);
    call.p = p, call.eps = eps.data(), call.steps = static_cast<int64_t>(eps.size()), call.rho = rho;
    call.debias = debias, call.potentials = potentials, call.keep_costs = keep_costs;
    call.loss = loss, call.term_x = term_x, call.term_y = term_y;
    call.slope_x = slope_x, call.slope_y = slope_y;
    samples_loss::forward(call);
  });
}

}  // namespace

void bind_samples_loss(py::module_& module) {
  define(module, "samples_look", &samples_look, py::kw_only(), "f64"_a, "batch"_a, "n"_a, "m"_a, "d"_a, "a"_a, "x"_a,
         "b"_a, "y"_a);
  define(module, "samples_forward", &samples_forward, Unlocked(), py::kw_only(), "f64"_a, "batch"_a, "n"_a, "m"_a,
         "d"_a, "a"_a, "x"_a, "b"_a, "y"_a, "p"_a, "eps"_a, "rho"_a, "debias"_a, "potentials"_a, "keep_costs"_a,
         "loss"_a, "term_x"_a, "term_y"_a, "slope_x"_a, "slope_y"_a);
}

}  // namespace ucmkd

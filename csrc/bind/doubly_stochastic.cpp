// The doubly stochastic projection.
#include "bind/define.h"
#include "doubly_stochastic/entry.h"

namespace ucmkd {
namespace {

// The first bad matrix, or -1 (params.h).
int64_t doubly_stochastic_run(bool f64, int64_t batch, int64_t n, int64_t m, Address logits, Address upstream,
                              int64_t n_iter, double eps, bool softmax, bool rows_first, Address out) {
  return by_type(f64, [&](auto t) {
    using T = decltype(t);
    doubly_stochastic::Call<T> call{};
    call.batch = batch, call.n = n, call.m = m;
    call.logits = logits, call.upstream = upstream;
    call.n_iter = n_iter, call.eps = T(eps), call.softmax = softmax, call.rows_first = rows_first;
    call.out = out;
    doubly_stochastic::run(call);
    return call.bad;
  });
}

}  // namespace

void bind_doubly_stochastic(py::module_& module) {
  define(module, "doubly_stochastic", &doubly_stochastic_run, py::kw_only(), Unlocked(), "f64"_a, "batch"_a, "n"_a,
         "m"_a, "logits"_a, "upstream"_a, "n_iter"_a, "eps"_a, "softmax"_a, "rows_first"_a, "out"_a);
}

}  // namespace ucmkd

// The CUDA kernels of csrc/ as a Python module that runs them on the execution model.
#include "bind/bind.h"
#include "core/launch.cuh"
#include "sinkhorn/regime.h"

using namespace ucmkd;

PYBIND11_MODULE(cuda_model, m) {
  bind_cuda(m);
  m.def("configure", [](int multiprocessors, int64_t shared_per_block, int thread_limit, int order, uint64_t seed,
                        bool skip_block_barrier) {
    cuda::model::forget_clusters();
    cuda::model::settings() = {
        multiprocessors,   shared_per_block, thread_limit, true, static_cast<cuda::model::Order>(order), seed,
        skip_block_barrier};
  });
  m.def("launches", &cuda::model::launches);
  m.def("clusters_launched", &cuda::model::clusters_launched);
  m.def(
      "choose_regime",
      [](int64_t n, int64_t m_, int64_t batch, int64_t element, int multiprocessors, int64_t shared_per_block,
         bool clusters) {
        const sinkhorn::DeviceProperties device = {multiprocessors, shared_per_block, sinkhorn::max_threads(element),
                                                   clusters};
        return int(sinkhorn::choose_regime(n, m_, batch, element, device));
      },
      py::arg("n"), py::arg("m"), py::arg("batch"), py::arg("element"), py::arg("multiprocessors"),
      py::arg("shared_per_block"), py::arg("clusters") = false);
  m.def("gradient_tile", &sinkhorn::gradient_tile);
  m.def(
      "make_plan",
      [](int regime, int64_t n, int64_t m_, int64_t batch, int64_t element, int multiprocessors,
         int64_t shared_per_block, int threads, int quads, bool clusters) {
        const sinkhorn::Plan p = sinkhorn::make_plan(
            sinkhorn::Regime(regime), n, m_, batch, element,
            {multiprocessors, shared_per_block, threads ? threads : sinkhorn::max_threads(element), clusters},
            {0, quads, 0});
        py::dict d;
        d["regime"] = int(p.regime), d["threads"] = p.threads, d["grid"] = p.grid, d["tile_rows"] = p.tile_rows;
        d["kept"] = p.kept, d["state_shared"] = p.state_shared, d["shared"] = p.shared, d["work"] = p.work;
        auto owned = [](const sinkhorn::OwnedPlan& o) {
          py::dict d;
          d["threads"] = o.threads, d["span"] = o.span, d["groups"] = o.groups, d["quads"] = o.quads;
          d["rows"] = o.rows, d["kept"] = o.kept, d["held"] = o.held, d["shared"] = o.shared;
          d["work"] = o.work, d["clusters"] = o.clusters;
          return d;
        };
        d["owned"] = owned(p.owned), d["back"] = owned(p.back);
        return d;
      },
      py::arg("regime"), py::arg("n"), py::arg("m"), py::arg("batch"), py::arg("element"), py::arg("multiprocessors"),
      py::arg("shared_per_block"), py::arg("threads") = 0, py::arg("quads") = 0, py::arg("clusters") = false);
}

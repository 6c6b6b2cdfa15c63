// The Python entries of the CUDA kernels, one line each. bind.cpp includes it where device code is built, and
// so does the module of tests/cuda_model, which runs the same kernels without a GPU.
#pragma once
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "sinkhorn/cuda.h"

namespace ucmkd {

// Raises what the driver refused.
inline void check_launch(const char* refused) {
  if (refused) throw std::runtime_error(std::string("a CUDA kernel could not be started: ") + refused);
}

inline void bind_cuda(pybind11::module_& m) {
  namespace py = pybind11;
  using sinkhorn::CudaCall;
  py::class_<CudaCall> call(m, "CudaSinkhorn", "Addresses and sizes of one batch; it owns nothing.");
  call.def(py::init<>());
#define UK_FIELD(name) call.def_readwrite(#name, &CudaCall::name)
  UK_FIELD(f64), UK_FIELD(device), UK_FIELD(stream), UK_FIELD(regime), UK_FIELD(n), UK_FIELD(m);
  UK_FIELD(batch), UK_FIELD(max_iter), UK_FIELD(a_stride), UK_FIELD(b_stride), UK_FIELD(reg), UK_FIELD(tol);
  UK_FIELD(history), UK_FIELD(cost), UK_FIELD(a), UK_FIELD(b), UK_FIELD(init_f), UK_FIELD(hist_f);
  UK_FIELD(hist_g), UK_FIELD(log_f), UK_FIELD(log_g), UK_FIELD(f), UK_FIELD(g), UK_FIELD(alpha), UK_FIELD(n_iter), UK_FIELD(flags);
  UK_FIELD(work), UK_FIELD(value), UK_FIELD(dual), UK_FIELD(marginal_error), UK_FIELD(n_iter_out);
  UK_FIELD(value_weight), UK_FIELD(grad_f), UK_FIELD(grad_g), UK_FIELD(df), UK_FIELD(dg), UK_FIELD(first);
  UK_FIELD(grad_a), UK_FIELD(grad_b), UK_FIELD(grad_cost), UK_FIELD(implicit), UK_FIELD(plan_only);
  UK_FIELD(tolerance), UK_FIELD(max_sweeps);
#undef UK_FIELD
  m.def("cuda_sinkhorn_work", [](const CudaCall& c) {
    const char* refused;
    const int64_t elements = sinkhorn::cuda_work(c, &refused);
    check_launch(refused);
    return elements;
  });
  m.def("cuda_sinkhorn_forward", [](const CudaCall& c) { check_launch(sinkhorn::cuda_forward(c)); });
  m.def("cuda_sinkhorn_adjoint", [](const CudaCall& c) { check_launch(sinkhorn::cuda_adjoint(c)); });
  m.def("cuda_sinkhorn_gradient", [](const CudaCall& c) { check_launch(sinkhorn::cuda_gradient(c)); });
}

}  // namespace ucmkd

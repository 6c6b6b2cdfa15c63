// The CUDA kernels: records whose fields Python writes one by one, and the calls that take them.
#include <stdexcept>
#include <string>

#include "bind/bind.h"
#include "cost/cuda_call.h"
#include "doubly_stochastic/cuda_call.h"
#include "label_transport/cuda_call.h"
#include "sinkhorn/cuda_call.h"

namespace ucmkd {
namespace {

// Raises what the driver refused.
void check_launch(const char* refused) {
  if (refused) throw std::runtime_error(std::string("a CUDA kernel could not be started: ") + refused);
}

}  // namespace

void bind_cuda(py::module_& m) {
  using sinkhorn::CudaCall;
  py::class_<CudaCall> call(m, "CudaSinkhorn", py::module_local(),
                            "Addresses and sizes of one batch; it owns nothing.");
  call.def(py::init<>());
#define UK_FIELD(name) call.def_readwrite(#name, &CudaCall::name)
  UK_FIELD(f64), UK_FIELD(device), UK_FIELD(stream), UK_FIELD(regime), UK_FIELD(n), UK_FIELD(m);
  UK_FIELD(batch), UK_FIELD(max_iter), UK_FIELD(a_stride), UK_FIELD(b_stride), UK_FIELD(reg), UK_FIELD(tol);
  UK_FIELD(relax), UK_FIELD(history), UK_FIELD(cost), UK_FIELD(a), UK_FIELD(b), UK_FIELD(init_f), UK_FIELD(hist_f);
  UK_FIELD(hist_g), UK_FIELD(log_f), UK_FIELD(log_g), UK_FIELD(f), UK_FIELD(g), UK_FIELD(alpha), UK_FIELD(n_iter),
      UK_FIELD(flags);
  UK_FIELD(work), UK_FIELD(value), UK_FIELD(dual), UK_FIELD(marginal_error), UK_FIELD(n_iter_out);
  UK_FIELD(value_weight), UK_FIELD(grad_f), UK_FIELD(grad_g), UK_FIELD(df), UK_FIELD(dg), UK_FIELD(first);
  UK_FIELD(grad_a), UK_FIELD(grad_b), UK_FIELD(grad_cost), UK_FIELD(implicit), UK_FIELD(plan_only);
  UK_FIELD(tolerance), UK_FIELD(max_sweeps), UK_FIELD(first_row), UK_FIELD(rows);
  UK_FIELD(tune_threads), UK_FIELD(tune_quads), UK_FIELD(tune_grid), UK_FIELD(own_barrier), UK_FIELD(clusters);
  UK_FIELD(rho_a), UK_FIELD(rho_b), UK_FIELD(shifted), UK_FIELD(last_f), UK_FIELD(last_g), UK_FIELD(kept_a);
  UK_FIELD(kept_b), UK_FIELD(shifts);
#undef UK_FIELD
  using sinkhorn::CudaPanel;
  py::class_<CudaPanel> panel(m, "CudaPanel", py::module_local(),
                              "One visit of a panel, or of all rows; it owns nothing.");
  panel.def(py::init<>());
#define UK_FIELD(name) panel.def_readwrite(#name, &CudaPanel::name)
  UK_FIELD(sweep), UK_FIELD(t), UK_FIELD(groups), UK_FIELD(stop), UK_FIELD(values), UK_FIELD(states);
  UK_FIELD(row_value), UK_FIELD(share), UK_FIELD(relaxed), UK_FIELD(held), UK_FIELD(parts), UK_FIELD(row_groups),
      UK_FIELD(tensor_cores);
#undef UK_FIELD
  using cost::CudaCost;
  py::class_<CudaCost> of_cost(m, "CudaCost", py::module_local(), "Addresses and sizes of one cost; it owns nothing.");
  of_cost.def(py::init<>());
#define UK_FIELD(name) of_cost.def_readwrite(#name, &CudaCost::name)
  UK_FIELD(f64), UK_FIELD(feature_type), UK_FIELD(device), UK_FIELD(stream), UK_FIELD(metric), UK_FIELD(batch),
      UK_FIELD(n);
  UK_FIELD(m), UK_FIELD(d), UK_FIELD(classes), UK_FIELD(x), UK_FIELD(y), UK_FIELD(scale_x), UK_FIELD(scale_y);
  UK_FIELD(cost), UK_FIELD(distance), UK_FIELD(given_x), UK_FIELD(given_y), UK_FIELD(marks), UK_FIELD(adds_to_y);
  UK_FIELD(class_cost), UK_FIELD(labels), UK_FIELD(grad_cost), UK_FIELD(order), UK_FIELD(starts);
  UK_FIELD(grad_class), UK_FIELD(sums_x), UK_FIELD(sums_y), UK_FIELD(grad_x), UK_FIELD(grad_y);
#undef UK_FIELD
  using label_transport::CudaLabel;
  py::class_<CudaLabel> label(m, "CudaLabel", py::module_local(),
                              "Addresses and sizes of one batch of logits; it owns nothing.");
  label.def(py::init<>());
#define UK_FIELD(name) label.def_readwrite(#name, &CudaLabel::name)
  UK_FIELD(f64), UK_FIELD(device), UK_FIELD(stream), UK_FIELD(n), UK_FIELD(k), UK_FIELD(student);
  UK_FIELD(teacher), UK_FIELD(student_stride), UK_FIELD(teacher_stride), UK_FIELD(target);
  UK_FIELD(ignore_index), UK_FIELD(label_smoothing), UK_FIELD(live_kappa), UK_FIELD(loss);
  UK_FIELD(grad_student), UK_FIELD(grad_teacher), UK_FIELD(grad_stride);
  UK_FIELD(upstream), UK_FIELD(upstream_stride), UK_FIELD(logit_type), UK_FIELD(counted), UK_FIELD(total),
      UK_FIELD(mean);
#undef UK_FIELD
  using doubly_stochastic::CudaProjection;
  py::class_<CudaProjection> projection(m, "CudaProjection", py::module_local(),
                                        "Addresses and sizes of one batch of matrices; it owns nothing.");
  projection.def(py::init<>());
#define UK_FIELD(name) projection.def_readwrite(#name, &CudaProjection::name)
  UK_FIELD(f64), UK_FIELD(element_type), UK_FIELD(device), UK_FIELD(stream), UK_FIELD(batch), UK_FIELD(n);
  UK_FIELD(m), UK_FIELD(n_iter), UK_FIELD(logits), UK_FIELD(upstream), UK_FIELD(out), UK_FIELD(eps);
  UK_FIELD(softmax), UK_FIELD(rows_first), UK_FIELD(work);
#undef UK_FIELD
  m.def("cuda_project_work", [](const CudaProjection& c) {
    const char* refused;
    const int64_t bytes = doubly_stochastic::cuda_project_work(c, &refused);
    check_launch(refused);
    return bytes;
  });
  m.def("cuda_project", [](const CudaProjection& c) { check_launch(doubly_stochastic::cuda_project(c)); });
  m.def("cuda_sinkhorn_work", [](const CudaCall& c) {
    const char* refused;
    const int64_t elements = sinkhorn::cuda_work(c, &refused);
    check_launch(refused);
    return elements;
  });
  m.def("cuda_sinkhorn_fits_block", [](const CudaCall& c) {
    const char* refused;
    const bool fits = sinkhorn::cuda_fits_block(c, &refused);
    check_launch(refused);
    return fits;
  });
  m.def("cuda_sinkhorn_forward", [](const CudaCall& c) { check_launch(sinkhorn::cuda_forward(c)); });
  m.def("cuda_sinkhorn_adjoint", [](const CudaCall& c) { check_launch(sinkhorn::cuda_adjoint(c)); });
  m.def("cuda_sinkhorn_gradient", [](const CudaCall& c) { check_launch(sinkhorn::cuda_gradient(c)); });
  m.def("cuda_panel", [](const CudaCall& c, const CudaPanel& p) { check_launch(sinkhorn::cuda_panel(c, p)); });
  m.def("cuda_streamed", [](const CudaCall& c, const CudaPanel& p, const CudaCost& features) {
    check_launch(sinkhorn::cuda_streamed(c, p, features));
  });
  m.def("cuda_stream_plan", [](const CudaCost& features, bool tensor_cores) {
    const char* refused;
    const sinkhorn::StreamPlan plan = sinkhorn::cuda_stream_plan(features, tensor_cores, &refused);
    check_launch(refused);
    return py::make_tuple(plan.streams, plan.by == sinkhorn::Multiply::kTensorCores, plan.row_groups,
                          plan.column_groups);
  });
  m.def("cuda_scales", [](const CudaCost& c) { check_launch(cost::cuda_scales(c)); });
  m.def("cuda_cost", [](const CudaCost& c) { check_launch(cost::cuda_cost(c)); });
  m.def("cuda_weigh", [](const CudaCost& c) { check_launch(cost::cuda_weigh(c)); });
  m.def("cuda_cost_marks", &cost::cuda_cost_marks);
  m.def("cuda_finish_gradient", [](const CudaCost& c) { check_launch(cost::cuda_finish_gradient(c)); });
  m.def("cuda_label_transport", [](const CudaLabel& c) { check_launch(label_transport::cuda_forward(c)); });
  m.def("cuda_label_total", [](const CudaLabel& c) { check_launch(label_transport::cuda_total(c)); });
}

}  // namespace ucmkd

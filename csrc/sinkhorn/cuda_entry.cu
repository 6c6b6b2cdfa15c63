// From the untyped call to the kernels: types, the launch plan, the device.
#include "cost/metrics.h"
#include "sinkhorn/cuda.h"

namespace ucmkd {
namespace sinkhorn {
namespace {

template <class T>
T* to(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

const char* properties_of(bool f64, int device, DeviceProperties* properties) {
  const int most = max_threads(f64 ? 8 : 4);
  properties->max_threads = cuda::thread_limit() < most ? cuda::thread_limit() : most;
  return cuda::device_properties(device, &properties->multiprocessors, &properties->shared_per_block,
                                 &properties->clusters);
}

Marginals marginals_of(const CudaCall& c) { return {c.rho_a, c.rho_b, c.shifted}; }

const char* plan_of(const CudaCall& c, Plan* plan) {
  DeviceProperties properties;
  const char* refused = properties_of(c.f64, c.device, &properties);
  const Regime regime = c.rows ? Regime::kPanel : Regime(c.regime);
  const bool exact = marginals_of(c).exact();
  properties.clusters = exact && properties.clusters && (c.clusters || regime == Regime::kCluster);
  if (!refused)
    *plan =
        make_plan(regime, c.n, c.m, c.batch, c.f64 ? 8 : 4, properties, {c.tune_threads, c.tune_quads, c.tune_grid});
  if (!refused && !exact) generalise(*plan);
  return refused;
}

template <class T>
DeviceProblem<T> problem(const CudaCall& c, const Plan& plan) {
  DeviceProblem<T> p{};
  p.n = c.n, p.m = c.m, p.batch = c.batch, p.reg = T(c.reg), p.max_iter = c.max_iter, p.tol = T(c.tol);
  p.first_row = c.first_row, p.rows = c.rows ? c.rows : c.n;
  p.cost = to<T>(c.cost), p.a = to<T>(c.a), p.a_stride = c.a_stride, p.b = to<T>(c.b), p.b_stride = c.b_stride;
  p.init_f = to<T>(c.init_f), p.relax = c.relax, p.history = c.history, p.hist_f = to<T>(c.hist_f),
  p.hist_g = to<T>(c.hist_g);
  p.marginals = marginals_of(c), p.last_f = to<T>(c.last_f), p.last_g = to<T>(c.last_g);
  p.kept_a = to<T>(c.kept_a), p.kept_b = to<T>(c.kept_b), p.shifts = to<T>(c.shifts);
  p.log_f = to<T>(c.log_f), p.log_g = to<T>(c.log_g);
  p.f = to<T>(c.f), p.g = to<T>(c.g), p.alpha = to<T>(c.alpha), p.n_iter = to<int64_t>(c.n_iter);
  p.flags = to<int>(c.flags), p.work = to<T>(c.work), p.plan = plan, p.own_barrier = c.own_barrier;
  return p;
}

// body(float()) or body(double()), with the plan.
template <class Body>
const char* dispatch(const CudaCall& c, Body body) {
  Plan plan;
  if (const char* refused = plan_of(c, &plan)) return refused;
  return c.f64 ? body(double(), plan) : body(float(), plan);
}

// body(problem, call) of a visit, in their type.
template <class Body>
const char* with_visit(const CudaCall& c, const CudaPanel& visit, Body body) {
  auto run = [&](auto t) {
    using T = decltype(t);
    PanelCall<T> call{};
    call.sweep = Sweep(visit.sweep), call.t = visit.t, call.stop = to<int>(visit.stop);
    call.groups = visit.groups, call.row_groups = visit.row_groups, call.tensor_cores = visit.tensor_cores;
    call.relaxed = to<int>(visit.relaxed), call.held = to<double>(visit.held);
    call.values = to<RowValue<T>>(visit.values), call.parts = to<T>(visit.parts), call.states = to<T>(visit.states);
    call.row_value = to<T>(visit.row_value), call.share = to<T>(visit.share);
    call.df = to<T>(c.df), call.dg = to<T>(c.dg), call.first = to<int64_t>(c.first), call.grad_a = to<T>(c.grad_a);
    return body(problem<T>(c, Plan{}), call);
  };
  return c.f64 ? run(double()) : run(float());
}

cuda::Stream stream_of(const CudaCall& c) { return reinterpret_cast<cuda::Stream>(c.stream); }

}  // namespace

int64_t cuda_work(const CudaCall& c, const char** error) {
  Plan plan;
  *error = plan_of(c, &plan);
  return *error ? -1 : plan.work * c.batch;
}

bool cuda_fits_block(const CudaCall& c, const char** error) {
  DeviceProperties properties;
  *error = properties_of(c.f64, c.device, &properties);
  return !*error && fits_block(c.n, c.m, c.f64 ? 8 : 4, properties);
}

StreamPlan cuda_stream_plan(const cost::CudaCost& c, bool tensor_cores, const char** error) {
  DeviceProperties properties{};
  *error = properties_of(c.f64, c.device, &properties);
  const bool summed = cost::summed(cost::Metric(c.metric));
  const bool half = cost::FeatureType(c.feature_type) != cost::FeatureType::kAsCost;
  const Multiply by = summed ? Multiply::kTerms : tensor_cores && half ? Multiply::kTensorCores : Multiply::kThreads;
  return make_stream_plan(c.n, c.m, c.d, c.f64 ? 8 : 4, by, properties);
}

const char* cuda_forward(const CudaCall& c) {
  return dispatch(c, [&](auto t, const Plan& plan) {
    using T = decltype(t);
    const ForwardOut<T> out{to<T>(c.value), to<T>(c.dual), to<T>(c.marginal_error), to<int64_t>(c.n_iter_out)};
    return cuda_forward<T>(problem<T>(c, plan), out, c.device, stream_of(c));
  });
}

const char* cuda_adjoint(const CudaCall& c) {
  return dispatch(c, [&](auto t, const Plan& plan) {
    using T = decltype(t);
    AdjointCall<T> call{};
    call.value_weight = to<T>(c.value_weight), call.grad_f = to<T>(c.grad_f), call.grad_g = to<T>(c.grad_g);
    call.implicit = c.implicit, call.tolerance = T(c.tolerance), call.max_sweeps = c.max_sweeps;
    call.df = to<T>(c.df), call.dg = to<T>(c.dg), call.first = to<int64_t>(c.first);
    call.grad_a = to<T>(c.grad_a), call.grad_b = to<T>(c.grad_b), call.grad_cost = to<T>(c.grad_cost);
    return cuda_adjoint<T>(problem<T>(c, plan), call, c.device, stream_of(c));
  });
}

const char* cuda_gradient(const CudaCall& c) {
  return dispatch(c, [&](auto t, const Plan& plan) {
    using T = decltype(t);
    GradientCall<T> call{};
    call.value_weight = to<T>(c.value_weight), call.plan_only = c.plan_only, call.implicit = c.implicit;
    call.df = to<T>(c.df), call.dg = to<T>(c.dg), call.first = to<int64_t>(c.first);
    call.grad_cost = to<T>(c.grad_cost);
    return cuda_gradient<T>(problem<T>(c, plan), call, c.device, stream_of(c));
  });
}

const char* cuda_panel(const CudaCall& c, const CudaPanel& visit) {
  return with_visit(c, visit, [&](const auto& problem, const auto& call) {
    return cuda_panel(problem, call, c.device, stream_of(c));
  });
}

const char* cuda_streamed(const CudaCall& c, const CudaPanel& visit, const cost::CudaCost& features) {
  return with_visit(c, visit, [&](const auto& problem, const auto& call) {
    return cuda_streamed(problem, call, features, c.device, stream_of(c));
  });
}

}  // namespace sinkhorn
}  // namespace ucmkd

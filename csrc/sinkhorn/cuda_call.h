// One call of the CUDA kernels, untyped: what Python fills, field by field (meanings in cuda.h).
#pragma once
#include <math.h>
#include <stdint.h>

#include "cost/cuda_call.h"
#include "sinkhorn/regime.h"

namespace ucmkd {
namespace sinkhorn {

// Addresses are integers, a null pointer is 0.
struct CudaCall {
  bool f64 = false;  // double, else float
  int device = 0;
  uintptr_t stream = 0;
  int regime = 0;                                       // Regime
  int tune_threads = 0, tune_quads = 0, tune_grid = 0;  // Tuning
  bool own_barrier = false;                             // of cooperative grids, instead of the runtime's
  bool clusters = false;                                // may be chosen, where the device has them
  int64_t n = 0, m = 0, batch = 1, max_iter = 1, a_stride = 0, b_stride = 0;
  double reg = 1, tol = 0;
  double rho_a = HUGE_VAL, rho_b = HUGE_VAL;  // Marginals
  bool shifted = false;
  int64_t first_row = 0, rows = 0;  // that the cost holds; 0 rows: all
  bool relax = false, history = false;
  uintptr_t cost = 0, a = 0, b = 0, init_f = 0, hist_f = 0, hist_g = 0, log_f = 0, log_g = 0, f = 0, g = 0, alpha = 0,
            n_iter = 0, flags = 0, work = 0;
  uintptr_t last_f = 0, last_g = 0, kept_a = 0, kept_b = 0, shifts = 0;  // of unbalanced transport
  // forward
  uintptr_t value = 0, dual = 0, marginal_error = 0, n_iter_out = 0;
  // backward
  uintptr_t value_weight = 0, grad_f = 0, grad_g = 0, df = 0, dg = 0, first = 0, grad_a = 0, grad_b = 0, grad_cost = 0;
  bool implicit = false, plan_only = false;
  double tolerance = 0;
  int64_t max_sweeps = 0;
};

// One visit of a panel, or of all rows, beside the call of the problem.
struct CudaPanel {
  int sweep = 0;  // Sweep
  int64_t t = 0, groups = 1, row_groups = 1;
  bool tensor_cores = false;
  uintptr_t stop = 0, relaxed = 0, held = 0, values = 0, parts = 0, states = 0, row_value = 0, share = 0;
};

// Each returns null, or a sentence about what the driver refused.
const char* cuda_forward(const CudaCall&);
const char* cuda_adjoint(const CudaCall&);
const char* cuda_gradient(const CudaCall&);
const char* cuda_panel(const CudaCall&, const CudaPanel&);
const char* cuda_streamed(const CudaCall&, const CudaPanel&, const cost::CudaCost&);
// Elements of work space for the whole batch, or -1 and a sentence in *error.
int64_t cuda_work(const CudaCall&, const char** error);
// How sweeps over features run whose cost does not fit; and a sentence in *error.
StreamPlan cuda_stream_plan(const cost::CudaCost&, bool tensor_cores, const char** error);
// Whether one problem of this size fits the shared memory of a block; false and a sentence in *error.
bool cuda_fits_block(const CudaCall&, const char** error);

}  // namespace sinkhorn
}  // namespace ucmkd

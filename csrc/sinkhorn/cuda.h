// The contract of the CUDA kernels. Every pointer is device memory owned by the
// caller; matrices are row-major and contiguous. Nothing here allocates, waits or reads from the device.
//
// Potentials are kept in the log domain throughout: exp is cheap on a GPU, and nothing can overflow.
#pragma once
#include <stdint.h>

#include "core/launch.cuh"
#include "cost/cuda_call.h"
#include "sinkhorn/cuda_call.h"
#include "sinkhorn/regime.h"
#include "sinkhorn/rules.h"
#include "sinkhorn/unbalanced.h"

namespace ucmkd {
namespace sinkhorn {

template <class T>
struct DeviceProblem {
  int64_t n, m, batch;
  T reg;
  int64_t max_iter;
  T tol;                    // stop when sum_j |(P'1)_j - b_j| <= tol; 0: never
  const T* cost;            // (batch, n, m), or the rows of a panel (rows, m)
  int64_t first_row, rows;  // which rows of the problem the cost holds: all, but for a panel
  const T* a;               // (batch or 1, n) or null: uniform
  int64_t a_stride;         // n or 0
  const T* b;               // (batch or 1, m) or null: uniform
  int64_t b_stride;         // m or 0
  const T* init_f;          // (batch, n) or null: f_0 = -reg log n
  Marginals marginals;      // exact, or unbalanced transport: shifted where no history is kept or tol > 0
  bool relax;               // over-relaxed iterations; not with history
  bool history;             // every iteration is kept, else the last one
  T* hist_f;                // (batch, history ? max_iter + 1 : 1, n)
  T* hist_g;                // (batch, history ? max_iter : 1, m)
  // The log-sums that each half-step took: f_t = reg (log a - log_f_t), +inf where the mass is 0. The adjoint's
  // softmaxes are made with them, not with the rounded potentials: they sum to one to the last bit, and a
  // sweep of hundreds of steps does not drift.
  T* log_f;  // (batch, history ? max_iter : 1, n)
  T* log_g;  // (batch, history ? max_iter : 1, m)
  T* f;      // (batch, n)
  T* g;      // (batch, m)
  T* alpha;  // (batch, n) <P_i, C_i> / sum(P_i), 0 where a is 0
  // Of unbalanced transport (unbalanced.cuh); null where marginals are exact.
  T *last_f, *last_g;  // (batch, n), (batch, m) the last potentials without shifts, -inf where next to nothing is kept
  T *kept_a, *kept_b;  // (batch, n), (batch, m) what the last half-steps left of the masses, 0 for next to nothing
  T* shifts;           // (batch, history ? max_iter : 1, 3) all shifts so far, and sums of what rows and columns kept
  int64_t* n_iter;     // (batch,)
  int* flags;          // (batch,)
  T* work;             // (batch, Plan::work)
  Plan plan;
  bool own_barrier;
};

// Problem number k of the batch. Addresses are made where they are used, from the kernel's arguments: kept in
// registers they would leave none for the work.
template <class T>
struct One {
  const DeviceProblem<T>& all;
  int64_t k;

  __device__ int n() const { return int(all.n); }
  __device__ int m() const { return int(all.m); }
  __device__ T reg() const { return all.reg; }
  __device__ T mass_a(int i) const { return all.a ? all.a[k * all.a_stride + i] : T(1) / T(all.n); }
  __device__ T mass_b(int j) const { return all.b ? all.b[k * all.b_stride + j] : T(1) / T(all.m); }
  __device__ const T* cost() const { return all.cost + k * all.n * all.m; }
  __device__ const T* init_f() const { return all.init_f ? all.init_f + k * all.n : nullptr; }
  // f_t, t in [0, max_iter], and g_t, t in [1, max_iter]
  __device__ T* f_at(int64_t t) const { return all.hist_f + (all.history ? k * (all.max_iter + 1) + t : k) * all.n; }
  __device__ T* g_at(int64_t t) const { return all.hist_g + (all.history ? k * all.max_iter + t - 1 : k) * all.m; }
  // their log-sums, t in [1, max_iter]
  __device__ T* log_f_at(int64_t t) const { return all.log_f + (all.history ? k * all.max_iter + t - 1 : k) * all.n; }
  __device__ T* log_g_at(int64_t t) const { return all.log_g + (all.history ? k * all.max_iter + t - 1 : k) * all.m; }
  __device__ T* f() const { return all.f + k * all.n; }
  __device__ T* g() const { return all.g + k * all.m; }
  __device__ T* alpha() const { return all.alpha + k * all.n; }
  __device__ T* last_f() const { return all.last_f + k * all.n; }
  __device__ T* last_g() const { return all.last_g + k * all.m; }
  __device__ T* kept_a() const { return all.kept_a + k * all.n; }
  __device__ T* kept_b() const { return all.kept_b + k * all.m; }
  __device__ T* shift_at(int64_t t) const { return all.shifts + 3 * (all.history ? k * all.max_iter + t - 1 : k); }
  __device__ int64_t* n_iter() const { return all.n_iter + k; }
  __device__ int* flags() const { return all.flags + k; }
  __device__ T* work() const { return all.work + k * all.plan.work; }
};

// Unbalanced, as the backward sees it: its potentials are those that the history goes on to, without shifts.
template <class T>
DeviceProblem<T> as_iterated(DeviceProblem<T> p) {
  p.f = p.last_f, p.g = p.last_g;
  return p;
}

template <class T>
struct ForwardOut {
  T* value;           // (batch,) <P, C>
  T* dual;            // (batch,) <f~, a> + <g~, b> - reg (sum a - sum a sum b), or the unbalanced dual value
  T* marginal_error;  // (batch,)
  int64_t* n_iter;    // (batch,) iterations that ran; -(flags) where a flag refuses the input
};

// Gradient of  value_weight <P, C> + <grad_f, f> + <grad_g, g>  through the iterations.
template <class T>
struct AdjointCall {
  const T* value_weight;  // (batch,) or null: 0
  const T* grad_f;        // (batch, n) or null
  const T* grad_g;        // (batch, m) or null
  bool implicit;          // at the fixed point, else through the iterations that ran
  T tolerance;            // stop when what remains is below this share of every entry of P value_weight
  int64_t max_sweeps;     // implicit
  // Adjoints df_t of f_t and dg_t of g_t: dC = P value_weight (1 - (C - alpha) / reg)
  //   + sum_t exp((f_t + g_t - C) / reg) df_t / a + exp((f_(t-1) + g_t - C) / reg) dg_t / b
  T* df;           // (batch, max_iter, n), at t - 1; implicit: (batch, 1, n), their sums at the fixed point
  T* dg;           // (batch, max_iter, m); implicit: (batch, 1, m)
  int64_t* first;  // (batch,) smallest t whose weights are set
  T* grad_a;       // (batch, n)
  T* grad_b;       // (batch, m)
  T* grad_cost;    // as the cost; written, and nothing of df, dg, first, where makes_gradient(plan, implicit)
};

// The adjoint in registers has dC in its hands: no call of cuda_gradient has anything left to do.
UK_HOST_DEVICE bool makes_gradient(const Plan& plan, bool implicit) {
  return plan.regime == Regime::kRegisters && !implicit;
}

template <class T>
struct GradientCall {
  const T* value_weight;  // (batch,) or null: 0
  bool plan_only;         // dC = value_weight P
  bool implicit;
  const T* df;  // as in AdjointCall; not with plan_only
  const T* dg;
  const int64_t* first;
  T* grad_cost;  // as the cost
};

// What a visit of a panel, or of all rows, does, see steps.cuh, panel.cu and streamed.cu.
enum class Sweep : int { kStart = 0, kIterate = 1, kPlan = 2, kBack = 3, kColumnMass = 4, kFixedPoint = 5 };

template <class T>
struct RowValue;  // steps.cuh

template <class T>
struct PanelCall {
  Sweep sweep;
  int64_t t;            // of the iteration
  int64_t groups;       // threads that share the rows of a column; streamed: blocks
  int64_t row_groups;   // blocks that share the columns of a row; streamed
  bool tensor_cores;    // make the products; streamed, of half precision
  const int* stop;      // () or null: nothing is done where it is not 0
  const int* relaxed;   // () or null: the iteration is over-relaxed where it is not 0
  const double* held;   // (2,) all shifts so far, and PulledShift::rows; null: the half-step is exact
  RowValue<T>* values;  // (rows,) from the row pass to the column pass
  T* parts;             // (row_groups, n) sums of two elements; streamed
  T* states;            // (groups, m) sums of two elements, added to; streamed: written
  bool centre;          // of Value
  T* row_value;         // (n,) <P_i, C_i>
  T* df;                // as in AdjointCall
  const T* dg;
  const T* share;        // (m,) of the fixed point
  const int64_t* first;  // ()
  T* grad_a;             // (n,)
};

// Each returns null, or a sentence about what the driver refused.
template <class T>
const char* cuda_forward(const DeviceProblem<T>&, const ForwardOut<T>&, int device, cuda::Stream);
template <class T>
const char* cuda_adjoint(const DeviceProblem<T>&, const AdjointCall<T>&, int device, cuda::Stream);
template <class T>
const char* cuda_gradient(const DeviceProblem<T>&, const GradientCall<T>&, int device, cuda::Stream);
template <class T>
const char* cuda_panel(const DeviceProblem<T>&, const PanelCall<T>&, int device, cuda::Stream);
// The same on all rows, whose cost is made from features.
template <class T>
const char* cuda_streamed(const DeviceProblem<T>&, const PanelCall<T>&, const cost::CudaCost&, int device,
                          cuda::Stream);

}  // namespace sinkhorn
}  // namespace ucmkd

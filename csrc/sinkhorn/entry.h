// Problems on untyped pointers, alone or in batches of equal sizes: what Python calls. Sizes are as in
// params.h, with a leading batch dimension.
#pragma once
#include <stdint.h>

#include "sinkhorn/params.h"

namespace ucmkd {
namespace sinkhorn {

struct Problem {
  bool f64;  // double, else float
  int64_t batch, n, m, max_iter;
  double reg, tol;
  bool relax;                 // over-relaxed iterations, without history
  Marginals marginals;        // exact, or unbalanced transport
  bool history;               // hist_u, hist_v are saved
  bool a_shared, b_shared;    // one vector of masses serves the batch
  const void* a;              // (batch or 1, n) or null
  const void* b;              // (batch or 1, m) or null
  const void* init_f;         // (batch, n) or null
  const void* init_g;         // (batch, m) or null
  void* cost;                 // (batch, n, m); with features (batch 1): their inner products before the forward
  void* saved;                // (batch, saved_size)
  cost::FeatureSet features;  // or metric kNone: the cost is given
};

struct Upstream {
  const void* value;  // (batch,) or null: 0
  const void* f;      // (batch, n) or null
  const void* g;      // (batch, m) or null
};

int64_t saved_size(int64_t n, int64_t m, int64_t max_iter, bool history, bool unbalanced);

// Null, or a sentence about what is wrong with the input.
template <class T>
const char* forward(const Problem&, bool save_plan, const Outputs<T>&);

// Plain sums: fills left (batch, 2 max_iter, n) and right (batch, 2 max_iter, m); returns how many rows are
// in use (0 where every problem needs the log domain). depth (batch,): -1 marks such a problem.
template <class T>
int64_t adjoint(const Problem&, const Upstream&, T* left, T* right, const Gradients<T>&, int64_t* depth);

// The gradient of the cost: in place on left' right where depth >= 0, by the log domain elsewhere.
template <class T>
void adjoint_finish(const Problem&, const Upstream&, const int64_t* depth, const Gradients<T>&);

// The gradient at the fixed point; false where a sweep did not converge. Where out.cost is null the sums that
// `gradient_rows` takes go to weight_rows, weight_cols instead.
template <class T>
bool implicit(const Problem&, const Upstream&, const Gradients<T>& out);

// The gradient of the cost is value_weight P.
template <class T>
void envelope(const Problem&, const Upstream&, const Gradients<T>&);

// With features, batch 1: the last pass over some rows.
template <class T>
void gradient_rows(const Problem&, const Upstream&, const LastPass<T>&, const Gradients<T>&);

// With features, batch 1: the scales are made here, and the inner products where `own_products`.
// "x" or "y" names features that hold NaN, inf or a row whose square overflows.
template <class T>
const char* loss_forward(const Problem&, bool own_products, bool save_plan, const Outputs<T>&);

template <class T>
struct FeatureGradients {
  T* x;  // (n, d), each or null
  T* y;  // (m, d)
  T* a;  // (n,)
  T* b;  // (m,)
};

// False where `implicit` did not converge.
template <class T>
bool loss_backward(const Problem&, Grad, const Upstream&, const FeatureGradients<T>&);

// What a loss between features runs with.
struct LossSettings {
  bool f64;
  cost::Metric metric;
  bool regularized;  // the dual value, else <P, C>
  double reg;
  int64_t max_iter;
  double tol;
  bool relax;
  Grad grad;
  Marginals marginals;
};

// What there is to say after a call that ran; all true where it went well.
struct Remarks {
  bool gradient_converged;  // `implicit`
  bool reached_tol;         // or tol is 0
  bool above_rounding;      // reg is not below the rounding of the cost where the plan is
  bool any() const { return !(gradient_converged && reached_tol && above_rounding); }
};

template <class T>
struct LossOutputs {
  T* loss;            // ()
  T* marginal_error;  // () or null
  int64_t* n_iter;    // () or null
  T* dx;              // (n, d) or null
  T* dy;              // (m, d) or null
};

// Both in one call, without gradients of the masses; of the problem only sizes, features, masses and `init`
// are read. Null, or as `loss_forward`.
template <class T>
const char* loss_and_gradient(const LossSettings&, Problem, const LossOutputs<T>&, Remarks*);

}  // namespace sinkhorn
}  // namespace ucmkd

// Batches of problems on untyped pointers: what bind_sinkhorn.h calls. Sizes are as in params.h, with a
// leading batch dimension; masses may be shared by the batch (stride 0).
#pragma once
#include <stdint.h>

#include "cost/features.h"

namespace ucmkd {
namespace sinkhorn {

struct Problem {
  bool f64;  // double, else float
  int64_t batch, n, m, max_iter;
  double reg, tol;
  void* cost;          // (batch, n, m); with features (batch 1): their inner products before the forward
  const void* a;       // (batch or 1, n) or null
  int64_t a_stride;    // n or 0
  const void* b;       // (batch or 1, m) or null
  int64_t b_stride;    // m or 0
  const void* init_f;  // (batch, n) or null
  const void* init_g;  // (batch, m) or null
  bool relax;          // over-relaxed iterations, without history
  bool history;        // hist_u, hist_v are in saved
  void* saved;         // (batch, saved_size)
  // features, or metric -1
  int metric;  // cost::Metric
  int64_t d;
  const void* x;            // (n, d)
  const void* y;            // (m, d)
  const void* scale_x;      // (n,), see cost/features.h; made by loss_forward
  const void* scale_y;      // (m,)
  const void* given_x;      // (n, d) where x is centred (cost/features.h), or null: x is as it was given
  const void* given_y;      // (m, d)
  cost::ClassTerm classes;  // with features
};

struct Upstream {
  const void* value;  // (batch,) or null: 0
  const void* f;      // (batch, n) or null
  const void* g;      // (batch, m) or null
};

// Where the gradients go. With features, cost ends as the weights of the products with x and y (cost/row.h).
template <class T>
struct Gradients {
  T* cost;         // (batch, n, m)
  T* a;            // (batch, n) or null
  T* b;            // (batch, m) or null
  T* weight_rows;  // (n,) with features
  T* weight_cols;  // (m,) with features
};

int64_t saved_size(int64_t n, int64_t m, int64_t max_iter, bool history);

// Null, or a sentence about what is wrong with the input. f, g, dual, marginal_error, n_iter may be null.
template <class T>
const char* forward(const Problem&, bool save_plan, T* f, T* g, T* value, T* dual, T* marginal_error,
                    int64_t* n_iter);

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
bool implicit(const Problem&, const Upstream&, const Gradients<T>&);

// The gradient of the cost is value_weight P.
template <class T>
void envelope(const Problem&, const Upstream&, const Gradients<T>&);

enum class Grad : int { kUnrolled = 0, kImplicit = 1, kEnvelope = 2 };

// With features, batch 1: the gradient of rows [begin, end) of the cost, whose first row is at out.cost. For
// kUnrolled (depth >= 0) the rows of left' right are there; for kImplicit row_sum (n,) and col_sum (m,) are given.
template <class T>
void gradient_rows(const Problem&, Grad, const Upstream&, int64_t begin, int64_t end, const T* row_sum,
                   const T* col_sum, const Gradients<T>& out);

// With features, batch 1: the scales are made here, and the inner products where `own_products`.
// "x" or "y" names features that hold NaN, inf or a row whose square overflows. Null pointers as in `forward`.
template <class T>
const char* loss_forward(const Problem&, bool own_products, bool save_plan, T* f, T* g, T* value, T* dual,
                         T* marginal_error, int64_t* n_iter);

// The gradients of x (n, d), y (m, d), a (n,) and b (m,), each where it is not null; false where `implicit`
// did not converge.
template <class T>
bool loss_backward(const Problem&, Grad, const Upstream&, T* grad_a, T* grad_b, T* dx, T* dy);

// What a loss between features runs with.
struct LossSettings {
  bool f64;
  int metric;        // cost::Metric
  bool regularized;  // the dual value, else <P, C>
  double reg;
  int64_t max_iter;
  double tol;
  bool relax;
  Grad grad;
};

// What there is to say after a call that ran; all true where it went well.
struct Remarks {
  bool gradient_converged;  // `implicit`
  bool reached_tol;         // or tol is 0
  bool above_rounding;      // reg is not below the rounding of the cost where the plan is
  bool any() const { return !(gradient_converged && reached_tol && above_rounding); }
};

// Both in one call, without gradients of the masses; of the problem only sizes, features, masses and `init` are
// read. Null, or as `loss_forward`.
template <class T>
const char* loss_and_gradient(const LossSettings&, Problem, T* loss, T* marginal_error, int64_t* n_iter, T* dx,
                              T* dy, Remarks* remarks);

}  // namespace sinkhorn
}  // namespace ucmkd

// The whole contract of the Sinkhorn kernels. Every pointer is owned by the caller; matrices are
// row-major and contiguous unless said otherwise. T is float or double throughout.
//
//   P = exp((f + g - C) / reg)      f, g in units of cost, log a and log b inside them
#pragma once
#include <stdint.h>

#include "cost/features.h"
#include "sinkhorn/unbalanced.h"

namespace ucmkd {
namespace sinkhorn {

// Rows of the plan and all work vectors are padded with zeros to a multiple of this many elements,
// and the plan to a multiple of kRows rows: the sweeps have no remainders.
constexpr int64_t kPad = 16;
constexpr int64_t kRows = 4;
static inline int64_t padded(int64_t size) { return (size + kPad - 1) / kPad * kPad; }

enum class Status : int {
  kOk = 0,
  kBadCost = 1,    // NaN or -inf in the cost
  kForbidden = 2,  // a row or a column has mass and every pair of it is forbidden
  kOverflow = 3,   // costs so large that their differences are not numbers
};

// How the history of the iterations is stored.
enum class History : int64_t {
  kScalings = 0,    // u_t, v_t: f_t = F + reg log u_t, g_t = G + reg log v_t, F = G = 0 or from init
  kPotentials = 1,  // f_t, g_t: the kernel matrix was rebuilt on the way
};

// What the forward leaves for the backward.
template <class T>
struct Saved {
  struct Info {
    int64_t n_iter;  // iterations that ran
    History history;
    int64_t settled;  // from this iteration on only a constant moves (settling.h); 0: from none
  };
  T* plan;   // (padded(n), padded(m)): work space; P afterwards if that is asked for
  T* alpha;  // (n,): <P_i, C_i> / a_i, 0 where a is 0
  Info* info;
  T* hist_u;  // (max_iter + 1, n) or null
  T* hist_v;  // (max_iter, m) or null
  // What each half-step left of the masses, of unbalanced transport: of all iterations with a history, else of the last.
  T* kept_rows;     // (max_iter or 1, n) or null
  T* kept_columns;  // (max_iter or 1, m) or null
};

// One problem.
template <class T>
struct View {
  int64_t n, m, max_iter;
  T reg;
  double tol;                  // stop when sum_j |(P'1)_j - b_j| <= tol; 0: never
  bool relax;                  // over-relaxed iterations (forward.cpp); not with a history
  Marginals marginals;         // exact, or unbalanced transport
  const T* a;                  // (n,) or null: uniform
  const T* b;                  // (m,) or null: uniform
  const T* init_f;             // (n,) or null: f_0 = -reg log n
  const T* init_g;             // (m,) with init_f: where g is expected, so that K starts in range; changes no result
  cost::Features<T> features;  // or metric kNone: the cost is given
  T* cost;  // (n, m), may hold +inf; with features: their inner products, which the forward makes the cost
  Saved<T> saved;
  int tasks;  // into how many a sweep is split
};
template <class T>
static inline bool has_features(const View<T>& p) {
  return p.features.metric != cost::Metric::kNone;
}

// What the forward answers.
template <class T>
struct Outputs {
  T* f;               // (n,) or null
  T* g;               // (m,) or null
  T* value;           // (): <P, C>
  T* dual;            // () or null: <f~, a> + <g~, b> - reg (sum a - sum a sum b), or the unbalanced dual value
  T* marginal_error;  // () or null
  int64_t* n_iter;    // () or null
};

// The gradients that arrive: those of  value_weight <P, C> + <grad_f, f> + <grad_g, g>.
template <class T>
struct Seed {
  T value_weight;
  const T* grad_f;  // (n,) or null
  const T* grad_g;  // (m,) or null
};

// Where gradients go. With features, `cost` ends as the weights of the products with x and y (cost/row.h).
template <class T>
struct Gradients {
  T* cost;         // (n, m)
  T* a;            // (n,) or null
  T* b;            // (m,) or null
  T* weight_rows;  // (n,) row sums of the weights, with features
  T* weight_cols;  // (m,)
};

enum class Grad : int { kUnrolled = 0, kImplicit = 1, kEnvelope = 2 };

// The last pass, over rows [begin, end): dC = P (value_weight - Z / reg), or value_weight P for kEnvelope.
// Z = value_weight (C - alpha) + left' right, the product in Gradients.cost, for kUnrolled, and
// Z = value_weight (C - alpha) + row_sum_i + col_sum_j for kImplicit. The outputs are those of these rows
// alone.
template <class T>
struct LastPass {
  Grad grad;
  int64_t begin, end;
  const T* row_sum;  // (n,)
  const T* col_sum;  // (m,)
};

// Elements of work space, 64-byte aligned, of the iterations, of a sweep back, and of the last pass with
// features.
template <class T>
static inline int64_t forward_work(const View<T>& p) {
  return 10 * padded(p.n) + (8 + p.tasks) * padded(p.m);
}
template <class T>
static inline int64_t adjoint_work(const View<T>& p) {
  return 11 * padded(p.n) + (12 + p.tasks) * padded(p.m);
}
// The weights by which the last iteration kept masses.
template <class T>
static inline const T* last_kept_rows(const View<T>& p) {
  return p.saved.kept_rows + (p.saved.hist_u ? p.saved.info->n_iter - 1 : 0) * p.n;
}
template <class T>
static inline const T* last_kept_columns(const View<T>& p) {
  return p.saved.kept_columns + (p.saved.hist_u ? p.saved.info->n_iter - 1 : 0) * p.m;
}
template <class T>
static inline int64_t last_pass_work(const View<T>& p) {
  return has_features(p) ? p.tasks * p.m : 0;
}

}  // namespace sinkhorn
}  // namespace ucmkd

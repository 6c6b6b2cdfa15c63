// The whole contract of the Sinkhorn kernels. Every pointer is owned by the caller; matrices are
// row-major and contiguous unless said otherwise. T is float or double throughout.
//
//   P = exp((f + g - C) / reg)      f, g in units of cost, log a and log b inside them
//
// One struct is one problem; a batch is a loop over problems in entry.cpp.
#pragma once
#include <stdint.h>

#include "cost/features.h"

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
enum class History : int {
  kScalings = 0,    // u_t, v_t: f_t = F + reg log u_t, g_t = G + reg log v_t, F = G = 0 or from init
  kPotentials = 1,  // f_t, g_t: the kernel matrix was rebuilt on the way
};

template <class T>
struct Forward {
  int64_t n, m;
  T reg;
  int64_t max_iter;
  bool relax;  // over-relaxed iterations (forward.cpp); not with hist_u
  T tol;       // stop when sum_j |(P'1)_j - b_j| <= tol; 0: never
  T* cost;     // (n, m), may hold +inf; with features: their inner products, which become the cost
  const cost::Features<T>* features;  // or null: the cost is given
  const T* a;                         // (n,) or null: uniform
  const T* b;                         // (m,) or null: uniform
  const T* init_f;                    // (n,) or null: f_0 = -reg log n
  const T* init_g;  // (m,) with init_f: where g is expected, so that K starts in range; changes no result
  int tasks;        // how many tasks a sweep is split into
  // out
  bool save_plan;
  T* plan;    // (padded(n), padded(m)): work space; P afterwards if save_plan
  T* hist_u;  // (max_iter + 1, n) or null
  T* hist_v;  // (max_iter, m) or null
  T* f;       // (n,) or null
  T* g;       // (m,) or null
  T* alpha;   // (n,): <P_i, C_i> / a_i, 0 where a is 0
  T* value;   // (): <P, C>
  T* dual;    // () or null: <f~, a> + <g~, b> - reg (sum a - sum a sum b)
  T* work;    // forward_work(n, m, tasks) elements, 64-byte aligned
  // results
  T marginal_error;
  int64_t n_iter;
  History history;
  Status status;
};
static inline int64_t forward_work(int64_t n, int64_t m, int tasks) {
  return 7 * padded(n) + (7 + tasks) * padded(m);
}

// Gradient of  value_weight <P, C> + <grad_f, f> + <grad_g, g>  through the iterations.
template <class T>
struct Adjoint {
  int64_t n, m;
  T reg;
  int64_t n_iter;
  T tolerance;    // stop when what remains is below this share of every entry of P value_weight
  T range_limit;  // largest |log u_t|, |log v_t| for plain sums
  History history;
  const T* cost;    // (n, m)
  const T* a;       // (n,) or null
  const T* b;       // (m,) or null
  const T* init_f;  // (n,) or null
  const T* init_g;  // (m,) or null
  const T* plan;    // (padded(n), padded(m))
  const T* hist_u;  // (n_iter + 1, n)
  const T* hist_v;  // (n_iter, m)
  const T* alpha;   // (n,)
  T value_weight;
  const T* grad_f;  // (n,) or null
  const T* grad_g;  // (m,) or null
  int tasks;
  // out: left, right for plain sums; grad_cost for the log domain
  T* left;       // (2 n_iter, n): rho_t, u_(t-1) by turns, t from n_iter down
  T* right;      // (2 n_iter, m): v_t, sigma_t by turns. Z = value_weight (C - alpha) + left' right
  T* grad_cost;  // (n, m)
  T* grad_a;     // (n,)
  T* grad_b;     // (m,)
  T* work;       // adjoint_work(n, m, tasks) elements, 64-byte aligned
  // results
  int64_t depth;  // rows of left and right in use
  bool in_range;  // false: |log u_t| passed range_limit; nothing of the output is valid
};
static inline int64_t adjoint_work(int64_t n, int64_t m, int tasks) {
  return 10 * padded(n) + (10 + tasks) * padded(m);
}

// The adjoint sweep at the fixed point (u = v = 1), run until it has converged.
template <class T>
struct Implicit {
  int64_t n, m;
  T reg;
  int64_t max_sweeps;
  T tolerance;
  const T* cost;   // (n, m)
  const T* a;      // (n,) or null
  const T* b;      // (m,) or null
  const T* plan;   // (padded(n), padded(m))
  const T* alpha;  // (n,)
  T value_weight;
  const T* grad_f;  // (n,) or null
  const T* grad_g;  // (m,) or null
  int tasks;
  // out: Z = value_weight (C - alpha) + row_sum_i + col_sum_j
  T* row_sum;  // (n,)
  T* col_sum;  // (m,)
  T* grad_a;   // (n,)
  T* grad_b;   // (m,)
  T* work;     // adjoint_work(n, m, tasks) elements, 64-byte aligned
  // results
  bool converged;
};

// dC = P (value_weight - Z / reg), in place on the product left' right, or from row and column sums;
// or, with plan_only, dC = value_weight P.
template <class T>
struct Gradient {
  int64_t n, m;
  T reg;
  T value_weight;  // of <P, C>
  bool plan_only;
  const T* cost;                      // (n, m)
  const T* plan;                      // (., padded(m))
  const T* alpha;                     // (n,)
  const T* row_sum;                   // (n,) or null: the product is given in grad_cost
  const T* col_sum;                   // (m,) or null
  const cost::Features<T>* features;  // or null; with features, grad_cost ends as their weights (cost/row.h)
  int tasks;
  T* grad_cost;    // (n, m)
  T* weight_rows;  // (n,) row sums of the weights, with features
  T* weight_cols;  // (m,)
  T* work;         // (tasks, m), with features
};

// What the forward keeps for the backward, one block of memory per problem: plan, alpha, the number of
// iterations and the kind of history, hist_u, hist_v.
template <class T>
struct Saved {
  T *plan, *alpha;
  int64_t* info;  // n_iter, History
  T *hist_u, *hist_v;
  static int64_t size(int64_t n, int64_t m, int64_t max_iter, bool history) {
    return padded(n) * padded(m) + padded(n) + kPad +
           (history ? padded((max_iter + 1) * n) + padded(max_iter * m) : 0);
  }
  Saved(T* block, int64_t n, int64_t m, int64_t max_iter, bool history) {
    plan = block;
    alpha = plan + padded(n) * padded(m);
    info = reinterpret_cast<int64_t*>(alpha + padded(n));
    hist_u = history ? alpha + padded(n) + kPad : nullptr;
    hist_v = history ? hist_u + padded((max_iter + 1) * n) : nullptr;
  }
};

}  // namespace sinkhorn
}  // namespace ucmkd

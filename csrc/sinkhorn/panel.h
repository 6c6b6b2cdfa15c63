// Sinkhorn over panels of rows whose cost is made when it is needed: O(N + M + panel) memory.
//
// Every kernel is one sweep over the rows. Each task makes the cost of a few rows, in its work space, does
// what the sweep is for and goes on to the next; ops/_panels.py is between the sweeps.
// Vectors over columns have padded(m) elements: potentials -inf and all others 0 behind the m-th.
#pragma once
#include <stdint.h>

#include "core/product.h"
#include "cost/features.h"
#include "sinkhorn/params.h"

namespace ucmkd {
namespace sinkhorn {

template <class T>
struct Panels {
  int64_t n, m;
  T reg;
  cost::Features<T> features;  // of these rows and all of y
  const T* packed;             // y, as core/packed.h reads it; null for sums, which read no inner products
  T* kept;       // (n, packed_columns(m)) where the cost stays between sweeps, or null: each makes it again
  bool made;     // kept holds the cost
  int64_t rows;  // of which a task makes the cost at a time, a multiple of kRows
  int tasks;
  T* work;  // panels_work elements a task
};
// A task's column sums, five rows more, and the cost of a panel (and its distances).
template <class T>
static inline int64_t panels_work(const Panels<T>& p) {
  return 6 * padded(p.m) + p.rows * product::packed_columns(p.m) * (reads_distance(p.features) ? 2 : 1);
}

// What the gradient is made from: dC = P (weight (1 - (C - alpha) / reg) - Z / reg), or weight P.
template <class T>
struct PanelGradient {
  const T *f, *g;    // (rows,), (m,) of the plan
  const T* alpha;    // (rows,) <P_i, C_i> / a_i; null: dC = weight P
  double weight;     // of <P, C>
  const T* row_sum;  // (rows,): Z = row_sum_i + col_sum_j; null: Z is given in out, or with a history in the
                     // log domain
  const T* col_sum;  // (m,)
  // history, or depth 0: dC += exp((f_before_t + g_t - C) / reg) share_g_t + exp((f_t + g_t - C) / reg)
  // share_f_t
  int64_t depth, stride;                    // of the vectors over rows
  const T *hist_before, *hist_f, *share_f;  // (depth, rows), `stride` apart
  const T *hist_g, *share_g;                // (depth, padded(m))
  // out, with features: the weights of the products with x and y (cost/row.h), and their sums
  T* out;          // (rows, m)
  T* weight_rows;  // (rows,)
  T* weight_cols;  // (m,) added to
  T* distance;     // (rows, m) the cost without its term by class, or null
};

// How far f goes: half as far again (relaxation.h), or damped (unbalanced.h).
struct PanelStep {
  bool relaxed;
  double damping;  // 1 where the marginal is exact
};

// Potentials of one half-step of the sweep back in the log domain, and of the one before.
template <class T>
struct PanelLogStep {
  const T *f, *g;     // (n,), (m,)
  const T* share;     // (m,) adjoints over masses
  const T* g_before;  // (m,)
  const T* inverse;   // (n,) 1 / mass
};

template <class T>
struct PanelKernels {
  // Log-sum-exp over the columns: total_j exp(top_j / reg) = sum_i exp((f_i - C_ij) / reg). False: the cost
  // overflows.
  bool (*columns)(const Panels<T>&, const T* f, T* top, T* total);
  // f_i <- reg (log a_i - damping LSE_j((g_j - C_ij) / reg)), expected near what f holds; sums_j += exp((f_i + g_j -
  // C_ij) / reg). One exponential an element.
  void (*iterate)(const Panels<T>&, const PanelStep&, const T* mass, const T* g, T* f, T* sums);
  // alpha_i and row_value_i = <P_i, C_i>; first_j += sum_i P_ij (C_ij - damping alpha_i) where it is not null.
  void (*plan)(const Panels<T>&, double damping, const T* f, const T* g, T* alpha, T* row_value, T* first);
  // d_i = <P_i, sigma>; sums_j += -d_i factor_i P_ij.
  void (*adjoint)(const Panels<T>&, const T* f, const T* g, const T* sigma, const T* factor, T* d, T* sums);
  // The same without the plan: fbar_i = -sum_j exp((f_i + g_j - C_ij) / reg) share_j, then
  // sums_j -= exp((f_i + g_before_j - C_ij) / reg) fbar_i inverse_i.
  void (*adjoint_log)(const Panels<T>&, const PanelLogStep<T>&, T* fbar, T* sums);
  void (*gradient)(const Panels<T>&, const PanelGradient<T>&);
};

}  // namespace sinkhorn
}  // namespace ucmkd

// Many problems of different sizes between features in one call: what bind_ragged.h calls.
//
// Problem k is rows [x_offsets[k], x_offsets[k + 1]) of x against rows [y_offsets[k], y_offsets[k + 1]) of y.
// One without rows on a side has nothing to transport: its loss and its gradients are 0.
#pragma once
#include <stdint.h>

#include <string>

#include "sinkhorn/entry.h"

namespace ucmkd {
namespace sinkhorn {

struct Ragged {
  bool f64;  // double, else float
  int64_t batch, d, max_iter;
  double reg, tol;
  bool relax, history;       // as in Problem (entry.h)
  int metric;                // cost::Metric
  const int64_t* x_offsets;  // (batch + 1,) ascending from 0; N = the last
  const int64_t* y_offsets;  // (batch + 1,); M = the last
  const void* x;             // (N, d)
  const void* y;             // (M, d)
  const void* scale_x;       // (N,), see cost/features.h
  const void* scale_y;       // (M,)
  const void* given_x;       // (N, d) where x is centred, or null (entry.h)
  const void* given_y;       // (M, d)
  const void* a;             // (N,) or null: uniform in every problem
  const void* b;             // (M,) or null
  const void* init_f;        // (N,) or null
  const void* init_g;        // (M,) or null
  void* cost;                // (ragged_sizes.cost,): the forward's outcome, the backward's input
  void* saved;               // (ragged_sizes.saved,)
  cost::ClassTerm classes;   // of all problems: cost and grad (N, K), label (M,), distance as `cost`
};

// Elements of `cost` and of `saved`.
struct RaggedSizes {
  int64_t cost, saved;
};
RaggedSizes ragged_sizes(const Ragged&);

// Where the cost of problem k (n_k, m_k) begins, in elements.
int64_t ragged_cost_offset(const Ragged&, int64_t k);

template <class T>
struct RaggedOutputs {
  T *f, *g;                          // (N,), (M,); -inf in problems without rows on a side
  T *value, *dual, *marginal_error;  // (batch,)
  int64_t* n_iter;                   // (batch,)
};

// Empty, or a sentence about what is wrong with the input and where.
template <class T>
std::string ragged_forward(const Ragged&, bool save_plan, const RaggedOutputs<T>&);

template <class T>
struct RaggedGradients {
  T *x, *y;  // (N, d), (M, d) or null
  T *a, *b;  // (N,), (M,) or null
};

// Upstream gradients: value (batch,), f (N,), g (M,), or null. False where an implicit sweep did not
// converge.
template <class T>
bool ragged_backward(const Ragged&, Grad, const T* up_value, const T* up_f, const T* up_g,
                     const RaggedGradients<T>&);

}  // namespace sinkhorn
}  // namespace ucmkd

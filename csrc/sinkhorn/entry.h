// Batches of problems on untyped pointers: what bind.cpp calls. Sizes are as in params.h, with a
// leading batch dimension; masses may be shared by the batch (stride 0).
#pragma once
#include <stdint.h>

namespace ucmkd {
namespace sinkhorn {

struct Problem {
  bool f64;              // double, else float
  int64_t batch, n, m, max_iter;
  double reg, tol;
  const void* cost;     // (batch, n, m)
  const void* a;        // (batch or 1, n) or null
  int64_t a_stride;     // n or 0
  const void* b;        // (batch or 1, m) or null
  int64_t b_stride;     // m or 0
  const void* init_f;   // (batch, n) or null
  bool history;         // hist_u, hist_v are in saved
  void* saved;          // (batch, saved_size)
  int64_t* info;        // (batch, 2): n_iter, history kind
};

struct Upstream {
  const void* value;    // (batch,) or null: 0
  const void* f;        // (batch, n) or null
  const void* g;        // (batch, m) or null
};

int64_t saved_size(int64_t n, int64_t m, int64_t max_iter, bool history);

// Each returns null or a sentence about what is wrong with the input.
template <class T>
const char* forward(const Problem&, bool save_plan, T* f, T* g, T* value, T* dual, T* marginal_error);

// Plain sums: fills left (batch, 2 max_iter, n) and right (batch, 2 max_iter, m); returns how many rows are in
// use (0 where every problem needs the log domain). depth (batch,): -1 marks such a problem.
template <class T>
int64_t adjoint(const Problem&, const Upstream&, T* left, T* right, T* grad_a, T* grad_b, int64_t* depth);

// grad_cost (batch, n, m): in place on left' right where depth >= 0, by the log domain elsewhere.
template <class T>
void adjoint_finish(const Problem&, const Upstream&, const int64_t* depth, T* grad_cost, T* grad_a, T* grad_b);

// The gradient at the fixed point; false where a sweep did not converge.
template <class T>
bool implicit(const Problem&, const Upstream&, T* grad_cost, T* grad_a, T* grad_b);

// grad_cost = value_weight P
template <class T>
void envelope(const Problem&, const Upstream&, T* grad_cost);

}  // namespace sinkhorn
}  // namespace ucmkd

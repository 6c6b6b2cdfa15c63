// The tables of CPU kernels, one per file and instruction-set level; see core/levels.h.
#pragma once
#include "sinkhorn/params.h"

namespace ucmkd {
namespace sinkhorn {

// forward.cpp, and forward_unbalanced.cpp for marginals that may give way
template <class T>
struct ForwardKernels {
  // The iterations. Fills what is saved as well; P only where `save_plan`.
  Status (*solve)(const View<T>&, bool save_plan, const Outputs<T>&, T* work);
};

// adjoint.cpp
template <class T>
struct AdjointKernels {
  // By plain sums. Z = value_weight (C - alpha) + left' right: rho_t and u_(t-1) by turns in left (2 n_iter,
  // n), v_t and sigma_t in right (2 n_iter, m), t from n_iter down. Returns how many rows are in use, or -1
  // where |log u_t| leaves the range of plain sums: nothing of the output is valid then.
  int64_t (*plain)(const View<T>&, const Seed<T>&, T* left, T* right, const Gradients<T>&, T* work);
  // In the log domain, which never overflows: dC as well.
  void (*log_domain)(const View<T>&, const Seed<T>&, const Gradients<T>&, T* work);
  // At the fixed point (u = v = 1), run until it has converged; false where it has not.
  // Z = value_weight (C - alpha) + row_sum_i + col_sum_j.
  bool (*fixed_point)(const View<T>&, const Seed<T>&, T* row_sum, T* col_sum, const Gradients<T>&, T* work);
};

// gradient.cpp
template <class T>
struct GradientKernels {
  void (*rows)(const View<T>&, T value_weight, const LastPass<T>&, const Gradients<T>&, T* work);
};

}  // namespace sinkhorn
}  // namespace ucmkd

// The contract of the Sinkhorn divergence between sampled measures (README.md beside this file for the formulas).
#pragma once
#include <stdint.h>

namespace ucmkd {
namespace samples_loss {

// Vectors over points are padded to a multiple of kPad elements, and a sweep takes kRows rows together.
constexpr int64_t kPad = 16, kRows = 4;
static inline int64_t padded(int64_t size) { return (size + kPad - 1) / kPad * kPad; }

template <class T>
struct Measures {
  int64_t batch, n, m, d;
  const T* a;  // (batch, n) weights >= 0
  const T* x;  // (batch, n, d)
  const T* b;  // (batch, m)
  const T* y;  // (batch, m, d)
};

template <class T>
struct Forward {
  Measures<T> given;
  int p;              // C = |x - y| where 1, |x - y|^2 / 2 where 2
  const double* eps;  // (steps,) temperatures in turn
  int64_t steps;
  double rho;       // how strongly marginals are held, +inf: exactly
  bool debias;      // less the problems of x with x and of y with y
  bool potentials;  // terms are differences of potentials; else what a unit of weight at a point adds to the loss
  bool keep_costs;  // cost matrices stay in memory; else every sweep makes them from the points
  // out
  T* loss;     // (batch,) sum of weights times terms
  T* term_x;   // (batch, n)
  T* term_y;   // (batch, m)
  T* slope_x;  // (batch, n, d) gradient of the loss, or of each point's own term where `potentials`; or null
  T* slope_y;  // (batch, m, d)
};

// What all points and weights are like together.
struct Look {
  double diagonal;  // of the box around all points, made in T: not finite where a point is not, or where it overflows
  bool weights;     // all are finite and >= 0, and each measure has one > 0
};

template <class T>
struct Kernels {
  Look (*look)(const Measures<T>&, T* box /* (2, d) */);
  // Elements that `forward` works in.
  int64_t (*room)(const Forward<T>&, int tasks);
  void (*forward)(const Forward<T>&, int64_t problem, int tasks, T* room);
};

}  // namespace samples_loss
}  // namespace ucmkd

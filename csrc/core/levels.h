// Which build of the kernels runs: tables of functions for every instruction-set level, one level chosen
// once.
#pragma once
#include "assign/params.h"
#include "core/product.h"
#include "cost/kernels.h"
#include "doubly_stochastic/params.h"
#include "label_transport/params.h"
#include "samples_loss/params.h"
#include "sinkhorn/kernels.h"
#include "sinkhorn/panel.h"

namespace ucmkd {

template <template <class> class Table>
struct ByType {
  Table<float> f32;
  Table<double> f64;
};

template <class T>
struct Kernels {
  const sinkhorn::ForwardKernels<T>& forward;
  const sinkhorn::ForwardKernels<T>& unbalanced;
  const sinkhorn::AdjointKernels<T>& adjoint;
  const sinkhorn::GradientKernels<T>& gradient;
  const sinkhorn::PanelKernels<T>& panel;
  const cost::Kernels<T>& cost;
  const product::Kernels<T>& product;
  const label_transport::Kernels<T>& label_transport;
  const assign::Kernels<T>& assign;
  const doubly_stochastic::Kernels<T>& doubly_stochastic;
  const samples_loss::Kernels<T>& samples_loss;
};

struct Level {
  const char* name;  // "baseline", "v3", "v4"
  int vector_bytes;
  bool (*supported)();
  Kernels<float> f32;
  Kernels<double> f64;
  void (*exp_f32)(const float* x, float* y, int64_t count);  // for the tests of exp
  void (*exp_f64)(const double* x, double* y, int64_t count);
};

// Levels that were built, best last.
const Level* const* built_levels(int* count);

// The best level that this processor supports, or the one that UCMKD_CPU_LEVEL names; read once.
// Null and a sentence in *error where that names none.
const Level* level(const char** error);

// Multiply-adds of a call that is worth helpers (core/parallel.h) at that level.
double least_work();

template <class T>
const Kernels<T>& kernels();

}  // namespace ucmkd

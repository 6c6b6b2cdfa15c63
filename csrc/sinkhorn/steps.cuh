// What is done to the elements of a row and of a column in each kind of sweep: the mathematics of the
// iterations and of their adjoint, apart from how rows and columns are shared out (team.cuh, panel.cu, streamed.cu).
//
//   row pass     y_i = step.finish(i, sum_j step.row(step.given(i), j, C_ij))
//   column pass  state_j += step.column(y_i, j, C_ij)
//
// where a sum is what Step::Row and Step::Column add up: of terms, or the logarithm of that of their exponentials.
// A step without a row pass takes y_i = step.given(i).
#pragma once
#include "core/launch.cuh"
#include "sinkhorn/cuda.h"
#include "sinkhorn/step.h"

namespace ucmkd {
namespace sinkhorn {

constexpr int kWarp = 32;

// What a row hands to the columns.
template <class T>
struct RowValue {
  T potential, weight, shift;
};

template <class T>
__device__ inline LogSum<T> other_lane(const LogSum<T>& a, int mask) {
  return {cuda::shuffle_xor(a.top, mask), cuda::shuffle_xor(a.sum, mask)};
}
template <class T>
__device__ inline Sum<T> other_lane(const Sum<T>& a, int mask) {
  return {cuda::shuffle_xor(a.sum, mask)};
}
template <class A>
__device__ inline A warp_merge(A acc) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) acc.merge(other_lane(acc, mask));
  return acc;
}

// Before a block raises flags of a problem that it has to itself; of a grid's, they are cleared before it starts.
template <class T>
__device__ void clear_flags(const One<T>& p) {
  if (threadIdx.x == 0) *p.flags() = 0;
  cuda::sync_block();
}

// ---- The iterations

// f from g, and the log-sums of the columns from f. Over-relaxed, f_(t-1) is where f_t goes: no history then.
template <class T>
struct Iterate {
  using Row = LogSum<T>;
  using Column = LogSum<T>;
  static constexpr bool kRows = true, kColumns = true;
  static constexpr int kUnroll = 4;
  One<T> p;
  const T* g;  // g_t (m,)
  T* f;        // f_t (n,)
  T* log_f;    // (n,)
  T inverse_reg;
  bool relaxed;
  __device__ RowValue<T> given(int) const { return {0, 0, 0}; }
  __device__ T row(const RowValue<T>&, int j, T c) const { return (g[j] - c) * inverse_reg; }
  __device__ RowValue<T> finish(int i, const Row& acc) const {
    const T mass = p.mass_a(i), log_sum = acc.value();
    T next = half_step(mass, log_sum, p.reg());
    log_f[i] = mass > 0 ? log_sum : T(INFINITY);
    if (next == T(INFINITY)) cuda::atomic_or(p.flags(), kFlagForbidden);
    if (relaxed) next = over_relaxed(next, f[i]);
    f[i] = next;
    return {next, 0, 0};
  }
  __device__ T column(const RowValue<T>& y, int, T c) const { return (y.potential - c) * inverse_reg; }
};

// The log-sums of the columns from f_0; every cost is looked at.
template <class T>
struct Start {
  using Column = LogSum<T>;
  static constexpr bool kRows = false, kColumns = true;
  static constexpr int kUnroll = 4;
  One<T> p;
  const T* f;
  T inverse_reg;
  bool bad;
  __device__ RowValue<T> given(int i) const { return {f[i], 0, 0}; }
  __device__ T column(const RowValue<T>& y, int, T c) {
    if (!(c >= -Rules<T>::kMax)) bad = true;
    return (y.potential - c) * inverse_reg;
  }
};

// Two sums over a row of the plan.
template <class T>
struct Pair {
  using Term = Pair;
  T cost, mass;
  static __device__ Pair empty() { return {0, 0}; }
  static __device__ Term nothing() { return {0, 0}; }
  __device__ void add(const Term& o) { cost += o.cost, mass += o.mass; }
  template <int kN>
  __device__ void add_all(const Term (&x)[kN]) {
#pragma unroll
    for (int k = 0; k < kN; ++k) add(x[k]);
  }
  __device__ void merge(const Pair& o) { add(o); }
};
template <class T>
__device__ inline Pair<T> other_lane(const Pair<T>& a, int mask) {
  return {cuda::shuffle_xor(a.cost, mask), cuda::shuffle_xor(a.mass, mask)};
}

// alpha_i = <P_i, C_i> / sum(P_i) and the value. `centre`: a second look at the row, for what rounding left
// of the mean; the adjoint divides it by reg.
template <class T>
struct Value {
  using Row = Pair<T>;
  static constexpr bool kRows = true, kColumns = false;
  static constexpr int kUnroll = 4;
  One<T> p;
  const T* f;
  const T* g;
  T inverse_reg;
  bool centre;
  double value, dual;  // of the rows that this thread finished
  __device__ RowValue<T> given(int i) const { return {f[i], 0, centre ? p.alpha()[i] : T(0)}; }
  __device__ Pair<T> row(const RowValue<T>& given, int j, T c) const {
    const T plan = cuda::exp_of(exponent(given.potential, g[j], c, inverse_reg));
    return {plan > 0 ? plan * (c - given.shift) : T(0), plan > 0 ? plan : T(0)};
  }
  __device__ RowValue<T> finish(int i, const Row& acc) {
    const T mean = acc.mass > 0 ? acc.cost / acc.mass : T(0);
    p.alpha()[i] = centre ? p.alpha()[i] + mean : mean;
    if (!centre) {
      const T mass = p.mass_a(i);
      value += acc.cost;
      dual += double(without_mass(f[i], mass, p.reg())) * mass;
      p.f()[i] = f[i];
    }
    return {0, 0, 0};
  }
};

// ---- The adjoint

// dg_T: of the value, centred on alpha, and of what came for f_T.
template <class T>
struct First {
  using Column = Sum<T>;
  static constexpr bool kRows = false, kColumns = true;
  static constexpr int kUnroll = 4;
  One<T> p;
  const T *g, *df;  // g_T (m,), df_T (n,) or null: 0
  T inverse_reg, weight_over_reg;
  __device__ RowValue<T> given(int i) const {
    return {p.f()[i], df ? df[i] * inverse_or_zero(p.mass_a(i)) : T(0), p.alpha()[i]};
  }
  __device__ T column(const RowValue<T>& y, int j, T c) const {
    const T plan = cuda::exp_of(exponent(y.potential, g[j], c, inverse_reg));
    return plan > 0 ? plan * ((c - y.shift) * weight_over_reg - y.weight) : T(0);
  }
};

// One step back: df_(t-1) of the rows from dg_t, then the columns' dg_(t-1) from df_(t-1).
template <class T>
struct Back {
  using Row = Sum<T>;
  using Column = Sum<T>;
  static constexpr bool kRows = true, kColumns = true;
  static constexpr int kUnroll = 4;
  One<T> p;
  int64_t t;
  const T *log_g, *dg;  // of S_t (m,)
  const T* g_before;    // g_(t-1) (m,)
  T *df, *grad_a;       // df_(t-1), (n,)
  T inverse_reg;
  __device__ RowValue<T> given(int i) const { return {p.f_at(t - 1)[i], 0, 0}; }
  __device__ T row(const RowValue<T>& given, int j, T c) const {
    return softmax_of(given.potential, c, log_g[j], p.reg(), inverse_reg) * dg[j];
  }
  __device__ RowValue<T> finish(int i, const Row& acc) const {
    df[i] = -acc.sum;
    grad_a[i] -= p.reg() * acc.sum * inverse_or_zero(p.mass_a(i));
    return {p.log_f_at(t - 1)[i], acc.sum, 0};
  }
  __device__ T column(const RowValue<T>& y, int j, T c) const {
    return softmax_of(g_before[j], c, y.potential, p.reg(), inverse_reg) * y.weight;
  }
};

// The column sums of the plan, as rows of masses a: P = a R.
template <class T>
struct ColumnMass {
  using Column = Sum<T>;
  static constexpr bool kRows = false, kColumns = true;
  static constexpr int kUnroll = 2;  // four would not fit the registers
  One<T> p;
  T inverse_reg;
  __device__ RowValue<T> given(int i) const { return {p.log_f_at(*p.n_iter())[i], p.mass_a(i), 0}; }
  __device__ T column(const RowValue<T>& y, int j, T c) const {
    return cuda::exp_of((p.g()[j] - c) * inverse_reg - y.potential) * y.weight;
  }
};

// The same step at the fixed point, S_ij = a_i R_ij / sum_i a_i R_ij; df is summed.
template <class T>
struct FixedPoint {
  using Row = Sum<T>;
  using Column = Sum<T>;
  static constexpr bool kRows = true, kColumns = true;
  static constexpr int kUnroll = 2;  // four would not fit the registers
  One<T> p;
  const T *log_f, *share;  // (n,), dg over the columns' masses (m,)
  T *df, *grad_a;          // sums (n,)
  T inverse_reg;
  __device__ RowValue<T> given(int i) const { return {log_f[i], 0, 0}; }
  __device__ T row(const RowValue<T>& given, int j, T c) const {
    return cuda::exp_of((p.g()[j] - c) * inverse_reg - given.potential) * share[j];
  }
  __device__ RowValue<T> finish(int i, const Row& acc) const {
    const T mass = p.mass_a(i) * acc.sum;
    df[i] -= mass;
    if (p.mass_a(i) > 0) grad_a[i] -= p.reg() * acc.sum;
    return {log_f[i], mass, 0};
  }
  __device__ T column(const RowValue<T>& y, int j, T c) const {
    return cuda::exp_of((p.g()[j] - c) * inverse_reg - y.potential) * y.weight;
  }
};

}  // namespace sinkhorn
}  // namespace ucmkd

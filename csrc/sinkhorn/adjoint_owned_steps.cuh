// What a sweep back does to one element, a row and a column where threads own columns (adjoint_owned.cu).
#pragma once
#include "sinkhorn/owned.cuh"
#include "sinkhorn/unbalanced.cuh"

namespace ucmkd {
namespace sinkhorn {

// dg_T: of the value, centred on alpha, and of what came for f_T.
template <class T>
struct OwnedFirst {
  static constexpr bool kRows = false, kWeighted = false, kLooks = false, kMends = false, kOnce = true;
  One<T> p;
  const T *f, *alpha, *share;  // of this block's rows; shared: df_T / a
  T inverse_reg, weight_over_reg;
  __device__ T shift(int j) const { return p.g()[j]; }
  __device__ RowValue<T> power(int row) const { return {f[row], share[row], alpha[row]}; }
  __device__ T entry(T g, T c, const RowValue<T>& y) const {
    const T plan = cuda::exp_of(exponent(y.potential, g, c, inverse_reg));
    return plan > 0 ? plan * ((c - y.shift) * weight_over_reg - y.weight) : T(0);
  }
};

// exp(potential / reg + log_sum), where the two are large and almost cancel.
template <class T>
__device__ inline T rest_of(T potential, T log_sum, T inverse_reg, T sign) {
  const T power = potential * inverse_reg;
  return cuda::exp_of(sign * ((power + log_sum) + cuda::fused(potential, inverse_reg, -power)));
}

// The powers of S to the base of two, as (column - c) k + row, where column = -reg log_g: what remains of column - c is
// small, and its rounding with it. What the rounding of `column` and `row` took is little; it is put back as factors.
// The log-sums were taken with `inverse_reg`, which k is not to the last bit.
template <class T>
struct Powers {
  T reg, k, high, low;  // log2(e) in two parts, as it is with this k
  __device__ Powers(T reg_, T inverse_reg, T k_) : reg(reg_), k(k_) {
    const double log2e = kLog2E * (1 - double(reg) * double(inverse_reg)) + double(reg) * double(k);
    high = T(log2e), low = T(log2e - double(high));
  }
  __device__ T column(T log_sum) const { return -reg * log_sum; }
  __device__ T rest_of_column(T log_sum) const {
    const T power = log_sum * high, made = column(log_sum), taken = made * k;
    const T parts = cuda::fused(log_sum, high, -power) + cuda::fused(made, k, -taken) + log_sum * low;
    return 1 - T(1 / kLog2E) * ((power + taken) + parts);
  }
  __device__ T row(T potential) const { return potential * k; }
  __device__ T rest_of_row(T potential) const { return 1 + T(1 / kLog2E) * cuda::fused(potential, k, -row(potential)); }
};

// One step back.
template <class T>
struct OwnedBack {
  static constexpr bool kRows = true, kWeighted = true, kLooks = false, kMends = false, kOnce = false;
  const T *log_g, *weights;    // of S_t; dg_t with what rounding took from the columns' powers (m,)
  const T *potential, *scale;  // shared: f_(t-1); 1 / a or 0, with the row's rest squared
  T* df;                       // df_(t-1) of this block's rows
  const Powers<T>& powers;
  __device__ T shift(int j) const { return powers.column(log_g[j]); }
  __device__ T weight(int j) const { return weights[j]; }
  __device__ T power(int row) const { return powers.row(potential[row]); }
  __device__ T entry(T column, T c, T row) const { return cuda::power_of_two(cuda::fused(column - c, powers.k, row)); }
  __device__ T value(int row, T sum) const { return sum * scale[row]; }
  __device__ void store(int row, T sum) const {
    df[row] = scale[row] > 0 ? -sum * powers.rest_of_row(potential[row]) : T(0);
  }
};

// The same of damped half-steps, with a shift in between.
template <class T>
struct DampedOwnedBack : OwnedBack<T> {
  using OwnedBack<T>::df, OwnedBack<T>::scale, OwnedBack<T>::powers, OwnedBack<T>::potential;
  T lambda, shift_of_rows, of_a;
  T* of_mass;  // (count,) what the shift gives the gradient of the rows' masses, times the mass
  __device__ DampedOwnedBack(const OwnedBack<T>& exact, T lambda_, const PulledShift& pulled, T* of_mass_)
      : OwnedBack<T>(exact), lambda(lambda_), shift_of_rows(T(pulled.rows)), of_a(T(pulled.of_a)), of_mass(of_mass_) {}
  __device__ T value(int row, T sum) const {
    return scale[row] > 0 ? lambda * (sum * scale[row] + shift_of_rows) : T(0);
  }
  __device__ void store(int row, T sum) const {
    const T kept = inverse_or_zero(scale[row]);
    df[row] = kept > 0 ? -lambda * (sum * powers.rest_of_row(potential[row]) + shift_of_rows * kept) : T(0);
    of_mass[row] += of_a * kept;
  }
};

// a R: its column sums are those of the plan.
template <class T>
struct OwnedColumnMass {
  static constexpr bool kRows = false, kWeighted = false, kLooks = false, kMends = false, kOnce = true;
  const T* g;               // (m,)
  const T *log_sum, *mass;  // shared: -log2 of the rows' sums, a
  T k;
  __device__ T shift(int j) const { return g[j]; }
  __device__ RowValue<T> power(int row) const { return {log_sum[row], mass[row], 0}; }
  __device__ T entry(T g_j, T c, const RowValue<T>& y) const {
    return cuda::power_of_two(cuda::fused(g_j - c, k, y.potential)) * y.weight;
  }
};

// The same step at the fixed point, S_ij = a_i R_ij / sum_i a_i R_ij.
template <class T>
struct OwnedFixedPoint {
  static constexpr bool kRows = true, kWeighted = true, kLooks = false, kMends = false, kOnce = false;
  const T *g, *weights;     // (m,), dg over the columns' masses (m,)
  const T *log_sum, *mass;  // as above
  T* df;                    // of this block's rows
  T k;
  __device__ T shift(int j) const { return g[j]; }
  __device__ T weight(int j) const { return weights[j]; }
  __device__ T power(int row) const { return log_sum[row]; }
  __device__ T entry(T g_j, T c, T y) const { return cuda::power_of_two(cuda::fused(g_j - c, k, y)); }
  __device__ T value(int row, T sum) const { return sum * mass[row]; }
  __device__ void store(int row, T sum) const { df[row] -= sum * mass[row]; }
};

}  // namespace sinkhorn
}  // namespace ucmkd

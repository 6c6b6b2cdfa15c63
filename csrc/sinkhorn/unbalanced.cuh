// Unbalanced transport (unbalanced.h) on a GPU: what its half-steps and their adjoints do that exact ones do not.
//
// Shifts between iterations leave f + g, and with it every softmax, as it is: potentials are kept without them, f' = f - c
// and g' = g + c where c is the sum of the shifts so far. With the log-sums L of f' and g' a half-step is the exact one and
// a little more, which also is what it left of a mass:
//
//   f'_i = reg (log a_i - L_i + x_i)        x_i = (1 - lambda_a) (L_i - c / reg)        R_i = a_i exp(x_i)
//   g'_j = reg (log b_j - L_j + y_j)        y_j = (1 - lambda_b) (L_j + c / reg)        S_j = b_j exp(y_j)
//
// 1 - lambda = reg / (rho + reg) is small where rho is large: taken for itself it loses nothing there.
#pragma once
#include "sinkhorn/crew.cuh"
#include "sinkhorn/steps.cuh"

namespace ucmkd {
namespace sinkhorn {

// The rows or the columns, behind the shifts so far.
template <class T>
struct Damped {
  T lambda, lost;  // lost = 1 - lambda
  T moved;         // -c / reg of the rows, c / reg of the columns

  static __device__ Damped of(double rho, T reg, T moved) {
    const double held = rho < HUGE_VAL ? double(reg) / (rho + double(reg)) : 0;
    return {T(damping(rho, double(reg))), T(held), moved};
  }
  static __device__ Damped rows(const One<T>& p, double shifted) {
    return of(p.all.marginals.rho_a, p.reg(), T(-shifted / double(p.reg())));
  }
  static __device__ Damped columns(const One<T>& p, double shifted) {
    return of(p.all.marginals.rho_b, p.reg(), T(shifted / double(p.reg())));
  }

  // x or y, of a finite log-sum
  __device__ T log_kept(T log_sum) const { return lost > 0 ? lost * (log_sum + moved) : T(0); }
  __device__ T kept(T mass, T log_sum) const { return mass > 0 ? mass * cuda::exp_of(log_kept(log_sum)) : T(0); }
  // As half_step of step.h.
  __device__ T step(T mass, T log_sum, T reg) const {
    if (!(mass > 0 && log_sum > -T(INFINITY))) return half_step(mass, log_sum, reg);
    return reg * ((cuda::log_of(mass) - log_sum) + log_kept(log_sum));
  }
  // The potential without its mass, shifts in it.
  __device__ double without_mass(double rho, double reg, T log_sum) const {
    return log_sum < T(INFINITY) ? -damping(rho, reg) * reg * (double(log_sum) + double(moved)) : 0;
  }
};

// What kept next to nothing takes no part in gradients: 0.
template <class T>
__device__ inline T kept_or_nothing(T kept) {
  return kept > T(Rules<T>::kLeastMass) ? kept : T(0);
}

// How iteration t was shifted and what both sides kept, for the sweep back; by one thread.
template <class T>
__device__ inline void write_shift(const One<T>& p, int64_t t, double shifted, double kept_a, double kept_b) {
  T* at = p.shift_at(t);
  at[0] = T(shifted), at[1] = T(kept_a), at[2] = T(kept_b);
}

// f'_t and what the rows kept.
template <class T>
struct DampedIterate : Iterate<T> {
  using typename Iterate<T>::Row;
  using Iterate<T>::p, Iterate<T>::f, Iterate<T>::log_f;
  Damped<T> rows;
  double kept = 0;  // by the rows that this thread finished
  __device__ DampedIterate(const Iterate<T>& exact, const Damped<T>& damped) : Iterate<T>(exact), rows(damped) {}
  __device__ RowValue<T> finish(int i, const Row& acc) {
    const T mass = p.mass_a(i), log_sum = acc.value(), next = rows.step(mass, log_sum, p.reg());
    log_f[i] = mass > 0 ? log_sum : T(INFINITY);
    if (next == T(INFINITY)) cuda::atomic_or(p.flags(), kFlagForbidden);
    f[i] = next;
    kept += rows.kept(mass, log_sum);
    return {next, 0, 0};
  }
};

// The last potential of a row or a column, with shifts and without; its part of the dual value. `z` without shifts.
template <class T>
struct LastStep {
  double rho, reg, shifted;  // what z lacks
  Damped<T> side;
  __device__ double write(T mass, T log_sum, T z, T* with, T* without, T* kept) const {
    *kept = kept_or_nothing(side.kept(mass, log_sum));
    *without = *kept > 0 ? z : -T(INFINITY);
    *with = mass > 0 ? T(double(z) + shifted) : -T(INFINITY);
    return mass > 0 ? paid(side.without_mass(rho, reg, log_sum), rho) * double(mass) : 0;
  }
};

template <class T>
struct DampedValue : Value<T> {
  using typename Value<T>::Row;
  using Value<T>::p, Value<T>::f, Value<T>::centre, Value<T>::value, Value<T>::dual;
  LastStep<T> last;
  const T* log_f;
  __device__ DampedValue(const Value<T>& exact, const LastStep<T>& last_step, const T* log_sums)
      : Value<T>(exact), last(last_step), log_f(log_sums) {}
  __device__ RowValue<T> finish(int i, const Row& acc) {
    const T mean = acc.mass > 0 ? acc.cost / acc.mass : T(0);
    p.alpha()[i] = centre ? p.alpha()[i] + mean : mean;
    if (centre) return {0, 0, 0};
    const T mass = p.mass_a(i);
    value += acc.cost;
    dual += last.write(mass, log_f[i], f[i], p.f() + i, p.last_f() + i, p.kept_a() + i);
    dual -= last.reg * last.side.kept(mass, log_f[i]);
    return {0, 0, 0};
  }
};

// ---- The adjoint. Its vectors are lambda_a df_t and lambda_b dg_t: what P_ij / R_i and P_ij / S_j are multiplied by.

// The adjoint of the shift between two iterations: f + s pulls s by the sum of its adjoint, and that the potentials and
// masses which s was made from. Nothing where there is none.
struct PulledShift {
  double rows = 0, columns = 0;  // df_i loses rows R_i, dg_j gains columns S_j
  double of_a = 0, of_b = 0;     // a_i gains of_a R_i / a_i, b_j loses of_b S_j / b_j
};

// What the adjoints of the columns sum to: known without them (adjoint_parts.h), as softmaxes sum to one.
struct ChargeOfColumns {
  double sum, lambda_a, lambda_b;
  Marginals held;

  // Over the half-step of the columns, and that of the rows. kept_a, kept_b: sums over what the iteration before kept.
  __device__ PulledShift back(double kept_a, double kept_b) {
    sum *= -lambda_b;
    PulledShift pulled;
    if (held.shifted && kept_a > 0 && kept_b > 0) {
      const double of_mass = sum * both_of(held.rho_a, held.rho_b);
      pulled = {sum * share_of_rows(held) / kept_a, sum * share_of_columns(held) / kept_b,
                of_mass / (kept_a * lambda_a), of_mass / (kept_b * lambda_b)};
    }
    sum = -lambda_a * (sum - pulled.rows * kept_a) + pulled.columns * kept_b;
    return pulled;
  }
};

// The largest entry of a vector over the largest mass that was kept. Not each over its own: one of next to nothing would
// say that nothing else matters.
template <class T>
__device__ inline double largest_share(const T* x, const T* kept, T lambda, int begin, int end, Crew& crew) {
  double most = 0, of_mass = 0;
  if (x)
    crew.over(begin, end, [&](int k) {
      const double here = kept[k] > 0 ? magnitude(x[k]) : 0;
      most = most < here ? here : most, of_mass = of_mass < kept[k] ? kept[k] : of_mass;
    });
  most = crew.largest(most), of_mass = crew.largest(of_mass);
  return most > 0 ? lambda * most / of_mass : 0;
}

// As least_that_matters of adjoint_ends.cuh.
template <class T>
__device__ double least_of_kept(const One<T>& p, const AdjointCall<T>& call, T weight, const T* grad_f, const T* grad_g,
                                Crew& crew) {
  const T of_rows = Damped<T>::rows(p, 0).lambda, of_columns = Damped<T>::columns(p, 0).lambda;
  const double of_f = largest_share(grad_f, p.kept_a(), of_rows, crew.row_begin, crew.row_end, crew);
  const double of_g = largest_share(grad_g, p.kept_b(), of_columns, crew.col_begin, crew.col_end, crew);
  return call.tolerance * (magnitude(weight) + of_f + of_g);
}

// lambda_a df_T of row i, and the gradient of its mass but for that, times the mass: <P, C> = <P, C - alpha> +
// sum_i alpha_i R_i, and the second pulls f_i by -alpha_i R_i / rho_a, a_i by alpha_i R_i / (lambda_a a_i). <P, C - alpha>
// adds nothing to the charge: its rows sum to 0.
template <class T>
__device__ T first_of_row(const One<T>& p, int i, T weight, const T* grad_f, T* of_mass) {
  const double rho = p.all.marginals.rho_a;
  const T lambda = Damped<T>::rows(p, 0).lambda, kept = p.kept_a()[i], moved = weight * p.alpha()[i] * kept;
  *of_mass = moved / lambda;
  return kept > 0 ? lambda * ((grad_f ? grad_f[i] : T(0)) - moved * T(inverse_of(rho))) : T(0);
}

template <class T>
struct DampedFirst : First<T> {
  using First<T>::p, First<T>::df;
  __device__ explicit DampedFirst(const First<T>& exact) : First<T>(exact) {}
  __device__ RowValue<T> given(int i) const { return {p.f()[i], df[i] * inverse_or_zero(p.kept_a()[i]), p.alpha()[i]}; }
};

// df_(t-1) of one row from `pulled_by_columns` = sum_j S_t,ij lambda_b dg_t,j: into *df times lambda_a, and the gradient
// of the row's mass. Returns what *df holds. kept: R_i.
template <class T>
__device__ inline T damped_row(const One<T>& p, const Damped<T>& side, const PulledShift& pulled, int i, T kept,
                               T pulled_by_columns, T* grad_a) {
  if (!(p.kept_a()[i] > 0)) return 0;
  const T df = -pulled_by_columns - T(pulled.rows) * kept;
  *grad_a += (p.reg() * df + T(pulled.of_a) * kept) * inverse_or_zero(p.mass_a(i));
  return side.lambda * df;
}

template <class T>
struct DampedBack : Back<T> {
  static constexpr int kUnroll = 2;  // four would not fit the registers
  using typename Back<T>::Row;
  using Back<T>::p, Back<T>::t, Back<T>::df, Back<T>::grad_a;
  Damped<T> rows;  // of iteration t - 1
  PulledShift pulled;
  __device__ DampedBack(const Back<T>& exact, const Damped<T>& damped, const PulledShift& shift)
      : Back<T>(exact), rows(damped), pulled(shift) {}
  __device__ RowValue<T> finish(int i, const Row& acc) const {
    const T log_sum = p.log_f_at(t - 1)[i];
    df[i] = damped_row(p, rows, pulled, i, rows.kept(p.mass_a(i), log_sum), acc.sum, grad_a + i);
    return {log_sum, -df[i], 0};
  }
};

// The column sums of the plan, as rows of R.
template <class T>
struct DampedColumnMass : ColumnMass<T> {
  using ColumnMass<T>::p;
  __device__ explicit DampedColumnMass(const ColumnMass<T>& exact) : ColumnMass<T>(exact) {}
  __device__ RowValue<T> given(int i) const { return {p.log_f_at(*p.n_iter())[i], p.kept_a()[i], 0}; }
};

template <class T>
struct DampedFixedPoint : FixedPoint<T> {
  using typename FixedPoint<T>::Row;
  using FixedPoint<T>::p, FixedPoint<T>::df, FixedPoint<T>::grad_a, FixedPoint<T>::log_f;
  Damped<T> rows;
  PulledShift pulled;
  __device__ DampedFixedPoint(const FixedPoint<T>& exact, const Damped<T>& damped, const PulledShift& shift)
      : FixedPoint<T>(exact), rows(damped), pulled(shift) {}
  __device__ RowValue<T> finish(int i, const Row& acc) const {
    const T kept = p.kept_a()[i], mine = damped_row(p, rows, pulled, i, kept, kept * acc.sum, grad_a + i);
    df[i] += mine;
    return {log_f[i], -mine, 0};
  }
};

}  // namespace sinkhorn
}  // namespace ucmkd

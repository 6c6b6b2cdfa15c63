// What the sweeps back have in common: masses as they see them, the first adjoints, when they may stop.
#pragma once
#include "core/shelf.h"
#include "sinkhorn/log_domain.h"
#include "sinkhorn/rules.h"
#include "sinkhorn/settling.h"

namespace ucmkd {
namespace UK_LEVEL {

// The masses of the rows or of the columns. A half-step hands its adjoint on over the mass that it kept: all of it where
// marginals are exact; else it was damped by lambda, and `at` tells the iteration whose half-step it is. All padded.
template <class T>
class Masses {
 public:
  Masses(Shelf<T>& shelf, const T* given, int64_t count, double damping)
      : mass(shelf.take(sinkhorn::padded(count))), inverse(shelf.take(sinkhorn::padded(count))), per_mass(inverse),
        size(count), lambda(damping) {
    for (int64_t k = 0; k < size; ++k) {
      mass[k] = given ? given[k] : T(1) / T(size);
      inverse[k] = mass[k] > 0 ? 1 / mass[k] : 0;
    }
  }
  // Unbalanced: what was kept, (iterations or 1, count). What kept next to nothing takes no part.
  void keep(Shelf<T>& shelf, const T* all, const T* last) {
    every = all;
    per_mass = shelf.take(sinkhorn::padded(size)), kept = shelf.take(sinkhorn::padded(size));
    copy(inverse, per_mass, size);
    set(last);
    for (int64_t k = 0; k < size; ++k)
      if (!(inverse[k] > 0)) mass[k] = 0;
  }
  bool exact() const { return !kept; }
  void at(int64_t t) {
    if (!exact()) set(every + (t - 1) * size);
  }
  void set(const T* of_iteration) {
    constexpr int W = Lanes<T>::W;
    const T least = T(sinkhorn::Rules<T>::kLeastMass), whole = T(lambda);
    Vec<T> sums = {};
    for (int64_t k = 0; k < size; k += W) {
      const Vec<T> left = k + W <= size ? load(of_iteration + k) : load_part(of_iteration + k, size - k, T(0));
      sums += left;
      store(kept + k, left);
      store(inverse + k, left > least ? whole / left : Vec<T>{});
    }
    total = sum<T>(sums);
  }

  T *const mass, *const inverse;  // inverse: 1 / mass, or lambda / kept
  T* per_mass;                    // 1 / mass
  const int64_t size;
  const double lambda;
  T* kept = nullptr;         // of the iteration at hand; null: exact
  const T* every = nullptr;  // of all iterations
  double total = 0;          // sum of kept
};

// Both sides; unbalanced those of the last iteration.
template <class T>
struct BothMasses {
  BothMasses(Shelf<T>& shelf, const sinkhorn::View<T>& p)
      : a(shelf, p.a, p.n, sinkhorn::damping(p.marginals.rho_a, p.reg)),
        b(shelf, p.b, p.m, sinkhorn::damping(p.marginals.rho_b, p.reg)) {
    if (p.marginals.exact()) return;
    a.keep(shelf, p.saved.kept_rows, sinkhorn::last_kept_rows(p));
    b.keep(shelf, p.saved.kept_columns, sinkhorn::last_kept_columns(p));
  }
  Masses<T> a, b;
};

// With exact marginals the rows of P sum to a, so alpha_i in <P, C> = sum_ij P_ij (C_ij - alpha_i) + sum_i alpha_i a_i is
// a constant. Unbalanced they sum to kept_i = a_i exp(-f~_i / rho_a), which pulls f by -alpha_i kept_i / rho_a and a_i by
// alpha_i kept_i / (lambda_a a_i).
template <class T>
T first_of_row(const sinkhorn::View<T>& p, const sinkhorn::Seed<T>& seed, const Masses<T>& a, int64_t i) {
  if (!(a.mass[i] > 0)) return 0;
  const T given = seed.grad_f ? seed.grad_f[i] : 0;
  if (a.exact()) return given;
  return given - seed.value_weight * p.saved.alpha[i] * a.kept[i] * T(sinkhorn::inverse_of(p.marginals.rho_a));
}
template <class T>
T first_of_mass(const sinkhorn::View<T>& p, const sinkhorn::Seed<T>& seed, const Masses<T>& a, int64_t i) {
  const T alpha = seed.value_weight * p.saved.alpha[i];
  return a.exact() ? alpha : alpha * a.kept[i] * a.per_mass[i] * T(1 / a.lambda);
}

// The adjoint of a shift between two iterations: f + t pulls t by the sum of its adjoint, and that the potentials and
// masses that t was made from.
template <class T>
struct ShiftBack {
  // pulled: sum of the adjoint of f + t. rows, columns: what the iteration before the shift kept.
  ShiftBack(const sinkhorn::Marginals& held, double pulled, const Masses<T>& rows, double columns)
      : rows(pulled * sinkhorn::share_of_rows(held) / rows.total),
        columns(pulled * sinkhorn::share_of_columns(held) / columns),
        of_mass(pulled * sinkhorn::both_of(held.rho_a, held.rho_b)) {
    if (!(rows.total > 0 && columns > 0)) this->rows = this->columns = of_mass = 0;
  }
  double rows, columns;  // the adjoint of f_i loses rows kept_i, that of g_j gains columns kept_j
  double of_mass;        // a_i gains of_mass kept_i / (sum kept lambda_a a_i), b_j loses likewise
};
template <class T>
void add_to_masses(double of_mass, const Masses<T>& side, T* grad) {
  const T each = T(of_mass / (side.total * side.lambda));
  for (int64_t k = 0; k < side.size; ++k) grad[k] += each * side.kept[k] * side.per_mass[k];
}

// What the adjoints of the columns sum to, times `scale`: known without them, as every half-step hands on its damping's part.
// Sums that are measured differ from it by rounding, which a large rho would make a large gradient of masses.
template <class T>
struct Charge {
  // first: `scale` times the adjoint of f to begin with. <P, C - alpha> adds nothing: its rows sum to 0.
  Charge(const sinkhorn::View<T>& p, const sinkhorn::Seed<T>& seed, const T* first, const BothMasses<T>& masses,
         double scale)
      : lambda_a(masses.a.lambda), lambda_b(masses.b.lambda) {
    if (p.marginals.exact()) return;
    for (int64_t i = 0; i < p.n; ++i) sum -= lambda_a * first[i];
    for (int64_t j = 0; seed.grad_g && j < p.m; ++j)
      if (masses.b.mass[j] > 0) sum += scale * seed.grad_g[j];
  }
  // Of the adjoint of g = v_t relative to the last iteration, what is too much per kept mass.
  double excess(const T* dv, const T* vt, const Masses<T>& b) const {
    Vec<T> measured = {};
    for (int64_t j = 0; j < b.size; j += Lanes<T>::W) {
      const Vec<T> each = vt ? load(dv + j) * load(vt + j) : load(dv + j);
      measured += load(b.mass + j) > 0 ? each : Vec<T>{};
    }
    return b.total > 0 ? (double(::ucmkd::UK_LEVEL::sum<T>(measured)) - sum) / b.total : 0;
  }
  void of_rows() { sum *= -lambda_b; }
  void of_columns() { sum *= -lambda_a; }
  void of_columns(const ShiftBack<T>& back, double rows, double columns) {
    sum = -lambda_a * (sum - back.rows * rows) + back.columns * columns;
  }
  double sum = 0, lambda_a, lambda_b;
};

// Adjoints of g in proportion to what its half-step kept stay so where only a constant moves (settling.h). What those of
// iteration t, whose sum is `charge`, hand on: the sums of all adjoints of f and of g of the iterations between t and
// t - steps, and those of iteration t - steps.
struct Alike {
  template <class T>
  Alike(const BothMasses<T>& masses, double charge, int64_t steps) {
    const double lambda_a = masses.a.lambda, r = lambda_a * masses.b.lambda;
    columns = charge * r * geometric(r, double(steps - 1)), rows = -columns / lambda_a;
    last_columns = charge * ::exp(double(steps) * ::log(r)), last_rows = -last_columns / lambda_a;
  }
  double rows, columns, last_rows, last_columns;
};

// max_k |x_k| times the inverse mass, 0 without x.
template <class T>
T greatest_share(const T* x, const T* inverse_mass, int64_t count) {
  T greatest = 0;
  for (int64_t k = 0; x && k < count; ++k) {
    const T share = (x[k] < 0 ? -x[k] : x[k]) * inverse_mass[k];
    greatest = share > greatest ? share : greatest;
  }
  return greatest;
}
// The same of what is given for a side. Unbalanced, over the largest mass that was kept: one that kept next to nothing must
// not make all others small.
template <class T>
T greatest_share(const T* x, const Masses<T>& side) {
  if (side.exact()) return greatest_share(x, side.inverse, side.size);
  T greatest = 0, most = 0;
  for (int64_t k = 0; x && k < side.size; ++k) {
    const T size = side.mass[k] > 0 ? (x[k] < 0 ? -x[k] : x[k]) : 0;
    greatest = size > greatest ? size : greatest;
    most = side.kept[k] > most ? side.kept[k] : most;
  }
  return most > 0 ? greatest * T(side.lambda) / most : 0;
}

// s_j = sum_i P_ij (weight (C_ij - alpha_i) + extra_i): the first adjoint of the columns.
template <class T>
void first_columns(const sinkhorn::View<T>& p, T weight, const T* extra, T* s, T* partial) {
  constexpr int W = Lanes<T>::W;
  const int64_t n = p.n, m = p.m, stride = sinkhorn::padded(m);
  const T *P = p.saved.plan, *C = p.cost, *alpha = p.saved.alpha;
  const int tasks = p.tasks;
  auto body = [&](int index) {
    const Range rows = task_rows(n, tasks, index);
    T* mine = tasks == 1 ? s : partial + index * stride;
    for (int64_t j = 0; j < stride; ++j) mine[j] = 0;
    for (int64_t i = rows.begin; i < rows.end && i < n; ++i) {
      const Vec<T> shift = splat(alpha[i]), add = splat(extra[i]);
      for (int64_t j = 0; j < m; j += W) {
        const Vec<T> plan = load(P + i * stride + j);
        const Vec<T> term = plan * (weight * (load_cost(C + i * m, j, m) - shift) + add);
        store(mine + j, load(mine + j) + (plan > 0 ? term : Vec<T>{}));
      }
    }
  };
  parallel(tasks, body);
  add_partials(partial, stride, tasks, s);
}

// When a sweep may stop. Adjoints of the potentials, over the masses, are averaged by each half-step: their
// maximum does not grow, so t iterations that remain change Z by at most 2 t times it. What that is
// compared with is the weight of the gradient: dC = P (weight - Z / reg), entry by entry.
template <class T>
T least_that_matters(const sinkhorn::View<T>& p, const sinkhorn::Seed<T>& seed, const BothMasses<T>& masses) {
  const T weight = seed.value_weight < 0 ? -seed.value_weight : seed.value_weight;
  return T(sinkhorn::adjoint_tolerance<T>(p.tol)) * p.reg *
         (weight + greatest_share(seed.grad_f, masses.a) + greatest_share(seed.grad_g, masses.b));
}

}  // namespace UK_LEVEL
}  // namespace ucmkd

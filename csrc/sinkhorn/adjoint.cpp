// The exact gradient of the iterations that ran, without unrolling them (README.md, "Gradients").
//
//   rho   = -du u_t^2 / a         from du_i = <P_i, sigma> of the step before
//   dv    = P' rho                                                    one sweep over P per iteration
//   sigma = -dv v_t^2 / b
//   Z    += rho v_t' + u_(t-1) sigma'                                 one GEMM at the end, by the caller
//
// u_t, v_t are relative to the last iteration. `plain` takes plain sums; `log_domain` rebuilds the row and
// column softmaxes from the potentials and cannot overflow; `fixed_point` is the sweep with u = v = 1.
#include "core/level_table.h"
#include "sinkhorn/adjoint_log.h"

namespace ucmkd {
namespace UK_LEVEL {
namespace {

using sinkhorn::Gradients;
using sinkhorn::History;
using sinkhorn::padded;
using sinkhorn::Seed;
using sinkhorn::View;

// The value does not change with (f + c, g - c), so the adjoints dv_j v_j of log v_t sum to zero: what they
// sum to is rounding, which no sweep would ever make smaller. Returns it, over the masses.
template <class T>
T drift(const T* dv, const T* vt, const T* b, int64_t padded_size) {
  Vec<T> total = {}, mass = {};
  for (int64_t j = 0; j < padded_size; j += Lanes<T>::W) total += load(dv + j) * load(vt + j), mass += load(b + j);
  return sum<T>(total) / sum<T>(mass);
}

// Ratios h_t / h_T of one recorded scaling (or exp of the difference of potentials), 0 where no mass.
// False where |log ratio| passes the limit of plain sums.
template <class T>
bool ratios(const View<T>& p, const T* now, const T* last, const T* mass, int64_t size, T* out) {
  constexpr int W = Lanes<T>::W;
  const bool scalings = p.saved.info->history == History::kScalings;
  const T greatest = exp_of(sinkhorn::Rules<T>::kRangeLimit), least = 1 / greatest, inverse = 1 / p.reg;
  typename Lanes<T>::I bad = {};
  for (int64_t k = 0; k < size; k += W) {
    const int64_t left = size - k;
    const Vec<T> h = left >= W ? load(now + k) : load_part(now + k, left, T(1));
    const Vec<T> h_last = left >= W ? load(last + k) : load_part(last + k, left, T(1));
    const Vec<T> ratio = scalings ? h / h_last : exp((h - h_last) * inverse);
    const auto part = load(mass + k) > 0;
    bad |= part & ~((ratio >= least) & (ratio <= greatest));
    store(out + k, part ? ratio : Vec<T>{});
  }
  return !any<T>(bad);
}

template <class T>
int64_t plain(const View<T>& p, const Seed<T>& seed, T* left, T* right, const Gradients<T>& out, T* work) {
  const int64_t n = p.n, m = p.m, np = padded(n), mp = padded(m), last = p.saved.info->n_iter;
  const T *hist_u = p.saved.hist_u, *hist_v = p.saved.hist_v;
  Shelf<T> shelf(work);
  const bool exact = p.marginals.exact();
  BothMasses<T> masses(shelf, p);
  const T *a = masses.a.mass, *ia = masses.a.inverse, *b = masses.b.mass, *ib = masses.b.inverse;
  T *ut = shelf.take(np), *du = shelf.take(np), *rho = shelf.take(np), *grad_a = out.a ? out.a : shelf.take(np);
  T *vt = shelf.take(mp), *dv = shelf.take(mp), *sigma = shelf.take(mp), *grad_b = out.b ? out.b : shelf.take(mp);
  T *of_b = exact ? nullptr : shelf.take(mp), *partial = shelf.take(p.tasks * mp);  // of_b: sums of the adjoints of g
  const T least = least_that_matters(p, seed, masses);

  for (int64_t i = 0; i < n; ++i) {
    du[i] = p.reg * first_of_row(p, seed, masses.a, i);
    rho[i] = -du[i] * ia[i];
    ut[i] = a[i] > 0;
    grad_a[i] = first_of_mass(p, seed, masses.a, i);
  }
  first_columns(p, seed.value_weight, rho, dv, partial);
  for (int64_t j = 0; j < m; ++j) {
    if (seed.grad_g && b[j] > 0) dv[j] += p.reg * seed.grad_g[j];
    grad_b[j] = 0;
  }

  int64_t depth = 0;
  Charge<T> charge(p, seed, du, masses, p.reg);
  auto end = [&]() -> int64_t {
    for (int64_t j = 0; !exact && j < m; ++j) grad_b[j] += of_b[j] * masses.b.per_mass[j];
    return depth;
  };
  double from_shift = 0;
  const double moved_in_all = masses.a.total;  // sum of P
  const int64_t settled = exact || p.marginals.shifted ? 0 : p.saved.info->settled;
  // From iteration t to `settled`, where the adjoints of g are in proportion to what is kept, and so are those of f. False:
  // out of range.
  auto to_settled = [&](int64_t t) {
    const Alike alike(masses, charge.sum, t - settled);
    const T of_plan = T((1 - masses.b.lambda) * alike.columns / moved_in_all);
    for (int64_t i = 0; i < n; ++i) left[depth * n + i] = of_plan;
    for (int64_t j = 0; j < m; ++j) right[depth * m + j] = 1;
    ++depth;
    const T each_row = T(alike.rows / masses.a.total), each_column = T(alike.columns / masses.b.total);
    for (int64_t i = 0; i < n; ++i) grad_a[i] += each_row * masses.a.kept[i] * masses.a.per_mass[i];
    for (int64_t j = 0; j < m; ++j) of_b[j] += each_column * masses.b.kept[j];
    masses.a.at(settled), masses.b.at(settled);
    if (!ratios(p, hist_u + settled * n, hist_u + last * n, a, n, ut) ||
        !ratios(p, hist_v + (settled - 1) * m, hist_v + (last - 1) * m, b, m, vt))
      return false;
    charge.sum = alike.last_columns;
    const T last_row = T(alike.last_rows / masses.a.total), last_column = T(charge.sum / masses.b.total);
    for (int64_t i = 0; i < n; ++i) {
      const T mine = a[i] > 0 ? last_row * masses.a.kept[i] : 0;
      du[i] = a[i] > 0 ? mine / ut[i] : 0;
      rho[i] = -mine * ut[i] * ia[i];
    }
    for (int64_t j = 0; j < m; ++j) dv[j] = b[j] > 0 ? last_column * masses.b.kept[j] / vt[j] : 0;
    return true;
  };
  for (int64_t t = last; t >= 1; --t) {
    if (!ratios(p, hist_v + (t - 1) * m, hist_v + (last - 1) * m, b, m, vt)) return -1;
    masses.b.at(t);
    for (int64_t j = 0; from_shift != 0 && j < m; ++j)
      if (b[j] > 0) dv[j] += T(from_shift) * masses.b.kept[j] / vt[j];
    T largest = 0, apart = 0;  // of the adjoints of g over what was kept; of their parts that are not alike
    if (exact) {
      const T rounding = seed.grad_f || seed.grad_g ? T(0) : drift(dv, vt, b, mp);
      for (int64_t j = 0; j < m; ++j) {
        const T change = b[j] > 0 ? dv[j] * vt[j] * ib[j] - rounding : 0;
        const T size = change < 0 ? -change : change;
        largest = size > largest ? size : largest;
        grad_b[j] += change;
        sigma[j] = -change * vt[j];
      }
    } else {
      const T rounding = T(charge.excess(dv, vt, masses.b));
      Vec<T> most = {}, most_apart = {};
      const T alike = T(charge.sum / masses.b.total * masses.b.lambda);
      for (int64_t j = 0; j < mp; j += Lanes<T>::W) {
        Vec<T> moved = load(dv + j) * load(vt + j) - rounding * load(masses.b.kept + j);
        moved = load(b + j) > 0 ? moved : Vec<T>{};
        const Vec<T> change = moved * load(ib + j);
        const Vec<T> other = load(ib + j) > 0 ? change - alike : Vec<T>{};
        most = vmax<T>(most, vmax<T>(change, -change)), most_apart = vmax<T>(most_apart, vmax<T>(other, -other));
        store(of_b + j, load(of_b + j) + moved);
        store(sigma + j, -change * load(vt + j));
      }
      largest = greatest<T>(most), apart = greatest<T>(most_apart);
      if (apart <= Settling<T>::kNoise * (alike < 0 ? -alike : alike)) apart = 0;
    }
    for (int64_t i = 0; i < n; ++i) grad_a[i] += du[i] * ut[i] * masses.a.per_mass[i];
    copy(rho, left + depth * n, n);
    copy(vt, right + depth * m, m);
    if (!ratios(p, hist_u + (t - 1) * n, hist_u + last * n, a, n, ut)) return -1;
    copy(ut, left + (depth + 1) * n, n);
    copy(sigma, right + (depth + 1) * m, m);
    depth += 2;
    if (t == 1 || 2 * T(t) * largest <= least) return end();
    if (settled > 0 && settled < t - 1 && 2 * T(t) * apart <= least) {
      if (!to_settled(t)) return -1;
      t = settled + 1;
      continue;
    }
    masses.a.at(t - 1);
    sweep(p, sigma, dv, partial, [=](int64_t i, Quad<T> dots) {
      const Quad<T> ratio = load4(ut + i);
      const Quad<T> y = -dots * ratio * ratio * load4(ia + i);
      store4(du + i, dots);
      store4(rho + i, y);
      return y;
    });
    if (exact) continue;
    charge.of_rows();
    if (!p.marginals.shifted) {
      charge.of_columns();
      continue;
    }
    double kept_before = 0;
    const T* before = masses.b.every + (t - 2) * m;
    for (int64_t j = 0; j < m; ++j) kept_before += before[j];
    const ShiftBack<T> back(p.marginals, charge.sum, masses.a, kept_before);
    charge.of_columns(back, masses.a.total, kept_before);
    from_shift = back.columns;
    for (int64_t i = 0; i < n; ++i) {
      if (!(ia[i] > 0 && a[i] > 0)) continue;
      du[i] -= T(back.rows) * masses.a.kept[i] / ut[i];
      rho[i] += T(back.rows * masses.a.lambda) * ut[i];
    }
    for (int64_t j = 0; j < m; ++j)  // K'u: the column sums that iteration t began with
      if (b[j] > 0) dv[j] += T(back.rows * masses.a.lambda) * masses.b.kept[j] / vt[j];
    add_to_masses(back.of_mass / p.reg, masses.a, grad_a);
    masses.b.at(t - 1);
    add_to_masses(-back.of_mass / p.reg, masses.b, grad_b);
  }
  return -1;
}

template <class T>
bool fixed_point(const View<T>& p, const Seed<T>& seed, T* row_sum, T* col_sum, const Gradients<T>& out, T* work) {
  const int64_t n = p.n, m = p.m, np = padded(n), mp = padded(m);
  const int64_t max_sweeps = sinkhorn::max_sweeps(p.max_iter);
  Shelf<T> shelf(work);
  BothMasses<T> masses(shelf, p);
  const T *ia = masses.a.inverse, *b = masses.b.mass;
  T *rho = shelf.take(np), *du = shelf.take(np), *grad_a = out.a ? out.a : shelf.take(np);
  T *dv = shelf.take(mp), *sigma = shelf.take(mp), *columns = shelf.take(mp), *ones = shelf.take(mp),
    *grad_b = out.b ? out.b : shelf.take(mp);
  T* partial = shelf.take(p.tasks * mp);
  const T least = least_that_matters(p, seed, masses);
  const bool exact = p.marginals.exact();

  // The plan's own column sums: with them the sweep never expands, also where b is not met yet.
  for (int64_t j = 0; j < m; ++j) ones[j] = b[j] > 0;
  sweep(p, ones, columns, partial, [](int64_t, Quad<T>) { return Quad<T>{1, 1, 1, 1}; });
  for (int64_t i = 0; i < n; ++i) {
    du[i] = p.reg * first_of_row(p, seed, masses.a, i);
    rho[i] = -du[i] * ia[i];
    row_sum[i] = rho[i];
    grad_a[i] = first_of_mass(p, seed, masses.a, i) + du[i] * masses.a.per_mass[i];
  }
  first_columns(p, seed.value_weight, rho, dv, partial);
  for (int64_t j = 0; j < m; ++j) {
    if (seed.grad_g && b[j] > 0) dv[j] += p.reg * seed.grad_g[j];
    col_sum[j] = grad_b[j] = 0;
  }

  const T lambda_b = T(masses.b.lambda);
  Charge<T> charge(p, seed, du, masses, p.reg);  // 0 where marginals are exact: (f + c, g - c) is the same plan
  T before = 0;
  for (int64_t sweeps = 0; sweeps < max_sweeps; ++sweeps) {
    double drift = -charge.sum, mass = 0;  // rounding that would never decay
    T size = 0;
    for (int64_t j = 0; j < m; ++j) drift += dv[j], mass += columns[j];
    const T excess = mass > 0 ? T(drift / mass) : 0;
    for (int64_t j = 0; j < m; ++j) {
      dv[j] -= excess * columns[j];
      sigma[j] = columns[j] > 0 && b[j] > 0 ? -lambda_b * dv[j] / columns[j] : 0;
      const T share = sigma[j] < 0 ? -sigma[j] : sigma[j];
      size = share > size ? share : size;
      col_sum[j] += sigma[j];
      grad_b[j] += exact ? -sigma[j] : dv[j] * masses.b.per_mass[j];
    }
    const T rate = before > 0 && size < before ? size / before : T(sinkhorn::kUnknownRate);
    before = size;
    if (2 * size / (1 - rate) <= least) return true;
    sweep(p, sigma, dv, partial, [=](int64_t i, Quad<T> dots) {
      const Quad<T> y = -dots * load4(ia + i);
      store4(du + i, dots);
      store4(rho + i, y);
      return y;
    });
    if (!exact) {  // the iteration with a shift has the same fixed point, and contracts
      charge.of_rows();
      const ShiftBack<T> back(p.marginals, charge.sum, masses.a, masses.b.total);
      charge.of_columns(back, masses.a.total, masses.b.total);
      const T more = T(back.rows * masses.a.lambda);
      for (int64_t i = 0; i < n; ++i) {
        du[i] -= T(back.rows) * masses.a.kept[i];
        rho[i] += ia[i] > 0 ? more : 0;
      }
      for (int64_t j = 0; j < m; ++j) dv[j] += more * columns[j] + T(back.columns) * masses.b.kept[j];
      add_to_masses(back.of_mass / p.reg, masses.a, grad_a);
      add_to_masses(-back.of_mass / p.reg, masses.b, grad_b);
    }
    for (int64_t i = 0; i < n; ++i) {
      row_sum[i] += rho[i];
      grad_a[i] += exact ? -rho[i] : du[i] * masses.a.per_mass[i];
    }
  }
  return false;
}

template <class T>
constexpr sinkhorn::AdjointKernels<T> kTable = {plain<T>, log_domain<T>, fixed_point<T>};

}  // namespace

const ByType<sinkhorn::AdjointKernels> adjoint_kernels = {kTable<float>, kTable<double>};

}  // namespace UK_LEVEL
}  // namespace ucmkd

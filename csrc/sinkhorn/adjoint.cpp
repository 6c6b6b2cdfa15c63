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
#include "core/shelf.h"
#include "sinkhorn/log_domain.h"
#include "sinkhorn/rules.h"
#include "sinkhorn/sweep.h"

namespace ucmkd {
namespace UK_LEVEL {
namespace {

using sinkhorn::Gradients;
using sinkhorn::History;
using sinkhorn::padded;
using sinkhorn::Seed;
using sinkhorn::View;

template <class T>
void fill_mass(const T* given, int64_t size, T* mass, T* inverse) {
  for (int64_t k = 0; k < padded(size); ++k) {
    mass[k] = k < size ? (given ? given[k] : T(1) / T(size)) : 0;
    inverse[k] = mass[k] > 0 ? 1 / mass[k] : 0;
  }
}

// max_k |x_k| / mass_k, 0 without x.
template <class T>
T greatest_share(const T* x, const T* inverse_mass, int64_t count) {
  T greatest = 0;
  for (int64_t k = 0; x && k < count; ++k) {
    const T share = (x[k] < 0 ? -x[k] : x[k]) * inverse_mass[k];
    greatest = share > greatest ? share : greatest;
  }
  return greatest;
}

// s_j = sum_i P_ij (weight (C_ij - alpha_i) + extra_i): the first adjoint of the columns.
template <class T>
void first_columns(const View<T>& p, T weight, const T* extra, T* s, T* partial) {
  constexpr int W = Lanes<T>::W;
  const int64_t n = p.n, m = p.m, stride = padded(m);
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
T least_that_matters(const View<T>& p, const Seed<T>& seed, const T* inverse_a, const T* inverse_b) {
  const T weight = seed.value_weight < 0 ? -seed.value_weight : seed.value_weight;
  return T(sinkhorn::adjoint_tolerance<T>(p.tol)) * p.reg *
         (weight + greatest_share(seed.grad_f, inverse_a, p.n) + greatest_share(seed.grad_g, inverse_b, p.m));
}

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
  T *a = shelf.take(np), *ia = shelf.take(np), *ut = shelf.take(np), *du = shelf.take(np), *rho = shelf.take(np),
    *grad_a = out.a ? out.a : shelf.take(np);
  T *b = shelf.take(mp), *ib = shelf.take(mp), *vt = shelf.take(mp), *dv = shelf.take(mp), *sigma = shelf.take(mp),
    *grad_b = out.b ? out.b : shelf.take(mp);
  T* partial = shelf.take(p.tasks * mp);
  fill_mass(p.a, n, a, ia);
  fill_mass(p.b, m, b, ib);
  const T least = least_that_matters(p, seed, ia, ib);

  for (int64_t i = 0; i < n; ++i) {
    du[i] = seed.grad_f && a[i] > 0 ? p.reg * seed.grad_f[i] : 0;
    rho[i] = -du[i] * ia[i];
    ut[i] = a[i] > 0;
    grad_a[i] = seed.value_weight * p.saved.alpha[i];
  }
  first_columns(p, seed.value_weight, rho, dv, partial);
  for (int64_t j = 0; j < m; ++j) {
    if (seed.grad_g && b[j] > 0) dv[j] += p.reg * seed.grad_g[j];
    grad_b[j] = 0;
  }

  int64_t depth = 0;
  for (int64_t t = last; t >= 1; --t) {
    if (!ratios(p, hist_v + (t - 1) * m, hist_v + (last - 1) * m, b, m, vt)) return -1;
    const T rounding = seed.grad_f || seed.grad_g ? T(0) : drift(dv, vt, b, mp);
    T largest = 0;
    for (int64_t j = 0; j < m; ++j) {
      const T change = b[j] > 0 ? dv[j] * vt[j] * ib[j] - rounding : 0;
      const T size = change < 0 ? -change : change;
      largest = size > largest ? size : largest;
      grad_b[j] += change;
      sigma[j] = -change * vt[j];
    }
    for (int64_t i = 0; i < n; ++i) grad_a[i] += du[i] * ut[i] * ia[i];
    copy(rho, left + depth * n, n);
    copy(vt, right + depth * m, m);
    if (!ratios(p, hist_u + (t - 1) * n, hist_u + last * n, a, n, ut)) return -1;
    copy(ut, left + (depth + 1) * n, n);
    copy(sigma, right + (depth + 1) * m, m);
    depth += 2;
    if (t == 1 || 2 * T(t) * largest <= least) return depth;
    sweep(p, sigma, dv, partial, [=](int64_t i, Quad<T> dots) {
      const Quad<T> ratio = load4(ut + i);
      const Quad<T> y = -dots * ratio * ratio * load4(ia + i);
      store4(du + i, dots);
      store4(rho + i, y);
      return y;
    });
  }
  return -1;
}

template <class T>
void log_domain(const View<T>& p, const Seed<T>& seed, const Gradients<T>& out, T* work) {
  constexpr int W = Lanes<T>::W;
  const T inf = __builtin_inf();
  const int64_t n = p.n, m = p.m, np = padded(n), mp = padded(m), last = p.saved.info->n_iter;
  const T *P = p.saved.plan, *alpha = p.saved.alpha;
  const int tasks = p.tasks;
  Shelf<T> shelf(work);
  T *a = shelf.take(np), *ia = shelf.take(np), *F = shelf.take(np), *f = shelf.take(np), *fbar = shelf.take(np),
    *none = shelf.take(np), *grad_a = out.a ? out.a : shelf.take(np);
  T *b = shelf.take(mp), *ib = shelf.take(mp), *G = shelf.take(mp), *g = shelf.take(mp), *g_before = shelf.take(mp),
    *gbar = shelf.take(mp), *gbar_next = shelf.take(mp), *grad_b = out.b ? out.b : shelf.take(mp);
  T* partial = shelf.take(tasks * mp);
  fill_mass(p.a, n, a, ia);
  fill_mass(p.b, m, b, ib);
  const T inverse = 1 / p.reg;
  const T least = least_that_matters(p, seed, ia, ib);
  const bool scalings = p.saved.info->history == History::kScalings;
  for (int64_t i = 0; i < n; ++i) {
    F[i] = scalings && p.init_f && a[i] > 0 ? p.init_f[i] - p.reg * log_of(a[i]) : 0;
    fbar[i] = seed.grad_f && a[i] > 0 ? seed.grad_f[i] : 0;
    grad_a[i] = seed.value_weight * alpha[i];
  }
  for (int64_t j = 0; j < m; ++j) G[j] = scalings && p.init_g && b[j] > 0 ? p.init_g[j] - p.reg * log_of(b[j]) : 0;
  auto potential_f = [&](int64_t t, T* into) {
    for (int64_t i = 0; i < n; ++i) {
      const T h = p.saved.hist_u[t * n + i];
      into[i] = a[i] > 0 ? (scalings ? F[i] + p.reg * log_of(h) : h) : -inf;
    }
  };
  auto potential_g = [&](int64_t t, T* into) {
    for (int64_t j = 0; j < mp; ++j) {
      const T h = j < m && b[j] > 0 ? p.saved.hist_v[(t - 1) * m + j] : 1;
      into[j] = b[j] > 0 ? (scalings ? G[j] + p.reg * log_of(h) : h) : -inf;
    }
  };

  // dC = P (weight - weight (C - alpha) / reg); the first gbar.
  auto begin = [&](int index) {
    const Range rows = task_rows(n, tasks, index);
    for (int64_t i = rows.begin; i < rows.end && i < n; ++i)
      for (int64_t j = 0; j < m; ++j) {
        const T plan = P[i * mp + j];
        out.cost[i * m + j] = plan > 0 ? seed.value_weight * plan * (1 - (p.cost[i * m + j] - alpha[i]) * inverse) : 0;
      }
  };
  parallel(tasks, begin);
  first_columns(p, seed.value_weight, none, gbar, partial);
  for (int64_t j = 0; j < m; ++j) {
    gbar[j] = gbar[j] * inverse + (seed.grad_g && b[j] > 0 ? seed.grad_g[j] : 0);
    grad_b[j] = 0;
  }

  // rows(t): gbar -= R_t' fbar with R_t the row softmax of g_t - C; columns(t): fbar = -S_t gbar with S_t the
  // column softmax of f_(t-1) - C. Both add their softmax's share to dC.
  auto row_softmax = [&](int64_t i, const T* g_t, T* into) {
    const T weight = fbar[i] * ia[i];
    const Vec<T> fi = splat(f[i]), wi = splat(weight);
    for (int64_t j = 0; j < m; j += W) {
      const Vec<T> term = exp(exponent<T>(fi, load(g_t + j), load_cost(p.cost + i * m, j, m), inverse)) * wi;
      T* dC = out.cost + i * m + j;
      if (m - j >= W)
        store(dC, load(dC) + term);
      else
        for (int64_t k = 0; k < m - j; ++k) dC[k] += term[k];
      store(into + j, load(into + j) - term);
    }
  };
  auto reduce = [&](T* into) {
    for (int64_t j = 0; j < mp; ++j)
      for (int k = 0; k < tasks; ++k) into[j] += partial[k * mp + j];
  };

  potential_f(last, f);
  potential_g(last, g);
  if (seed.grad_f) {
    auto body = [&](int index) {
      const Range rows = task_rows(n, tasks, index);
      T* mine = partial + index * mp;
      for (int64_t j = 0; j < mp; ++j) mine[j] = 0;
      for (int64_t i = rows.begin; i < rows.end && i < n; ++i)
        if (a[i] > 0) row_softmax(i, g, mine);
    };
    parallel(tasks, body);
    reduce(gbar);
  }
  for (int64_t t = last; t >= 1; --t) {
    for (int64_t i = 0; i < n; ++i) grad_a[i] += p.reg * fbar[i] * ia[i];
    for (int64_t j = 0; j < mp; ++j) {
      if (j < m) grad_b[j] += p.reg * gbar[j] * ib[j];
      gbar_next[j] = gbar[j] * ib[j];  // weights of S_t while the rows are visited
    }
    const bool more = t > 1 && 2 * T(t) * p.reg * greatest_share(gbar, ib, m) > least;
    potential_f(t - 1, f);
    if (more) potential_g(t - 1, g_before);
    auto body = [&](int index) {
      const Range rows = task_rows(n, tasks, index);
      T* mine = partial + index * mp;
      for (int64_t j = 0; j < mp; ++j) mine[j] = 0;
      for (int64_t i = rows.begin; i < rows.end && i < n; ++i) {
        if (!(a[i] > 0)) continue;
        const Vec<T> fi = splat(f[i]);
        Vec<T> total = {};
        for (int64_t j = 0; j < m; j += W) {
          const Vec<T> S = exp(exponent<T>(fi, load(g + j), load_cost(p.cost + i * m, j, m), inverse));
          const Vec<T> term = S * load(gbar_next + j);
          T* dC = out.cost + i * m + j;
          if (m - j >= W)
            store(dC, load(dC) + term);
          else
            for (int64_t k = 0; k < m - j; ++k) dC[k] += term[k];
          total += term;
        }
        fbar[i] = -sum<T>(total);
        if (more) row_softmax(i, g_before, mine);
      }
    };
    parallel(tasks, body);
    if (!more) break;
    for (int64_t j = 0; j < mp; ++j) gbar[j] = 0;
    reduce(gbar);
    T* swap = g;
    g = g_before, g_before = swap;
  }
}

template <class T>
bool fixed_point(const View<T>& p, const Seed<T>& seed, T* row_sum, T* col_sum, const Gradients<T>& out, T* work) {
  const int64_t n = p.n, m = p.m, np = padded(n), mp = padded(m);
  const int64_t max_sweeps = sinkhorn::max_sweeps(p.max_iter);
  Shelf<T> shelf(work);
  T *a = shelf.take(np), *ia = shelf.take(np), *rho = shelf.take(np), *du = shelf.take(np),
    *grad_a = out.a ? out.a : shelf.take(np);
  T *b = shelf.take(mp), *ib = shelf.take(mp), *dv = shelf.take(mp), *sigma = shelf.take(mp), *columns = shelf.take(mp),
    *ones = shelf.take(mp), *grad_b = out.b ? out.b : shelf.take(mp);
  T* partial = shelf.take(p.tasks * mp);
  fill_mass(p.a, n, a, ia);
  fill_mass(p.b, m, b, ib);
  const T least = least_that_matters(p, seed, ia, ib);

  // The plan's own column sums: with them the sweep never expands, also where b is not met yet.
  for (int64_t j = 0; j < m; ++j) ones[j] = b[j] > 0;
  sweep(p, ones, columns, partial, [](int64_t, Quad<T>) { return Quad<T>{1, 1, 1, 1}; });
  for (int64_t i = 0; i < n; ++i) {
    du[i] = seed.grad_f && a[i] > 0 ? p.reg * seed.grad_f[i] : 0;
    rho[i] = -du[i] * ia[i];
    row_sum[i] = rho[i];
    grad_a[i] = seed.value_weight * p.saved.alpha[i] + du[i] * ia[i];
  }
  first_columns(p, seed.value_weight, rho, dv, partial);
  for (int64_t j = 0; j < m; ++j) {
    if (seed.grad_g && b[j] > 0) dv[j] += p.reg * seed.grad_g[j];
    col_sum[j] = grad_b[j] = 0;
  }

  T before = 0;
  for (int64_t sweeps = 0; sweeps < max_sweeps; ++sweeps) {
    // (f + c, g - c) is the same plan: adjoints must sum to zero, and drift would never decay.
    double drift = 0, mass = 0;
    T size = 0;
    for (int64_t j = 0; j < m; ++j) drift += dv[j], mass += columns[j];
    for (int64_t j = 0; j < m; ++j) {
      dv[j] -= T(drift / mass) * columns[j];
      sigma[j] = columns[j] > 0 ? -dv[j] / columns[j] : 0;
      const T share = sigma[j] < 0 ? -sigma[j] : sigma[j];
      size = share > size ? share : size;
      col_sum[j] += sigma[j];
      grad_b[j] -= sigma[j];
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
    for (int64_t i = 0; i < n; ++i) {
      row_sum[i] += rho[i];
      grad_a[i] -= rho[i];
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

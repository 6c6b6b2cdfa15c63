// The iterations of unbalanced transport (unbalanced.h) on a CPU, as those of forward.cpp: scalings relative to absorbed
// potentials, log-domain iterations where they do not reach. With damping lambda = rho / (rho + reg) of a side
//
//   v = b w s^-lambda_b,  r = K v,  u = a w r^-lambda_a,  s = K'u        w_i = exp(-(1 - lambda) F_i / reg)
//
// What a half-step leaves of a mass, u_i r_i, is exp(-f~_i / rho): far outliers keep almost nothing. So F is not f~
// where that is little (or much): beyond e^-L what is left goes into u, and the sums r, s stay around 1. Where a
// scaling would underflow it stays at the least normal number, with a plan of nothing.
//
// Shifts between iterations (`shift`) move all of F up and all of G down, which K does not see: their sum is kept
// apart, and only w notices it.
#include "core/level_table.h"
#include "core/power.h"
#include "core/shelf.h"
#include "sinkhorn/forward_parts.h"
#include "sinkhorn/rules.h"
#include "sinkhorn/settling.h"

namespace ucmkd {
namespace UK_LEVEL {
namespace {

using sinkhorn::Outputs;
using sinkhorn::padded;
using sinkhorn::Rules;
using sinkhorn::Status;
using sinkhorn::View;

// What scalings do not go below.
template <class T>
constexpr T kLeastScaling = sizeof(T) == 4 ? T(1.1754944e-38) : T(2.2250738585072014e-308);

// Rows or columns: their masses, absorbed potentials and scalings. All vectors are padded.
template <class T>
struct Side {
  Side(Shelf<T>& shelf, int64_t count, double rho, double reg)
      : size(count), reg(reg), rho(rho), lambda(sinkhorn::damping(rho, reg)), minus_lambda(-lambda) {
    const int64_t all = padded(size);
    mass = shelf.take(all), scaling = shelf.take(all), sums = shelf.take(all);
    absorbed = shelf.take(all), weighed = shelf.take(all), free = shelf.take(all), made = shelf.take(all);
  }
  bool exact() const { return !(rho < HUGE_VAL); }

  void start(const T* given, const T* init, double uniform) {
    const T inf = __builtin_inf();
    for (int64_t k = 0; k < padded(size); ++k) {
      mass[k] = k < size ? (given ? given[k] : T(1) / T(size)) : 0;
      absorbed[k] = mass[k] > 0 ? 0 : -inf;
      scaling[k] = mass[k] > 0 ? T(uniform) : 0;
      weighed[k] = mass[k];
    }
    for (int64_t k = 0; init && k < size; ++k)
      if (mass[k] > 0) absorb(k, double(init[k]) - reg * log(double(mass[k])), 0);
  }

  // A potential without its mass, shifted by `shift` already, as absorbed potential and scaling.
  void absorb(int64_t k, double z, double shift) {
    const double limit = Rules<T>::kSafeLog / 2, lost = exact() ? 0 : z / rho;
    const double inside = lost < -limit ? -limit : lost > limit ? limit : lost, beyond = lost - inside;
    const double potential = z + reg * beyond - shift;
    absorbed[k] = T(potential);
    weighed[k] = exact() ? mass[k] : T(mass[k] * ::exp(-potential / (rho + reg)));
    scaling[k] = at_least(T(mass[k] * ::exp(-beyond)));
    sums[k] = T(::exp(-inside));
  }
  static T at_least(T x) { return x < kLeastScaling<T> ? kLeastScaling<T> : x; }

  // The potential without its mass that these sums give.
  double potential(int64_t k, double shift) const {
    return lambda * (double(absorbed[k]) + shift - reg * log(double(sums[k])));
  }
  // The factor that a shift of all potentials puts on w.
  T of_shift(double shift) const { return exact() ? T(1) : T(::exp(-shift / (rho + reg))); }

  template <class V>
  V scale(V masses, V weights, V by, T factor) const {
    if (exact()) return masses > 0 ? masses / by : V{};
    const V made = weights * factor * power(by, minus_lambda), least = V{} + kLeastScaling<T>;
    return masses > 0 ? (made > least ? made : least) : V{};
  }

  // What the last half-step left of the masses.
  T kept(int64_t k) const { return mass[k] > 0 ? scaling[k] * sums[k] : 0; }
  double all_kept() const {
    double total = 0;
    for (int64_t k = 0; k < size; ++k) total += kept(k);
    return total;
  }
  void write_kept(T* out) const {
    for (int64_t k = 0; k < size; ++k) out[k] = kept(k);
  }
  // Scalings and sums are multiples of what they are now.
  void keep_base() { copy(scaling, free, padded(size)), copy(sums, made, padded(size)); }
  void from_base(double of_sums, double of_scaling) {
    const T by_sums = T(::exp(of_sums)), by_scaling = T(::exp(of_scaling));
    for (int64_t k = 0; k < padded(size); ++k) sums[k] = made[k] * by_sums, scaling[k] = free[k] * by_scaling;
  }
  double all_mass() const {
    double total = 0;
    for (int64_t k = 0; k < size; ++k) total += mass[k];
    return total;
  }
  // Its part of the dual value; its potentials where they are asked for.
  double finish(double shift, T* out) const {
    double total = 0;
    for (int64_t k = 0; k < size; ++k) {
      const double z = mass[k] > 0 ? potential(k, shift) : 0;
      total += mass[k] * sinkhorn::paid(z, rho);
      if (out) out[k] = mass[k] > 0 ? T(z + reg * log(double(mass[k]))) : -T(__builtin_inf());
    }
    return total;
  }

  const int64_t size;
  const double reg, rho, lambda;
  const Exponent<T> minus_lambda;
  T *mass, *scaling, *sums;  // sums: those that the scaling was made from
  T *absorbed, *weighed;     // F; masses times w
  T *free, *made;            // work space of log-domain iterations, and the base of multiples
};

template <class T>
class UnbalancedRun {
 public:
  UnbalancedRun(const View<T>& problem, bool save_plan, const Outputs<T>& outputs, T* work)
      : p(problem), out(outputs), save(save_plan), n(p.n), m(p.m), np(padded(n)), mp(padded(m)), shelf(work),
        rows(shelf, n, p.marginals.rho_a, p.reg), columns(shelf, m, p.marginals.rho_b, p.reg),
        settling(shelf.take(np), np) {
    u_before = shelf.take(np), r_before = shelf.take(np), s = shelf.take(mp), partial = shelf.take(p.tasks * mp);
  }

  Status all() {
    rows.start(p.a, p.init_f, 1.0 / double(n));
    columns.start(p.b, p.init_f ? p.init_g : nullptr, 1.0 / double(m));
    recorder.start(rows.scaling), settling.start(0, rows.scaling);
    if (p.init_f) recorder.leave_epoch(0, rows.absorbed, columns.absorbed);
    if (!build(p, has_features(p), rows.absorbed, columns.absorbed, rows.scaling, s, partial)) return Status::kBadCost;
    T error = 0;
    for (t = 1; t <= p.max_iter; ++t) {
      before = shifted;
      if (p.marginals.shifted && t > 1) shifted += sinkhorn::shift(p.marginals, rows.all_kept(), columns.all_kept());
      swap(rows.scaling, u_before), swap(rows.sums, r_before);
      const bool scaled = scaling_iteration();
      if (!scaled) {
        const Status status = log_iteration();
        if (status != Status::kOk) return status;
        settling.start(t, rows.scaling);
      }
      record();
      const double r = rows.lambda * columns.lambda, left = double(p.max_iter - t);
      if (scaled && tol == 0 && left > 0 && settling.now(t, rows.scaling, rows.mass, r, left)) go_to_the_end(r, left);
      if (tol > 0 || t == p.max_iter) {
        error = column_error();
        if (tol > 0 && error <= tol) break;
      }
    }
    if (out.marginal_error) *out.marginal_error = error;
    return finish(t < p.max_iter ? t : p.max_iter);
  }

 private:
  static void swap(T*& x, T*& y) {
    T* kept = x;
    x = y, y = kept;
  }

  // False: out of range, scalings and sums are not valid (those of before are).
  bool scaling_iteration() {
    if (!in_range(s, columns.mass, mp, least, greatest)) return false;
    const T of_columns = columns.of_shift(-shifted), of_rows = rows.of_shift(shifted);
    for (int64_t j = 0; j < mp; j += Lanes<T>::W) {
      const Vec<T> sums = load(s + j);
      store(columns.sums + j, sums);
      store(columns.scaling + j, columns.scale(load(columns.mass + j), load(columns.weighed + j), sums, of_columns));
    }
    const Side<T>& side = rows;
    sweep_slow_finish(p, columns.scaling, s, partial, [&side, of_rows](int64_t i, auto dots) {
      using V = decltype(dots);
      const V y = side.scale(load_as<T, V>(side.mass + i), load_as<T, V>(side.weighed + i), dots, of_rows);
      store_as(side.sums + i, dots);
      store_as(side.scaling + i, y);
      return y;
    });
    return in_range(rows.sums, rows.mass, np, least, greatest);
  }

  // The same iteration in the log domain, then K rebuilt around its outcome.
  Status log_iteration() {
    const T inf = __builtin_inf();
    recorder.leave_epoch(t, rows.absorbed, columns.absorbed);
    swap(rows.sums, r_before);
    for (int64_t i = 0; i < np; ++i) {
      const double mass = rows.mass[i], log_mass = p.reg * log(mass);
      if (!(mass > 0))
        rows.free[i] = -inf;
      else if (t == 1)
        rows.free[i] = T(double(rows.absorbed[i]) + p.reg * log(double(u_before[i])));
      else
        rows.free[i] = T(rows.potential(i, before) + (shifted - before) + log_mass);
    }
    column_half(p, rows.free, columns.made);
    if (!take(columns, -shifted)) return Status::kForbidden;
    row_half(p, columns.free, rows.made);
    if (!take(rows, shifted)) return Status::kForbidden;
    return build(p, false, rows.absorbed, columns.absorbed, rows.scaling, s, partial) ? Status::kOk : Status::kBadCost;
  }
  // What a half-step of the log domain made; `free` becomes the potential with its mass. False where nothing was allowed.
  bool take(Side<T>& side, double shift) {
    const T inf = __builtin_inf();
    for (int64_t k = 0; k < padded(side.size); ++k) {
      if (!(side.mass[k] > 0)) {
        side.free[k] = -inf;
        continue;
      }
      if (side.made[k] == inf) return false;
      const double z = side.lambda * side.made[k];
      side.absorb(k, z, shift);
      side.free[k] = T(z + side.reg * log(double(side.mass[k])));
    }
    return true;
  }

  // All that is left, where only a constant moves (settling.h); nothing where it would lead out of range.
  void go_to_the_end(double r, double left) {
    const bool still = p.marginals.shifted;  // a shift takes the constant to where it stays
    if (still && fabs(settling.moved()) > Settling<T>::kNoise) return;
    const double step = still ? 0 : settling.step(t, r);  // u moves by r step, r^2 step, ..., s a half-step before it
    const double last = step * geometric(r, left);
    if (!stays(rows, -columns.lambda * last, r * last) || !stays(columns, last, -columns.lambda * last) ||
        !in_range(s, columns.mass, mp, T(least / ::exp(r * last)), T(greatest / ::exp(r * last))))
      return;
    if (p.saved.hist_u) recorder.settled(settling.first());
    rows.keep_base(), columns.keep_base();
    for (double k = p.saved.hist_u ? 1 : left; k <= left; ++k) {
      const double of_s = step * geometric(r, k);
      rows.from_base(-columns.lambda * of_s, r * of_s), columns.from_base(of_s, -columns.lambda * of_s);
      ++t, record();
    }
    t = p.max_iter;
    const T moved = T(::exp(r * last));
    for (int64_t j = 0; j < mp; ++j) s[j] *= moved;
  }
  // Whether sums and scalings of a side are in range still when they are e to these powers times as large.
  bool stays(const Side<T>& side, double of_sums, double of_scaling) const {
    const T sums = T(::exp(of_sums)), scaling = T(::exp(of_scaling));
    return in_range(side.sums, side.mass, padded(side.size), least / sums, greatest / sums) &&
           in_range(side.scaling, side.mass, padded(side.size), kLeastScaling<T> / scaling, Lanes<T>::kMax / scaling);
  }

  void record() {
    recorder.iteration(t, rows.scaling, columns.scaling);
    if (!p.saved.hist_u) return;
    rows.write_kept(p.saved.kept_rows + (t - 1) * n);
    columns.write_kept(p.saved.kept_columns + (t - 1) * m);
  }

  // sum_j |(P'1)_j - b_j exp(-g~_j / rho_b)|.
  T column_error() const {
    double error = 0;
    for (int64_t j = 0; j < m; ++j) {
      if (!(columns.mass[j] > 0)) continue;
      const double wanted = columns.exact() ? columns.mass[j] : columns.kept(j);
      error += fabs(double(columns.scaling[j]) * s[j] - wanted);
    }
    return T(error);
  }

  Status finish(int64_t n_iter) {
    forget_overflow();
    finish_plan(p, save, rows.scaling, columns.scaling, r_before);
    double value = 0;
    for (int64_t i = 0; i < n; ++i) value += r_before[i];
    *out.value = T(value);
    const double dual = rows.finish(shifted, out.f) + columns.finish(-shifted, out.g) -
                        p.reg * (rows.all_kept() - rows.all_mass() * columns.all_mass());
    if (out.dual) *out.dual = T(dual);
    if (save && !p.saved.hist_u) rows.write_kept(p.saved.kept_rows), columns.write_kept(p.saved.kept_columns);
    recorder.finish(n_iter, rows.absorbed, columns.absorbed);
    if (out.n_iter) *out.n_iter = n_iter;
    return value - value == 0 && dual == dual ? Status::kOk : Status::kOverflow;
  }
  // K overflows between a row and a column that both keep next to nothing: so does their pair.
  void forget_overflow() {
    bool finite = true;
    for (int64_t j = 0; j < m; ++j) finite &= s[j] - s[j] == 0;
    for (int64_t k = 0; !finite && k < padded(n) * mp; ++k)
      if (!(p.saved.plan[k] < Lanes<T>::kMax)) p.saved.plan[k] = 0;
  }

  const View<T>& p;
  const Outputs<T>& out;
  const bool save;
  const int64_t n, m, np, mp;
  const T tol = T(p.tol);
  Shelf<T> shelf;
  Side<T> rows, columns;
  T *u_before, *r_before, *s, *partial;  // s: the column sums of u K as it is
  Recorder<T> recorder{p};
  Settling<T> settling;
  const T greatest = exp_of(Rules<T>::kSafeLog), least = 1 / greatest;
  double shifted = 0, before = 0;  // all shifts so far, and those of the iterations before
  int64_t t = 0;
};

template <class T>
Status solve(const View<T>& p, bool save_plan, const Outputs<T>& out, T* work) {
  return UnbalancedRun<T>(p, save_plan, out, work).all();
}
template <class T>
constexpr sinkhorn::ForwardKernels<T> kTable = {solve<T>};

}  // namespace

const ByType<sinkhorn::ForwardKernels> unbalanced_kernels = {kTable<float>, kTable<double>};

}  // namespace UK_LEVEL
}  // namespace ucmkd

// The problems of one divergence, between x and y and, where it is debiased, of each with itself, moved along together.
#pragma once
#include "core/parallel.h"
#include "samples_loss/sweep.h"

namespace ucmkd {
namespace UK_LEVEL {

// Hands out pieces of a block, one after the other, aligned for vectors; of no block, it counts them.
template <class T>
class Pieces {
 public:
  explicit Pieces(T* block) : block_(block) {}
  T* take(int64_t size) {
    T* mine = block_ ? block_ + used_ : nullptr;
    used_ += samples_loss::padded(size);
    return mine;
  }
  int64_t used() const { return used_; }

 private:
  T* block_;
  int64_t used_ = 0;
};

// Sums of plain exponentials that lose nothing: what was left out on the way to them is below rounding.
template <class T>
constexpr T kLeastSum = sizeof(T) == 4 ? T(1e-20) : T(1e-260);
template <class T>
constexpr T kMostSum = sizeof(T) == 4 ? T(1e30) : T(1e280);

template <class T>
class Divergence {
 public:
  // Takes everything from the block; returns the elements of that. A null block only counts.
  int64_t lay_out(const samples_loss::Forward<T>& call, int tasks, T* block) {
    call_ = &call, tasks_ = tasks;
    Pieces<T> pieces(block);
    const auto& given = call.given;
    const int64_t d = given.d, rows = samples_loss::padded(given.n), cols = samples_loss::padded(given.m);
    a_ = pieces.take(rows), b_ = pieces.take(cols);
    y_flipped_ = pieces.take(d * cols);
    x_flipped_ = call.debias ? pieces.take(d * rows) : nullptr;
    work_ = pieces.take(tasks * work_size());
    count_ = 0;
    add(pieces, given.n, given.m, false, call.slope_x, call.slope_y);
    if (call.debias) {
      add(pieces, given.n, given.n, true, call.slope_x, call.slope_x);
      add(pieces, given.m, given.m, true, call.slope_y, call.slope_y);
    }
    return pieces.used();
  }

  // Weights, points and, where they are kept, costs of one problem of the batch.
  void start(int64_t problem) {
    const auto& given = call_->given;
    const int64_t n = given.n, m = given.m, d = given.d;
    const int64_t rows = samples_loss::padded(n), cols = samples_loss::padded(m);
    const T *x = given.x + problem * n * d, *y = given.y + problem * m * d;
    pad(given.a + problem * n, n, rows, a_);
    pad(given.b + problem * m, m, cols, b_);
    flip(y, m, d, cols, y_flipped_);
    if (x_flipped_) flip(x, n, d, rows, x_flipped_);
    for (int k = 0; k < count_; ++k) {
      Pairing<T>& q = pairing_[k];
      q.x = k == 2 ? y : x;
      q.flipped = k == 1 ? x_flipped_ : y_flipped_;
      q.a = k == 2 ? b_ : a_;
      q.b = k == 1 ? a_ : b_;
      q.log_domain = false;
      for (int64_t j = 0; j < q.stride; ++j) q.g[j] = 0;
      for (int64_t i = 0; i < samples_loss::padded(q.n); ++i) q.f[i] = 0;
    }
    if (!call_->keep_costs) return;
    each_task([&](Pairing<T>& q, Rows range, int) {
      for (int64_t i = range.begin; i < range.end; i += samples_loss::kRows)
        each_tile(q, i, [&](auto vectors, int64_t j) {
          make_costs<T, decltype(vectors)::V>(q, i, j, q.cost + i * q.stride + j, q.stride);
        });
    });
  }

  // Every eps in turn: from potentials of 0, then halfway to what the other side asks for, at last all the way.
  void run() {
    const double* eps = call_->eps;
    const int64_t steps = call_->steps;
    step(eps[0], false, false);
    for (int64_t k = 0; k < steps; ++k) step(eps[k], true, false);
    step(eps[steps - 1], false, call_->slope_x || call_->slope_y);
  }

  // Terms, the loss and slopes.
  void write(int64_t problem) {
    const auto& call = *call_;
    const int64_t n = call.given.n, m = call.given.m, d = call.given.d;
    const Pairing<T>& q = pairing_[0];
    const bool debias = call.debias;
    T *term_x = call.term_x + problem * n, *term_y = call.term_y + problem * m;
    double loss = 0;
    for (int64_t i = 0; i < n; ++i) loss += double(a_[i]) * (term_x[i] = term(q.f[i], debias ? pairing_[1].f[i] : 0));
    for (int64_t j = 0; j < m; ++j) loss += double(b_[j]) * (term_y[j] = term(q.g[j], debias ? pairing_[2].f[j] : 0));
    if (call.loss) call.loss[problem] = T(loss);
    if (call.slope_x) write_slopes(n, a_, 1, q.f, q.row, Slopes{q.row_slope, d, 1}, call.slope_x + problem * n * d);
    if (call.slope_y)
      write_slopes(m, b_, 2, q.g, q.col, Slopes{q.col_slope, 1, q.stride}, call.slope_y + problem * m * d);
  }

 private:
  struct Slopes {
    const T* sums;
    int64_t point, feature;  // strides
  };

  int64_t work_size() const { return call_->given.d * samples_loss::kRows * Lanes<T>::W; }

  void add(Pieces<T>& pieces, int64_t n, int64_t m, bool symmetric, bool row_slopes, bool col_slopes) {
    Pairing<T>& q = pairing_[count_++];
    const int64_t d = call_->given.d, rows = samples_loss::padded(n), cols = samples_loss::padded(m);
    q.n = n, q.m = m, q.d = d, q.stride = cols, q.p = call_->p, q.symmetric = symmetric;
    q.row_slopes = row_slopes, q.col_slopes = col_slopes;
    q.cost = call_->keep_costs ? pieces.take(rows * cols) : nullptr;
    q.f = pieces.take(rows), q.g = symmetric ? q.f : pieces.take(cols);
    q.row = pieces.take(rows), q.col = pieces.take(cols);
    q.k = pieces.take(rows), q.h = symmetric ? q.k : pieces.take(cols);
    q.partial = pieces.take(tasks_ * cols);
    q.row_top = pieces.take(rows), q.top = pieces.take(tasks_ * cols);
    q.row_slope = row_slopes ? pieces.take(rows * d) : nullptr;
    q.col_slope = col_slopes ? pieces.take(tasks_ * d * cols) : nullptr;
  }

  static void pad(const T* from, int64_t count, int64_t size, T* to) {
    copy(from, to, count);
    for (int64_t k = count; k < size; ++k) to[k] = 0;
  }
  static void flip(const T* points, int64_t count, int64_t d, int64_t stride, T* to) {
    for (int64_t k = 0; k < d; ++k) {
      for (int64_t i = 0; i < count; ++i) to[k * stride + i] = points[i * d + k];
      for (int64_t i = count; i < stride; ++i) to[k * stride + i] = 0;
    }
  }

  // body(pairing, rows, task) for every pairing, by all tasks.
  template <class Body>
  void each_task(const Body& body) {
    auto task = [&](int index) {
      for (int k = 0; k < count_; ++k) body(pairing_[k], rows_of(pairing_[k], tasks_, index), index);
    };
    parallel(tasks_, task);
  }

  double damping(double eps) const { return 1 / (1 + eps / call_->rho); }

  void step(double eps, bool halfway, bool slopes) {
    const T inverse = T(1 / eps);
    each_task([&](Pairing<T>& q, Rows range, int index) {
      if (q.log_domain) return;
      Vec<T>* work = reinterpret_cast<Vec<T>*>(work_ + index * work_size());
      slopes && (q.row_slopes || q.col_slopes) ? plain_sums<T, true>(q, range, index, inverse, work)
                                               : plain_sums<T, false>(q, range, index, inverse, nullptr);
    });
    bool any = false;
    for (int k = 0; k < count_; ++k) {
      Pairing<T>& q = pairing_[k];
      if (!q.log_domain) q.log_domain = !finish_plain(q, inverse);
      any |= q.log_domain;
    }
    if (any) step_in_logs(inverse, slopes);
    for (int k = 0; k < count_; ++k) {
      Pairing<T>& q = pairing_[k];
      move(q.n, q.row, q.log_domain ? q.row_top : nullptr, eps, halfway, q.f);
      if (!q.symmetric) move(q.m, q.col, q.log_domain ? q.top : nullptr, eps, halfway, q.g);
    }
  }

  // Adds the sums of the tasks up; false where one of them says nothing.
  bool finish_plain(Pairing<T>& q, T inverse) {
    for (int64_t j = 0; j < q.stride; ++j) q.col[j] = q.partial[j];
    for (int t = 1; t < tasks_; ++t)
      for (int64_t j = 0; j < q.stride; ++j) q.col[j] += q.partial[t * q.stride + j];
    if (q.symmetric) add_diagonal(q, inverse);
    return in_range(q.row, q.n) && (q.symmetric || in_range(q.col, q.m));
  }
  static bool in_range(const T* sums, int64_t count) {
    int64_t bad = 0;
    for (int64_t k = 0; k < count; ++k) bad += !(sums[k] >= kLeastSum<T> && sums[k] <= kMostSum<T>);
    return bad == 0;
  }
  // Both sums of a symmetric pairing are parts of one, and so is what a point has of itself.
  void add_diagonal(Pairing<T>& q, T inverse) const {
    for (int64_t i = 0; i < q.stride; i += Lanes<T>::W) {
      const Vec<T> own = load(q.a + i) * exp((load(q.f + i) + load(q.f + i) - own_cost()) * inverse);
      store(q.row + i, load(q.row + i) + load(q.col + i) + own);
    }
  }
  T own_cost() const { return call_->p == 1 ? root(T(kLeastSquaredDistance)) : 0; }

  // The same step by sums of exponentials less their largest exponents.
  void step_in_logs(T inverse, bool slopes) {
    for (int k = 0; k < count_; ++k) {
      Pairing<T>& q = pairing_[k];
      if (!q.log_domain) continue;
      weigh(q.n, samples_loss::padded(q.n), q.a, q.f, inverse, q.k);
      if (!q.symmetric) weigh(q.m, q.stride, q.b, q.g, inverse, q.h);
    }
    auto each_log_task = [&](const auto& body) {
      each_task([&](Pairing<T>& q, Rows range, int index) {
        if (q.log_domain) body(q, range, index);
      });
    };
    each_log_task([&](Pairing<T>& q, Rows range, int index) { log_rows(q, range, index, inverse); });
    for (int k = 0; k < count_; ++k)
      if (pairing_[k].log_domain) join_tops(pairing_[k]);
    each_log_task([&](Pairing<T>& q, Rows range, int index) { log_columns(q, range, index, inverse); });
    for (int k = 0; k < count_; ++k)
      if (pairing_[k].log_domain) finish_logs(pairing_[k], inverse);
    if (!slopes) return;
    each_log_task([&](Pairing<T>& q, Rows range, int index) {
      if (!q.row_slopes && !q.col_slopes) return;
      log_slopes(q, range, index, inverse, reinterpret_cast<Vec<T>*>(work_ + index * work_size()));
    });
  }

  static void weigh(int64_t count, int64_t size, const T* weights, const T* potentials, T inverse, T* out) {
    for (int64_t k = 0; k < count; ++k) out[k] = log_of(weights[k]) + potentials[k] * inverse;
    for (int64_t k = count; k < size; ++k) out[k] = -__builtin_inf();
  }
  void join_tops(Pairing<T>& q) const {
    for (int64_t j = 0; j < q.stride; ++j) {
      T most = q.top[j];
      for (int t = 1; t < tasks_; ++t) most = q.top[t * q.stride + j] > most ? q.top[t * q.stride + j] : most;
      q.top[j] = most > -Lanes<T>::kMax ? most : 0;  // of no weight: its sum is 0
    }
  }
  void finish_logs(Pairing<T>& q, T inverse) const {
    for (int64_t j = 0; j < q.m; ++j) {
      q.col[j] = q.partial[j];
      for (int t = 1; t < tasks_; ++t) q.col[j] += q.partial[t * q.stride + j];
    }
    if (!q.symmetric) return;
    // Three parts of one sum: the pairs j > i, the pairs j < i, and the point with itself.
    for (int64_t i = 0; i < q.n; ++i) {
      const T own = q.k[i] - own_cost() * inverse;
      T most = own;
      if (q.row[i] > 0 && q.row_top[i] > most) most = q.row_top[i];
      if (q.col[i] > 0 && q.top[i] > most) most = q.top[i];
      q.row[i] =
          part(q.row[i], q.row_top[i], most) + part(q.col[i], q.top[i], most) + part(own > -Lanes<T>::kMax, own, most);
      q.row_top[i] = q.top[i] = most;
    }
  }
  static T part(T sum, T top, T most) { return sum > 0 ? sum * exp_of(top - most) : 0; }

  // tops: null in the plain domain, where sums hold the potential itself.
  void move(int64_t count, const T* sums, const T* tops, double eps, bool halfway, T* potential) const {
    const T factor = T(damping(eps)), scale = T(eps);
    for (int64_t k = 0; k < count; ++k) {
      const T softmin = (tops ? -scale * tops[k] : potential[k]) - scale * log_of(sums[k]);
      potential[k] = halfway ? (potential[k] + factor * softmin) / 2 : factor * softmin;
    }
  }

  bool balanced() const { return !(call_->rho <= Lanes<double>::kMax); }
  double last_eps() const { return call_->eps[call_->steps - 1]; }

  // What a point adds per weight, of its potential and that of its own side.
  T term(T f, T own) const {
    if (call_->potentials || balanced()) return f - own;
    const double rho = call_->rho;
    return T((rho + last_eps() / 2) * (::expm1(exponent(own)) - ::expm1(exponent(f))));
  }
  // Its derivative by f, and less that by own.
  T derivative(T f) const {
    if (call_->potentials || balanced()) return 1;
    const double rho = call_->rho, at = exponent(f);
    return at < most_exponent() ? T((rho + last_eps() / 2) / rho * ::exp(at)) : 0;
  }
  // Limited, as a point without weight may have any.
  double exponent(T f) const {
    const double at = -double(f) / call_->rho;
    return at < most_exponent() ? at : most_exponent();
  }
  static double most_exponent() { return 0.9 * ::log(double(Lanes<T>::kMax)); }

  // Gradients of all terms of one side: of its potential against the other side, less that against itself.
  void write_slopes(int64_t count, const T* weights, int self, const T* f, const T* sums, Slopes slopes, T* out) {
    const int64_t d = call_->given.d;
    const T factor = T(damping(last_eps()));
    if (self == 2) join_slopes(pairing_[0]);
    const Pairing<T>* own = call_->debias ? &pairing_[self] : nullptr;
    if (own) join_slopes(*own);
    for (int64_t i = 0; i < count; ++i) {
      const T scale = factor * (call_->potentials ? T(1) : weights[i]);
      const T part = scale * derivative(f[i]) / sums[i];
      for (int64_t k = 0; k < d; ++k) out[i * d + k] = part * slopes.sums[i * slopes.point + k * slopes.feature];
      if (!own) continue;
      const T less = scale * derivative(own->f[i]) / own->row[i];
      for (int64_t k = 0; k < d; ++k)
        out[i * d + k] -= less * (own->row_slope[i * d + k] + own->col_slope[k * own->stride + i]);
    }
  }
  void join_slopes(const Pairing<T>& q) const {
    const int64_t size = q.d * q.stride;
    for (int t = 1; t < tasks_; ++t)
      for (int64_t k = 0; k < size; ++k) q.col_slope[k] += q.col_slope[t * size + k];
  }

  const samples_loss::Forward<T>* call_ = nullptr;
  int tasks_ = 1, count_ = 0;
  Pairing<T> pairing_[3];  // x with y, x with x, y with y
  T *a_ = nullptr, *b_ = nullptr, *x_flipped_ = nullptr, *y_flipped_ = nullptr, *work_ = nullptr;
};

}  // namespace UK_LEVEL
}  // namespace ucmkd

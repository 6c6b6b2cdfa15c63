// One matrix in the log domain and in double, for what the others cannot scale in the range of their type. Scalings
// are kept as logarithms lz = -log u, lw = -log v.
#pragma once
#include "core/math.h"
#include "core/simd.h"
#include "doubly_stochastic/params.h"
#include "doubly_stochastic/steps.h"

namespace ucmkd {
namespace UK_LEVEL {

template <class T>
class LogDomain {
 public:
  using D = double;
  static constexpr int W = Lanes<D>::W;
  static constexpr D kInf = __builtin_inf();

  static int64_t stride(const doubly_stochastic::Steps& s) { return (s.columns + W - 1) / W * W; }
  // Doubles of work space.
  static int64_t size(const doubly_stochastic::Steps& s, bool backward) {
    const int64_t p = s.rows, q = stride(s), kept = backward ? s.row_steps() + 2 : 2;
    return (backward ? 2 : 1) * p * q + kept * (p + q) + 4 * (p + q) + W;
  }

  LogDomain(const doubly_stochastic::Call<T>& call, const doubly_stochastic::Steps& s, D* work)
      : call_(call), s_(s), p_(s.rows), q_(s.columns), stride_(stride(s)), backward_(call.upstream != nullptr) {
    auto take = [&](int64_t count) {
      D* begin = work;
      work += count;
      return begin;
    };
    x_ = take(p_ * stride_);
    grad_ = backward_ ? take(p_ * stride_) : nullptr;
    const int64_t kept = backward_ ? s.row_steps() + 2 : 2;
    lz_ = take(kept * p_), lw_ = take(kept * stride_);
    top_ = take(stride_), total_ = take(stride_), bar_w_ = take(stride_), carry_w_ = take(stride_);
    bar_z_ = take(p_), carry_z_ = take(p_);
  }

  // The result of matrix k, or the gradient.
  void run(int64_t k) {
    const int64_t size = call_.n * call_.m;
    read(call_.logits + k * size);
    iterate();
    if (backward_)
      adjoint(call_.upstream + k * size, call_.out + k * size);
    else
      finish(call_.out + k * size);
  }

 private:
  int64_t place(int64_t r, int64_t c) const { return s_.transposed ? c * p_ + r : r * q_ + c; }
  D* z(int64_t k) { return lz_ + (backward_ ? k : k % 2) * p_; }
  D* w(int64_t k) { return lw_ + (backward_ ? k : k % 2) * stride_; }
  D* row(int64_t r) { return x_ + r * stride_; }

  // x = logits - c_j - d_i, whose largest entry in every row and column is 0 (or the logarithm of softmax + eps), and
  // the scalings before the first step, which are 1 for the logits themselves.
  void read(const T* logits) {
    D *c = w(0), *d = z(0);
    for (int64_t r = 0; r < p_; ++r)
      for (int64_t j = 0; j < stride_; ++j) row(r)[j] = j < q_ ? D(logits[place(r, j)]) : -kInf;
    if (s_.added) return read_softmax();
    for (int64_t j = 0; j < stride_; ++j) {
      c[j] = -kInf;
      for (int64_t r = 0; r < p_; ++r) c[j] = row(r)[j] > c[j] ? row(r)[j] : c[j];
      if (j >= q_) c[j] = 0;
    }
    for (int64_t r = 0; r < p_; ++r) {
      d[r] = -kInf;
      for (int64_t j = 0; j < q_; ++j) d[r] = row(r)[j] - c[j] > d[r] ? row(r)[j] - c[j] : d[r];
      for (int64_t j = 0; j < q_; ++j) row(r)[j] = (row(r)[j] - c[j]) - d[r];
      d[r] = -d[r];
    }
    for (int64_t j = 0; j < q_; ++j) c[j] = -c[j];
  }
  void read_softmax() {
    for (int64_t r = 0; r < p_; ++r) {
      const D lse = log_sum(row(r), nullptr);
      for (int64_t j = 0; j < q_; ++j)
        if (row(r)[j] > -kInf) row(r)[j] = log_of(exp_of(row(r)[j] - lse) + D(call_.eps));
      z(0)[r] = 0;
    }
    for (int64_t j = 0; j < stride_; ++j) w(0)[j] = 0;
  }

  // log sum_j exp(x_j - shift_j)
  D log_sum(const D* x, const D* shift) const {
    Vec<D> tops = splat(-kInf), sums = {};
    auto at = [&](int64_t j) { return shift ? load(x + j) - load(shift + j) : load(x + j); };
    for (int64_t j = 0; j < stride_; j += W) tops = vmax<D>(tops, at(j));
    const D top = greatest<D>(tops);
    for (int64_t j = 0; j < stride_; j += W) sums += exp(at(j) - top);
    return top + log_of(sum<D>(sums));
  }
  // log(exp(sum) + eps exp(old)) - log target
  D closed(D sum, D old, D target) const {
    if (call_.eps > 0) {
      const D extra = log_of(D(call_.eps)) + old, top = sum > extra ? sum : extra;
      sum = top + log_of(exp_of(sum - top) + exp_of(extra - top));
    }
    return sum - log_of(target);
  }

  void column_step(int64_t k) {
    const D* f = z(k);
    for (int64_t j = 0; j < stride_; j += W) {
      Vec<D> top = splat(-kInf), total = {};
      for (int64_t r = 0; r < p_; ++r) top = vmax<D>(top, load(row(r) + j) - f[r]);
      top = top > -kInf ? top : Vec<D>{};
      for (int64_t r = 0; r < p_; ++r) total += exp(load(row(r) + j) - f[r] - top);
      store(top_ + j, top), store(total_ + j, total);
    }
    for (int64_t j = 0; j < stride_; ++j)
      w(k + 1)[j] = j < q_ ? closed(top_[j] + log_of(total_[j]), w(k)[j], s_.column_sum) : 0;
  }
  void row_step(int64_t k) {
    for (int64_t r = 0; r < p_; ++r) z(k + 1)[r] = closed(log_sum(row(r), w(k + 1)), z(k)[r], s_.row_sum);
  }
  void iterate() {
    for (int64_t k = 0; k < s_.column_steps(); ++k) {
      column_step(k);
      if (k < s_.row_steps()) row_step(k);
    }
  }
  Vec<D> entries(int64_t r, int64_t j, const D* lz, const D* lw) {
    return exp(load(row(r) + j) - lz[r] - load(lw + j));
  }

  void finish(T* out) {
    const D *lz = z(s_.row_steps()), *lw = w(s_.column_steps());
    for (int64_t r = 0; r < p_; ++r)
      for (int64_t j = 0; j < stride_; j += W) {
        const Vec<D> e = entries(r, j, lz, lw);
        for (int l = 0; l < W && j + l < q_; ++l) out[place(r, j + l)] = T(e[l]);
      }
  }

  // Gradients of the logarithms: grad_ of x, bar_ of lz and lw; a step spreads that of its sums over their entries.
  void adjoint(const T* upstream, T* out) {
    const int64_t columns = s_.column_steps(), rows = s_.row_steps();
    for (int64_t j = 0; j < stride_; ++j) bar_w_[j] = carry_w_[j] = 0;
    for (int64_t r = 0; r < p_; ++r) {
      bar_z_[r] = carry_z_[r] = 0;
      for (int64_t j = 0; j < stride_; j += W) {
        Vec<D> g = {};
        for (int l = 0; l < W && j + l < q_; ++l) g[l] = D(upstream[place(r, j + l)]);
        const Vec<D> e = entries(r, j, z(rows), w(columns));
        g = e > 0 ? g * e : Vec<D>{};
        store(grad_ + r * stride_ + j, g);
        bar_z_[r] -= sum<D>(g);
        store(bar_w_ + j, load(bar_w_ + j) - g);
      }
    }
    for (int64_t step = s_.count - 1; step >= 0; --step) step % 2 ? row_adjoint(step / 2) : column_adjoint(step / 2);
    spread(out);
  }
  // Of lw from lz and x, of column step k.
  void column_adjoint(int64_t k) {
    const D share = 1 / s_.column_sum;
    for (int64_t j = 0; j < q_; ++j) {
      bar_w_[j] += carry_w_[j];
      carry_w_[j] = call_.eps > 0 ? bar_w_[j] * share * D(call_.eps) * exp_of(w(k)[j] - w(k + 1)[j]) : 0;
    }
    for (int64_t r = 0; r < p_; ++r) {
      Vec<D> total = {};
      for (int64_t j = 0; j < stride_; j += W) {
        const Vec<D> part = load(bar_w_ + j) * share * entries(r, j, z(k), w(k + 1));
        store(grad_ + r * stride_ + j, load(grad_ + r * stride_ + j) + part);
        total += part;
      }
      bar_z_[r] -= sum<D>(total);
    }
    for (int64_t j = 0; j < stride_; ++j) bar_w_[j] = 0;
  }
  void row_adjoint(int64_t k) {
    const D share = 1 / s_.row_sum;
    for (int64_t r = 0; r < p_; ++r) {
      const D bar = bar_z_[r] + carry_z_[r];
      carry_z_[r] = call_.eps > 0 ? bar * share * D(call_.eps) * exp_of(z(k)[r] - z(k + 1)[r]) : 0;
      for (int64_t j = 0; j < stride_; j += W) {
        const Vec<D> part = bar * share * entries(r, j, z(k + 1), w(k + 1));
        store(grad_ + r * stride_ + j, load(grad_ + r * stride_ + j) + part);
        store(bar_w_ + j, load(bar_w_ + j) - part);
      }
      bar_z_[r] = 0;
    }
  }
  // Of the logits from that of x.
  void spread(T* out) {
    for (int64_t r = 0; r < p_; ++r) {
      D* g = grad_ + r * stride_;
      D total = 0;
      for (int64_t j = 0; s_.added && j < q_; ++j) {
        const D a = exp_of(row(r)[j]), share = a - D(call_.eps);  // of the softmax
        g[j] = a > 0 ? g[j] * share / a : 0;
        total += g[j];
      }
      for (int64_t j = 0; j < q_; ++j) {
        if (s_.added) {
          const D share = exp_of(row(r)[j]) - D(call_.eps);
          g[j] -= total * (share > 0 ? share : 0);
        }
        out[place(r, j)] = T(g[j]);
      }
    }
  }

  const doubly_stochastic::Call<T>& call_;
  const doubly_stochastic::Steps& s_;
  const int64_t p_, q_, stride_;
  const bool backward_;
  D *x_, *grad_, *lz_, *lw_;  // (p, stride) twice; a row of potentials per step where they are kept, else two
  D *top_, *total_, *bar_w_, *carry_w_, *bar_z_, *carry_z_;
};

}  // namespace UK_LEVEL
}  // namespace ucmkd

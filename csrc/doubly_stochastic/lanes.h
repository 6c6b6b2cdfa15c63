// Small matrices, one in each lane: element (r, c) of a group of them is one vector.
#pragma once
#include "core/reciprocal.h"
#include "core/simd.h"
#include "core/transpose.h"
#include "doubly_stochastic/params.h"
#include "doubly_stochastic/steps.h"

namespace ucmkd {
namespace UK_LEVEL {

// Lanes of a group: those with refused logits, and those whose scalings left the range of the type.
struct LaneFaults {
  uint64_t bad, beyond;
};

template <class T>
class LaneGroup {
 public:
  using V = Vec<T>;
  using I = typename Lanes<T>::I;
  using Range = doubly_stochastic::Range<T>;
  static constexpr int W = Lanes<T>::W;

  // Vectors of work space.
  static int64_t size(const doubly_stochastic::Steps& s, bool backward) {
    const int64_t p = s.rows, q = s.columns, pairs = s.column_steps() + 1;
    return (backward ? 2 : 1) * p * q + 3 * p + 3 * q + (backward ? 2 * pairs * (p + q) : 0);
  }

  LaneGroup(const doubly_stochastic::Call<T>& call, const doubly_stochastic::Steps& s, V* work)
      : call_(call), s_(s), p_(s.rows), q_(s.columns), eps_(call.eps) {
    auto take = [&](int64_t count) {
      V* begin = work;
      work += count;
      return begin;
    };
    const int64_t pairs = s.column_steps() + 1;
    a_ = take(p_ * q_), u_ = take(p_), z_ = take(p_), v_ = take(q_), w_ = take(q_);
    bar_u_ = take(p_), bar_v_ = take(q_);
    if (call.upstream) {
      g_ = take(p_ * q_);
      kept_u_ = take(pairs * p_), kept_v_ = take(pairs * q_), of_z_ = take(pairs * p_), of_w_ = take(pairs * q_);
    }
  }

  // `count` matrices from k on, of p x q where these are not 0.
  template <int kP, int kQ>
  LaneFaults run(int64_t k, int64_t count) {
    const int64_t size = p_ * q_;
    load_lanes(call_.logits + k * size, count, size, [&](int64_t e, V x) { a_[place(e)] = x; });
    I bad = s_.added ? read_softmax() : read();
    call_.upstream ? iterate<kP, kQ, true>() : iterate<kP, kQ, false>();
    const I beyond = out_of_range();
    if (call_.upstream) {
      load_lanes(call_.upstream + k * size, count, size, [&](int64_t e, V x) { g_[place(e)] = x; });
      adjoint<kP, kQ>();
      gradient();
      store_lanes(call_.out + k * size, count, size, [&](int64_t e) { return g_[place(e)]; });
    } else {
      store_lanes(call_.out + k * size, count, size, [&](int64_t e) {
        const int64_t at = place(e);
        return u_[at / q_] * a_[at] * v_[at % q_];
      });
    }
    LaneFaults faults = {0, 0};
    for (int l = 0; l < count; ++l) {
      faults.bad |= uint64_t(bad[l] != 0) << l;
      faults.beyond |= uint64_t(bad[l] == 0 && beyond[l] != 0) << l;
    }
    return faults;
  }

 private:
  int64_t place(int64_t e) const { return s_.transposed ? e % call_.m * q_ + e / call_.m : e; }
  static V one() { return splat(T(1)); }
  static I closed(V x) { return x < -Lanes<T>::kMax; }

  // a = exp(logits), shifted by rows and columns in the lanes with large logits; which lanes are bad.
  I read() {
    I bad = {}, closed_anywhere = {};
    V top = {};
    for (int64_t e = 0; e < p_ * q_; ++e) {
      const V x = a_[e];
      bad |= ~(x <= Lanes<T>::kMax);
      closed_anywhere |= closed(x);
      top = vmax<T>(top, closed(x) ? V{} : vmax<T>(x, -x));
    }
    for (int64_t r = 0; r < p_; ++r) u_[r] = z_[r] = one();
    for (int64_t c = 0; c < q_; ++c) w_[c] = one();
    dropped_ = I{};
    const I wide = top > Range::kNarrow;
    if (any<T>(wide | closed_anywhere)) return bad | read_wide(wide);
    for (int64_t e = 0; e < p_ * q_; ++e) a_[e] = exp(a_[e]);
    return bad;
  }
  // In the lanes that are wide a = exp(x - c - d), with c the largest of a column and d what is then the largest of a
  // row: every row and column holds a 1. The roundings of both differences are put back.
  I read_wide(I wide) {
    I bad = {};
    V *c = v_, *d = bar_u_;
    for (int64_t j = 0; j < q_; ++j) {
      c[j] = a_[j];
      for (int64_t r = 1; r < p_; ++r) c[j] = vmax<T>(c[j], a_[r * q_ + j]);
      bad |= closed(c[j]);
    }
    for (int64_t r = 0; r < p_; ++r) {
      d[r] = a_[r * q_] - c[0];
      for (int64_t j = 1; j < q_; ++j) d[r] = vmax<T>(d[r], a_[r * q_ + j] - c[j]);
      bad |= closed(d[r]);
    }
    for (int64_t j = 0; j < q_; ++j) c[j] = wide ? c[j] : V{};
    for (int64_t r = 0; r < p_; ++r) d[r] = wide ? d[r] : V{};
    for (int64_t r = 0; r < p_; ++r)
      for (int64_t j = 0; j < q_; ++j) {
        V lost = {};
        const V x = a_[r * q_ + j], y = minus(minus(x, c[j], lost), d[r], lost), e = exp(y);
        a_[r * q_ + j] = y >= Range::kDropped ? e + e * lost : V{};
        dropped_ |= ~closed(x) & ~(y >= Range::kDropped);
      }
    for (int64_t r = 0; r < p_; ++r) u_[r] = exp(d[r]);
    if (eps_ > 0) {
      for (int64_t r = 0; r < p_; ++r) z_[r] = exp(-d[r]);
      for (int64_t j = 0; j < q_; ++j) w_[j] = exp(-c[j]);
    }
    return bad;
  }
  // x - y; what its rounding took is added to `lost`.
  static V minus(V x, V y, V& lost) {
    const V difference = x - y, part = difference - x;
    lost += (x - (difference - part)) - (y + part);
    return difference;
  }
  // a = softmax of the rows + eps
  I read_softmax() {
    I bad = {};
    dropped_ = I{};
    for (int64_t j = 0; j < q_; ++j) {
      I all = ~I{};
      for (int64_t r = 0; r < p_; ++r) all &= closed(a_[r * q_ + j]);
      bad |= all;
      w_[j] = one();
    }
    for (int64_t r = 0; r < p_; ++r) {
      V *x = a_ + r * q_, top = x[0], total = {};
      for (int64_t j = 0; j < q_; ++j) {
        bad |= ~(x[j] <= Lanes<T>::kMax);
        top = vmax<T>(top, x[j]);
      }
      bad |= closed(top);
      for (int64_t j = 0; j < q_; ++j) total += exp(x[j] - top);
      const V share = 1 / total;
      for (int64_t j = 0; j < q_; ++j) x[j] = closed(x[j]) ? V{} : exp(x[j] - top) * share + eps_;
      u_[r] = z_[r] = one();
    }
    return bad;
  }

  template <int kP, int kQ, bool kKeep>
  void iterate() {
    if constexpr (kP > 0) {
      V a[kP * kQ], u[kP], z[kP], v[kQ] = {}, w[kQ];
      copy_all<kP * kQ>(a_, a), copy_all<kP>(u_, u), copy_all<kP>(z_, z), copy_all<kQ>(w_, w);
      steps<kP, kQ, kKeep>(a, u, z, v, w);
      copy_all<kP>(u, u_), copy_all<kQ>(v, v_);
    } else {
      steps<0, 0, kKeep>(a_, u_, z_, v_, w_);
    }
  }
  template <int kCount>
  static void copy_all(const V* from, V* to) {
#pragma GCC unroll 64
    for (int k = 0; k < kCount; ++k) to[k] = from[k];
  }

  // w = 1 / v and z = 1 / u: with them a sum with eps is (sum + eps w) / target.
  template <int kP, int kQ, bool kKeep>
  __attribute__((always_inline)) void steps(const V* a, V* u, V* z, V* v, V* w) {
    const int64_t p = kP > 0 ? kP : p_, q = kQ > 0 ? kQ : q_;
    const T of_columns = T(1 / s_.column_sum), of_rows = T(1 / s_.row_sum);
    for (int64_t k = 0; k < s_.column_steps(); ++k) {
      if (kKeep) keep<kP>(u, kept_u_ + k * p, p);
#pragma GCC unroll 4
      for (int64_t c = 0; c < q; ++c) {
        V even = eps_ * w[c], odd = {};
#pragma GCC unroll 4
        for (int64_t r = 0; r < p; ++r) (r % 2 ? odd : even) += u[r] * a[r * q + c];
        w[c] = (even + odd) * of_columns;
        v[c] = reciprocal(w[c]);
      }
      if (kKeep) keep<kQ>(v, kept_v_ + k * q, q);
      if (k >= s_.row_steps()) break;
#pragma GCC unroll 4
      for (int64_t r = 0; r < p; ++r) {
        V even = eps_ * z[r], odd = {};
#pragma GCC unroll 4
        for (int64_t c = 0; c < q; ++c) (c % 2 ? odd : even) += v[c] * a[r * q + c];
        z[r] = (even + odd) * of_rows;
        u[r] = reciprocal(z[r]);
      }
    }
    if (kKeep) keep<kP>(u, kept_u_ + s_.row_steps() * p, p);
  }
  template <int kCount>
  static void keep(const V* from, V* to, int64_t count) {
#pragma GCC unroll 4
    for (int64_t k = 0; k < (kCount > 0 ? kCount : count); ++k) to[k] = from[k];
  }

  I out_of_range() const {
    I beyond = {};
    V top_u = {}, top_v = {};
    for (int64_t r = 0; r < p_; ++r) {
      beyond |= ~(u_[r] >= Range::kLeast) | ~(u_[r] <= Range::kMost);
      top_u = vmax<T>(top_u, u_[r]);
    }
    for (int64_t c = 0; c < q_; ++c) {
      beyond |= ~(v_[c] >= Range::kLeast) | ~(v_[c] <= Range::kMost);
      top_v = vmax<T>(top_v, v_[c]);
    }
    return beyond | (dropped_ & ~(top_u * top_v <= Range::kPeak));
  }

  // g becomes the gradient of a. With of_w and of_z those of the sums in each step,
  //   da_rc = g_rc u_r v_c + sum over column steps u_r of_w_c + sum over row steps of_z_r v_c
  template <int kP, int kQ>
  void adjoint() {
    const int64_t p = kP > 0 ? kP : p_, q = kQ > 0 ? kQ : q_, columns = s_.column_steps(), rows = s_.row_steps();
    const T of_columns = T(1 / s_.column_sum), of_rows = T(1 / s_.row_sum);
    const V* a = a_;
    V *bar_u = bar_u_, *bar_v = bar_v_, *carry_z = z_, *carry_w = w_;
    for (int64_t c = 0; c < q; ++c) bar_v[c] = carry_w[c] = V{};
    for (int64_t r = 0; r < p; ++r) {
      bar_u[r] = carry_z[r] = V{};
      for (int64_t c = 0; c < q; ++c) {
        const V ga = g_[r * q + c] * a[r * q + c];
        bar_u[r] += ga * v_[c];
        bar_v[c] += ga * u_[r];
        g_[r * q + c] *= u_[r] * v_[c];
      }
    }
    for (int64_t k = columns - 1; k >= 0; --k) {
      if (k < rows) {
        V* of_z = of_z_ + k * p;
        const V* u = kept_u_ + (k + 1) * p;
#pragma GCC unroll 4
        for (int64_t r = 0; r < p; ++r) {
          of_z[r] = (carry_z[r] - bar_u[r] * u[r] * u[r]) * of_rows;
          carry_z[r] = eps_ * of_z[r];
          bar_u[r] = V{};
        }
#pragma GCC unroll 4
        for (int64_t c = 0; c < q; ++c) {
          V even = bar_v[c], odd = {};
#pragma GCC unroll 4
          for (int64_t r = 0; r < p; ++r) (r % 2 ? odd : even) += of_z[r] * a[r * q + c];
          bar_v[c] = even + odd;
        }
      }
      V* of_w = of_w_ + k * q;
      const V* v = kept_v_ + k * q;
#pragma GCC unroll 4
      for (int64_t c = 0; c < q; ++c) {
        of_w[c] = (carry_w[c] - bar_v[c] * v[c] * v[c]) * of_columns;
        carry_w[c] = eps_ * of_w[c];
        bar_v[c] = V{};
      }
#pragma GCC unroll 4
      for (int64_t r = 0; r < p; ++r) {
        V even = bar_u[r], odd = {};
#pragma GCC unroll 4
        for (int64_t c = 0; c < q; ++c) (c % 2 ? odd : even) += of_w[c] * a[r * q + c];
        bar_u[r] = even + odd;
      }
    }
    for (int64_t r = 0; r < p; r += 4)
      for (int64_t c = 0; c < q; c += 4) {
        if (r + 4 <= p && c + 4 <= q)
          add_products<4, 4>(r, c);
        else
          for (int64_t i = r; i < p && i < r + 4; ++i)
            for (int64_t j = c; j < q && j < c + 4; ++j) add_products<1, 1>(i, j);
      }
  }
  template <int kRows, int kColumns>
  void add_products(int64_t r, int64_t c) {
    const int64_t p = p_, q = q_, columns = s_.column_steps(), rows = s_.row_steps();
    V sums[kRows][kColumns] = {};
    for (int64_t k = 0; k < columns; ++k) {
      const V *u = kept_u_ + k * p + r, *of_w = of_w_ + k * q + c;
      const V *of_z = of_z_ + k * p + r, *v = kept_v_ + k * q + c;
      const bool both = k < rows;
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < kColumns; ++j) sums[i][j] += u[i] * of_w[j];
      if (both)
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
          for (int j = 0; j < kColumns; ++j) sums[i][j] += of_z[i] * v[j];
    }
    for (int i = 0; i < kRows; ++i)
      for (int j = 0; j < kColumns; ++j) g_[(r + i) * q + c + j] += sums[i][j];
  }

  // g becomes the gradient of the logits.
  void gradient() {
    if (!s_.added) {
      for (int64_t e = 0; e < p_ * q_; ++e) g_[e] *= a_[e];
      return;
    }
    for (int64_t r = 0; r < p_; ++r) {
      V *a = a_ + r * q_, *g = g_ + r * q_, total = {};
      for (int64_t c = 0; c < q_; ++c) {
        a[c] = a[c] > eps_ ? a[c] - eps_ : V{};  // the softmax
        g[c] *= a[c];
        total += g[c];
      }
      for (int64_t c = 0; c < q_; ++c) g[c] -= total * a[c];
    }
  }

  const doubly_stochastic::Call<T>& call_;
  const doubly_stochastic::Steps& s_;
  const int64_t p_, q_;
  const T eps_;
  I dropped_;                 // lanes where an entry is 0 that is not forbidden
  V *a_, *u_, *z_, *v_, *w_;  // (p, q), (p), (p), (q), (q)
  V *bar_u_, *bar_v_;         // (p), (q) gradients of u and v
  V *g_, *kept_u_, *kept_v_;  // (p, q), and u before, v after each column step
  V *of_z_, *of_w_;           // gradients of the sums of each step
};

}  // namespace UK_LEVEL
}  // namespace ucmkd

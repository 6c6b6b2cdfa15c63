// One larger matrix at a time, with vectors along its rows, which are padded by zeros to whole vectors.
#pragma once
#include "core/reciprocal.h"
#include "core/simd.h"
#include "doubly_stochastic/params.h"
#include "doubly_stochastic/steps.h"

namespace ucmkd {
namespace UK_LEVEL {

enum class MatrixFault { kNone, kBad, kBeyond };

template <class T>
class Rows {
 public:
  using V = Vec<T>;
  using Range = doubly_stochastic::Range<T>;
  static constexpr int W = Lanes<T>::W, kBlock = 4;  // rows that are taken together

  static int64_t stride(const doubly_stochastic::Steps& s) { return (s.columns + W - 1) / W * W; }
  static int64_t height(const doubly_stochastic::Steps& s) { return (s.rows + kBlock - 1) / kBlock * kBlock; }
  // Elements of work space, all parts of which begin at a whole vector.
  static int64_t size(const doubly_stochastic::Steps& s, bool backward) {
    const int64_t p = height(s), q = stride(s), pairs = s.column_steps() + 1;
    return (backward ? 2 : 1) * p * q + 3 * (p + W) + 3 * q + (backward ? 2 * pairs * (p + q + W) : 0);
  }

  Rows(const doubly_stochastic::Call<T>& call, const doubly_stochastic::Steps& s, T* work)
      : call_(call), s_(s), p_(s.rows), q_(s.columns), high_(height(s)), wide_(stride(s)), eps_(call.eps) {
    auto take = [&](int64_t count) {
      T* begin = work;
      work += (count + W - 1) / W * W;
      return begin;
    };
    const int64_t pairs = s.column_steps() + 1;
    a_ = take(high_ * wide_), u_ = take(high_), z_ = take(high_), bar_u_ = take(high_);
    v_ = take(wide_), w_ = take(wide_), bar_v_ = take(wide_);
    if (call.upstream) {
      g_ = take(high_ * wide_);
      kept_u_ = take(pairs * high_), of_z_ = take(pairs * high_);
      kept_v_ = take(pairs * wide_), of_w_ = take(pairs * wide_);
    }
  }

  MatrixFault run(int64_t k) {
    const int64_t size = p_ * q_;
    load_matrix(call_.logits + k * size, a_);
    if (!(s_.added ? read_softmax() : read())) return MatrixFault::kBad;
    iterate();
    if (out_of_range()) return MatrixFault::kBeyond;
    if (call_.upstream) {
      load_matrix(call_.upstream + k * size, g_);
      adjoint();
      gradient();
      store_matrix(call_.out + k * size, g_);
    } else {
      for (int64_t r = 0; r < p_; ++r)
        for (int64_t j = 0; j < wide_; j += W)
          store(a_ + r * wide_ + j, u_[r] * load(a_ + r * wide_ + j) * load(v_ + j));
      store_matrix(call_.out + k * size, a_);
    }
    return MatrixFault::kNone;
  }

 private:
  void load_matrix(const T* from, T* to) const {
    for (int64_t r = 0; r < high_; ++r) {
      T* row = to + r * wide_;
      if (r >= p_) {
        for (int64_t j = 0; j < wide_; ++j) row[j] = 0;
        continue;
      }
      if (s_.transposed)
        for (int64_t j = 0; j < q_; ++j) row[j] = from[j * p_ + r];
      else
        copy(from + r * q_, row, q_);
      for (int64_t j = q_; j < wide_; ++j) row[j] = 0;
    }
  }
  void store_matrix(T* to, const T* from) const {
    for (int64_t r = 0; r < p_; ++r) {
      const T* row = from + r * wide_;
      if (s_.transposed)
        for (int64_t j = 0; j < q_; ++j) to[j * p_ + r] = row[j];
      else
        copy(row, to + r * q_, q_);
    }
  }
  static void fill(T* at, int64_t count, T value) {
    for (int64_t k = 0; k < count; ++k) at[k] = value;
  }
  static T inf() { return T(__builtin_inf()); }
  static bool closed(T x) { return x < -Lanes<T>::kMax; }

  static typename Lanes<T>::I closed(V x) { return x < -Lanes<T>::kMax; }

  // a = exp(logits), of large logits shifted by columns and rows so that each holds a 1 (lanes.h). False: refused.
  bool read() {
    typename Lanes<T>::I refused = {}, shut = {};
    V top = {};
    for (int64_t r = 0; r < p_; ++r)
      for (int64_t j = 0; j < wide_; j += W) {
        const V x = load(a_ + r * wide_ + j);
        refused |= ~(x <= Lanes<T>::kMax);
        shut |= closed(x);
        top = vmax<T>(top, closed(x) ? V{} : vmax<T>(x, -x));
      }
    if (any<T>(refused)) return false;
    fill(u_, high_, 1), fill(z_, high_, 1), fill(w_, wide_, 1);
    dropped_ = false;
    const bool shifted = greatest<T>(top) > Range::kNarrow;
    if (shifted || any<T>(shut)) return read_shifted(shifted);
    for (int64_t r = 0; r < p_; ++r) {
      for (int64_t j = 0; j < wide_; j += W) store(a_ + r * wide_ + j, exp(load(a_ + r * wide_ + j)));
      fill(a_ + r * wide_ + q_, wide_ - q_, 0);
    }
    return true;
  }
  // The largest of each column of a, which is padded by -inf on the way; false where one is -inf.
  bool column_tops(T* tops) {
    fill(tops, wide_, -inf());
    for (int64_t r = 0; r < p_; ++r) {
      T* row = a_ + r * wide_;
      fill(row + q_, wide_ - q_, -inf());
      for (int64_t j = 0; j < wide_; j += W) store(tops + j, vmax<T>(load(tops + j), load(row + j)));
    }
    fill(tops + q_, wide_ - q_, 0);
    for (int64_t j = 0; j < q_; ++j)
      if (closed(tops[j])) return false;
    return true;
  }
  bool read_shifted(bool shifted) {
    T *c = v_, *d = bar_u_;
    if (!column_tops(c)) return false;
    for (int64_t r = 0; r < p_; ++r) {
      V top = splat(-inf());
      for (int64_t j = 0; j < wide_; j += W) top = vmax<T>(top, load(a_ + r * wide_ + j) - load(c + j));
      d[r] = greatest<T>(top);
      if (closed(d[r])) return false;
    }
    if (!shifted) fill(c, wide_, 0), fill(d, p_, 0);
    typename Lanes<T>::I lost_some = {};
    for (int64_t r = 0; r < p_; ++r)
      for (int64_t j = 0; j < wide_; j += W) {
        T* at = a_ + r * wide_ + j;
        V lost = {};
        const V x = load(at), y = minus(minus(x, load(c + j), lost), splat(d[r]), lost), e = exp(y);
        store(at, y >= Range::kDropped ? e + e * lost : V{});
        lost_some |= ~closed(x) & ~(y >= Range::kDropped);
      }
    dropped_ = any<T>(lost_some);
    const T none = 0;
    for (int64_t r = 0; r < p_; ++r) {
      u_[r] = exp(splat(d[r]))[0];
      if (eps_ > none) z_[r] = exp(splat(-d[r]))[0];
    }
    if (eps_ > none)
      for (int64_t j = 0; j < wide_; j += W) store(w_ + j, exp(-load(c + j)));
    return true;
  }
  // x - y; what its rounding took is added to `lost`.
  static V minus(V x, V y, V& lost) {
    const V difference = x - y, part = difference - x;
    lost += (x - (difference - part)) - (y + part);
    return difference;
  }
  // a = softmax of the rows + eps
  bool read_softmax() {
    dropped_ = false;
    fill(u_, high_, 1), fill(z_, high_, 1), fill(w_, wide_, 1);
    if (!column_tops(v_)) return false;
    for (int64_t r = 0; r < p_; ++r) {
      T* row = a_ + r * wide_;
      typename Lanes<T>::I refused = {};
      V tops = splat(-inf()), total = {};
      for (int64_t j = 0; j < wide_; j += W) {
        refused |= ~(load(row + j) <= Lanes<T>::kMax);
        tops = vmax<T>(tops, load(row + j));
      }
      const T top = greatest<T>(tops);
      if (any<T>(refused) || closed(top)) return false;
      for (int64_t j = 0; j < wide_; j += W) total += exp(load(row + j) - top);
      const T share = 1 / sum<T>(total);
      for (int64_t j = 0; j < wide_; j += W) {
        const V x = load(row + j);
        store(row + j, closed(x) ? V{} : exp(x - top) * share + eps_);
      }
    }
    return true;
  }

  // w = 1 / v and z = 1 / u: with them a sum with eps is (sum + eps w) / target.
  void iterate() {
    const T of_columns = T(1 / s_.column_sum), of_rows = T(1 / s_.row_sum);
    fill(v_ + q_, wide_ - q_, 0);
    const bool keep = call_.upstream != nullptr;
    for (int64_t k = 0; k < s_.column_steps(); ++k) {
      if (keep) copy(u_, kept_u_ + k * high_, high_);
      for (int64_t j = 0; j < wide_; j += W) store(w_ + j, eps_ * load(w_ + j));
      add_rows(u_, w_);
      for (int64_t j = 0; j < wide_; j += W) {
        const V w = load(w_ + j) * of_columns;
        store(w_ + j, w);
        store(v_ + j, reciprocal(w));
      }
      fill(v_ + q_, wide_ - q_, 0), fill(w_ + q_, wide_ - q_, 1);
      if (keep) copy(v_, kept_v_ + k * wide_, wide_);
      if (k >= s_.row_steps()) break;
      for (int64_t r = 0; r < high_; r += kBlock) {
        const Quad<T> z = (dots(r, v_) + eps_ * load4(z_ + r)) * of_rows;
        store4(z_ + r, z);
        store4(u_ + r, 1 / z);
      }
      for (int64_t r = p_; r < high_; ++r) u_[r] = z_[r] = 1;  // rows of zeros
    }
    if (keep) copy(u_, kept_u_ + s_.row_steps() * high_, high_);
  }
  // sums_j += sum_r u_r a_rj
  void add_rows(const T* u, T* sums) const {
    for (int64_t r = 0; r < high_; r += kBlock) {
      const T* row = a_ + r * wide_;
      for (int64_t j = 0; j < wide_; j += W) {
        const V first = u[r] * load(row + j) + u[r + 1] * load(row + wide_ + j);
        const V second = u[r + 2] * load(row + 2 * wide_ + j) + u[r + 3] * load(row + 3 * wide_ + j);
        store(sums + j, load(sums + j) + (first + second));
      }
    }
  }
  // sum_j a_rj v_j of rows r to r + 3
  Quad<T> dots(int64_t r, const T* v) const {
    const T* row = a_ + r * wide_;
    V a = {}, b = {}, c = {}, d = {};
    for (int64_t j = 0; j < wide_; j += W) {
      const V x = load(v + j);
      a += load(row + j) * x;
      b += load(row + wide_ + j) * x;
      c += load(row + 2 * wide_ + j) * x;
      d += load(row + 3 * wide_ + j) * x;
    }
    return sum4<T>(a, b, c, d);
  }

  bool out_of_range() const {
    T top_u = 0, top_v = 0;
    for (int64_t r = 0; r < p_; ++r) {
      if (!(u_[r] >= Range::kLeast && u_[r] <= Range::kMost)) return true;
      top_u = u_[r] > top_u ? u_[r] : top_u;
    }
    for (int64_t j = 0; j < q_; ++j) {
      if (!(v_[j] >= Range::kLeast && v_[j] <= Range::kMost)) return true;
      top_v = v_[j] > top_v ? v_[j] : top_v;
    }
    return dropped_ && !(top_u * top_v <= Range::kPeak);
  }

  // g becomes the gradient of a (lanes.h).
  void adjoint() {
    const int64_t columns = s_.column_steps(), rows = s_.row_steps();
    const T of_columns = T(1 / s_.column_sum), of_rows = T(1 / s_.row_sum);
    T *carry_z = z_, *carry_w = w_;
    fill(bar_v_, wide_, 0), fill(carry_w, wide_, 0), fill(bar_u_, high_, 0), fill(carry_z, high_, 0);
    for (int64_t r = 0; r < p_; ++r) {
      V total = {};
      for (int64_t j = 0; j < wide_; j += W) {
        T* g = g_ + r * wide_ + j;
        const V ga = load(g) * load(a_ + r * wide_ + j), v = load(v_ + j);
        total += ga * v;
        store(bar_v_ + j, load(bar_v_ + j) + ga * u_[r]);
        store(g, load(g) * (u_[r] * v));
      }
      bar_u_[r] = sum<T>(total);
    }
    for (int64_t k = columns - 1; k >= 0; --k) {
      if (k < rows) {
        T* of_z = of_z_ + k * high_;
        const T* u = kept_u_ + (k + 1) * high_;
        for (int64_t r = 0; r < high_; ++r) {
          of_z[r] = (carry_z[r] - bar_u_[r] * u[r] * u[r]) * of_rows;
          carry_z[r] = eps_ * of_z[r];
          bar_u_[r] = 0;
        }
        add_rows(of_z, bar_v_);
      }
      T* of_w = of_w_ + k * wide_;
      const T* v = kept_v_ + k * wide_;
      for (int64_t j = 0; j < wide_; j += W) {
        const V bar = (load(carry_w + j) - load(bar_v_ + j) * load(v + j) * load(v + j)) * of_columns;
        store(of_w + j, bar);
        store(carry_w + j, eps_ * bar);
        store(bar_v_ + j, V{});
      }
      for (int64_t r = 0; r < high_; r += kBlock) store4(bar_u_ + r, load4(bar_u_ + r) + dots(r, of_w));
    }
    for (int64_t r = 0; r < high_; r += kBlock) {
      int64_t j = 0;
      for (; j + 2 * W <= wide_; j += 2 * W) add_products<2>(r, j);
      if (j < wide_) add_products<1>(r, j);
    }
  }
  // The sums over steps in kBlock rows and kVectors vectors.
  template <int kVectors>
  void add_products(int64_t r, int64_t j) {
    const int64_t columns = s_.column_steps(), rows = s_.row_steps();
    V sums[kBlock][kVectors] = {};
    for (int64_t k = 0; k < columns; ++k) {
      const T *u = kept_u_ + k * high_ + r, *of_w = of_w_ + k * wide_ + j;
      const T *of_z = of_z_ + k * high_ + r, *v = kept_v_ + k * wide_ + j;
#pragma GCC unroll 4
      for (int i = 0; i < kBlock; ++i)
#pragma GCC unroll 2
        for (int l = 0; l < kVectors; ++l) sums[i][l] += u[i] * load(of_w + l * W);
      if (k >= rows) break;
#pragma GCC unroll 4
      for (int i = 0; i < kBlock; ++i)
#pragma GCC unroll 2
        for (int l = 0; l < kVectors; ++l) sums[i][l] += of_z[i] * load(v + l * W);
    }
    for (int i = 0; i < kBlock; ++i)
      for (int l = 0; l < kVectors; ++l) {
        T* g = g_ + (r + i) * wide_ + j + l * W;
        store(g, load(g) + sums[i][l]);
      }
  }

  // g becomes the gradient of the logits.
  void gradient() {
    for (int64_t r = 0; r < p_; ++r) {
      T *a = a_ + r * wide_, *g = g_ + r * wide_;
      V total = {};
      for (int64_t j = 0; j < wide_; j += W) {
        const V x = load(a + j), share = s_.added ? (x > eps_ ? x - eps_ : V{}) : x, product = load(g + j) * share;
        store(a + j, share);
        store(g + j, product);
        total += product;
      }
      if (!s_.added) continue;
      const T sums = sum<T>(total);
      for (int64_t j = 0; j < wide_; j += W) store(g + j, load(g + j) - sums * load(a + j));
    }
  }

  const doubly_stochastic::Call<T>& call_;
  const doubly_stochastic::Steps& s_;
  const int64_t p_, q_, high_, wide_;  // high_ rows of wide_ elements in memory
  const T eps_;
  bool dropped_;  // an entry is 0 that is not forbidden
  T *a_, *u_, *z_, *bar_u_, *v_, *w_, *bar_v_;
  T *g_, *kept_u_, *kept_v_, *of_z_, *of_w_;  // in a backward (lanes.h)
};

}  // namespace UK_LEVEL
}  // namespace ucmkd

// One pass over the scores a half-step of both sides: column sums of rows that sum to one (README.md).
#include <type_traits>

#include "core/half.h"
#include "core/level_table.h"
#include "core/math.h"
#include "core/parallel.h"
#include "core/simd.h"

namespace ucmkd {
namespace UK_LEVEL {
namespace {

using assign::Columns;
using assign::kQuad;
using assign::Rows;
using assign::Sweep;

// Rows after which sums in T are added to those in double.
constexpr int64_t kFlush = 64;
// Vectors of a row whose sum is made apart, so that the rounding of long rows does not add up.
constexpr int64_t kPart = 64;
// Scores of a task that are looked at before their exponentials are taken: they are in the cache by then.
constexpr int64_t kBlock = 256 * 1024;

template <class T>
struct Range {
  int64_t begin, end;
  Range(const Rows<T>& rows, int task) : begin(rows.n * task / rows.tasks), end(rows.n * (task + 1) / rows.tasks) {}
};

template <class S, class T>
const S* row_of(const Rows<T>& rows, int64_t i) {
  return static_cast<const S*>(rows.scores) + i * rows.score_stride;
}

template <class T>
T weight_of(const Rows<T>& rows, int64_t i) {
  return rows.weight ? rows.weight[i] : T(1);
}

template <class T>
void add_to_double(int64_t k, T* from, double* to) {
  for (int64_t j = 0; j < k; ++j) to[j] += from[j];
  for (int64_t j = 0; j < k; ++j) from[j] = 0;
}

// ---- the first half-step where exp(score / temperature) leaves the range

// exp(rate (from - to)) for levels from <= to, 1 where both are -inf.
template <class T>
Vec<T> rescaled(Vec<T> from, Vec<T> to, T rate) {
  return from == to ? splat(T(1)) : exp((from - to) * rate);
}

// The levels of rows with one more.
template <class T, class S>
void raise(const S* s, int64_t k, T* level) {
  const T inf = __builtin_inf();
  each_vector<T>(k, [&](int64_t j, int64_t count) {
    const Vec<T> half = load_some<T>(s + j, count, -inf) * T(0.5);
    store_some<T>(level + j, vmax<T>(load_some<T>(level + j, count, -inf), half), count);
  });
}

// Sums relative to `before` become relative to `level`.
template <class T>
void rescale(int64_t k, T rate, const T* before, const T* level, double* sum) {
  each_vector<T>(k, [&](int64_t j, int64_t count) {
    const Vec<T> old = load_some<T>(before + j, count, T(0)), now = load_some<T>(level + j, count, T(0));
    if (!any<T>(old != now)) return;
    T factor[Lanes<T>::W];
    store(factor, rescaled<T>(old, now, rate));
    for (int l = 0; l < Lanes<T>::W && l < count; ++l) sum[j + l] *= factor[l];
  });
}

// part += the weighted exponentials of up to kQuad rows
template <class T, class S>
void add_exponentials(const Rows<T>& p, int rows, const S* const* s, const T* weight, const T* level, T* part) {
  const T inf = __builtin_inf();
  each_vector<T>(p.k, [&](int64_t j, int64_t count) {
    Vec<T> base = load_some<T>(level + j, count, T(0));
    base = base == -inf ? Vec<T>{} : base;  // nothing but -inf so far: exp gives 0
    Vec<T> sum = load_some<T>(part + j, count, T(0));
    for (int r = 0; r < rows; ++r)
      sum += weight[r] * exp((load_some<T>(s[r] + j, count, -inf) * T(0.5) - base) * p.rate);
    store_some<T>(part + j, sum, count);
  });
}

// The sums of a task, level and total, into those of the call.
template <class T>
void merge(const Columns<T>& p, const T* level, const double* total) {
  const T inf = __builtin_inf(), rate = p.rows.rate;
  each_vector<T>(p.rows.k, [&](int64_t j, int64_t count) {
    const Vec<T> ours = load_some<T>(p.level + j, count, -inf), theirs = load_some<T>(level + j, count, -inf);
    const Vec<T> top = vmax<T>(ours, theirs);
    T of_ours[Lanes<T>::W], of_theirs[Lanes<T>::W];
    store(of_ours, rescaled<T>(ours, top, rate)), store(of_theirs, rescaled<T>(theirs, top, rate));
    for (int l = 0; l < Lanes<T>::W && l < count; ++l)
      p.sum[j + l] = p.sum[j + l] * of_ours[l] + total[j + l] * of_theirs[l];
    store_some<T>(p.level + j, top, count);
  });
}

template <class T, class S>
void columns_of(Columns<T>& p) {
  const int64_t k = p.rows.k, block = kBlock / k / kQuad * kQuad + kQuad;
  auto body = [&](int task) {
    const Range<T> range(p.rows, task);
    T *level = p.levels + task * k, *part = p.space + task * (kQuad + 1) * k, *before = part + k;
    double* total = p.sums + task * k;
    for (int64_t j = 0; j < k; ++j) level[j] = -__builtin_inf(), part[j] = 0, total[j] = 0;
    for (int64_t first = range.begin; first < range.end; first += block) {
      const int64_t end = range.end - first < block ? range.end : first + block;
      copy(level, before, k);
      for (int64_t i = first; i < end; ++i)
        if (weight_of(p.rows, i) > 0) raise(row_of<S>(p.rows, i), k, level);
      rescale(k, p.rows.rate, before, level, total);
      for (int64_t i = first; i < end;) {
        const int64_t flush = end - i < kFlush ? end : i + kFlush;
        while (i < flush) {
          const S* s[kQuad];
          T weight[kQuad];
          int rows = 0;
          for (; rows < kQuad && i < flush; ++i) {
            s[rows] = row_of<S>(p.rows, i), weight[rows] = weight_of(p.rows, i);
            rows += weight[rows] > 0;
          }
          add_exponentials(p.rows, rows, s, weight, level, part);
        }
        add_to_double(k, part, total);
      }
    }
  };
  parallel(p.rows.tasks, body);
  for (int t = 0; t < p.rows.tasks; ++t) merge(p, p.levels + t * k, p.sums + t * k);
}

template <class T>
void columns(Columns<T>& p) {
  by_element(p.rows.score_type, [&](auto* scores) {
    using S = std::remove_pointer_t<decltype(scores)>;
    if constexpr (sizeof(S) <= sizeof(T)) columns_of<T, S>(p);
  });
}

// ---- the sweep

template <class T>
struct Shifted {
  T top;
  bool bad;  // NaN or +inf; looked for by the first sweep alone
};

// y = s / 2 - level
template <bool kFirst, class T, class S>
Shifted<T> shift(const S* s, int64_t k, const T* level, T* y) {
  const T inf = __builtin_inf();
  Vec<T> top = splat(-inf);
  typename Lanes<T>::I bad = {};
  each_vector<T>(k, [&](int64_t j, int64_t count) {
    const Vec<T> half = load_some<T>(s + j, count, -inf) * T(0.5);
    if constexpr (kFirst) bad |= ~(half < inf);
    const Vec<T> z = kFirst ? half : half - load_some<T>(level + j, count, T(0));
    top = vmax<T>(top, z);
    store_some<T>(y + j, z, count);
  });
  return {greatest<T>(top), any<T>(bad)};
}

// The sum of `term(j, count)` over a row.
template <class T, class Term>
T sum_of_row(int64_t k, const Term& term) {
  constexpr int64_t kColumns = kPart * Lanes<T>::W;
  Vec<T> total = {};
  for (int64_t first = 0; first < k; first += kColumns) {
    Vec<T> part = {};
    const int64_t size = k - first < kColumns ? k - first : kColumns;
    each_vector<T>(size, [&](int64_t j, int64_t count) { part += term(first + j, count); });
    total += part;
  }
  return sum<T>(total);
}

// E over y; the sum of E scale.
template <class T>
T exponentials(int64_t k, T top, T rate, const T* scale, T* y) {
  const T inf = __builtin_inf();
  return sum_of_row<T>(k, [&](int64_t j, int64_t count) {
    const Vec<T> e = exp((load_some<T>(y + j, count, -inf) - top) * rate);
    store_some<T>(y + j, e, count);
    return e * load_some<T>(scale + j, count, T(0));
  });
}

template <class T>
T scaled_sum(int64_t k, const T* scale, const T* e) {
  return sum_of_row<T>(k, [&](int64_t j, int64_t count) {
    return load_some<T>(e + j, count, T(0)) * load_some<T>(scale + j, count, T(0));
  });
}

// part += the rows times their factors
template <class T>
void add_rows(int64_t k, int rows, T* const* e, const T* factor, T* part) {
  if (rows == kQuad) {
    each_vector<T>(k, [&](int64_t j, int64_t count) {
      const Vec<T> both =
          factor[0] * load_some<T>(e[0] + j, count, T(0)) + factor[1] * load_some<T>(e[1] + j, count, T(0));
      const Vec<T> rest =
          factor[2] * load_some<T>(e[2] + j, count, T(0)) + factor[3] * load_some<T>(e[3] + j, count, T(0));
      store_some<T>(part + j, load_some<T>(part + j, count, T(0)) + (both + rest), count);
    });
    return;
  }
  for (int r = 0; r < rows; ++r)
    each_vector<T>(k, [&](int64_t j, int64_t count) {
      const Vec<T> added = factor[r] * load_some<T>(e[r] + j, count, T(0));
      store_some<T>(part + j, load_some<T>(part + j, count, T(0)) + added, count);
    });
}

template <class T>
void write_row(const Sweep<T>& p, int64_t i, const T* e, T inverse) {
  by_element(p.out_type, [&](auto* type) {
    auto* out = static_cast<decltype(type)>(p.out) + i * p.out_stride;
    each_vector<T>(p.rows.k, [&](int64_t j, int64_t count) {
      const Vec<T> q = load_some<T>(e + j, count, T(0)) * load_some<T>(p.scale + j, count, T(0)) * inverse;
      store_some<T>(out + j, q, count);
    });
  });
}

// What a task tells.
template <class T>
struct Told {
  int64_t bad = -1, lost = -1;
  T top = -__builtin_inf();
};

// E of row i into e, and what it counts in the columns; writes it where it is to be written.
template <bool kFirst, class T, class S>
T make_row(const Sweep<T>& p, int64_t i, T* e, Told<T>& told) {
  const int64_t k = p.rows.k;
  const T weight = weight_of(p.rows, i), rate = p.rows.rate;
  T sum;
  if (p.made) {
    sum = scaled_sum(k, p.scale, e);
  } else {
    const Shifted<T> row = shift<kFirst>(row_of<S>(p.rows, i), k, p.level, e);
    if (row.bad || row.top == -T(__builtin_inf())) {
      int64_t& place = row.bad ? told.bad : told.lost;
      place = place < 0 ? i : place;
      for (int64_t j = 0; j < k; ++j) e[j] = 0;
      return 0;
    }
    sum = exponentials(k, row.top, rate, p.scale, e);
    if constexpr (kFirst) {
      const T log = row.top * rate;
      told.top = weight > 0 && log > told.top ? log : told.top;
      return weight > 0 ? weight * exp_of(log) : 0;
    }
  }
  if (p.out) write_row(p, i, e, 1 / sum);
  return weight / sum;
}

template <bool kFirst, class T, class S>
void sweep_of(Sweep<T>& p) {
  const int64_t k = p.rows.k;
  Told<T> told[kMaxTasks];
  auto body = [&](int task) {
    const Range<T> range(p.rows, task);
    T *space = p.space + task * (kQuad + 1) * k, *part = space + kQuad * k;
    double* total = p.sums + task * k;
    for (int64_t j = 0; j < k; ++j) part[j] = 0, total[j] = 0;
    for (int64_t i = range.begin; i < range.end; i += kQuad) {
      T *e[kQuad], factor[kQuad];
      const int rows = range.end - i < kQuad ? int(range.end - i) : kQuad;
      for (int r = 0; r < rows; ++r) {
        e[r] = p.kept ? p.kept + (i + r) * p.kept_stride : space + r * k;
        factor[r] = make_row<kFirst, T, S>(p, i + r, e[r], told[task]);
      }
      if (!p.sum) continue;
      add_rows(k, rows, e, factor, part);
      if ((i - range.begin) % kFlush == kFlush - kQuad) add_to_double(k, part, total);
    }
    add_to_double(k, part, total);
  };
  parallel(p.rows.tasks, body);
  p.bad_row = p.lost_row = -1;
  p.top = -__builtin_inf();
  for (int t = 0; t < p.rows.tasks; ++t) {
    for (int64_t j = 0; p.sum && j < k; ++j) p.sum[j] += p.sums[t * k + j] * p.scale[j];
    if (p.bad_row < 0) p.bad_row = told[t].bad;
    if (p.lost_row < 0) p.lost_row = told[t].lost;
    p.top = told[t].top > p.top ? double(told[t].top) : p.top;
  }
}

template <class T>
void sweep(Sweep<T>& p) {
  by_element(p.rows.score_type, [&](auto* scores) {
    using S = std::remove_pointer_t<decltype(scores)>;
    if constexpr (sizeof(S) <= sizeof(T)) p.first ? sweep_of<true, T, S>(p) : sweep_of<false, T, S>(p);
  });
}

template <class T>
constexpr assign::Kernels<T> kTable = {columns<T>, sweep<T>};

}  // namespace

const ByType<assign::Kernels> assign_kernels = {kTable<float>, kTable<double>};

}  // namespace UK_LEVEL
}  // namespace ucmkd

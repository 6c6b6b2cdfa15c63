// One pass over the scores a half-step of both sides: column sums of rows that sum to one (README.md).
#include <type_traits>

#include "core/half.h"
#include "core/level_table.h"
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

// ---- the first half-step

template <class T>
struct Halves {
  bool good;  // no NaN and no +inf
  T top;
};

// y = s / 2
template <class T, class S>
Halves<T> halve(const S* s, int64_t k, T* y) {
  const T inf = __builtin_inf();
  Vec<T> top = splat(-inf);
  typename Lanes<T>::I bad = {};
  each_vector<T>(k, [&](int64_t j, int64_t count) {
    const Vec<T> half = load_some<T>(s + j, count, -inf) * T(0.5);
    bad |= ~(half < inf);
    top = vmax<T>(top, half);
    store_some<T>(y + j, half, count);
  });
  return {!any<T>(bad), greatest<T>(top)};
}

// exp(rate (from - to)) for levels from <= to, 1 where both are -inf.
template <class T>
Vec<T> rescaled(Vec<T> from, Vec<T> to, T rate) {
  return from == to ? splat(T(1)) : exp((from - to) * rate);
}

// Adds up to kQuad rows of halves to the sums `total` (double) and `part` (T) of a task.
template <class T>
void add_columns(const Columns<T>& p, int rows, T* const* y, const T* weight, T* level, T* part, double* total) {
  const T inf = __builtin_inf(), rate = p.rows.rate;
  each_vector<T>(p.rows.k, [&](int64_t j, int64_t count) {
    const Vec<T> before = load_some<T>(level + j, count, -inf);
    Vec<T> top = before;
    for (int r = 0; r < rows; ++r) top = vmax<T>(top, load_some<T>(y[r] + j, count, -inf));
    if (any<T>(top != before)) {
      T factor[Lanes<T>::W];
      store(factor, rescaled<T>(before, top, rate));
      for (int l = 0; l < Lanes<T>::W && l < count; ++l) {
        total[j + l] *= factor[l];
        part[j + l] *= factor[l];
      }
      store_some<T>(level + j, top, count);
    }
    const Vec<T> base = top == -inf ? Vec<T>{} : top;  // nothing but -inf so far: exp gives 0
    Vec<T> sum = load_some<T>(part + j, count, T(0));
    for (int r = 0; r < rows; ++r) sum += weight[r] * exp((load_some<T>(y[r] + j, count, -inf) - base) * rate);
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
  const int64_t k = p.rows.k;
  int64_t bad[kMaxTasks], empty[kMaxTasks];
  auto body = [&](int task) {
    const Range<T> range(p.rows, task);
    T *level = p.levels + task * k, *space = p.space + task * (kQuad + 1) * k, *part = space + kQuad * k;
    double* total = p.sums + task * k;
    for (int64_t j = 0; j < k; ++j) level[j] = -__builtin_inf(), part[j] = 0, total[j] = 0;
    bad[task] = empty[task] = -1;
    for (int64_t i = range.begin; i < range.end; i += kQuad) {
      T *y[kQuad], weight[kQuad];
      int rows = 0;  // with weight
      for (int r = 0; r < kQuad && i + r < range.end; ++r) {
        y[rows] = space + rows * k, weight[rows] = weight_of(p.rows, i + r);
        const Halves<T> found = halve<T>(row_of<S>(p.rows, i + r), k, y[rows]);
        if (!found.good) {
          if (bad[task] < 0) bad[task] = i + r;
        } else if (found.top == -T(__builtin_inf())) {
          if (empty[task] < 0) empty[task] = i + r;
        } else if (weight[rows] > 0) {
          ++rows;
        }
      }
      if (rows) add_columns(p, rows, y, weight, level, part, total);
      if ((i - range.begin) % kFlush == kFlush - kQuad) add_to_double(k, part, total);
    }
    add_to_double(k, part, total);
  };
  parallel(p.rows.tasks, body);
  p.bad_row = p.empty_row = -1;
  for (int t = 0; t < p.rows.tasks; ++t) {
    merge(p, p.levels + t * k, p.sums + t * k);
    if (p.bad_row < 0) p.bad_row = bad[t];
    if (p.empty_row < 0) p.empty_row = empty[t];
  }
}

template <class T>
void columns(Columns<T>& p) {
  by_element(p.rows.score_type, [&](auto* scores) {
    using S = std::remove_pointer_t<decltype(scores)>;
    if constexpr (sizeof(S) <= sizeof(T)) columns_of<T, S>(p);
  });
}

// ---- the others

// y = s / 2 - level, and the largest.
template <class T, class S>
T shift(const S* s, int64_t k, const T* level, T* y) {
  const T inf = __builtin_inf();
  Vec<T> top = splat(-inf);
  each_vector<T>(k, [&](int64_t j, int64_t count) {
    const Vec<T> z = load_some<T>(s + j, count, -inf) * T(0.5) - load_some<T>(level + j, count, T(0));
    top = vmax<T>(top, z);
    store_some<T>(y + j, z, count);
  });
  return greatest<T>(top);
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

template <class T, class S>
void sweep_of(Sweep<T>& p) {
  const int64_t k = p.rows.k;
  int64_t lost[kMaxTasks];
  auto body = [&](int task) {
    const Range<T> range(p.rows, task);
    T *space = p.space + task * (kQuad + 1) * k, *part = space + kQuad * k;
    double* total = p.sums + task * k;
    for (int64_t j = 0; j < k; ++j) part[j] = 0, total[j] = 0;
    lost[task] = -1;
    for (int64_t i = range.begin; i < range.end; i += kQuad) {
      T *e[kQuad], factor[kQuad];
      const int rows = range.end - i < kQuad ? int(range.end - i) : kQuad;
      for (int r = 0; r < rows; ++r) {
        e[r] = p.kept ? p.kept + (i + r) * p.kept_stride : space + r * k;
        T sum;
        if (p.made) {
          sum = scaled_sum(k, p.scale, e[r]);
        } else {
          const T top = shift<T>(row_of<S>(p.rows, i + r), k, p.level, e[r]);
          if (top == -T(__builtin_inf())) {
            if (lost[task] < 0) lost[task] = i + r;
            for (int64_t j = 0; j < k; ++j) e[r][j] = 0;
            factor[r] = 0;
            continue;
          }
          sum = exponentials(k, top, p.rows.rate, p.scale, e[r]);
        }
        factor[r] = weight_of(p.rows, i + r) / sum;
        if (p.out) write_row(p, i + r, e[r], 1 / sum);
      }
      if (!p.sum) continue;
      add_rows(k, rows, e, factor, part);
      if ((i - range.begin) % kFlush == kFlush - kQuad) add_to_double(k, part, total);
    }
    add_to_double(k, part, total);
  };
  parallel(p.rows.tasks, body);
  p.lost_row = -1;
  for (int t = 0; t < p.rows.tasks; ++t) {
    for (int64_t j = 0; p.sum && j < k; ++j) p.sum[j] += p.sums[t * k + j] * p.scale[j];
    if (p.lost_row < 0) p.lost_row = lost[t];
  }
}

template <class T>
void sweep(Sweep<T>& p) {
  by_element(p.rows.score_type, [&](auto* scores) {
    using S = std::remove_pointer_t<decltype(scores)>;
    if constexpr (sizeof(S) <= sizeof(T)) sweep_of<T, S>(p);
  });
}

template <class T>
constexpr assign::Kernels<T> kTable = {columns<T>, sweep<T>};

}  // namespace

const ByType<assign::Kernels> assign_kernels = {kTable<float>, kTable<double>};

}  // namespace UK_LEVEL
}  // namespace ucmkd

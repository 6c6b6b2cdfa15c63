// See kernels.h for the contract, row.h for the formulas.
#include "core/level_table.h"
#include "core/parallel.h"
#include "cost/row.h"

namespace ucmkd {
namespace UK_LEVEL {
namespace {

using cost::Features;

// body(begin, end, task) over the rows.
template <class Body>
void over_rows(int64_t n, int tasks, const Body& body) {
  auto task = [&](int index) { body(n * index / tasks, n * (index + 1) / tasks, index); };
  parallel(tasks, task);
}

template <class T>
bool scales(bool inverse, int64_t n, int64_t d, const T* x, T* scale, int tasks) {
  bool good[kMaxTasks];
  over_rows(n, tasks, [&](int64_t begin, int64_t end, int index) {
    good[index] = true;
    each_dot(begin, end, d, x, x, [&](int64_t i, T square) {
      if (!(square <= Lanes<T>::kMax)) good[index] = false;
      scale[i] = !inverse ? square : square < cost::kLeastSquare<T> ? 0 : 1 / root(square);
    });
  });
  bool all = true;
  for (int k = 0; k < tasks; ++k) all &= good[k];
  return all;
}

// Tasks share out the width: each sums and subtracts its features of every row.
template <class T>
void centre(const Features<T>& f, T* out_x, T* out_y, int tasks) {
  const int64_t n = f.n, m = f.m, d = f.d;
  const T *x = f.x, *y = f.y;
  constexpr int64_t kWidth = 64;
  auto task = [&](int index) {
    for (int64_t k = index * kWidth; k < d; k += tasks * kWidth) {
      const int64_t width = k + kWidth < d ? kWidth : d - k;
      T c[kWidth] = {};
      for (int64_t j = 0; j < m; ++j)
        for (int64_t e = 0; e < width; ++e) c[e] += y[j * d + k + e];
      for (int64_t e = 0; e < width; ++e) c[e] /= T(m > 0 ? m : 1);
      for (int64_t i = 0; i < n; ++i)
        for (int64_t e = 0; e < width; ++e) out_x[i * d + k + e] = x[i * d + k + e] - c[e];
      for (int64_t j = 0; j < m; ++j)
        for (int64_t e = 0; e < width; ++e) out_y[j * d + k + e] = y[j * d + k + e] - c[e];
    }
  };
  parallel(tasks, task);
}

template <class T>
void finish(const Features<T>& f, T* c, int tasks) {
  over_rows(f.n, tasks, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) finish_cost_row(f, i, c + i * f.m);
  });
}

template <class T>
void weigh(const Features<T>& f, const T* c, T* dc, T* row_sum, T* col_sum, T* work, int tasks) {
  const int64_t m = f.m;
  over_rows(f.n, tasks, [&](int64_t begin, int64_t end, int index) {
    T* columns = work + index * m;
    for (int64_t j = 0; j < m; ++j) columns[j] = 0;
    for (int64_t i = begin; i < end; ++i) row_sum[i] = weigh_row(f, i, c + i * m, dc + i * m, columns);
  });
  for (int64_t j = 0; j < m; ++j) {
    T total = 0;
    for (int k = 0; k < tasks; ++k) total += work[k * m + j];
    col_sum[j] = total;
  }
}

// g += w (y - x): the pair's share of W y, less the part that `finish_gradient` takes from the row's sum.
template <class T>
void add_pair(const T* x, const T* y, T w, int64_t d, T* g) {
  for (int64_t k = 0; k < d; ++k) g[k] += w * (y[k] - x[k]);
}

// g += w |y| (y^ - x^): the same of unit rows; what W y holds along x is projected away behind.
template <class T>
void add_unit_pair(const T* x, const T* y, T w, int64_t d, T* g) {
  const double p = inverse_length(x, d), q = inverse_length(y, d), length = double(w) / q;
  for (int64_t k = 0; k < d; ++k) g[k] += T(length * ((double(y[k]) - double(x[k])) * q + double(x[k]) * (q - p)));
}

template <class T>
void set_apart(const Features<T>& f, const T* distance, T* w, T* g_x, T* g_y, int tasks) {
  bool found[kMaxTasks];
  over_rows(f.n, tasks, [&](int64_t begin, int64_t end, int index) {
    found[index] = false;
    for (int64_t i = begin; i < end; ++i) found[index] |= any_near(f, i, distance + i * f.m);
  });
  bool any = false;
  for (int k = 0; k < tasks; ++k) any |= found[k];
  if (!any) return;
  const bool unit = cost::normalised(f.metric);
  const int64_t m = f.m, d = f.d;
  auto add = [&](const T* x, const T* y, T weight, T* g) {
    unit ? add_unit_pair(x, y, weight, d, g) : add_pair(x, y, weight, d, g);
  };
  // Both passes visit the pairs in one order, whatever the number of tasks.
  if (g_x)
    over_rows(f.n, tasks, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i)
        for (int64_t j = 0; j < m; ++j)
          if (near_pair(f, i, j, distance[i * m + j]))
            add(f.given_x + i * d, f.given_y + j * d, w[i * m + j], g_x + i * d);
    });
  over_rows(m, tasks, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = 0; i < f.n; ++i)
      for (int64_t j = begin; j < end; ++j) {
        if (!near_pair(f, i, j, distance[i * m + j])) continue;
        T& weight = w[i * m + j];
        if (g_y) add(f.given_y + j * d, f.given_x + i * d, weight, g_y + j * d);
        weight = 0;
      }
  });
}

template <class T>
void project(int64_t n, int64_t d, const T* x, const T* scale, T* g, int tasks) {
  over_rows(n, tasks, [&](int64_t begin, int64_t end, int) {
    each_dot(begin, end, d, x, g, [&](int64_t i, T dot) {
      const T s = scale[i], along = dot * s;  // x scaled first: |x|^-2 <x, g> overflows where |x| is tiny
      const T* mine = x + i * d;
      T* out = g + i * d;
      for (int64_t k = 0; k < d; ++k) out[k] = mine[k] * s * along - out[k];
    });
  });
}

template <class T>
void shift_rows(int64_t n, int64_t d, const T* x, const T* row_sum, T* g, int tasks) {
  over_rows(n, tasks, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t k = 0; k < d; ++k) g[i * d + k] = row_sum[i] * x[i * d + k] - g[i * d + k];
  });
}

template <class T>
void sum_gradient(const Features<T>& f, const T* dc, bool of_y, T* g, int tasks) {
  constexpr int W = Lanes<T>::W;
  const cost::Metric metric = f.metric;
  const int64_t d = f.d, others = of_y ? f.n : f.m, down = of_y ? 1 : f.m, across = of_y ? f.m : 1;
  const T *mine = of_y ? f.y : f.x, *other = of_y ? f.x : f.y;
  over_rows(of_y ? f.m : f.n, tasks, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const T* p = mine + i * d;
      T* out = g + i * d;
      for (int64_t k = 0; k < d; ++k) out[k] = 0;
      for (int64_t j = 0; j < others; ++j) {
        const T* q = other + j * d;
        const T w = dc[i * down + j * across];
        const Vec<T> wide = splat(w);
        int64_t k = 0;
        for (; k + W <= d; k += W)
          store(out + k, load(out + k) + cost::term_gradient<Vec<T>>(metric, wide, load(p + k), load(q + k)));
        for (; k < d; ++k) out[k] += cost::term_gradient(metric, w, p[k], q[k]);
      }
    }
  });
}

template <class T>
constexpr cost::Kernels<T> kTable = {scales<T>,    centre<T>,  finish<T>,     weigh<T>,
                                     set_apart<T>, project<T>, shift_rows<T>, sum_gradient<T>};

}  // namespace

const ByType<cost::Kernels> cost_kernels = {kTable<float>, kTable<double>};

}  // namespace UK_LEVEL
}  // namespace ucmkd

// See kernels.h.
#include "core/math.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "cost/kernels.h"

namespace ucmkd {
namespace UK_LEVEL {
namespace {

using cost::Metric;

template <class T>
T dot(const T* x, const T* y, int64_t d) {
  constexpr int W = Lanes<T>::W;
  Vec<T> total = {};
  int64_t k = 0;
  for (; k + W <= d; k += W) total += load(x + k) * load(y + k);
  T rest = 0;
  for (; k < d; ++k) rest += x[k] * y[k];
  return sum<T>(total) + rest;
}

template <class T>
T squared_distance(const T* x, const T* y, int64_t d) {
  constexpr int W = Lanes<T>::W;
  Vec<T> total = {};
  int64_t k = 0;
  for (; k + W <= d; k += W) {
    const Vec<T> e = load(x + k) - load(y + k);
    total += e * e;
  }
  T rest = 0;
  for (; k < d; ++k) rest += (x[k] - y[k]) * (x[k] - y[k]);
  return sum<T>(total) + rest;
}

// rows [begin, end) of task `index`
template <class Body>
void over_rows(int64_t n, int tasks, const Body& body) {
  auto task = [&](int index) { body(n * index / tasks, n * (index + 1) / tasks, index); };
  parallel(tasks, task);
}

}  // namespace

template <class T>
bool norms(int64_t n, int64_t d, const T* x, T* unit, T* norm, int tasks) {
  bool good[kMaxTasks];
  over_rows(n, tasks, [&](int64_t begin, int64_t end, int index) {
    good[index] = true;
    for (int64_t i = begin; i < end; ++i) {
      const T square = dot(x + i * d, x + i * d, d);
      if (!(square <= Lanes<T>::kMax)) good[index] = false;
      norm[i] = root(square);
      if (!unit) continue;
      const T scale = norm[i] > 0 ? 1 / norm[i] : 0;
      for (int64_t k = 0; k < d; ++k) unit[i * d + k] = x[i * d + k] * scale;
    }
  });
  bool all = true;
  for (int k = 0; k < tasks; ++k) all &= good[k];
  return all;
}

template <class T>
void epilogue(Metric metric, int64_t n, int64_t m, int64_t d, const T* x, const T* y, const T* norm_x,
              const T* norm_y, T* c, int tasks) {
  over_rows(n, tasks, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      T* row = c + i * m;
      if (metric == Metric::kCosine) {
        for (int64_t j = 0; j < m; ++j) row[j] = row[j] < 1 ? 1 - row[j] : 0;
        continue;
      }
      // |x|^2 + |y|^2 - 2 <x, y> loses all digits where x is near y; 1/128 keeps five of float32's.
      const bool unit = metric == Metric::kChordal;
      const T xx = unit ? (norm_x[i] > 0) : norm_x[i] * norm_x[i];
      bool close = false;
      for (int64_t j = 0; j < m; ++j) {
        const T total = xx + (unit ? T(norm_y[j] > 0) : norm_y[j] * norm_y[j]);
        const T square = total - 2 * row[j];
        row[j] = square > 0 ? square : 0;
        close |= square * 128 < total;
      }
      if (close)
        for (int64_t j = 0; j < m; ++j) {
          const T total = xx + (unit ? T(norm_y[j] > 0) : norm_y[j] * norm_y[j]);
          if (row[j] * 128 < total) row[j] = squared_distance(x + i * d, y + j * d, d);
        }
      if (metric != Metric::kSqeuclidean)
        for (int64_t j = 0; j < m; ++j) row[j] = root(row[j]);
    }
  });
}

template <class T>
void weights(Metric metric, int64_t n, int64_t m, const T* c, T* dc, T* row_sum, T* col_sum, T* work, int tasks) {
  over_rows(n, tasks, [&](int64_t begin, int64_t end, int index) {
    T* columns = work + index * m;
    for (int64_t j = 0; j < m; ++j) columns[j] = 0;
    for (int64_t i = begin; i < end; ++i) {
      T* w = dc + i * m;
      const T* cost = c + i * m;
      if (metric == Metric::kSqeuclidean)
        for (int64_t j = 0; j < m; ++j) w[j] *= 2;
      else
        for (int64_t j = 0; j < m; ++j) w[j] = cost[j] > 0 ? w[j] / cost[j] : 0;
      constexpr int W = Lanes<T>::W;
      Vec<T> total = {};
      int64_t j = 0;
      for (; j + W <= m; j += W) {
        const Vec<T> value = load(w + j);
        total += value;
        store(columns + j, load(columns + j) + value);
      }
      T rest = 0;
      for (; j < m; ++j) rest += w[j], columns[j] += w[j];
      row_sum[i] = sum<T>(total) + rest;
    }
  });
  for (int64_t j = 0; j < m; ++j) {
    T total = 0;
    for (int k = 0; k < tasks; ++k) total += work[k * m + j];
    col_sum[j] = total;
  }
}

template <class T>
void normalise_backward(int64_t n, int64_t d, const T* unit, const T* norm, T* g, int tasks) {
  over_rows(n, tasks, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const T along = dot(unit + i * d, g + i * d, d);
      const T scale = norm[i] > 0 ? 1 / norm[i] : 0;
      for (int64_t k = 0; k < d; ++k) g[i * d + k] = (g[i * d + k] - unit[i * d + k] * along) * scale;
    }
  });
}

template <class T>
void l1(int64_t n, int64_t m, int64_t d, const T* x, const T* y, T* c, int tasks) {
  constexpr int W = Lanes<T>::W;
  over_rows(n, tasks, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t j = 0; j < m; ++j) {
        const T *p = x + i * d, *q = y + j * d;
        Vec<T> total = {};
        int64_t k = 0;
        for (; k + W <= d; k += W) {
          const Vec<T> e = load(p + k) - load(q + k);
          total += e < 0 ? -e : e;
        }
        T rest = 0;
        for (; k < d; ++k) rest += p[k] < q[k] ? q[k] - p[k] : p[k] - q[k];
        c[i * m + j] = sum<T>(total) + rest;
      }
  });
}

template <class T>
void l1_backward(int64_t n, int64_t m, int64_t d, const T* x, const T* y, const T* dc, int64_t row_stride,
                 int64_t col_stride, T* dx, int tasks) {
  constexpr int W = Lanes<T>::W;
  over_rows(n, tasks, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const T* p = x + i * d;
      T* out = dx + i * d;
      for (int64_t k = 0; k < d; ++k) out[k] = 0;
      for (int64_t j = 0; j < m; ++j) {
        const T* q = y + j * d;
        const T w = dc[i * row_stride + j * col_stride];
        const Vec<T> up = splat(w);
        int64_t k = 0;
        for (; k + W <= d; k += W) {
          const Vec<T> e = load(p + k) - load(q + k);
          const Vec<T> term = e > 0 ? up : (e < 0 ? -up : Vec<T>{});
          store(out + k, load(out + k) + term);
        }
        for (; k < d; ++k) out[k] += p[k] > q[k] ? w : (p[k] < q[k] ? -w : 0);
      }
    }
  });
}

#define UK_INSTANTIATE(T)                                                                                        \
  template bool norms<T>(int64_t, int64_t, const T*, T*, T*, int);                                               \
  template void epilogue<T>(Metric, int64_t, int64_t, int64_t, const T*, const T*, const T*, const T*, T*, int); \
  template void weights<T>(Metric, int64_t, int64_t, const T*, T*, T*, T*, T*, int);                             \
  template void normalise_backward<T>(int64_t, int64_t, const T*, const T*, T*, int);                            \
  template void l1<T>(int64_t, int64_t, int64_t, const T*, const T*, T*, int);                                   \
  template void l1_backward<T>(int64_t, int64_t, int64_t, const T*, const T*, const T*, int64_t, int64_t, T*, int);
UK_INSTANTIATE(float)
UK_INSTANTIATE(double)

}  // namespace UK_LEVEL
}  // namespace ucmkd

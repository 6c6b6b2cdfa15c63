// See kernels.h for the contract, row.h for the formulas.
#include "core/parallel.h"
#include "cost/kernels.h"
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

}  // namespace

template <class T>
bool scales(bool inverse, int64_t n, int64_t d, const T* x, T* scale, int tasks) {
  bool good[kMaxTasks];
  over_rows(n, tasks, [&](int64_t begin, int64_t end, int index) {
    good[index] = true;
    for (int64_t i = begin; i < end; ++i) {
      const T square = dot(x + i * d, x + i * d, d);
      if (!(square <= Lanes<T>::kMax)) good[index] = false;
      scale[i] = !inverse ? square : square > 0 ? 1 / root(square) : 0;
    }
  });
  bool all = true;
  for (int k = 0; k < tasks; ++k) all &= good[k];
  return all;
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

template <class T>
void project(int64_t n, int64_t d, const T* x, const T* scale, T* g, int tasks) {
  over_rows(n, tasks, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      // x scaled first: |x|^-2 <x, g> overflows where |x| is tiny
      const T along = dot(x + i * d, g + i * d, d) * scale[i];
      for (int64_t k = 0; k < d; ++k) g[i * d + k] = x[i * d + k] * scale[i] * along - g[i * d + k];
    }
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
          store(out + k, load(out + k) + (e > 0 ? up : (e < 0 ? -up : Vec<T>{})));
        }
        for (; k < d; ++k) out[k] += p[k] > q[k] ? w : (p[k] < q[k] ? -w : 0);
      }
    }
  });
}

#define UK_INSTANTIATE(T)                                                                                 \
  template bool scales<T>(bool, int64_t, int64_t, const T*, T*, int);                                     \
  template void finish<T>(const Features<T>&, T*, int);                                                   \
  template void weigh<T>(const Features<T>&, const T*, T*, T*, T*, T*, int);                              \
  template void project<T>(int64_t, int64_t, const T*, const T*, T*, int);                                \
  template void shift_rows<T>(int64_t, int64_t, const T*, const T*, T*, int);                             \
  template void l1_backward<T>(int64_t, int64_t, int64_t, const T*, const T*, const T*, int64_t, int64_t, \
                               T*, int);
UK_INSTANTIATE(float)
UK_INSTANTIATE(double)

}  // namespace UK_LEVEL
}  // namespace ucmkd

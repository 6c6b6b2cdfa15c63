#include "cost/entry.h"

#include "core/levels.h"
#include "core/parallel.h"
#include "core/scratch.h"

namespace ucmkd {
namespace cost {
namespace {

// Work (element operations) below which a second thread costs more than it saves.
int tasks_for(int64_t rows, int64_t work) {
  int64_t tasks = num_threads();
  tasks = work / (32 * 1024) < tasks ? work / (32 * 1024) : tasks;
  tasks = rows < tasks ? rows : tasks;
  return tasks < 1 ? 1 : static_cast<int>(tasks);
}

}  // namespace

template <class T>
bool norms(int64_t n, int64_t d, const T* x, T* unit, T* norm) {
  return kernels<T>().cost.norms(n, d, x, unit, norm, tasks_for(n, n * d));
}
template <class T>
void epilogue(int metric, int64_t n, int64_t m, int64_t d, const T* x, const T* y, const T* norm_x, const T* norm_y,
              T* c) {
  kernels<T>().cost.epilogue(static_cast<Metric>(metric), n, m, d, x, y, norm_x, norm_y, c, tasks_for(n, n * m));
}
template <class T>
void weights(int metric, int64_t n, int64_t m, const T* c, T* dc, T* row_sum, T* col_sum) {
  const int tasks = tasks_for(n, n * m);
  Scratch<T> work(tasks * m);
  kernels<T>().cost.weights(static_cast<Metric>(metric), n, m, c, dc, row_sum, col_sum, work.data(), tasks);
}
template <class T>
void normalise_backward(int64_t n, int64_t d, const T* unit, const T* norm, T* g) {
  kernels<T>().cost.normalise_backward(n, d, unit, norm, g, tasks_for(n, n * d));
}
template <class T>
void l1(int64_t n, int64_t m, int64_t d, const T* x, const T* y, T* c) {
  kernels<T>().cost.l1(n, m, d, x, y, c, tasks_for(n, n * m * d));
}
template <class T>
void l1_backward(int64_t n, int64_t m, int64_t d, const T* x, const T* y, const T* dc, bool transposed, T* dx) {
  // dc is stored (n, m), or (m, n) where transposed
  kernels<T>().cost.l1_backward(n, m, d, x, y, dc, transposed ? 1 : m, transposed ? n : 1, dx,
                                tasks_for(n, n * m * d));
}

#define UK_INSTANTIATE(T)                                                                                         \
  template bool norms<T>(int64_t, int64_t, const T*, T*, T*);                                                     \
  template void epilogue<T>(int, int64_t, int64_t, int64_t, const T*, const T*, const T*, const T*, T*);          \
  template void weights<T>(int, int64_t, int64_t, const T*, T*, T*, T*);                                          \
  template void normalise_backward<T>(int64_t, int64_t, const T*, const T*, T*);                                  \
  template void l1<T>(int64_t, int64_t, int64_t, const T*, const T*, T*);                                         \
  template void l1_backward<T>(int64_t, int64_t, int64_t, const T*, const T*, const T*, bool, T*);
UK_INSTANTIATE(float)
UK_INSTANTIATE(double)

}  // namespace cost
}  // namespace ucmkd

#include "cost/entry.h"

#include "core/levels.h"
#include "core/parallel.h"
#include "core/scratch.h"

namespace ucmkd {
namespace cost {
namespace {

// `work` element operations in `rows` rows: below 32 K a second thread costs more than it saves.
int tasks_for(int64_t rows, int64_t work) {
  int64_t tasks = num_threads();
  tasks = work / (32 * 1024) < tasks ? work / (32 * 1024) : tasks;
  tasks = rows < tasks ? rows : tasks;
  return tasks < 1 ? 1 : static_cast<int>(tasks);
}

}  // namespace

template <class T>
bool scales(bool inverse, int64_t n, int64_t d, const T* x, T* scale) {
  return kernels<T>().cost.scales(inverse, n, d, x, scale, tasks_for(n, n * d));
}
template <class T>
void finish(const Features<T>& f, T* c) {
  kernels<T>().cost.finish(f, c, tasks_for(f.n, f.n * f.m * (f.metric == Metric::kL1 ? f.d : 1)));
}
template <class T>
void weigh(const Features<T>& f, const T* c, T* dc, T* row_sum, T* col_sum) {
  const int tasks = tasks_for(f.n, f.n * f.m);
  Scratch<T> work(tasks * f.m);
  kernels<T>().cost.weigh(f, c, dc, row_sum, col_sum, work.data(), tasks);
}
template <class T>
void project(int64_t n, int64_t d, const T* x, const T* scale, T* g) {
  kernels<T>().cost.project(n, d, x, scale, g, tasks_for(n, n * d));
}
template <class T>
void l1_backward(int64_t n, int64_t m, int64_t d, const T* x, const T* y, const T* dc, bool transposed,
                 T* dx) {
  kernels<T>().cost.l1_backward(n, m, d, x, y, dc, transposed ? 1 : m, transposed ? n : 1, dx,
                                tasks_for(n, n * m * d));
}

#define UK_INSTANTIATE(T)                                             \
  template bool scales<T>(bool, int64_t, int64_t, const T*, T*);      \
  template void finish<T>(const Features<T>&, T*);                    \
  template void weigh<T>(const Features<T>&, const T*, T*, T*, T*);   \
  template void project<T>(int64_t, int64_t, const T*, const T*, T*); \
  template void l1_backward<T>(int64_t, int64_t, int64_t, const T*, const T*, const T*, bool, T*);
UK_INSTANTIATE(float)
UK_INSTANTIATE(double)

}  // namespace cost
}  // namespace ucmkd

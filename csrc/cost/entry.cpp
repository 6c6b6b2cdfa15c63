#include "cost/entry.h"

#include <algorithm>

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

// x, or y where `of_y`.
template <class T>
struct Side {
  int64_t n;
  const T *x, *scale;
};
template <class T>
Side<T> side_of(const Features<T>& f, bool of_y) {
  return of_y ? Side<T>{f.m, f.y, f.scale_y} : Side<T>{f.n, f.x, f.scale_x};
}

}  // namespace

template <class T>
const char* scales(const Features<T>& f, T* scale_x, T* scale_y) {
  return with_helpers(kPassWork * times(f.n + f.m, f.d), [&]() -> const char* {
    const bool inverse = normalised(f.metric);
    if (!kernels<T>().cost.scales(inverse, f.n, f.d, f.x, scale_x, tasks_for(f.n, f.n * f.d))) return "x";
    if (!kernels<T>().cost.scales(inverse, f.m, f.d, f.y, scale_y, tasks_for(f.m, f.m * f.d))) return "y";
    return nullptr;
  });
}
template <class T>
void centre(const Features<T>& f, T* out_x, T* out_y) {
  with_helpers(2 * times(f.n + f.m, f.d),
               [&] { kernels<T>().cost.centre(f, out_x, out_y, tasks_for(f.d, (f.n + f.m) * f.d)); });
}
template <class T>
void inner_products(const Features<T>& f, T* c) {
  if (!summed(f.metric)) kernels<T>().product.inner({f.n, f.m, f.d, f.x, f.y, c, product_tasks(f.n, f.m, f.d)});
}
template <class T>
void finish(const Features<T>& f, T* c) {
  with_helpers(times(f.n, f.m) * (summed(f.metric) ? double(f.d) : kPassWork),
               [&] { kernels<T>().cost.finish(f, c, tasks_for(f.n, f.n * f.m * (summed(f.metric) ? f.d : 1))); });
}
template <class T>
void weigh(const Features<T>& f, const T* c, T* dc, T* row_sum, T* col_sum) {
  with_helpers(2 * kPassWork * times(f.n, f.m), [&] {
    const int tasks = tasks_for(f.n, f.n * f.m);
    Scratch<T> work(tasks * f.m);
    kernels<T>().cost.weigh(f, c, dc, row_sum, col_sum, work.data(), tasks);
  });
}
template <class T>
void set_apart(const Features<T>& f, const T* c, T* w, T* g_x, T* g_y) {
  if (!by_difference(f.metric)) return;
  const T* distance = f.classes.distance ? f.classes.distance : c;
  with_helpers(kPassWork * times(f.n, f.m), [&] {
    kernels<T>().cost.set_apart(f, distance, w, g_x, g_y, tasks_for(f.n < f.m ? f.n : f.m, f.n * f.m));
  });
}
template <class T>
void finish_gradient(const Features<T>& f, const T* sums, bool of_y, T* g) {
  const Side<T> here = side_of(f, of_y);
  with_helpers(2 * kPassWork * times(here.n, f.d), [&] {
    const int tasks = tasks_for(here.n, here.n * f.d);
    if (normalised(f.metric))
      kernels<T>().cost.project(here.n, f.d, here.x, here.scale, g, tasks);
    else
      kernels<T>().cost.shift_rows(here.n, f.d, here.x, sums, g, tasks);
  });
}

namespace {

// The gradient of x, or of y where `of_y`; g holds the share of near pairs where the metric has any.
template <class T>
void gradient(const Features<T>& f, const T* weights, const T* sums, bool of_y, T* g) {
  const Side<T> here = side_of(f, of_y), there = side_of(f, !of_y);
  if (summed(f.metric)) return sum_gradient(f, weights, of_y, g);
  kernels<T>().product.plain({here.n, f.d, there.n, weights, of_y ? 1 : f.m, of_y ? f.m : 1, there.x, g,
                              product_tasks(here.n, there.n, f.d), by_difference(f.metric)});
  finish_gradient(f, sums, of_y, g);
}

}  // namespace

template <class T>
void gradients(const Features<T>& f, const T* c, T* weights, const T* row_sum, const T* col_sum, T* dx, T* dy) {
  if (by_difference(f.metric)) {
    if (dx) std::fill(dx, dx + f.n * f.d, T(0));
    if (dy) std::fill(dy, dy + f.m * f.d, T(0));
    set_apart(f, c, weights, dx, dy);
  }
  if (dx) gradient(f, weights, row_sum, false, dx);
  if (dy) gradient(f, weights, col_sum, true, dy);
}
template <class T>
void sum_gradient(const Features<T>& f, const T* dc, bool of_y, T* g) {
  with_helpers(2 * times(f.n, f.m, f.d),
               [&] { kernels<T>().cost.sum_gradient(f, dc, of_y, g, tasks_for(of_y ? f.m : f.n, f.n * f.m * f.d)); });
}

#define UK_INSTANTIATE(T)                                                                   \
  template const char* scales<T>(const Features<T>&, T*, T*);                               \
  template void inner_products<T>(const Features<T>&, T*);                                  \
  template void finish<T>(const Features<T>&, T*);                                          \
  template void weigh<T>(const Features<T>&, const T*, T*, T*, T*);                         \
  template void finish_gradient<T>(const Features<T>&, const T*, bool, T*);                 \
  template void gradients<T>(const Features<T>&, const T*, T*, const T*, const T*, T*, T*); \
  template void centre<T>(const Features<T>&, T*, T*);                                      \
  template void set_apart<T>(const Features<T>&, const T*, T*, T*, T*);                     \
  template void sum_gradient<T>(const Features<T>&, const T*, bool, T*);
UK_INSTANTIATE(float)
UK_INSTANTIATE(double)

}  // namespace cost
}  // namespace ucmkd

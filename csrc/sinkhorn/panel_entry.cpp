#include "sinkhorn/panel_entry.h"

#include "core/levels.h"
#include "core/parallel.h"
#include "core/scratch.h"

namespace ucmkd {
namespace sinkhorn {
namespace {

// Elements below which a second thread costs more than it saves: a visit takes an exponential for each.
constexpr int64_t kElementsPerTask = 16 * 1024;

// The panel with its work space.
template <class T>
struct Visit {
  Panel<T> panel;
  Scratch<T> work;

  explicit Visit(const PanelOf& p) : panel{}, work(tasks_for(p) * panel_work(p.m)) {
    panel.rows = p.rows, panel.m = p.m, panel.reg = T(p.reg);
    panel.cost = static_cast<T*>(p.cost), panel.products = p.products;
    panel.features = {static_cast<cost::Metric>(p.metric),
                      p.rows,
                      p.m,
                      p.d,
                      static_cast<const T*>(p.x),
                      static_cast<const T*>(p.y),
                      static_cast<const T*>(p.scale_x),
                      static_cast<const T*>(p.scale_y)};
    panel.tasks = tasks_for(p), panel.work = work.data();
  }

  static int tasks_for(const PanelOf& p) {
    const int64_t useful = p.rows * p.m / kElementsPerTask, blocks = (p.rows + kRows - 1) / kRows;
    int64_t tasks = num_threads();
    tasks = useful < tasks ? useful : tasks;
    tasks = blocks < tasks ? blocks : tasks;
    return tasks < 1 ? 1 : static_cast<int>(tasks);
  }
};

}  // namespace

template <class T>
bool panel_columns(const PanelOf& p, const T* f, T* top, T* total) {
  return kernels<T>().panel.columns(Visit<T>(p).panel, f, top, total);
}
template <class T>
void panel_iterate(const PanelOf& p, const T* mass, const T* g, T* f, T* sums) {
  kernels<T>().panel.iterate(Visit<T>(p).panel, mass, g, f, sums);
}
template <class T>
void panel_plan(const PanelOf& p, const T* f, const T* g, T* alpha, T* row_value, T* first) {
  kernels<T>().panel.plan(Visit<T>(p).panel, f, g, alpha, row_value, first);
}
template <class T>
void panel_adjoint(const PanelOf& p, const T* f, const T* g, const T* sigma, const T* factor, T* d, T* sums) {
  kernels<T>().panel.adjoint(Visit<T>(p).panel, f, g, sigma, factor, d, sums);
}
template <class T>
void panel_adjoint_log(const PanelOf& p, const T* f, const T* g, const T* share, const T* g_before,
                       const T* inverse, T* fbar, T* sums) {
  kernels<T>().panel.adjoint_log(Visit<T>(p).panel, f, g, share, g_before, inverse, fbar, sums);
}
template <class T>
void panel_gradient(const PanelOf& p, const PanelGradient<T>& q) {
  kernels<T>().panel.gradient(Visit<T>(p).panel, q);
}

#define UK_INSTANTIATE(T)                                                                                  \
  template bool panel_columns<T>(const PanelOf&, const T*, T*, T*);                                        \
  template void panel_iterate<T>(const PanelOf&, const T*, const T*, T*, T*);                              \
  template void panel_plan<T>(const PanelOf&, const T*, const T*, T*, T*, T*);                             \
  template void panel_adjoint<T>(const PanelOf&, const T*, const T*, const T*, const T*, T*, T*);          \
  template void panel_adjoint_log<T>(const PanelOf&, const T*, const T*, const T*, const T*, const T*, T*, \
                                     T*);                                                                  \
  template void panel_gradient<T>(const PanelOf&, const PanelGradient<T>&);
UK_INSTANTIATE(float)
UK_INSTANTIATE(double)

}  // namespace sinkhorn
}  // namespace ucmkd

#include "sinkhorn/panel_entry.h"

#include "core/levels.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "sinkhorn/tasks.h"

namespace ucmkd {
namespace sinkhorn {
namespace {

// Rows of which a task makes the cost at a time: each tile of y is read once for them.
constexpr int64_t kMostRows = 24;

// The sweep with its work space.
template <class T>
class Sweep {
 public:
  explicit Sweep(const PanelsOf& p) : panels_(of(p)), work_(panels_.tasks * panels_work(panels_)) {
    panels_.work = work_.data();
  }
  const Panels<T>& panels() const { return panels_; }

 private:
  static Panels<T> of(const PanelsOf& p) {
    Panels<T> s{};
    s.n = p.n, s.m = p.m, s.reg = T(p.reg);
    s.features = cost::features_of<T>(p);
    s.packed = static_cast<const T*>(p.packed), s.kept = static_cast<T*>(p.kept), s.made = p.made;
    const int64_t room = p.room / kRows < 1 ? 1 : p.room / kRows;
    s.tasks = tasks_for(p.n, p.m);
    s.tasks = room < s.tasks ? static_cast<int>(room) : s.tasks;
    s.rows = room / s.tasks * kRows < kMostRows ? room / s.tasks * kRows : kMostRows;
    return s;
  }

  Panels<T> panels_;
  Scratch<T> work_;
};

// Multiply-adds of one sweep.
double sweep_work(const PanelsOf& p) { return times(p.n, p.m) * ((p.kept && p.made ? 0 : double(p.d)) + 2 * kExpWork); }

}  // namespace

template <class T>
void panels_pack(int64_t m, int64_t d, const T* y, T* packed) {
  with_helpers(kPassWork * times(m, d), [&] { kernels<T>().product.pack(m, d, y, packed, tasks_for(m, d)); });
}
template <class T>
bool panel_columns(const PanelsOf& p, const T* f, T* top, T* total) {
  return with_helpers(sweep_work(p),
                      [&] { return kernels<T>().panel.columns(Sweep<T>(p).panels(), f, top, total); });
}
template <class T>
void panel_iterate(const PanelsOf& p, bool relaxed, const T* mass, const T* g, T* f, T* sums) {
  with_helpers(sweep_work(p), [&] {
    kernels<T>().panel.iterate(Sweep<T>(p).panels(), relaxed, mass, g, f, sums);
  });
}
template <class T>
void panel_plan(const PanelsOf& p, const T* f, const T* g, T* alpha, T* row_value, T* first) {
  with_helpers(sweep_work(p), [&] {
    kernels<T>().panel.plan(Sweep<T>(p).panels(), f, g, alpha, row_value, first);
  });
}
template <class T>
void panel_adjoint(const PanelsOf& p, const T* f, const T* g, const T* sigma, const T* factor, T* d,
                   T* sums) {
  with_helpers(sweep_work(p), [&] {
    kernels<T>().panel.adjoint(Sweep<T>(p).panels(), f, g, sigma, factor, d, sums);
  });
}
template <class T>
void panel_adjoint_log(const PanelsOf& p, const T* f, const T* g, const T* share, const T* g_before,
                       const T* inverse, T* fbar, T* sums) {
  with_helpers(sweep_work(p), [&] {
    kernels<T>().panel.adjoint_log(Sweep<T>(p).panels(), f, g, share, g_before, inverse, fbar, sums);
  });
}
template <class T>
void panel_gradient(const PanelsOf& p, const PanelGradient<T>& q) {
  with_helpers(sweep_work(p), [&] { kernels<T>().panel.gradient(Sweep<T>(p).panels(), q); });
}

#define UK_INSTANTIATE(T)                                                                                   \
  template void panels_pack<T>(int64_t, int64_t, const T*, T*);                                             \
  template bool panel_columns<T>(const PanelsOf&, const T*, T*, T*);                                        \
  template void panel_iterate<T>(const PanelsOf&, bool, const T*, const T*, T*, T*);                        \
  template void panel_plan<T>(const PanelsOf&, const T*, const T*, T*, T*, T*);                             \
  template void panel_adjoint<T>(const PanelsOf&, const T*, const T*, const T*, const T*, T*, T*);          \
  template void panel_adjoint_log<T>(const PanelsOf&, const T*, const T*, const T*, const T*, const T*, T*, \
                                     T*);                                                                   \
  template void panel_gradient<T>(const PanelsOf&, const PanelGradient<T>&);
UK_INSTANTIATE(float)
UK_INSTANTIATE(double)

}  // namespace sinkhorn
}  // namespace ucmkd

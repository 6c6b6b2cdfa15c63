// Sweeps over panels on untyped pointers: what Python calls; the kernels are in panel.h.
#pragma once
#include "core/levels.h"
#include "core/scratch.h"
#include "sinkhorn/tasks.h"

namespace ucmkd {
namespace sinkhorn {

struct PanelsOf {
  cost::FeatureSet features;  // x (n, d) and y (m, d) of these rows; no distances
  double reg;
  int64_t room;        // rows of cost that all tasks may hold together
  const void* packed;  // product::packed_size(m, d) elements, or null for sums
  void* kept;          // (n, packed_columns(m)) or null
  bool made;           // kept holds the cost
};

// y as PanelsOf.packed holds it.
template <class T>
void panels_pack(int64_t m, int64_t d, const T* y, T* packed) {
  with_helpers(kPassWork * times(m, d), [&] { kernels<T>().product.pack(m, d, y, packed, tasks_for(m, d)); });
}

// Rows of which a task makes the cost at a time: each tile of y is read once for them.
constexpr int64_t kMostRows = 24;

template <class T>
Panels<T> panels_of(const PanelsOf& p) {
  Panels<T> s{};
  s.n = p.features.n, s.m = p.features.m, s.reg = T(p.reg);
  s.features = cost::features_of<T>(p.features);
  s.packed = static_cast<const T*>(p.packed), s.kept = static_cast<T*>(p.kept), s.made = p.made;
  const int64_t room = p.room / kRows < 1 ? 1 : p.room / kRows;
  s.tasks = tasks_for(s.n, s.m);
  s.tasks = room < s.tasks ? static_cast<int>(room) : s.tasks;
  s.rows = room / s.tasks * kRows < kMostRows ? room / s.tasks * kRows : kMostRows;
  return s;
}

// One sweep: body(kernels, panels) and what it returns, with work space and helpers.
template <class T, class Body>
auto sweep_panels(const PanelsOf& p, const Body& body) {
  const cost::FeatureSet& f = p.features;
  const double each = (p.kept && p.made ? 0 : double(f.d)) + 2 * kExpWork;
  return with_helpers(times(f.n, f.m) * each, [&] {
    Panels<T> panels = panels_of<T>(p);
    Scratch<T> work(panels.tasks * panels_work(panels));
    panels.work = work.data();
    return body(kernels<T>().panel, panels);
  });
}

}  // namespace sinkhorn
}  // namespace ucmkd

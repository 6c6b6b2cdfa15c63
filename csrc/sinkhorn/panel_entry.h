// One panel on untyped pointers: what bind.cpp calls; the kernels are in panel.h.
#pragma once
#include "sinkhorn/panel.h"

namespace ucmkd {
namespace sinkhorn {

struct PanelOf {
  bool f64;
  int64_t rows, m, d;
  double reg;
  int metric;           // cost::Metric
  bool products;        // cost holds inner products
  void* cost;           // (rows, m)
  const void* x;        // (rows, d)
  const void* y;        // (m, d)
  const void* scale_x;  // (rows,)
  const void* scale_y;  // (m,)
};

template <class T>
bool panel_columns(const PanelOf&, const T* f, T* top, T* total);
template <class T>
void panel_iterate(const PanelOf&, const T* mass, const T* g, T* f, T* sums);
template <class T>
void panel_plan(const PanelOf&, const T* f, const T* g, T* alpha, T* row_value, T* first);
template <class T>
void panel_adjoint(const PanelOf&, const T* f, const T* g, const T* sigma, const T* factor, T* d, T* sums);
template <class T>
void panel_adjoint_log(const PanelOf&, const T* f, const T* g, const T* share, const T* g_before,
                       const T* inverse, T* fbar, T* sums);
template <class T>
void panel_gradient(const PanelOf&, const PanelGradient<T>&);

}  // namespace sinkhorn
}  // namespace ucmkd

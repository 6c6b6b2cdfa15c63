// Sweeps over panels on untyped pointers: what bind_panel.h calls; the kernels are in panel.h.
#pragma once
#include "sinkhorn/panel.h"

namespace ucmkd {
namespace sinkhorn {

struct PanelsOf {
  bool f64;
  int64_t n, m, d;
  double reg;
  int64_t room;             // rows of cost that all tasks may hold together
  int metric;               // cost::Metric
  const void* x;            // (n, d)
  const void* y;            // (m, d)
  const void* scale_x;      // (n,)
  const void* scale_y;      // (m,)
  const void* given_x;      // (n, d) where x is centred, or null (entry.h)
  const void* given_y;      // (m, d)
  const void* packed;       // product::packed_size(m, d) elements, or null for l1
  void* kept;               // (n, packed_columns(m)) or null
  bool made;                // kept holds the cost
  cost::ClassTerm classes;  // without `distance`
};

// y as PanelsOf.packed holds it.
template <class T>
void panels_pack(int64_t m, int64_t d, const T* y, T* packed);

template <class T>
bool panel_columns(const PanelsOf&, const T* f, T* top, T* total);
template <class T>
void panel_iterate(const PanelsOf&, bool relaxed, const T* mass, const T* g, T* f, T* sums);
template <class T>
void panel_plan(const PanelsOf&, const T* f, const T* g, T* alpha, T* row_value, T* first);
template <class T>
void panel_adjoint(const PanelsOf&, const T* f, const T* g, const T* sigma, const T* factor, T* d, T* sums);
template <class T>
void panel_adjoint_log(const PanelsOf&, const T* f, const T* g, const T* share, const T* g_before,
                       const T* inverse, T* fbar, T* sums);
template <class T>
void panel_gradient(const PanelsOf&, const PanelGradient<T>&);

}  // namespace sinkhorn
}  // namespace ucmkd

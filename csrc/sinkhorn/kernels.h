// The table of CPU kernels, one per instruction-set level; see core/levels.h.
#pragma once
#include "sinkhorn/params.h"

namespace ucmkd {
namespace sinkhorn {

template <class T>
struct Kernels {
  void (*forward)(Forward<T>&);
  void (*adjoint)(Adjoint<T>&);      // plain sums; may answer in_range = false
  void (*adjoint_log)(Adjoint<T>&);  // log domain; never overflows
  void (*implicit)(Implicit<T>&);
  void (*gradient)(const Gradient<T>&);
};

}  // namespace sinkhorn
}  // namespace ucmkd

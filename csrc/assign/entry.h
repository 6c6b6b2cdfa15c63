// What bind/assign.cpp calls; the contract is in params.h.
#pragma once
#include "assign/params.h"

namespace ucmkd {
namespace assign {

// Both choose the number of tasks and take their work space.
template <class T>
void columns(Columns<T>& call);
template <class T>
void sweep(Sweep<T>& call);

}  // namespace assign
}  // namespace ucmkd

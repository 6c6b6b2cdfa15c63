// What bind/doubly_stochastic.cpp calls; the contract is in params.h.
#pragma once
#include "doubly_stochastic/params.h"

namespace ucmkd {
namespace doubly_stochastic {

// Fills `bad`; provides work space and chooses the number of tasks.
template <class T>
void run(Call<T>& call);

}  // namespace doubly_stochastic
}  // namespace ucmkd

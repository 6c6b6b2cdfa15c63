// What bind/samples_loss.cpp calls; the contract is in params.h.
#pragma once
#include "samples_loss/params.h"

namespace ucmkd {
namespace samples_loss {

template <class T>
Look look(const Measures<T>& given);

// Spreads the problems, or the rows of each, over threads. Throws std::bad_alloc.
template <class T>
void forward(const Forward<T>& call);

}  // namespace samples_loss
}  // namespace ucmkd

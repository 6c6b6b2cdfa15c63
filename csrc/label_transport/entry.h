// What bind/label.cpp calls; the contract is in params.h.
#pragma once
#include "label_transport/params.h"

namespace ucmkd {
namespace label_transport {

// Fills kept, bad_row and total of the call; chooses the number of tasks.
template <class T>
void forward(Forward<T>& call);

}  // namespace label_transport
}  // namespace ucmkd

// Many problems of different sizes between features in one call: what bind/ragged.cpp calls.
//
// Problem k is rows [x_offsets[k], x_offsets[k + 1]) of x against rows [y_offsets[k], y_offsets[k + 1]) of y.
// One without rows on a side has nothing to transport: its loss and its gradients are 0.
#pragma once
#include <stdint.h>

#include <string>

#include "sinkhorn/entry.h"

namespace ucmkd {
namespace sinkhorn {

struct Ragged {
  // One behind the other: n rows of x, m of y, and what goes with them. cost, saved and the classes' distance
  // hold `ragged_sizes` elements; masses are not shared.
  Problem all;
  const int64_t* x_offsets;  // (batch + 1,) ascending from 0 to n
  const int64_t* y_offsets;  // (batch + 1,) ascending from 0 to m
};

// Elements of `cost` and of `saved`.
struct RaggedSizes {
  int64_t cost, saved;
};
RaggedSizes ragged_sizes(const Ragged&);

// Empty, or a sentence about what is wrong with the input and where. Outputs: f (n,) and g (m,), -inf in
// problems without rows on a side, and all others (batch,); none is null.
template <class T>
std::string ragged_forward(const Ragged&, bool save_plan, const Outputs<T>&);

// Upstream gradients: value (batch,), f (n,), g (m,), or null. False where an implicit sweep did not
// converge.
template <class T>
bool ragged_backward(const Ragged&, Grad, const Upstream&, const FeatureGradients<T>&);

}  // namespace sinkhorn
}  // namespace ucmkd

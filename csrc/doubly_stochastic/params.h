// The contract of the doubly stochastic projection (README.md beside this file for the formulas).
#pragma once
#include <stdint.h>

namespace ucmkd {
namespace doubly_stochastic {

// Logits may be -inf (the entry is 0). NaN, +inf, and a row or column of -inf make a matrix bad.
template <class T>
struct Call {
  int64_t batch, n, m;
  const T* logits;    // (batch, n, m)
  const T* upstream;  // (batch, n, m) gradient of the result; null: forward
  int64_t n_iter;     // >= 1
  T eps;              // >= 0, added to each sum, and with softmax to each entry of it
  bool softmax;       // of the rows, instead of exp
  bool rows_first;    // rows, then columns; else columns, then rows
  int tasks;
  T* work;            // tasks * work_size() elements
  int64_t work_size;  // of each task; filled in by entry.cpp
  // out
  T* out;  // (batch, n, m) the result; or the gradient of the logits
  // results
  int64_t bad;  // first bad matrix, or -1
};

template <class T>
struct Kernels {
  int64_t (*work_size)(const Call<T>&);  // elements that a task needs
  int64_t (*group)(const Call<T>&);      // matrices that are computed together
  void (*run)(Call<T>&);                 // forward, or backward where there is an upstream
};

}  // namespace doubly_stochastic
}  // namespace ucmkd

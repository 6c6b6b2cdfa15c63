// The contract of the label-transport loss (README.md beside this file for the formulas).
#pragma once
#include <stdint.h>

namespace ucmkd {
namespace label_transport {

template <class T>
struct Forward {
  int64_t n, k;      // rows, classes
  const T* student;  // (n, k) logits, rows student_stride apart
  int64_t student_stride;
  const T* teacher;  // (n, k) logits of the teacher's head on the same feature
  int64_t teacher_stride;
  const int64_t* target;  // (n,)
  int64_t ignore_index;
  T label_smoothing;
  bool live_kappa;  // kappa takes part in the gradient
  bool mean;        // gradients are those of the mean of the rows kept, not of their sum
  T grad_share;     // 1 over what that divides by; filled in by entry.cpp
  int tasks;
  // out
  T* loss;              // (n,) 0 where ignored
  T* grad_student;      // (n, k) dL_i/ds_i, or null; may be the logits themselves
  T* grad_teacher;      // (n, k) dL_i/dt_i, or null; may be the logits themselves
  int64_t grad_stride;  // between rows of either gradient
  // results
  int64_t kept;     // rows that are not ignored
  int64_t bad_row;  // first row whose target is out of range, or -1
  double total;     // sum of the losses
};

template <class T>
struct Kernels {
  void (*forward)(Forward<T>&);
};

}  // namespace label_transport
}  // namespace ucmkd

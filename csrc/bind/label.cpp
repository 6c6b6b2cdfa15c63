// The label-transport loss.
#include "bind/define.h"
#include "label_transport/entry.h"

namespace ucmkd {
namespace {

// (total, kept, bad_row) of params.h.
py::object label_transport_forward(bool f64, int64_t n, int64_t k, Address student, int64_t student_stride,
                                   Address teacher, int64_t teacher_stride, Address target, int64_t ignore_index,
                                   double label_smoothing, bool live_kappa, bool mean, Address loss,
                                   Address grad_student, Address grad_teacher, int64_t grad_stride) {
  return by_type(f64, [&](auto t) {
    using T = decltype(t);
    label_transport::Forward<T> call{};
    call.n = n, call.k = k;
    call.student = student, call.student_stride = student_stride;
    call.teacher = teacher, call.teacher_stride = teacher_stride;
    call.target = target, call.ignore_index = ignore_index;
    call.label_smoothing = T(label_smoothing), call.live_kappa = live_kappa, call.mean = mean;
    call.loss = loss, call.grad_student = grad_student, call.grad_teacher = grad_teacher;
    call.grad_stride = grad_stride;
    {
      py::gil_scoped_release unlocked;
      label_transport::forward(call);
    }
    return py::make_tuple(call.total, call.kept, call.bad_row);
  });
}

}  // namespace

void bind_label(py::module_& module) {
  module.def(
      "is_one",
      [](bool f64, Address x) { return by_type(f64, [&](auto t) { return *static_cast<decltype(t)*>(x) == 1; }); },
      "f64"_a, "x"_a);
  define(module, "label_transport_forward", &label_transport_forward, py::kw_only(), "f64"_a, "n"_a, "k"_a, "student"_a,
         "student_stride"_a, "teacher"_a, "teacher_stride"_a, "target"_a, "ignore_index"_a, "label_smoothing"_a,
         "live_kappa"_a, "mean"_a, "loss"_a, "grad_student"_a, "grad_teacher"_a, "grad_stride"_a);
}

}  // namespace ucmkd

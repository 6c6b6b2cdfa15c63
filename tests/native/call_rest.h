// The entry functions of costs on their own, and of label transport.
#pragma once
#include "call.h"
#include "label_transport/entry.h"

namespace ucmkd {
namespace test {

// Costs and the gradients of their sum, each step by its own entry function.
template <class T>
Answer<T> make_costs(const Shape& s, Inputs<T>& in) {
  Buffer<T> scale_x(s.n), scale_y(s.m), c(s.n * s.m), dc(s.n * s.m, 1), rows(s.n), cols(s.m), dx(s.n * s.d),
      dy(s.m * s.d);
  Buffer<T> near_x(s.n * s.d, 0), near_y(s.m * s.d, 0), x(s.n * s.d), y(s.m * s.d);
  cost::Features<T> f = features<T>(s, in.x.data(), in.y.data(), scale_x.data(), scale_y.data());
  if (cost::centred(f.metric)) {
    cost::centre<T>(f, x.data(), y.data());
    f.x = x.data(), f.y = y.data();
  }
  Answer<T> answer;
  if (const char* which = cost::scales<T>(f, scale_x.data(), scale_y.data())) {
    answer.refused = which;
    return answer;
  }
  products(s.n, s.m, s.d, f.x, f.y, c.data());
  cost::finish<T>(f, c.data());
  cost::weigh<T>(f, c.data(), dc.data(), rows.data(), cols.data());
  cost::gradients<T>(f, c.data(), dc.data(), rows.data(), cols.data(), dx.data(), dy.data());
  answer.keep(c, answer.value), answer.keep(dx, answer.gradient), answer.keep(dy, answer.gradient);
  cost::set_apart<T>(f, c.data(), dc.data(), near_x.data(), near_y.data());
  if (!cost::summed(f.metric)) {
    cost::finish_gradient<T>(f, rows.data(), false, dx.data());
    cost::finish_gradient<T>(f, cols.data(), true, dy.data());
  }
  cost::sum_gradient<T>(f, dc.data(), false, dx.data());
  cost::sum_gradient<T>(f, dc.data(), true, dy.data());
  answer.keep(dx, answer.gradient), answer.keep(dy, answer.gradient);
  return answer;
}

// Logits (n, classes), rows `stride` apart, labels, and where the gradients go.
template <class T>
struct Labels {
  int64_t n, classes, stride;
  Buffer<T> student, teacher, loss, grad_student, grad_teacher;
  Buffer<int64_t> target;
  label_transport::Forward<T> call{};
  Labels(int64_t n, int64_t classes, int64_t stride, int64_t shift)
      : n(n), classes(classes), stride(stride), student((n - 1) * stride + classes, 0, shift),
        teacher((n - 1) * stride + classes, 0, shift), loss(n, T(NAN), shift),
        grad_student((n - 1) * stride + classes, T(NAN), shift),
        grad_teacher((n - 1) * stride + classes, T(NAN), shift), target(n, 0, shift) {
    call.n = n, call.k = classes;
    call.student = student.data(), call.student_stride = stride;
    call.teacher = teacher.data(), call.teacher_stride = stride;
    call.target = target.data(), call.ignore_index = -100;
    call.loss = loss.data(), call.grad_stride = stride;
    call.grad_student = grad_student.data(), call.grad_teacher = grad_teacher.data();
  }
  Labels(const Labels&) = delete;
};

}  // namespace test
}  // namespace ucmkd

// libFuzzer target: bytes become sizes, flags and values of both ops' entry functions. Nothing may read or
// write outside its buffers, no arithmetic may be undefined, and what is not refused has a value that is a number.
#include <cstdio>
#include <limits>

#include "call.h"

using namespace ucmkd;

namespace {

struct Bytes {
  const uint8_t* at;
  size_t left;
  uint8_t next() { return left ? (--left, *at++) : 0; }
  int64_t upto(int64_t most) { return 1 + next() % most; }
  bool flag() { return next() & 1; }
  // Mostly numbers of ordinary size; sometimes what a number can be at its worst.
  template <class T>
  T number() {
    using Limits = std::numeric_limits<T>;
    static const T kWorst[] = {0, 1, T(-1), Limits::infinity(), -Limits::infinity(), Limits::quiet_NaN(),
                               Limits::max(), Limits::lowest(), Limits::min(), Limits::denorm_min(), T(1e-12),
                               T(1e12)};
    const uint8_t byte = next();
    if (byte < 12) return kWorst[byte];
    return (T(byte) - 128) / 32 + T(next()) / 8192;
  }
};

[[noreturn]] void broken(const char* what) {
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}

template <class T>
void transport(Bytes& bytes) {
  test::Shape s{};
  s.metric = int(bytes.next() % 6) - 1;
  s.batch = s.metric < 0 ? bytes.upto(3) : 1;
  s.n = bytes.upto(37), s.m = bytes.upto(37), s.d = bytes.upto(19), s.max_iter = bytes.upto(12);
  s.reg = std::pow(10.0, int(bytes.next() % 13) - 6);
  s.tol = bytes.flag() ? std::pow(10.0, -int(bytes.next() % 9)) : 0;
  s.masses = bytes.flag(), s.shared_masses = bytes.flag(), s.init = bytes.flag();
  s.history = bytes.flag(), s.relax = !s.history && bytes.flag();
  test::Inputs<T> in(s);
  for (test::Buffer<T>* values : {&in.cost, &in.x, &in.y})
    for (int64_t k = 0; k < values->count(); ++k) (*values)[k] = bytes.number<T>();
  if (s.masses && bytes.flag())
    for (test::Buffer<T>* mass : {&in.a, &in.b}) {  // any numbers; where asked for, of sum 1 in every problem
      for (int64_t k = 0; k < mass->count(); ++k) (*mass)[k] = bytes.number<T>();
      const int64_t size = mass == &in.a ? s.n : s.m;
      if (bytes.flag())
        for (int64_t first = 0; first < mass->count(); first += size) {
          T total = 0;
          for (int64_t k = 0; k < size; ++k) total += (*mass)[first + k] = std::fabs((*mass)[first + k]);
          for (int64_t k = 0; k < size; ++k) (*mass)[first + k] /= total;
        }
    }
  if (s.init)  // potentials of an earlier call are numbers, or -inf where a mass is 0
    for (test::Buffer<T>* potential : {&in.f, &in.g})
      for (int64_t k = 0; k < potential->count(); ++k) (*potential)[k] = (T(bytes.next()) - 128) / 8;
  const test::Answer<T> answer = test::solve<T>(s, in);
  if (!answer.refused.empty()) return;
  for (T value : answer.value)
    if (value != value) broken("a value that is not a number, and no refusal");
}

template <class T>
void labels(Bytes& bytes) {
  label_transport::Forward<T> call{};
  call.n = bytes.upto(9), call.k = bytes.upto(40);
  const int64_t stride = call.k + bytes.next() % 3;
  test::Buffer<T> student(call.n * stride), teacher(call.n * stride), loss(call.n), ds(call.n * stride),
      dt(call.n * stride);
  test::Buffer<int64_t> target(call.n, 0);
  for (int64_t k = 0; k < call.n * stride; ++k) student[k] = bytes.number<T>(), teacher[k] = bytes.number<T>();
  for (int64_t i = 0; i < call.n; ++i) target[i] = int64_t(bytes.next() % 48) - 4;
  call.student = student.data(), call.student_stride = stride;
  call.teacher = teacher.data(), call.teacher_stride = stride;
  call.target = target.data(), call.ignore_index = bytes.flag() ? -4 : -100;
  call.label_smoothing = T(bytes.next() % 11) / 10, call.live_kappa = bytes.flag(), call.mean = bytes.flag();
  call.loss = loss.data(), call.grad_stride = stride;
  const uint8_t wanted = bytes.next();
  call.grad_student = wanted & 1 ? ds.data() : wanted & 2 ? student.data() : nullptr;
  call.grad_teacher = wanted & 4 ? dt.data() : wanted & 8 ? teacher.data() : nullptr;
  label_transport::forward(call);
  if (call.bad_row < -1 || call.bad_row >= call.n) broken("bad_row out of range");
  if (call.bad_row >= 0 && target[call.bad_row] >= 0 && target[call.bad_row] < call.k)
    broken("a good label called bad");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes{data, size};
  const uint8_t what = bytes.next();
  if (what & 1)
    what & 2 ? transport<double>(bytes) : transport<float>(bytes);
  else
    what & 2 ? labels<double>(bytes) : labels<float>(bytes);
  return 0;
}

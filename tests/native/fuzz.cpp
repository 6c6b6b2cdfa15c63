// libFuzzer target: bytes become sizes, flags, alignments, strides and values of every entry function, and the
// habits of a thread pool. Nothing may read or write outside its buffers, no arithmetic may be undefined, and
// what is not refused has a value that is a number.
#include <cstdio>
#include <limits>

#include "call.h"
#include "call_panel.h"
#include "call_ragged.h"
#include "call_rest.h"
#include "core/parallel.h"

using namespace ucmkd;

namespace {

struct Bytes {
  const uint8_t* at;
  size_t left;
  uint64_t state = 1;  // goes on where the bytes end, so that large problems have values too
  uint8_t next() {
    state = state * 6364136223846793005u + 1442695040888963407u + (left ? *at : 0);
    return left ? (--left, *at++) : uint8_t(state >> 56);
  }
  int64_t upto(int64_t most) { return 1 + next() % most; }
  bool flag() { return next() & 1; }
  // Mostly numbers of ordinary size; sometimes what a number can be at its worst.
  template <class T>
  T number() {
    using Limits = std::numeric_limits<T>;
    static const T kWorst[] = {0,
                               1,
                               T(-1),
                               Limits::infinity(),
                               -Limits::infinity(),
                               Limits::quiet_NaN(),
                               Limits::max(),
                               Limits::lowest(),
                               Limits::min(),
                               Limits::denorm_min(),
                               T(1e-12),
                               T(1e12)};
    const bool ours = left;
    const uint8_t byte = next();
    if (byte < 12 && ours) return kWorst[byte];
    return (T(byte) - 128) / 32 + T(next()) / 8192;
  }
  template <class T>
  void fill(test::Buffer<T>& values) {
    for (int64_t k = 0; k < values.count(); ++k) values[k] = number<T>();
  }
};

[[noreturn]] void broken(const char* what) {
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}

// A pool of one thread that does what a pool may do: callbacks merged, one by one, backwards, some or none, and a
// number of threads that changes between two questions.
struct Pool {
  int order = 0, threads = 1, restless = 0;
};
Pool pool;

int32_t parallel_for(int64_t begin, int64_t end, int64_t, ThreadSettings::Body body, void* context) {
  if (pool.order == 0) body(begin, end, context);
  if (pool.order == 1)
    for (int64_t k = begin; k < end; ++k) body(k, k + 1, context);
  if (pool.order == 2)
    for (int64_t k = end; k-- > begin;) body(k, k + 1, context);
  if (pool.order == 3) body(begin, begin + (end - begin) / 2, context);
  return pool.order < 3 ? 0 : 1;
}
int32_t get_num_threads(uint32_t* count) {
  if (pool.restless) pool.threads = 1 + (pool.threads + 4) % 7;
  *count = uint32_t(pool.threads);
  return 0;
}

// Small problems, and at times one that is worth several tasks.
test::Shape shape_of(Bytes& bytes) {
  test::Shape s{};
  const uint8_t size = bytes.next();
  const bool large = size % 32 == 31;
  s.batch = 1, s.n = bytes.upto(37), s.m = bytes.upto(37), s.d = bytes.upto(19), s.max_iter = bytes.upto(12);
  if (large) s.n += 170, s.m += 190, s.max_iter = 1 + s.max_iter % 3;
  s.reg = std::pow(10.0, int(bytes.next() % 13) - 6);
  s.tol = bytes.flag() ? std::pow(10.0, -int(bytes.next() % 9)) : 0;
  const uint8_t flags = bytes.next();
  s.masses = flags & 1, s.shared_masses = flags & 2, s.init = flags & 4,
  s.history = flags & (8 | 128);  // the implicit gradient takes up to 1000 sweeps
  s.relax = !s.history && flags & 16;
  const uint8_t held = bytes.next();  // rows and columns: exact, or by a rho from 1e-4 to 1e3
  if (held & 1) s.marginals.rho_a = std::pow(10.0, int(held >> 2 & 7) - 4);
  if (held & 2) s.marginals.rho_b = std::pow(10.0, int(held >> 5) - 4);
  s.marginals.shifted = s.tol > 0 || !s.history;
  s.relax = s.relax && s.marginals.exact();
  s.shift = flags >> 5 & 3, s.wanted = bytes.next() & test::kAll;
  return s;
}

// Any numbers; where asked for, of sum 1 in every problem.
template <class T>
void set_masses(Bytes& bytes, test::Buffer<T>& mass, const std::vector<int64_t>& sizes, bool good) {
  bytes.fill(mass);
  int64_t first = 0;
  for (int64_t size : sizes) {
    T total = 0;
    for (int64_t k = first; good && k < first + size; ++k) total += mass[k] = std::fabs(mass[k]);
    for (int64_t k = first; good && k < first + size; ++k) mass[k] /= total;
    first += size;
  }
}

template <class T>
void fill(Bytes& bytes, const test::Shape& s, test::Inputs<T>& in) {
  for (test::Buffer<T>* values : {&in.cost, &in.x, &in.y, &in.class_cost}) bytes.fill(*values);
  if (s.init)  // potentials of an earlier call are numbers, or -inf where a mass is 0
    for (test::Buffer<T>* potential : {&in.f, &in.g})
      for (int64_t k = 0; k < potential->count(); ++k) (*potential)[k] = (T(bytes.next()) - 128) / 8;
}

template <class T>
void check(const test::Answer<T>& answer) {
  if (!answer.refused.empty()) return;
  for (T value : answer.value)
    if (value != value) broken("a value that is not a number, and no refusal");
}

template <class T>
void transport(Bytes& bytes) {
  test::Shape s = shape_of(bytes);
  s.metric = int(bytes.next() % 6) - 1;
  if (s.metric < 0) s.batch = bytes.upto(3);
  if (s.metric >= 0 && bytes.flag()) s.classes = bytes.upto(5);
  test::Inputs<T> in(s);
  fill(bytes, s, in);
  if (s.masses && bytes.flag()) {
    const bool good = bytes.flag();
    set_masses(bytes, in.a, std::vector<int64_t>(in.a.count() / s.n, s.n), good);
    set_masses(bytes, in.b, std::vector<int64_t>(in.b.count() / s.m, s.m), good);
  }
  const int64_t most = s.classes + (bytes.next() % 16 == 0);  // at times a label that is no class
  for (int64_t j = 0; s.classes && j < s.m; ++j) in.label[j] = bytes.next() % most;
  check(test::solve<T>(s, in));
}

template <class T>
void ragged(Bytes& bytes) {
  test::Shape s = shape_of(bytes);
  s.metric = bytes.next() % 5;
  test::Sizes sizes;
  const int64_t batch = bytes.upto(5), most = s.n > 37 ? 120 : 14;
  for (int64_t k = 0; k < batch; ++k) sizes.n.push_back(bytes.next() % most), sizes.m.push_back(bytes.next() % most);
  s.n = test::Sizes::total(sizes.n), s.m = test::Sizes::total(sizes.m), s.shared_masses = false;
  test::Inputs<T> in(s);
  fill(bytes, s, in);
  const bool good = bytes.next() % 4;
  if (s.masses) set_masses(bytes, in.a, sizes.n, good), set_masses(bytes, in.b, sizes.m, good);
  check(test::solve_ragged<T>(s, sizes, in));
}

template <class T>
void panels(Bytes& bytes) {
  test::Shape s = shape_of(bytes);
  s.metric = bytes.next() % 5, s.shared_masses = true;
  test::Inputs<T> in(s);
  fill(bytes, s, in);
  if (s.masses) set_masses(bytes, in.a, {s.n}, true), set_masses(bytes, in.b, {s.m}, true);
  for (int64_t i = 0; s.masses && i < s.n; ++i)
    if (!(in.a[i] <= 1)) return;  // ops/_panel_loops.py refuses such masses
  for (int64_t j = 0; s.masses && j < s.m; ++j)
    if (!(in.b[j] <= 1)) return;
  test::solve_panels<T>(s, in);  // NaN is found by ops/_panel_loops.py, which holds the sums
}

template <class T>
void costs(Bytes& bytes) {
  test::Shape s = shape_of(bytes);
  s.metric = bytes.next() % 5;
  test::Inputs<T> in(s);
  fill(bytes, s, in);
  test::make_costs<T>(s, in);
}

template <class T>
void labels(Bytes& bytes) {
  const bool large = bytes.next() % 32 == 31;
  const int64_t n = bytes.upto(9) + (large ? 400 : 0), classes = bytes.upto(40) + (large ? 60 : 0);
  const int64_t stride = classes + bytes.next() % 3, shift = bytes.next() % 4;
  test::Labels<T> all(n, classes, stride, shift);
  bytes.fill(all.student), bytes.fill(all.teacher);
  for (int64_t i = 0; i < n; ++i) all.target[i] = int64_t(bytes.next() % (classes + 8)) - 4;
  auto& call = all.call;
  call.ignore_index = bytes.flag() ? -4 : -100;
  call.label_smoothing = T(bytes.next() % 11) / 10, call.live_kappa = bytes.flag(), call.mean = bytes.flag();
  const uint8_t wanted = bytes.next();
  call.grad_student = wanted & 1 ? all.grad_student.data() : wanted & 2 ? all.student.data() : nullptr;
  call.grad_teacher = wanted & 4 ? all.grad_teacher.data() : wanted & 8 ? all.teacher.data() : nullptr;
  label_transport::forward(call);
  if (call.bad_row < -1 || call.bad_row >= n) broken("bad_row out of range");
  if (call.bad_row >= 0 && all.target[call.bad_row] >= 0 && all.target[call.bad_row] < classes)
    broken("a good label called bad");
}

template <class T>
void one(Bytes& bytes, int what) {
  if (what == 0) return labels<T>(bytes);
  if (what == 1) return costs<T>(bytes);
  if (what == 2) return panels<T>(bytes);
  if (what <= 4) return ragged<T>(bytes);
  transport<T>(bytes);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes{data, size};
  const uint8_t what = bytes.next(), habits = bytes.next();
  pool = {habits & 3, 1 + (habits >> 2 & 7), habits >> 5 & 1};
  thread_settings() = {habits & 64 ? parallel_for : nullptr, get_num_threads, kMaxTasks, 0};
  what & 1 ? one<double>(bytes, what >> 1 & 7) : one<float>(bytes, what >> 1 & 7);
  return 0;
}

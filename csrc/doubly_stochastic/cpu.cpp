// Small matrices one per lane, larger ones one at a time, and what leaves the range of its type in the log domain.
#include "core/level_table.h"
#include "core/parallel.h"
#include "doubly_stochastic/lanes.h"
#include "doubly_stochastic/log_domain.h"
#include "doubly_stochastic/rows.h"

namespace ucmkd {
namespace UK_LEVEL {
namespace {

using doubly_stochastic::Call;
using doubly_stochastic::Steps;

template <class T>
Steps steps_of(const Call<T>& c) {
  return doubly_stochastic::make_steps(c.n, c.m, c.n_iter, c.eps > 0, c.softmax, c.rows_first);
}

// A group of matrices that stays in the first-level cache is computed in lanes.
template <class T>
bool in_lanes(const Call<T>& c) {
  constexpr int64_t kMostBytes = 48 * 1024;
  return c.n <= 32 && c.m <= 32 && c.n * c.m * UK_BYTES <= kMostBytes;
}

template <class T>
int64_t group(const Call<T>& c) {
  return in_lanes(c) ? Lanes<T>::W : 1;
}

template <class T>
int64_t scaling_size(const Call<T>& c, const Steps& s) {
  const bool backward = c.upstream != nullptr;
  return in_lanes(c) ? LaneGroup<T>::size(s, backward) * Lanes<T>::W : Rows<T>::size(s, backward);
}

template <class T>
int64_t work_size(const Call<T>& c) {
  constexpr int64_t kLine = 64 / sizeof(T);
  const Steps s = steps_of(c);
  const int64_t in_log_domain = LogDomain<T>::size(s, c.upstream != nullptr) * int64_t(sizeof(double) / sizeof(T));
  return (scaling_size(c, s) + kLine - 1) / kLine * kLine + (in_log_domain + kLine - 1) / kLine * kLine;
}

template <class T>
void run(Call<T>& call) {
  constexpr int64_t kLine = 64 / sizeof(T);
  const Steps s = steps_of(call);
  const int64_t size = group(call), groups = (call.batch + size - 1) / size;
  int64_t bad[kMaxTasks];
  auto body = [&](int index) {
    T* work = call.work + index * call.work_size;
    LogDomain<T> beyond(call, s, reinterpret_cast<double*>(work + (scaling_size(call, s) + kLine - 1) / kLine * kLine));
    const int64_t begin = groups * index / call.tasks, end = groups * (index + 1) / call.tasks;
    bad[index] = -1;
    if (in_lanes(call)) {
      LaneGroup<T> lanes(call, s, reinterpret_cast<Vec<T>*>(work));
      for (int64_t k = begin * size; k < end * size && k < call.batch && bad[index] < 0; k += size) {
        const int64_t count = call.batch - k < size ? call.batch - k : size;
        const bool four = call.n == 4 && call.m == 4;
        const LaneFaults faults = four ? lanes.template run<4, 4>(k, count) : lanes.template run<0, 0>(k, count);
        if (faults.bad) bad[index] = k + __builtin_ctzll(faults.bad);
        for (uint64_t left = faults.beyond; left; left &= left - 1) beyond.run(k + __builtin_ctzll(left));
      }
    } else {
      Rows<T> rows(call, s, work);
      for (int64_t k = begin; k < end && bad[index] < 0; ++k) {
        const MatrixFault fault = rows.run(k);
        if (fault == MatrixFault::kBad) bad[index] = k;
        if (fault == MatrixFault::kBeyond) beyond.run(k);
      }
    }
  };
  parallel(call.tasks, body);
  call.bad = -1;
  for (int t = 0; t < call.tasks && call.bad < 0; ++t) call.bad = bad[t];
}

template <class T>
constexpr doubly_stochastic::Kernels<T> kTable = {work_size<T>, group<T>, run<T>};

}  // namespace

const ByType<doubly_stochastic::Kernels> doubly_stochastic_kernels = {kTable<float>, kTable<double>};

}  // namespace UK_LEVEL
}  // namespace ucmkd

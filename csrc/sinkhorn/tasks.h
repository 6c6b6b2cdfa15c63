// Into how many tasks a sweep over a matrix is split.
#pragma once
#include "core/parallel.h"
#include "sinkhorn/entry.h"

namespace ucmkd {
namespace sinkhorn {

// Elements of a sweep for each task at least: below, a second thread costs more than it saves
// (`ucmkd bench threads` measures where it pays: of a sweep over a kept plan, the cheapest there is).
constexpr int64_t kElementsPerTask = 8 * 1024;

static inline int tasks_for(int64_t n, int64_t m) {
  const int64_t useful = n * m / kElementsPerTask;
  const int64_t blocks = (n + kRows - 1) / kRows;
  int64_t tasks = num_threads();
  tasks = useful < tasks ? useful : tasks;
  tasks = blocks < tasks ? blocks : tasks;
  return tasks < 1 ? 1 : static_cast<int>(tasks);
}

// Multiply-adds of a call at most (core/parallel.h): the iterations, the sweeps back, and the last pass.
static inline double solve_work(const Problem& p) {
  return times(p.batch, p.n, p.m) * (double(p.max_iter) + kExpWork + kPassWork);
}
static inline double sweeps_back_work(const Problem& p) {
  return times(p.batch, p.n, p.m) * (double(p.max_iter) + kPassWork);
}
static inline double sweeps_back_log_work(const Problem& p) {
  return times(p.batch, p.n, p.m, 2 * p.max_iter + 1) * kExpWork;
}
static inline double last_work(const Problem& p) { return times(p.batch, p.n, p.m) * 4 * kPassWork; }

}  // namespace sinkhorn
}  // namespace ucmkd

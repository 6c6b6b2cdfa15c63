// Into how many tasks a sweep over a matrix is split, and how much work a call is.
#pragma once
#include <atomic>
#include <new>

#include "core/parallel.h"
#include "sinkhorn/params.h"

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

// `parallel` for a body that takes memory: where there is none left, this throws once all tasks are over.
template <class Body>
static inline void parallel_with_memory(int tasks, const Body& body) {
  std::atomic<bool> no_memory{false};
  auto task = [&](int index) {
    try {
      body(index);
    } catch (const std::bad_alloc&) {
      no_memory = true;
    }
  };
  parallel(tasks, task);
  if (no_memory) throw std::bad_alloc();
}

// Multiply-adds at most (core/parallel.h) of problems of so many elements together: of the iterations, of the
// sweeps back, of the last pass, and of a whole loss between features and its gradient, of one side or both.
static inline double solve_work(double elements, int64_t max_iter) {
  return elements * (double(max_iter) + kExpWork + kPassWork);
}
static inline double sweeps_back_work(double elements, int64_t max_iter) {
  return elements * (double(max_iter) + kPassWork);
}
static inline double sweeps_back_log_work(double elements, int64_t max_iter) {
  return elements * double(2 * max_iter + 1) * kExpWork;
}
static inline double last_work(double elements) { return elements * 4 * kPassWork; }
static inline double loss_work(double elements, int64_t max_iter, int64_t d) {
  return solve_work(elements, max_iter) + elements * double(d);
}
static inline double gradient_work(double elements, int64_t max_iter, int64_t d, Grad grad, int sides) {
  return sweeps_back_work(elements, max_iter) + last_work(elements) +
         (grad == Grad::kUnrolled ? 2 * elements * double(max_iter) : 0) + sides * elements * double(d);
}

}  // namespace sinkhorn
}  // namespace ucmkd

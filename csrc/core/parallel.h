// Threads: torch's own pool, handed over at import by address; serial where it is missing.
#pragma once
#include <stdint.h>

namespace ucmkd {

// The C functions torch_parallel_for and torch_get_num_threads of libtorch_cpu (torch >= 2.10).
struct ThreadPool {
  using Body = void (*)(int64_t begin, int64_t end, void* context);
  int32_t (*parallel_for)(int64_t begin, int64_t end, int64_t grain, Body body, void* context) = nullptr;
  int32_t (*get_num_threads)(uint32_t* count) = nullptr;
};

// Process-wide; written at import and in the child of a fork, read by every call.
ThreadPool& thread_pool();

constexpr int kMaxTasks = 64;

// Threads that torch would use now, at most kMaxTasks; 1 without a pool.
int num_threads();

// Runs task(index) for every index in [0, tasks), tasks <= kMaxTasks. The pool may merge indices into
// fewer callbacks and runs serially when nested, so a task must not wait for another. An index that
// the pool did not run (it reported an error) runs in the calling thread.
void run_tasks(int tasks, void (*task)(int index, void* context), void* context);

// Runs main() with a team of threads held ready: every run_tasks inside it costs a fraction of a fork and
// join of the pool. What main throws is thrown here.
void run_with_team(int tasks, void (*main)(void* context), void* context);

template <class F>
static inline void with_team(int tasks, F& body) {
  if (tasks <= 1) return body();
  run_with_team(tasks, [](void* context) { (*static_cast<F*>(context))(); }, &body);
}

// Tasks for a matrix product of this many multiply-adds a task at least: below, a thread costs more than it
// saves.
static inline int product_tasks(int64_t rows, int64_t cols, int64_t depth) {
  constexpr int64_t kLeast = 256 * 1024;
  const int64_t useful = rows * cols * depth / kLeast;
  int64_t tasks = num_threads();
  tasks = useful < tasks ? useful : tasks;
  tasks = rows < tasks ? rows : tasks;
  return tasks < 1 ? 1 : static_cast<int>(tasks);
}

template <class F>
static inline void parallel(int tasks, F& body) {
  if (tasks <= 1) {
    if (tasks == 1) body(0);
    return;
  }
  run_tasks(tasks, [](int index, void* context) { (*static_cast<F*>(context))(index); }, &body);
}

}  // namespace ucmkd

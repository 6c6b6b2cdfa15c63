// Threads of a call: helpers that join where they are free, and that nobody waits for.
#pragma once
#include <stdint.h>

namespace ucmkd {

constexpr int kMaxTasks = 64;

// How many threads a call may use: what torch says now (the C function torch_get_num_threads of libtorch_cpu), and
// what the control group and the affinity of this process allow. Process-wide; written at import and in the child
// of a fork, read by every call.
struct ThreadSource {
  int32_t (*get_num_threads)(uint32_t* count) = nullptr;  // null: every call runs in its own thread alone
  int limit = kMaxTasks;
};
ThreadSource& thread_source();

// Threads to split work for, at most kMaxTasks: the tasks, and with them the order of every sum, follow it alone,
// not the threads that run them.
int num_threads();

// While one lives, `parallel` of this thread hands tasks to helpers. `work`, in multiply-adds, is what the whole call
// has to do at most: below kLeastWork it has none, and neither inside another or inside a task.
class Helpers {
 public:
  explicit Helpers(double work);
  ~Helpers();
  Helpers(const Helpers&) = delete;
  void operator=(const Helpers&) = delete;

 private:
  class Team* team_ = nullptr;
};

// About a third of a millisecond. A helper takes longer to come, where others hold the processors, than to do its
// share of less (`ucmkd bench busy`).
constexpr double kLeastWork = 16e6;
// Of a pass over an element that does more than one multiply-add, mostly in memory; with an exponential.
constexpr double kPassWork = 8, kExpWork = 32;

// For tests: calls that had helpers, and waits for a helper that lost its processor in a task.
struct ThreadCounts {
  int64_t teams, stalls;
};
ThreadCounts thread_counts();

// Runs task(index) for every index in [0, tasks), tasks <= kMaxTasks, in any order and in any threads: a task must
// not wait for another, and must not throw where there are helpers.
void run_tasks(int tasks, void (*task)(int index, void* context), void* context);

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

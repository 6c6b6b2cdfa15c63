// Threads of a call: torch's own pool, or our own helpers where torch has more threads than this process may use.
#pragma once
#include <stdint.h>

#include <type_traits>

namespace ucmkd {

constexpr int kMaxTasks = 64;

// Multiply-adds of a call that is worth helpers, with vectors of 64 bytes: about 150 microseconds. Where torch's threads
// are at hand, as within a training step, two of them save a sixth of such a call. Where others hold the processors a
// helper takes longer to come than its share of less takes (`ucmkd bench busy`), which `Crowd` notices.
constexpr double kLeastWork = 12e6;

// Process-wide; written at import and in the child of a fork, read by every call.
struct ThreadSettings {
  using Body = void (*)(int64_t begin, int64_t end, void* context);
  // torch_parallel_for and torch_get_num_threads of libtorch_cpu (torch >= 2.10). Null: calls run in their own thread.
  int32_t (*parallel_for)(int64_t begin, int64_t end, int64_t grain, Body body, void* context) = nullptr;
  int32_t (*get_num_threads)(uint32_t* count) = nullptr;
  int limit = kMaxTasks;           // what affinity and control group of this process allow (ucmkd_fast/processors.py)
  double least_work = kLeastWork;  // less for narrower vectors; 0, in tests: helpers in every call, however crowded
};
ThreadSettings& thread_settings();

// Threads to split work for, at most kMaxTasks: the tasks, and with them the order of every sum, follow it alone,
// not the threads that run them.
int num_threads();

// Whether a call of so many multiply-adds at most has helpers now. None: little work, a crowded machine, and inside
// another call or a task.
bool worth_helpers(double work);
// Runs main() with helpers; what it throws is thrown here.
void run_with_helpers(double work, void (*main)(void* context), void* context);

// body() and what it returns; `parallel` inside it hands tasks to helpers where `work` is worth them.
template <class F>
static inline auto with_helpers(double work, const F& body) -> decltype(body()) {
  if (!worth_helpers(work)) return body();
  using Result = decltype(body());
  if constexpr (std::is_void_v<Result>) {
    run_with_helpers(work, [](void* context) { (*static_cast<const F*>(context))(); }, const_cast<F*>(&body));
  } else {
    Result result{};
    auto main = [&] { result = body(); };
    run_with_helpers(work, [](void* context) { (*static_cast<decltype(main)*>(context))(); }, &main);
    return result;
  }
}

// The product of sizes, to count work with.
template <class... Size>
static inline double times(Size... sizes) {
  return (1.0 * ... * static_cast<double>(sizes));
}

// Multiply-adds that an element costs in a pass over a matrix; with an exponential.
constexpr double kPassWork = 8, kExpWork = 32;

// Since the start of the process, for tests: calls that asked for helpers, and those that lost time by it.
struct ThreadCounts {
  int64_t teams, stalls;
};
ThreadCounts thread_counts();
// The next call asks for all threads again.
void forget_stalls();

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

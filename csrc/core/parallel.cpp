#include "core/parallel.h"

#include <sched.h>

#include <atomic>
#include <exception>

namespace ucmkd {

ThreadPool& thread_pool() {
  static ThreadPool pool;
  return pool;
}

int num_threads() {
  uint32_t count = 1;
  auto& pool = thread_pool();
  if (!pool.parallel_for || !pool.get_num_threads || pool.get_num_threads(&count) != 0) return 1;
  if (count > static_cast<uint32_t>(kMaxTasks)) count = kMaxTasks;
  return count < 1 ? 1 : static_cast<int>(count);
}

namespace {

// Waits without giving the core away at first, since what is waited for is about to come.
class Patience {
 public:
  void wait() {
    if (++spins_ > 4000) {
      sched_yield();
      return;
    }
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

 private:
  int spins_ = 0;
};

// Threads that stay in one callback of the pool while one of them, the first to arrive, runs a whole
// algorithm and hands out the tasks of one job after the other. Nobody waits for a thread that has not taken
// a task: whatever the pool does (merges callbacks, runs them one by one, or runs none), the first to arrive
// can do everything alone.
class Team {
 public:
  Team(void (*main)(void*), void* context) : main_(main), main_context_(context) {}

  void arrive() {
    const int rank = arrived_.fetch_add(1, std::memory_order_acq_rel);
    if (rank == 0)
      lead();
    else
      help(rank);
  }
  bool nobody_came() const { return arrived_.load(std::memory_order_acquire) == 0; }
  void rethrow() const {
    if (thrown_) std::rethrow_exception(thrown_);
  }

  // One job. Bits of `taken_` that are no tasks are set: all ones is "nothing to do".
  void run(int tasks, void (*task)(int, void*), void* context) {
    task_ = task, context_ = context;
    done_.store(0, std::memory_order_relaxed);
    taken_.store(tasks == 64 ? 0 : ~uint64_t{0} << tasks, std::memory_order_release);
    int mine = 0;
    for (int index; take(0, &index); ++mine) task(index, context);
    for (Patience patience; done_.load(std::memory_order_acquire) != tasks - mine;) patience.wait();
  }

 private:
  void lead();

  void help(int rank) {
    Patience patience;
    while (!over_.load(std::memory_order_acquire)) {
      int index;
      if (!take(rank, &index)) {
        patience.wait();
        continue;
      }
      task_(index, context_);
      done_.fetch_add(1, std::memory_order_release);
      patience = Patience();
    }
  }

  // The preferred task of this thread, so that it meets the same rows in every job; else any that is left.
  bool take(int preferred, int* index) {
    uint64_t taken = taken_.load(std::memory_order_acquire);
    while (~taken) {
      const int free = taken >> preferred & 1 ? __builtin_ctzll(~taken) : preferred;
      taken = taken_.fetch_or(uint64_t{1} << free, std::memory_order_acq_rel);
      if (!(taken >> free & 1)) {
        *index = free;
        return true;
      }
    }
    return false;
  }

  void (*main_)(void*);
  void* main_context_;
  void (*task_)(int, void*) = nullptr;
  void* context_ = nullptr;
  std::exception_ptr thrown_;
  alignas(64) std::atomic<uint64_t> taken_{~uint64_t{0}};
  alignas(64) std::atomic<int> done_{0};
  alignas(64) std::atomic<bool> over_{false};
  std::atomic<int> arrived_{0};
};

thread_local Team* team_of_this_thread = nullptr;

void Team::lead() {
  team_of_this_thread = this;
  try {
    main_(main_context_);
  } catch (...) {
    thrown_ = std::current_exception();
  }
  team_of_this_thread = nullptr;
  over_.store(true, std::memory_order_release);
}

struct Call {
  void (*task)(int, void*);
  void* context;
  std::atomic<uint64_t> done{0};
};

void body(int64_t begin, int64_t end, void* context) {
  auto* call = static_cast<Call*>(context);
  for (int64_t i = begin; i < end; ++i) {
    call->task(static_cast<int>(i), call->context);
    call->done.fetch_or(uint64_t{1} << i, std::memory_order_release);
  }
}
}  // namespace

void run_tasks(int tasks, void (*task)(int, void*), void* context) {
  if (team_of_this_thread) return team_of_this_thread->run(tasks, task, context);
  Call call{task, context};
  auto& pool = thread_pool();
  // Whatever the pool answers, what counts is which indices ran: the others run here.
  if (pool.parallel_for) (void)pool.parallel_for(0, tasks, 1, body, &call);
  const uint64_t done = call.done.load(std::memory_order_acquire);
  for (int i = 0; i < tasks; ++i)
    if (!(done >> i & 1)) task(i, context);
}

void run_with_team(int tasks, void (*main)(void*), void* context) {
  auto& pool = thread_pool();
  if (!pool.parallel_for || team_of_this_thread) return main(context);
  Team team(main, context);
  auto callback = [](int64_t begin, int64_t end, void* team) {
    for (int64_t i = begin; i < end; ++i) static_cast<Team*>(team)->arrive();
  };
  (void)pool.parallel_for(0, tasks, 1, callback, &team);
  if (team.nobody_came()) team.arrive();
  team.rethrow();
}

}  // namespace ucmkd

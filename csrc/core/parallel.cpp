#include "core/parallel.h"

#include <atomic>

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
  Call call{task, context};
  auto& pool = thread_pool();
  // Whatever the pool answers, what counts is which indices ran: the others run here.
  if (pool.parallel_for) (void)pool.parallel_for(0, tasks, 1, body, &call);
  const uint64_t done = call.done.load(std::memory_order_acquire);
  for (int i = 0; i < tasks; ++i)
    if (!(done >> i & 1)) task(i, context);
}

}  // namespace ucmkd

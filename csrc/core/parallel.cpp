// Who the helpers of a call are (team.h), and whether it has any.
//
// They are torch's threads, which stay in one callback of its pool for the whole call. Its pool ends every
// region by waiting for all of its threads, though, whether they had something to do or not. So a call of
// little work does not go there at all (ThreadSettings::least_work), and where a call lost its time to
// threads that others keep from their processors, the next ones use half as many for a while (`Crowd`). Where
// torch has more threads than the process may keep busy, as in a container that sees all cores of its host,
// waking them all would use the quota up: then helpers are threads of our own (`Pool`), which join where they
// are free and which nobody waits for.
#include "core/parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

#include "core/crowd.h"
#include "core/team.h"

namespace ucmkd {

ThreadSettings& thread_settings() {
  static ThreadSettings settings;
  return settings;
}

namespace {

// 1 where there is none to ask.
int torch_threads() {
  const ThreadSettings& settings = thread_settings();
  uint32_t count = 1;
  if (!settings.parallel_for || !settings.get_num_threads || settings.get_num_threads(&count) != 0) return 1;
  return count < 1 ? 1 : static_cast<int>(count);
}

}  // namespace

int num_threads() {
  if (threads_of_call > 0) return threads_of_call;
  return std::min({torch_threads(), std::max(thread_settings().limit, 1), kMaxTasks});
}

namespace {

std::atomic<int64_t> teams{0};

// The threads. They sleep while there is nothing to do, and end with the process.
class Pool {
 public:
  Team* open(int threads) {
    grow(threads - 1);
    for (Team& team : teams_)
      if (team.claim(threads)) {
        offer(threads - 1);
        return &team;
      }
    return nullptr;
  }

 private:
  void grow(int wanted) {
    if (count_.load(std::memory_order_relaxed) >= wanted) return;
    const std::unique_lock<std::mutex> one(growing_, std::try_to_lock);
    if (!one.owns_lock()) return;
    try {
      for (; count_.load() < wanted; count_.fetch_add(1)) std::thread([this] { live(); }).detach();
    } catch (const std::system_error&) {  // no more threads here: as many as there are
    }
  }

  void offer(int helpers) {
    offers_.fetch_add(1);
    if (asleep_.load() == 0) return;
    // Where the lock is free, nobody is between looking and sleeping. Where it is not, a helper may miss this
    // offer.
    const bool free = sleeping_.try_lock();
    if (free) sleeping_.unlock();
    for (int k = 0; k < helpers; ++k) wake_.notify_one();
  }

  void live() {
    for (uint64_t seen = 0;;) {
      seen = offers_.load();
      bool helped = false;
      for (Team& team : teams_) helped |= team.help();
      if (helped) continue;
      for (SpinWait spin; spin.spinning() && offers_.load(std::memory_order_relaxed) == seen;) spin.wait();
      if (offers_.load() != seen) continue;
      std::unique_lock<std::mutex> lock(sleeping_);
      asleep_.fetch_add(1);
      wake_.wait(lock, [&] { return offers_.load() != seen; });
      asleep_.fetch_sub(1);
    }
  }

  Team teams_[kMaxTasks];
  std::atomic<int> count_{0}, asleep_{0};
  std::atomic<uint64_t> offers_{0};
  std::mutex growing_, sleeping_;
  std::condition_variable wake_;
};

Pool& pool() {
  static Pool* const all = new Pool;  // never destroyed: its threads use it to the end
  return *all;
}

// One region of torch's pool: the first thread to arrive leads, whatever the pool does (merges callbacks,
// runs them one by one, or runs none).
struct Region {
  Team team;
  Watch watch;
  void (*main)(void*);
  void* context;
  std::atomic<int> arrived{0};
  std::exception_ptr thrown;

  void arrive() {
    if (arrived.fetch_add(1) > 0) {
      team.help();
      return;
    }
    thrown = team.lead(main, context);
    watch.over();
    team.close();
  }
};

void in_torchs_pool(int threads, void (*main)(void*), void* context) {
  Region region;
  region.main = main, region.context = context;
  region.team.claim(threads);
  auto callback = [](int64_t begin, int64_t end, void* region) {
    for (int64_t i = begin; i < end; ++i) static_cast<Region*>(region)->arrive();
  };
  (void)thread_settings().parallel_for(0, threads, 1, callback, &region);
  if (region.arrived.load() == 0) region.arrive();
  region.watch.report(threads);
  if (region.thrown) std::rethrow_exception(region.thrown);
}

void with_own_helpers(int threads, void (*main)(void*), void* context) {
  Team* const team = pool().open(threads);
  if (!team) return main(context);
  Watch watch;
  const std::exception_ptr thrown = team->lead(main, context);
  watch.over();
  team->close();
  watch.report(threads);
  if (thrown) std::rethrow_exception(thrown);
}

int threads_for(double work) {
  const double least = thread_settings().least_work;
  if (work < least || in_task || team_of_this_thread) return 1;
  const int threads = num_threads();
  if (least == 0) return threads;
  const double useful = work / (least / 2);
  return crowd.most(useful < threads ? static_cast<int>(useful) : threads);
}

}  // namespace

bool worth_helpers(double work) { return threads_for(work) > 1; }

void run_with_helpers(double work, void (*main)(void*), void* context) {
  const int threads = threads_for(work);
  if (threads < 2) return main(context);
  teams.fetch_add(1, std::memory_order_relaxed);
  if (torch_threads() <= thread_settings().limit)
    in_torchs_pool(threads, main, context);
  else
    with_own_helpers(threads, main, context);
}

void forget_stalls() { crowd.forget(); }

ThreadCounts thread_counts() { return {teams.load(), crowd.stalls()}; }

void run_tasks(int tasks, void (*task)(int, void*), void* context) {
  if (team_of_this_thread) return team_of_this_thread->run(tasks, task, context);
  for (int index = 0; index < tasks; ++index) task(index, context);
}

}  // namespace ucmkd

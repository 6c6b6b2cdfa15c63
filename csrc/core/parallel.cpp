// One thread leads: it publishes one job after the other in a team, does tasks itself and waits for nothing but tasks
// that a helper has taken. Who does not come is not missed.
//
// Helpers are torch's threads, which stay in one callback of its pool for the whole call. Its pool ends every region by
// waiting for all of its threads, though, whether they had something to do or not. So a call of little work does not
// go there at all (ThreadSettings::least_work), and where a call lost its time to threads that others keep from their
// processors, the next ones use half as many for a while (`Crowd`). Where torch has more threads than the process may
// keep busy, as in a container that sees all cores of its host, waking them all would use the quota up: then helpers
// are threads of our own (`Pool`), which join where they are free and which nobody waits for.
#include "core/parallel.h"

#include <fenv.h>
#include <sched.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

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

namespace {

// Of the call that this thread works for, asked where it was made: in another thread of its pool, torch may answer 1.
// 0: it works for none.
thread_local int threads_of_call = 0;

// Works for a call while it lives.
class Working {
 public:
  explicit Working(int threads) : before_(threads_of_call) { threads_of_call = threads; }
  ~Working() { threads_of_call = before_; }
  Working(const Working&) = delete;

 private:
  int before_;
};

}  // namespace

int num_threads() {
  if (threads_of_call > 0) return threads_of_call;
  return std::min({torch_threads(), std::max(thread_settings().limit, 1), kMaxTasks});
}

namespace {

using Clock = std::chrono::steady_clock;

std::atomic<int64_t> teams{0}, stalls{0};

constexpr auto kStall = std::chrono::microseconds(500);

Clock::duration processor_time() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return std::chrono::seconds(t.tv_sec) + std::chrono::nanoseconds(t.tv_nsec);
}

// Spins briefly, then yields.
class SpinWait {
 public:
  static constexpr int kSpins = 4000;
  bool spinning() const { return spins_ < kSpins; }
  void wait() {
    if (!spinning()) {
      sched_yield();
      return;
    }
    ++spins_;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

 private:
  int spins_ = 0;
};

// How many threads are worth asking for, from the stalls of the calls before. Numbers that threads race for are only
// ever off by one stall.
class Crowd {
 public:
  int most(int wanted) {
    int most = most_.load(std::memory_order_relaxed);
    if (most >= wanted || now() < until_.load(std::memory_order_relaxed)) return most < wanted ? most : wanted;
    most *= 2;
    most_.store(most, std::memory_order_relaxed);
    return most < wanted ? most : wanted;
  }
  void forget() { most_.store(kMaxTasks, std::memory_order_relaxed); }
  // What stalls cost is at most a fiftieth of the time, of long ones that of a second.
  void stalled(int threads, Clock::duration length) {
    stalls.fetch_add(1, std::memory_order_relaxed);
    most_.store(threads / 2 < 1 ? 1 : threads / 2, std::memory_order_relaxed);
    until_.store(now() + std::min(50 * length, Clock::duration(std::chrono::seconds(1))).count(),
                 std::memory_order_relaxed);
  }

 private:
  static int64_t now() { return Clock::now().time_since_epoch().count(); }
  std::atomic<int> most_{kMaxTasks};
  std::atomic<int64_t> until_{0};
};

Crowd crowd;

class Team;
thread_local bool in_task = false;
thread_local Team* team_of_this_thread = nullptr;

// Lives as long as the process, for one call after the other: a helper that comes late looks into one that is closed.
class alignas(64) Team {
 public:
  // The caller's, unless it is taken or a helper has not left it yet.
  bool claim(int threads) {
    int free = kFree;
    if (state_.load(std::memory_order_relaxed) != kFree || !state_.compare_exchange_strong(free, kClaimed)) return false;
    if (inside_.load() != 0) {
      state_.store(kFree);
      return false;
    }
    threads_ = threads, splits_ = num_threads(), jobs_ = 0, alone_ = false, begin_ = Clock::now();
    fegetenv(&rounding_);
    room_.store(threads - 1);
    state_.store(kOpen);
    return true;
  }
  void close() { state_.store(kFree); }

  // Runs main() as the leader; what it throws comes back.
  std::exception_ptr lead(void (*main)(void*), void* context) {
    std::exception_ptr thrown;
    const Working here(splits_);
    fesetenv(&rounding_);  // as in `help`: one of the pool's threads may lead
    team_of_this_thread = this;
    try {
      main(context);
    } catch (...) {
      thrown = std::current_exception();
    }
    team_of_this_thread = nullptr;
    return thrown;
  }

  // One job. Bits of `taken_` that are no tasks are set: all ones is "nothing to do".
  void run(int tasks, void (*task)(int, void*), void* context) {
    ++jobs_;
    team_of_this_thread = nullptr, in_task = true;
    if (alone_) {
      for (int index = 0; index < tasks; ++index) task(index, context);
    } else {
      task_ = task, context_ = context;
      done_.store(0, std::memory_order_relaxed);
      taken_.store(tasks == 64 ? 0 : ~uint64_t{0} << tasks, std::memory_order_release);
      int mine = 0;
      for (int index; take(0, &index); ++mine) task(index, context);
      join(tasks, mine);
    }
    team_of_this_thread = this, in_task = false;
  }

  // What a helper does until the call is over; false where there is no room for it.
  bool help() {
    if (state_.load(std::memory_order_relaxed) != kOpen) return false;
    in_task = true;
    inside_.fetch_add(1);
    const int room = state_.load() == kOpen ? room_.fetch_sub(1) : 0;
    if (room > 0) {
      fesetenv(&rounding_);  // a caller may flush subnormals: its numbers do not depend on who makes them
      const Working here(splits_);
      for (SpinWait spin; state_.load(std::memory_order_acquire) == kOpen;) {
        int index;
        if (!take(room, &index)) {
          spin.wait();
          continue;
        }
        task_(index, context_);
        done_.fetch_add(1, std::memory_order_release);
        spin = SpinWait();
      }
    }
    inside_.fetch_sub(1);
    in_task = false;
    return room > 0;
  }

 private:
  enum State : int { kFree, kClaimed, kOpen };

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

  // Waits for the tasks that helpers have taken. More than half a millisecond, and longer than this thread needs for
  // them itself (a job as long as those before, at least): a stall.
  void join(int tasks, int mine) {
    auto over = [&] { return done_.load(std::memory_order_acquire) == tasks - mine; };
    if (over()) return;
    const auto since = Clock::now();
    for (SpinWait spin; !over();) spin.wait();
    const auto waited = Clock::now() - since, job = (since - begin_) / jobs_;
    if (waited < kStall || waited < job * (tasks - mine)) return;
    crowd.stalled(threads_, waited);
    alone_ = thread_settings().least_work > 0;
  }

  std::atomic<int> state_{kFree}, inside_{0}, room_{0};
  int threads_ = 1, splits_ = 1, jobs_ = 0;
  bool alone_ = false;
  Clock::time_point begin_;
  fenv_t rounding_;
  void (*task_)(int, void*) = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint64_t> taken_{~uint64_t{0}};
  alignas(64) std::atomic<int> done_{0};
};

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
    // Where the lock is free, nobody is between looking and sleeping. Where it is not, a helper may miss this offer.
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

// Half a millisecond and a quarter of the call in which its thread had no processor, or waited for threads that had
// nothing to do any more: there are more threads than processors.
class Watch {
 public:
  void over() { over_ = Clock::now(); }
  void report(int threads) const {
    const auto now = Clock::now();
    const auto all = now - begin_, idle = all - (processor_time() - processor_begin_);
    const auto lost = std::max(idle, now - over_);
    if (lost > kStall && 4 * lost > all) crowd.stalled(threads, lost);
  }

 private:
  Clock::time_point begin_ = Clock::now(), over_ = begin_;
  Clock::duration processor_begin_ = processor_time();
};

// One region of torch's pool: the first thread to arrive leads, whatever the pool does (merges callbacks, runs them one
// by one, or runs none).
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

ThreadCounts thread_counts() { return {teams.load(), stalls.load()}; }

void run_tasks(int tasks, void (*task)(int, void*), void* context) {
  if (team_of_this_thread) return team_of_this_thread->run(tasks, task, context);
  for (int index = 0; index < tasks; ++index) task(index, context);
}

}  // namespace ucmkd

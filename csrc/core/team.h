// The leader of a call and its helpers: one publishes a job after the other and waits for nothing but tasks
// that a helper has taken. Who does not come is not missed.
#pragma once
#include <fenv.h>
#include <sched.h>

#include <atomic>
#include <exception>

#include "core/crowd.h"
#include "core/parallel.h"

namespace ucmkd {

// Of the call that this thread works for, asked where it was made: in another thread of its pool, torch may
// answer 1. 0: it works for none.
inline thread_local int threads_of_call = 0;

// Works for a call while it lives.
class Working {
 public:
  explicit Working(int threads) : before_(threads_of_call) { threads_of_call = threads; }
  ~Working() { threads_of_call = before_; }
  Working(const Working&) = delete;

 private:
  int before_;
};

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

class Team;
inline thread_local bool in_task = false;
inline thread_local Team* team_of_this_thread = nullptr;

// Lives as long as the process, for one call after the other: a helper that comes late looks into one that is
// closed.
class alignas(64) Team {
 public:
  // The caller's, unless it is taken or a helper has not left it yet.
  bool claim(int threads) {
    int free = kFree;
    if (state_.load(std::memory_order_relaxed) != kFree || !state_.compare_exchange_strong(free, kClaimed))
      return false;
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

  // Waits for the tasks that helpers have taken. More than half a millisecond, and longer than this thread
  // needs for them itself (a job as long as those before, at least): a stall.
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

}  // namespace ucmkd

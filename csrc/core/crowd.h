// Whether threads are worth asking for, from the time that calls before lost to threads that others keep from
// their processors.
#pragma once
#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>

#include "core/parallel.h"

namespace ucmkd {

using Clock = std::chrono::steady_clock;

constexpr auto kStall = std::chrono::microseconds(500);

// How many threads are worth asking for, from the stalls of the calls before. Numbers that threads race for
// are only ever off by one stall.
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
    stalls_.fetch_add(1, std::memory_order_relaxed);
    most_.store(threads / 2 < 1 ? 1 : threads / 2, std::memory_order_relaxed);
    until_.store(now() + std::min(50 * length, Clock::duration(std::chrono::seconds(1))).count(),
                 std::memory_order_relaxed);
  }
  int64_t stalls() const { return stalls_.load(); }

 private:
  static int64_t now() { return Clock::now().time_since_epoch().count(); }
  std::atomic<int> most_{kMaxTasks};
  std::atomic<int64_t> until_{0}, stalls_{0};
};

inline Crowd crowd;

// Half a millisecond and a quarter of the call in which its thread had no processor, or waited for threads
// that had nothing to do any more: there are more threads than processors.
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
  static Clock::duration processor_time() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return std::chrono::seconds(t.tv_sec) + std::chrono::nanoseconds(t.tv_nsec);
  }

  Clock::time_point begin_ = Clock::now(), over_ = begin_;
  Clock::duration processor_begin_ = processor_time();
};

}  // namespace ucmkd

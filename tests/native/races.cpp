// For ThreadSanitizer: several threads call every entry function at once, over pools of threads that it sees and over
// our own helpers, and every answer has the bits of one that had neither; then with a number of threads that changes
// all the time, and in a forked child.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <thread>

#include "call.h"
#include "call_panel.h"
#include "call_ragged.h"
#include "call_rest.h"
#include "core/parallel.h"

using namespace ucmkd;

namespace {

thread_local bool inside = false;  // of a region: nested ones run serially, as in torch
std::atomic<int> threads_now{3};
std::atomic<bool> restless{false};

void callback(ThreadSettings::Body body, int64_t begin, int64_t end, void* context) {
  inside = true;
  body(begin, end, context);
  inside = false;
}

// The contract of core/parallel.h in three manners: a thread for each index, two that share them, and one callback
// after the other in different threads.
int32_t each_its_thread(int64_t begin, int64_t end, int64_t, ThreadSettings::Body body, void* context) {
  if (inside) return body(begin, end, context), 0;
  std::vector<std::thread> others;
  for (int64_t k = begin + 1; k < end; ++k) others.emplace_back([=] { callback(body, k, k + 1, context); });
  callback(body, begin, begin + 1, context);
  for (std::thread& other : others) other.join();
  return 0;
}
int32_t two_share(int64_t begin, int64_t end, int64_t, ThreadSettings::Body body, void* context) {
  if (inside) return body(begin, end, context), 0;
  const int64_t middle = begin + (end - begin) / 2;
  std::thread other([=] { callback(body, begin, middle, context); });
  callback(body, middle, end, context);
  other.join();
  return 0;
}
int32_t one_after_the_other(int64_t begin, int64_t end, int64_t, ThreadSettings::Body body, void* context) {
  if (inside) return body(begin, end, context), 0;
  for (int64_t k = begin; k < end; ++k) std::thread([=] { callback(body, k, k + 1, context); }).join();
  return 0;
}
int32_t get_num_threads(uint32_t* count) {
  *count = uint32_t(restless ? 1 + threads_now++ % 5 : threads_now.load());
  return 0;
}

template <class T>
void fill(test::Buffer<T>& values, uint64_t state) {
  for (int64_t k = 0; k < values.count(); ++k) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    values[k] = T(state >> 40) / T(1 << 24);
  }
}

using Call = std::function<std::vector<double>()>;

template <class T>
std::vector<double> numbers(const test::Answer<T>& answer) {
  std::vector<double> all;
  for (const auto* part : {&answer.value, &answer.dual, &answer.gradient})
    all.insert(all.end(), part->begin(), part->end());
  if (!answer.refused.empty()) all.assign(1, NAN);  // compares as a failure
  return all;
}

// Every entry function on inputs that all threads share.
template <class T>
void add_calls(std::vector<Call>& calls) {
  //                              batch n    m   T   d  reg   tol   metric masses shared init relax history classes
  static const test::Shape kShapes[] = {
      {1, 300, 290, 8, 5, 0.1, 0, -1, false, false, false, false, true},
      {1, 300, 290, 8, 5, 0.002, 0, -1, true, false, false, false, true},
      {1, 280, 310, 8, 9, 0.1, 1e-3, 2, false, false, false, true, false},
      {6, 120, 130, 6, 3, 0.05, 0, -1, true, true, false, false, true},
      {1, 290, 290, 5, 7, 0.1, 0, 4, false, false, false, false, true},
      {1, 290, 280, 5, 8, 0.1, 0, 0, false, false, false, false, true, 4},
      {1, 280, 300, 9, 8, 0.1, 0, 3, false, false, false, false, true, 0, 1, test::kAll, {0.5, 2, true}},
      {1, 30, 50, 9, 8, 0.1, 0, 1, false, false, false, false, true}};
  for (const test::Shape& s : kShapes) {
    auto* in = new test::Inputs<T>(s);  // for as long as the program runs
    fill(in->cost, 1), fill(in->x, 2), fill(in->y, 3), fill(in->class_cost, 4);
    for (int64_t j = 0; s.classes && j < s.m; ++j) in->label[j] = j % s.classes;
    calls.push_back([&s, in] { return numbers(test::solve<T>(s, *in)); });
    if (s.metric < 0 || s.classes) continue;
    calls.push_back([&s, in] { return numbers(test::solve_panels<T>(s, *in)); });
    calls.push_back([&s, in] { return numbers(test::make_costs<T>(s, *in)); });
  }
  static const test::Sizes kSizes{{200, 40, 0, 90, 50, 70}, {190, 60, 20, 110, 30, 0}};
  static const test::Shape kRagged{1, 450, 410, 6, 6, 0.1, 0, 3, false, false, false, false, true};
  auto* in = new test::Inputs<T>(kRagged);
  fill(in->x, 5), fill(in->y, 6);
  calls.push_back([in] { return numbers(test::solve_ragged<T>(kRagged, kSizes, *in)); });
  calls.push_back([] {
    test::Labels<T> labels(400, 70, 71, 1);
    fill(labels.student, 7), fill(labels.teacher, 8);
    label_transport::forward(labels.call);
    return std::vector<double>(labels.loss.data(), labels.loss.data() + 400);
  });
}

bool same(const std::vector<double>& got, const std::vector<double>& want, double tolerance) {
  if (got.size() != want.size()) return false;
  for (size_t k = 0; k < got.size(); ++k)
    if (!(std::fabs(got[k] - want[k]) <= tolerance * std::max(1.0, std::fabs(want[k])))) return false;
  return true;
}

// How many answers of `threads` threads, each of which makes all calls in an order of its own, are the wanted ones.
int64_t race(const std::vector<Call>& calls, const std::vector<std::vector<double>>& want, int threads,
             double tolerance) {
  std::atomic<int64_t> good{0};
  std::vector<std::thread> workers;
  for (size_t k = 0; k < size_t(threads); ++k)
    workers.emplace_back([&, k] {
      for (size_t c = 0; c < calls.size(); ++c) {
        const size_t index = (c + k * calls.size() / size_t(threads)) % calls.size();
        good += same(calls[index](), want[index], tolerance);
      }
    });
  for (std::thread& worker : workers) worker.join();
  return good;
}

// In a child of this process, where helpers are switched off as `_native.py` does it.
int64_t in_a_child(const std::vector<Call>& calls, const std::vector<std::vector<double>>& want, double tolerance) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    thread_settings() = ThreadSettings();
    int64_t good = 0;
    for (size_t c = 0; c < calls.size(); ++c) good += same(calls[c](), want[c], tolerance);
    _exit(good == int64_t(calls.size()) ? 0 : 1);
  }
  int status = 1;
  waitpid(child, &status, 0);
  return status == 0 ? int64_t(calls.size()) : 0;
}

// A helper that sleeps in the middle of a task, as one does whose processor was taken away: the call is right, and the
// next ones ask for no helper.
bool held_helper_is_left_alone() {
  const std::thread::id caller = std::this_thread::get_id();
  thread_settings().least_work = kLeastWork;
  const ThreadCounts before = thread_counts();
  std::atomic<int> counted{0};
  std::atomic<bool> held{false};
  auto task = [&](int) {
    if (std::this_thread::get_id() != caller) held = true, usleep(200000);
    ++counted;
  };
  int made = 0;
  auto call = [&] {
    with_helpers(1e12, [&] { parallel(3, task); });
    made += 3;
  };
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!held && std::chrono::steady_clock::now() < end) call();
  const ThreadCounts then = thread_counts();
  for (int repeat = 0; repeat < 10; ++repeat) call();
  thread_settings().least_work = 0;
  return held && counted == made && then.stalls > before.stalls && thread_counts().teams == then.teams;
}

// A race between a caller and its helpers, which the sanitizer must see, or the rest proves nothing.
int planted() {
  thread_settings() = {each_its_thread, get_num_threads, kMaxTasks, 0};
  int counted = 0;
  auto task = [&](int) {
    usleep(1000);  // so that the others come
    ++counted;
  };
  with_helpers(1, [&] {
    for (int repeat = 0; repeat < 20; ++repeat) parallel(3, task);
  });
  return 0;
}

}  // namespace

int main(int arguments, char**) {
  if (arguments > 1) return planted();
  const int threads = 4;
  const double rounding = 2e-3;  // of float32 gradients in another grouping of their sums
  std::vector<Call> calls;
  add_calls<float>(calls), add_calls<double>(calls);
  int64_t made = 0, good = 0;
  auto count = [&](const char* what, int64_t these, int64_t of) {
    std::printf("%s: %lld of %lld\n", what, (long long)these, (long long)of);
    good += these, made += of;
  };
  const int64_t each = int64_t(calls.size());
  thread_settings() = {each_its_thread, get_num_threads};
  std::vector<std::vector<double>> want;
  for (const Call& call : calls) want.push_back(call());
  thread_settings().least_work = 0;  // helpers in every call
  const int64_t before = thread_counts().teams;
  const std::pair<const char*, decltype(ThreadSettings::parallel_for)> pools[] = {
      {"a thread for each task", each_its_thread},
      {"two threads share the tasks", two_share},
      {"one task after the other", one_after_the_other}};
  for (const auto& pool : pools) {
    thread_settings().parallel_for = pool.second;
    count(pool.first, race(calls, want, threads, 0), threads * each);
  }
  thread_settings().parallel_for = each_its_thread;
  count("a held thread of the pool", held_helper_is_left_alone(), 1);
  threads_now = 5, thread_settings().limit = 3;  // three tasks as before, but the pool has more threads
  for (int repeat = 0; repeat < 2; ++repeat) count("our own helpers", race(calls, want, threads, 0), threads * each);
  count("a held helper", held_helper_is_left_alone(), 1);
  count("calls that asked for threads", thread_counts().teams - before >= 5 * threads * each, 1);
  restless = true;
  count("a number of threads that changes", race(calls, want, threads, rounding), threads * each);
  restless = false;
  count("a forked child", in_a_child(calls, want, rounding), each);
  std::printf("%lld of %lld answers as wanted\n", (long long)good, (long long)made);
  return good == made ? 0 : 1;
}

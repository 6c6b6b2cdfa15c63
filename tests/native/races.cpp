// For ThreadSanitizer: several threads call the entry functions at once, each over a pool of its own
// tasks, and every answer has the bits of the first.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <thread>

#include "call.h"
#include "core/parallel.h"

using namespace ucmkd;

namespace {

// The pool's contract (core/parallel.h) with threads that the sanitizer sees: a fresh pair a region.
int32_t parallel_for(int64_t begin, int64_t end, int64_t, ThreadPool::Body body, void* context) {
  const int64_t middle = begin + (end - begin) / 2;
  std::thread other([=] { body(begin, middle, context); });
  body(middle, end, context);
  other.join();
  return 0;
}
int32_t get_num_threads(uint32_t* count) {
  *count = 3;
  return 0;
}

template <class T>
void fill(test::Buffer<T>& values, uint64_t state) {
  for (int64_t k = 0; k < values.count(); ++k) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    values[k] = T(state >> 40) / T(1 << 24);
  }
}

template <class T>
std::vector<T> call(const test::Shape& shape, test::Inputs<T>& in) {
  test::Answer<T> answer = test::solve<T>(shape, in);
  std::vector<T> all = answer.value;
  all.insert(all.end(), answer.dual.begin(), answer.dual.end());
  all.insert(all.end(), answer.gradient.begin(), answer.gradient.end());
  return all;
}

template <class T>
int64_t race(const test::Shape& shape, int threads, int repeats) {
  test::Inputs<T> in(shape);
  fill(in.cost, 1), fill(in.x, 2), fill(in.y, 3);
  const std::vector<T> want = call<T>(shape, in);
  std::atomic<int64_t> same{0};
  std::vector<std::thread> workers;
  for (int k = 0; k < threads; ++k)
    workers.emplace_back([&] {
      for (int r = 0; r < repeats; ++r) {
        const std::vector<T> got = call<T>(shape, in);
        same += got.size() == want.size() && !std::memcmp(got.data(), want.data(), got.size() * sizeof(T));
      }
    });
  for (std::thread& worker : workers) worker.join();
  return same;
}

}  // namespace

int main() {
  thread_pool().parallel_for = parallel_for;
  thread_pool().get_num_threads = get_num_threads;
  const int threads = 4, repeats = 3;
  int64_t calls = 0, same = 0;
  //                       batch n    m   T   d  reg   tol   metric masses shared init relax history
  const test::Shape shapes[] = {{1, 300, 290, 8, 5, 0.1, 0, -1, false, false, false, false, true},
                                {1, 300, 290, 8, 5, 0.002, 0, -1, true, false, false, false, true},
                                {1, 280, 310, 8, 9, 0.1, 1e-3, 2, false, false, false, true, false},
                                {6, 120, 130, 6, 3, 0.05, 0, -1, true, true, false, false, true},
                                {1, 290, 290, 5, 7, 0.1, 0, 4, false, false, false, false, true}};
  for (const test::Shape& shape : shapes) {
    same += race<float>(shape, threads, repeats) + race<double>(shape, threads, repeats);
    calls += 2 * threads * repeats;
  }
  std::printf("%lld of %lld answers with the bits of the first\n", (long long)same, (long long)calls);
  return same == calls ? 0 : 1;
}

#include "samples_loss/entry.h"

#include <algorithm>

#include "core/levels.h"
#include "core/parallel.h"
#include "core/scratch.h"

namespace ucmkd {
namespace samples_loss {
namespace {

// Pairs that a sweep visits: a problem of points with themselves has each pair once.
template <class T>
double pairs(const Forward<T>& call) {
  const double n = static_cast<double>(call.given.n), m = static_cast<double>(call.given.m);
  return n * m + (call.debias ? (n * n + m * m) / 2 : 0);
}

}  // namespace

template <class T>
Look look(const Measures<T>& given) {
  Scratch<T> box(2 * given.d);
  return kernels<T>().samples_loss.look(given, box.data());
}

template <class T>
void forward(const Forward<T>& call) {
  constexpr double kPairsPerTask = 8 * 1024;  // below, a second thread costs more than it saves
  const auto& kernel = kernels<T>().samples_loss;
  const int64_t batch = call.given.batch;
  const double all = pairs(call), costs = call.keep_costs ? 1 : static_cast<double>(call.steps + 2);
  const double work = static_cast<double>(batch) * all *
                      (kExpWork * static_cast<double>(call.steps + 2) + costs * static_cast<double>(call.given.d));
  with_helpers(work, [&] {
    const int threads = num_threads();
    const int tasks = std::max(1, static_cast<int>(std::min<double>(threads, all / kPairsPerTask)));
    if (batch < threads) {
      Scratch<T> room(kernel.room(call, tasks));
      for (int64_t problem = 0; problem < batch; ++problem) kernel.forward(call, problem, tasks, room.data());
      return;
    }
    const int64_t size = padded(kernel.room(call, 1));
    Scratch<T> room(threads * size);
    auto body = [&](int index) {
      for (int64_t k = batch * index / threads; k < batch * (index + 1) / threads; ++k)
        kernel.forward(call, k, 1, room.data() + index * size);
    };
    parallel(threads, body);
  });
}

template Look look<float>(const Measures<float>&);
template Look look<double>(const Measures<double>&);
template void forward<float>(const Forward<float>&);
template void forward<double>(const Forward<double>&);

}  // namespace samples_loss
}  // namespace ucmkd

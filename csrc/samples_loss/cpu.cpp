// The symmetric loop over eps, and what its potentials give: README.md has the formulas, sweep.h the passes.
#include "core/level_table.h"
#include "core/parallel.h"
#include "samples_loss/loop.h"

namespace ucmkd {
namespace UK_LEVEL {
namespace {

using samples_loss::Forward;
using samples_loss::Look;
using samples_loss::Measures;

// False where a point is not finite.
template <class T>
void widen_box(const T* points, int64_t count, int64_t d, T* low, T* high) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t k = 0; k < d; ++k) {
      const T at = points[i * d + k];
      low[k] = low[k] <= at ? low[k] : at;  // once NaN, it is replaced by what follows: `finite` tells
      high[k] = high[k] >= at ? high[k] : at;
    }
}

template <class T>
bool finite(const T* values, int64_t count) {
  int64_t bad = 0;
  for (int64_t k = 0; k < count; ++k) bad += !(values[k] - values[k] == 0);
  return bad == 0;
}

template <class T>
bool good_weights(const T* weights, int64_t batch, int64_t count) {
  for (int64_t k = 0; k < batch; ++k) {
    bool any = false, all = true;
    for (int64_t i = 0; i < count; ++i) {
      const T w = weights[k * count + i];
      any |= w > 0;
      all &= w >= 0 && w <= Lanes<T>::kMax;
    }
    if (!any || !all) return false;
  }
  return true;
}

template <class T>
Look look(const Measures<T>& given, T* box) {
  const int64_t d = given.d, n = given.batch * given.n, m = given.batch * given.m;
  T *low = box, *high = box + d;
  copy(given.x, low, d);
  copy(given.x, high, d);
  widen_box(given.x, n, d, low, high);
  widen_box(given.y, m, d, low, high);
  T square = 0;
  for (int64_t k = 0; k < d; ++k) square += (high[k] - low[k]) * (high[k] - low[k]);
  const bool points = finite(given.x, n * d) && finite(given.y, m * d);
  return {points ? double(root(square)) : __builtin_nan(""),
          good_weights(given.a, given.batch, given.n) && good_weights(given.b, given.batch, given.m)};
}

template <class T>
int64_t room(const Forward<T>& call, int tasks) {
  Divergence<T> all;
  return all.lay_out(call, tasks, nullptr);
}

template <class T>
void forward(const Forward<T>& call, int64_t problem, int tasks, T* block) {
  Divergence<T> all;
  all.lay_out(call, tasks, block);
  all.start(problem);
  all.run();
  all.write(problem);
}

template <class T>
constexpr samples_loss::Kernels<T> kTable = {look<T>, room<T>, forward<T>};

}  // namespace

const ByType<samples_loss::Kernels> samples_loss_kernels = {kTable<float>, kTable<double>};

}  // namespace UK_LEVEL
}  // namespace ucmkd

// Problems of different sizes over the threads. A problem that is worth more than a thread's share of all
// work runs by itself on every thread; the others are taken one at a time by whichever thread is free,
// dearest first.
#include "sinkhorn/ragged.h"

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

#include "sinkhorn/one.h"

namespace ucmkd {
namespace sinkhorn {
namespace {

bool empty(const Place& at) { return at.n == 0 || at.m == 0; }

struct Table {
  std::vector<Place> places;
  RaggedSizes sizes{0, 0};

  explicit Table(const Ragged& r) {
    for (int64_t k = 0; k < r.all.batch; ++k) {
      const int64_t x = r.x_offsets[k], y = r.y_offsets[k];
      const Place at{k, r.x_offsets[k + 1] - x, r.y_offsets[k + 1] - y, x, y, sizes.cost, sizes.saved};
      places.push_back(at);
      if (empty(at)) continue;
      sizes.cost += padded(at.n * at.m);
      sizes.saved += saved_size(at.n, at.m, r.all.max_iter, r.all.history, !r.all.marginals.exact());
    }
  }
};

// body(place) for every problem that has rows on both sides.
template <class Body>
void over_problems(const Table& table, double work_per_element, const Body& body) {
  std::vector<const Place*> order;
  double total = 0;
  auto work = [&](const Place* at) { return times(at->n, at->m) * work_per_element; };
  for (const Place& at : table.places)
    if (!empty(at)) order.push_back(&at), total += work(&at);
  std::stable_sort(order.begin(), order.end(), [&](auto* p, auto* q) { return work(p) > work(q); });
  const int threads = num_threads();
  with_helpers(total, [&] {
    size_t first = 0;
    for (; first < order.size() && (threads == 1 || work(order[first]) * threads > total); ++first) body(*order[first]);
    std::atomic<size_t> next{first};
    parallel_with_memory(std::min<int>(threads, int(order.size() - first)), [&](int) {
      for (size_t at = next++; at < order.size(); at = next++) body(*order[at]);
    });
  });
}

template <class T>
View<T> view_in(const Ragged& r, const Place& at) {
  return view_at<T>(r.all, at, tasks_for(at.n, at.m));
}

template <class T>
void fill(T* out, int64_t count, T value) {
  if (out) std::fill(out, out + count, value);
}

template <class T>
FeatureGradients<T> gradients_at(const FeatureGradients<T>& out, int64_t d, const Place& at) {
  return {offset<T>(out.x, at.x * d), offset<T>(out.y, at.y * d), offset<T>(out.a, at.x), offset<T>(out.b, at.y)};
}

}  // namespace

RaggedSizes ragged_sizes(const Ragged& r) { return Table(r).sizes; }

template <class T>
std::string ragged_forward(const Ragged& r, bool save_plan, const Outputs<T>& out) {
  const Table table(r);
  std::vector<const char*> refused(r.all.batch);
  for (const Place& at : table.places) {
    if (!empty(at)) continue;
    fill(out.f + at.x, at.n, -T(__builtin_inf()));
    fill(out.g + at.y, at.m, -T(__builtin_inf()));
    out.value[at.k] = out.dual[at.k] = out.marginal_error[at.k] = 0;
    out.n_iter[at.k] = 0;
  }
  over_problems(table, loss_work(1, r.all.max_iter, r.all.features.d), [&](const Place& at) {
    refused[at.k] = solve_features(view_in<T>(r, at), true, save_plan, outputs_at(out, at));
  });
  for (int64_t k = 0; k < r.all.batch; ++k)
    if (refused[k]) return "problem " + std::to_string(k) + " of the batch: " + refused[k];
  return "";
}

template <class T>
bool ragged_backward(const Ragged& r, Grad grad, const Upstream& up, const FeatureGradients<T>& out) {
  const Table table(r);
  const int64_t d = r.all.features.d;
  std::atomic<bool> converged{true};
  for (const Place& at : table.places) {
    if (!empty(at)) continue;
    const FeatureGradients<T> own = gradients_at(out, d, at);
    fill(own.x, at.n * d, T(0)), fill(own.y, at.m * d, T(0)), fill(own.a, at.n, T(0)), fill(own.b, at.m, T(0));
    const cost::Classes<T> classes = view_in<T>(r, at).features.classes;
    fill(classes.grad, at.n * classes.count, T(0));
  }
  over_problems(table, gradient_work(1, r.all.max_iter, d, grad, 2), [&](const Place& at) {
    if (!feature_gradients_one(view_in<T>(r, at), grad, seed_at<T>(up, at), gradients_at(out, d, at)))
      converged = false;
  });
  return converged;
}

#define UK_INSTANTIATE(T)                                                         \
  template std::string ragged_forward<T>(const Ragged&, bool, const Outputs<T>&); \
  template bool ragged_backward<T>(const Ragged&, Grad, const Upstream&, const FeatureGradients<T>&);
UK_INSTANTIATE(float)
UK_INSTANTIATE(double)

}  // namespace sinkhorn
}  // namespace ucmkd

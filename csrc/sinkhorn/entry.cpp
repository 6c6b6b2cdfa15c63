// Batches of problems of equal sizes.
#include "sinkhorn/entry.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "sinkhorn/one.h"

namespace ucmkd {
namespace sinkhorn {
namespace {

double elements(const Problem& p) { return times(p.batch, p.n, p.m); }

// body(place of a problem, tasks inside it), over the problems when there are enough of them: then 1 task
// each. `work` is what all of them take. The tasks inside are counted once: the number of threads may change
// at any moment.
template <class Body>
void over_batch(const Problem& p, double work, const Body& body) {
  const int threads = num_threads(), inside = tasks_for(p.n, p.m);
  const bool apart =
      p.batch > 1 && threads > 1 && (inside == 1 || p.batch >= threads) && p.batch * p.n * p.m >= 2 * kElementsPerTask;
  const int64_t tasks = !apart ? 1 : p.batch < threads ? p.batch : threads;
  auto task = [&](int index) {
    for (int64_t k = p.batch * index / tasks; k < p.batch * (index + 1) / tasks; ++k)
      body(place_of(p, k), apart ? 1 : inside);
  };
  with_helpers(work, [&] { parallel_with_memory(static_cast<int>(tasks), task); });
}

}  // namespace

int64_t saved_size(int64_t n, int64_t m, int64_t max_iter, bool history, bool unbalanced) {
  const int64_t kept = unbalanced ? history ? max_iter : 1 : 0;
  return padded(n) * padded(m) + padded(n) + kPad + (history ? padded((max_iter + 1) * n) + padded(max_iter * m) : 0) +
         padded(kept * n) + padded(kept * m);
}

template <class T>
const char* forward(const Problem& p, bool save_plan, const Outputs<T>& out) {
  for (int64_t k = 0; k < p.batch; ++k)
    if (const char* refused = check(view_at<T>(p, place_of(p, k), 1))) return refused;
  std::vector<const char*> refused(p.batch);
  over_batch(p, solve_work(elements(p), p.max_iter), [&](const Place& at, int tasks) {
    refused[at.k] = solve_one(view_at<T>(p, at, tasks), save_plan, outputs_at(out, at));
  });
  for (const char* sentence : refused)
    if (sentence) return sentence;
  return nullptr;
}

template <class T>
int64_t adjoint(const Problem& p, const Upstream& up, T* left, T* right, const Gradients<T>& out, int64_t* depth) {
  const int64_t rows = 2 * p.max_iter;
  over_batch(p, sweeps_back_work(elements(p), p.max_iter), [&](const Place& at, int tasks) {
    depth[at.k] = adjoint_one(view_at<T>(p, at, tasks), seed_at<T>(up, at), left + rows * at.x, right + rows * at.y,
                              gradients_at(out, at));
  });
  int64_t deepest = 0;
  for (int64_t k = 0; k < p.batch; ++k) deepest = depth[k] > deepest ? depth[k] : deepest;
  for (int64_t k = 0; k < p.batch; ++k) {  // one product serves the batch: shallower problems add zeros
    const int64_t used = k * rows + std::max<int64_t>(depth[k], 0), end = k * rows + deepest;
    std::fill(left + used * p.n, left + end * p.n, T(0));
    std::fill(right + used * p.m, right + end * p.m, T(0));
  }
  return deepest;
}

template <class T>
void adjoint_finish(const Problem& p, const Upstream& up, const int64_t* depth, const Gradients<T>& out) {
  const bool log_domain = std::any_of(depth, depth + p.batch, [](int64_t rows) { return rows < 0; });
  const double work = log_domain ? sweeps_back_log_work(elements(p), p.max_iter) : last_work(elements(p));
  over_batch(p, work, [&](const Place& at, int tasks) {
    adjoint_finish_one(view_at<T>(p, at, tasks), seed_at<T>(up, at), depth[at.k], gradients_at(out, at));
  });
}

template <class T>
bool implicit(const Problem& p, const Upstream& up, const Gradients<T>& out) {
  std::atomic<bool> converged{true};
  over_batch(p, sweeps_back_work(elements(p), p.max_iter) + last_work(elements(p)), [&](const Place& at, int tasks) {
    if (!implicit_one(view_at<T>(p, at, tasks), seed_at<T>(up, at), gradients_at(out, at))) converged = false;
  });
  return converged;
}

template <class T>
void envelope(const Problem& p, const Upstream& up, const Gradients<T>& out) {
  over_batch(p, last_work(elements(p)), [&](const Place& at, int tasks) {
    envelope_one(view_at<T>(p, at, tasks), seed_at<T>(up, at), gradients_at(out, at));
  });
}

template <class T>
void gradient_rows(const Problem& p, const Upstream& up, const LastPass<T>& pass, const Gradients<T>& out) {
  const int64_t rows = pass.end - pass.begin;
  const Place at = place_of(p, 0);
  const View<T> one = view_at<T>(p, at, tasks_for(rows, p.m));
  with_helpers(last_work(times(rows, p.m)), [&] { last_pass_one(one, seed_at<T>(up, at).value_weight, pass, out); });
}

#define UK_INSTANTIATE(T)                                                                                \
  template const char* forward<T>(const Problem&, bool, const Outputs<T>&);                              \
  template int64_t adjoint<T>(const Problem&, const Upstream&, T*, T*, const Gradients<T>&, int64_t*);   \
  template void adjoint_finish<T>(const Problem&, const Upstream&, const int64_t*, const Gradients<T>&); \
  template bool implicit<T>(const Problem&, const Upstream&, const Gradients<T>&);                       \
  template void envelope<T>(const Problem&, const Upstream&, const Gradients<T>&);                       \
  template void gradient_rows<T>(const Problem&, const Upstream&, const LastPass<T>&, const Gradients<T>&);
UK_INSTANTIATE(float)
UK_INSTANTIATE(double)

}  // namespace sinkhorn
}  // namespace ucmkd

#include "sinkhorn/entry.h"

#include <vector>

#include "core/levels.h"
#include "core/parallel.h"
#include "core/scratch.h"

namespace ucmkd {
namespace sinkhorn {
namespace {

// Elements of a sweep below which a second thread costs more than it saves
// (benchmarks/bench_sinkhorn.py, rows "threads").
constexpr int64_t kElementsPerTask = 24 * 1024;

int tasks_for(int64_t n, int64_t m) {
  const int64_t useful = n * m / kElementsPerTask;
  const int64_t blocks = (n + kRows - 1) / kRows;
  int64_t tasks = num_threads();
  tasks = useful < tasks ? useful : tasks;
  tasks = blocks < tasks ? blocks : tasks;
  return tasks < 1 ? 1 : static_cast<int>(tasks);
}

// body(problem index, tasks inside the problem), over the problems when there are enough of them.
template <class Body>
void over_batch(const Problem& p, Body body) {
  const int inside = tasks_for(p.n, p.m);
  const int threads = num_threads();
  if (p.batch > 1 && threads > 1 && (inside == 1 || p.batch >= threads) &&
      p.batch * p.n * p.m >= 2 * kElementsPerTask) {
    const int tasks = p.batch < threads ? static_cast<int>(p.batch) : threads;
    auto task = [&](int index) {
      for (int64_t k = p.batch * index / tasks; k < p.batch * (index + 1) / tasks; ++k) body(k, 1);
    };
    parallel(tasks, task);
  } else {
    for (int64_t k = 0; k < p.batch; ++k) body(k, inside);
  }
}

template <class T>
const T* at(const void* base, int64_t offset) {
  return base ? static_cast<const T*>(base) + offset : nullptr;
}

template <class T>
T rounding() {
  return sizeof(T) == 4 ? T(5.96e-8) : T(1.11e-16);
}
// The sweep back may stop where what remains is below rounding, or well below the tolerance asked for.
template <class T>
T adjoint_tolerance(double tol) {
  const T least = rounding<T>() / 4;
  return tol * 0.1 > least ? T(tol * 0.1) : least;
}

// Null, or a sentence on the masses of one problem (null pointers are uniform).
template <class T>
const char* check_masses(const T* a, int64_t n, const T* b, int64_t m) {
  double sums[2] = {1, 1};
  const T* masses[2] = {a, b};
  const int64_t sizes[2] = {n, m};
  for (int side = 0; side < 2; ++side) {
    if (!masses[side]) continue;
    double total = 0;
    bool good = true;
    for (int64_t k = 0; k < sizes[side]; ++k) {
      good &= masses[side][k] >= 0;  // false for NaN
      total += masses[side][k];
    }
    if (!good || !(total < 1e300)) return "masses must be finite and >= 0, got a negative one, NaN or inf";
    if (!(total > 0)) return "masses must not all be 0, got an all-zero vector";
    sums[side] = total;
  }
  const double gap = sums[0] > sums[1] ? sums[0] - sums[1] : sums[1] - sums[0];
  if (gap > (sizeof(T) == 4 ? 1e-4 : 1e-6) * (sums[0] + sums[1]))
    return "a and b must have equal sums (each is 1 where it is not given), got sums that differ";
  return nullptr;
}

// Largest work space (Scratch must not throw inside a task): allocated before the batch is split.
template <class T>
struct WorkPool {
  int64_t each;
  Scratch<T> memory;
  WorkPool(int64_t batch, int64_t size) : each(padded(size)), memory(each * batch) {}
  T* of(int64_t k) { return memory.data() + each * k; }
};

}  // namespace

int64_t saved_size(int64_t n, int64_t m, int64_t max_iter, bool history) {
  return padded(Saved<double>::size(n, m, max_iter, history));
}

template <class T>
const char* forward(const Problem& p, bool save_plan, T* f, T* g, T* value, T* dual, T* marginal_error) {
  for (int64_t k = 0; k < p.batch; ++k)
    if (const char* refused = check_masses(at<T>(p.a, k * p.a_stride), p.n, at<T>(p.b, k * p.b_stride), p.m))
      return refused;
  const int64_t block = saved_size(p.n, p.m, p.max_iter, p.history);
  WorkPool<T> work(p.batch, forward_work(p.n, p.m, tasks_for(p.n, p.m)));
  std::vector<Status> status(p.batch, Status::kOk);
  over_batch(p, [&](int64_t k, int tasks) {
    const Saved<T> saved(static_cast<T*>(p.saved) + k * block, p.n, p.m, p.max_iter, p.history);
    Forward<T> call{};
    call.n = p.n, call.m = p.m, call.max_iter = p.max_iter;
    call.reg = T(p.reg), call.tol = T(p.tol);
    call.cost = at<T>(p.cost, k * p.n * p.m);
    call.a = at<T>(p.a, k * p.a_stride), call.b = at<T>(p.b, k * p.b_stride);
    call.init_f = at<T>(p.init_f, k * p.n);
    call.tasks = tasks;
    call.save_plan = save_plan;
    call.plan = saved.plan, call.hist_u = saved.hist_u, call.hist_v = saved.hist_v, call.alpha = saved.alpha;
    call.f = f ? f + k * p.n : nullptr, call.g = g ? g + k * p.m : nullptr;
    call.value = value + k, call.dual = dual + k;
    call.work = work.of(k);
    kernels<T>().sinkhorn.forward(call);
    marginal_error[k] = call.marginal_error;
    p.info[2 * k] = call.n_iter, p.info[2 * k + 1] = static_cast<int64_t>(call.history);
    status[k] = call.status;
  });
  for (Status s : status) {
    if (s == Status::kBadCost) return "cost must be a number or +inf (a forbidden pair) everywhere, got NaN or -inf";
    if (s == Status::kForbidden)
      return "every row and column with mass needs a pair of finite cost with mass, got one that has none";
  }
  return nullptr;
}

namespace {

template <class T>
Adjoint<T> adjoint_call(const Problem& p, const Upstream& up, int64_t k, int tasks) {
  const int64_t block = saved_size(p.n, p.m, p.max_iter, p.history);
  const Saved<T> saved(static_cast<T*>(p.saved) + k * block, p.n, p.m, p.max_iter, p.history);
  Adjoint<T> call{};
  call.n = p.n, call.m = p.m, call.reg = T(p.reg), call.n_iter = p.info[2 * k];
  call.tolerance = adjoint_tolerance<T>(p.tol);
  call.range_limit = sizeof(T) == 4 ? T(30) : T(300);
  call.history = static_cast<History>(p.info[2 * k + 1]);
  call.cost = at<T>(p.cost, k * p.n * p.m);
  call.a = at<T>(p.a, k * p.a_stride), call.b = at<T>(p.b, k * p.b_stride);
  call.init_f = at<T>(p.init_f, k * p.n);
  call.plan = saved.plan, call.hist_u = saved.hist_u, call.hist_v = saved.hist_v, call.alpha = saved.alpha;
  call.value_weight = up.value ? *at<T>(up.value, k) : T(0);
  call.grad_f = at<T>(up.f, k * p.n), call.grad_g = at<T>(up.g, k * p.m);
  call.tasks = tasks;
  return call;
}

}  // namespace

template <class T>
int64_t adjoint(const Problem& p, const Upstream& up, T* left, T* right, T* grad_a, T* grad_b, int64_t* depth) {
  WorkPool<T> work(p.batch, adjoint_work(p.n, p.m, tasks_for(p.n, p.m)));
  const int64_t rows = 2 * p.max_iter;
  over_batch(p, [&](int64_t k, int tasks) {
    Adjoint<T> call = adjoint_call<T>(p, up, k, tasks);
    call.left = left + k * rows * p.n, call.right = right + k * rows * p.m;
    call.grad_a = grad_a + k * p.n, call.grad_b = grad_b + k * p.m;
    call.work = work.of(k);
    kernels<T>().sinkhorn.adjoint(call);
    depth[k] = call.in_range ? call.depth : -1;
  });
  int64_t deepest = 0;
  for (int64_t k = 0; k < p.batch; ++k) deepest = depth[k] > deepest ? depth[k] : deepest;
  for (int64_t k = 0; k < p.batch; ++k)  // one product serves the batch: shallower problems add zeros
    for (int64_t row = depth[k] < 0 ? 0 : depth[k]; row < deepest; ++row) {
      for (int64_t i = 0; i < p.n; ++i) left[(k * rows + row) * p.n + i] = 0;
      for (int64_t j = 0; j < p.m; ++j) right[(k * rows + row) * p.m + j] = 0;
    }
  return deepest;
}

namespace {
template <class T>
void finish_gradient(const Problem& p, const Adjoint<T>& call, const T* row_sum, const T* col_sum, bool plan_only,
                     T* grad_cost) {
  Gradient<T> last{};
  last.n = p.n, last.m = p.m, last.reg = call.reg, last.value_weight = call.value_weight;
  last.cost = plan_only ? nullptr : call.cost;
  last.plan = call.plan, last.alpha = call.alpha, last.row_sum = row_sum, last.col_sum = col_sum;
  last.tasks = call.tasks, last.grad_cost = grad_cost;
  kernels<T>().sinkhorn.gradient(last);
}
}  // namespace

template <class T>
void adjoint_finish(const Problem& p, const Upstream& up, const int64_t* depth, T* grad_cost, T* grad_a, T* grad_b) {
  bool log_domain = false;
  for (int64_t k = 0; k < p.batch; ++k) log_domain |= depth[k] < 0;
  WorkPool<T> work(log_domain ? p.batch : 0, adjoint_work(p.n, p.m, tasks_for(p.n, p.m)));
  over_batch(p, [&](int64_t k, int tasks) {
    Adjoint<T> call = adjoint_call<T>(p, up, k, tasks);
    call.grad_cost = grad_cost + k * p.n * p.m;
    if (depth[k] >= 0) return finish_gradient<T>(p, call, nullptr, nullptr, false, call.grad_cost);
    call.grad_a = grad_a + k * p.n, call.grad_b = grad_b + k * p.m;
    call.work = work.of(k);
    kernels<T>().sinkhorn.adjoint_log(call);
  });
}

template <class T>
bool implicit(const Problem& p, const Upstream& up, T* grad_cost, T* grad_a, T* grad_b) {
  const int64_t sums = padded(p.n) + padded(p.m);
  const int64_t own = adjoint_work(p.n, p.m, tasks_for(p.n, p.m));
  WorkPool<T> work(p.batch, own + sums);
  std::vector<char> converged(p.batch);
  over_batch(p, [&](int64_t k, int tasks) {
    const Adjoint<T> same = adjoint_call<T>(p, up, k, tasks);
    Implicit<T> call{};
    call.n = p.n, call.m = p.m, call.reg = same.reg, call.tolerance = same.tolerance;
    call.max_sweeps = p.max_iter * 10 > 1000 ? p.max_iter * 10 : 1000;
    call.cost = same.cost, call.a = same.a, call.b = same.b, call.plan = same.plan, call.alpha = same.alpha;
    call.value_weight = same.value_weight, call.grad_f = same.grad_f, call.grad_g = same.grad_g;
    call.tasks = tasks;
    call.work = work.of(k);
    call.row_sum = call.work + own, call.col_sum = call.row_sum + padded(p.n);
    call.grad_a = grad_a + k * p.n, call.grad_b = grad_b + k * p.m;
    kernels<T>().sinkhorn.implicit(call);
    converged[k] = call.converged;
    finish_gradient<T>(p, same, call.row_sum, call.col_sum, false, grad_cost + k * p.n * p.m);
  });
  for (char c : converged)
    if (!c) return false;
  return true;
}

template <class T>
void envelope(const Problem& p, const Upstream& up, T* grad_cost) {
  over_batch(p, [&](int64_t k, int tasks) {
    finish_gradient<T>(p, adjoint_call<T>(p, up, k, tasks), nullptr, nullptr, true, grad_cost + k * p.n * p.m);
  });
}

#define UK_INSTANTIATE(T)                                                                        \
  template const char* forward<T>(const Problem&, bool, T*, T*, T*, T*, T*);                     \
  template int64_t adjoint<T>(const Problem&, const Upstream&, T*, T*, T*, T*, int64_t*);        \
  template void adjoint_finish<T>(const Problem&, const Upstream&, const int64_t*, T*, T*, T*);  \
  template bool implicit<T>(const Problem&, const Upstream&, T*, T*, T*);                        \
  template void envelope<T>(const Problem&, const Upstream&, T*);
UK_INSTANTIATE(float)
UK_INSTANTIATE(double)

}  // namespace sinkhorn
}  // namespace ucmkd

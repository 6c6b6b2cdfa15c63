#include "sinkhorn/entry.h"

#include <algorithm>
#include <vector>

#include "core/levels.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "sinkhorn/tasks.h"

namespace ucmkd {
namespace sinkhorn {
namespace {

// body(problem index, tasks inside the problem: 1 or `inside`), over the problems when there are enough of them.
// `work` is what all of them take. `inside` is taken once a call, with the work space: the number of threads may
// change at any moment.
template <class Body>
void over_batch(const Problem& p, double work, int inside, Body body) {
  const int threads = num_threads();
  if (p.batch > 1 && threads > 1 && (inside == 1 || p.batch >= threads) &&
      p.batch * p.n * p.m >= 2 * kElementsPerTask) {
    const int tasks = p.batch < threads ? static_cast<int>(p.batch) : threads;
    auto task = [&](int index) {
      for (int64_t k = p.batch * index / tasks; k < p.batch * (index + 1) / tasks; ++k) body(k, 1);
    };
    with_helpers(work, [&] { parallel(tasks, task); });
  } else {
    with_helpers(work, [&] {
      for (int64_t k = 0; k < p.batch; ++k) body(k, inside);
    });
  }
}

template <class T>
const T* at(const void* base, int64_t offset) {
  return base ? static_cast<const T*>(base) + offset : nullptr;
}

// The sweep back may stop where what remains is below rounding, or well below the tolerance asked for.
template <class T>
T adjoint_tolerance(double tol) {
  const T least = (sizeof(T) == 4 ? T(5.96e-8) : T(1.11e-16)) / 4;
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

// Null, or a sentence on the term by class.
template <class T>
const char* check_classes(const Problem& p) {
  const cost::Classes<T> classes = p.classes.typed<T>();
  bool good = true;
  for (int64_t k = 0; k < p.n * classes.count; ++k)
    good &= classes.cost[k] > -T(__builtin_inf());  // false for NaN
  if (!good) return "class_cost must be a number or +inf (a forbidden class) everywhere, got NaN or -inf";
  for (int64_t j = 0; classes.count && j < p.m; ++j)
    good &= classes.label[j] >= 0 && classes.label[j] < classes.count;
  return good ? nullptr : "y_labels must be columns of class_cost, from 0 to K - 1, got one outside";
}

// Largest work space (Scratch must not throw inside a task): allocated before the batch is split.
template <class T>
struct WorkPool {
  int64_t each;
  Scratch<T> memory;
  WorkPool(int64_t batch, int64_t size) : each(padded(size)), memory(each * batch) {}
  T* of(int64_t k) { return memory.data() + each * k; }
};

template <class T>
Saved<T> saved_of(const Problem& p, int64_t k) {
  T* block = static_cast<T*>(p.saved) + k * saved_size(p.n, p.m, p.max_iter, p.history);
  return Saved<T>(block, p.n, p.m, p.max_iter, p.history);
}

}  // namespace

int64_t saved_size(int64_t n, int64_t m, int64_t max_iter, bool history) {
  return padded(Saved<double>::size(n, m, max_iter, history));
}

template <class T>
const char* forward(const Problem& p, bool save_plan, T* f, T* g, T* value, T* dual, T* marginal_error,
                    int64_t* n_iter) {
  for (int64_t k = 0; k < p.batch; ++k)
    if (const char* refused = check_masses(at<T>(p.a, k * p.a_stride), p.n, at<T>(p.b, k * p.b_stride), p.m))
      return refused;
  if (const char* refused = check_classes<T>(p)) return refused;
  const int inside = tasks_for(p.n, p.m);
  WorkPool<T> work(p.batch, forward_work(p.n, p.m, inside));
  const cost::Features<T> features = cost::features_of<T>(p);
  std::vector<Status> status(p.batch, Status::kOk);
  over_batch(p, solve_work(p), inside, [&](int64_t k, int tasks) {
    const Saved<T> saved = saved_of<T>(p, k);
    Forward<T> call{};
    call.n = p.n, call.m = p.m, call.max_iter = p.max_iter;
    call.reg = T(p.reg), call.tol = T(p.tol), call.relax = p.relax;
    call.cost = static_cast<T*>(p.cost) + k * p.n * p.m;
    call.features = p.metric < 0 ? nullptr : &features;
    call.a = at<T>(p.a, k * p.a_stride), call.b = at<T>(p.b, k * p.b_stride);
    call.init_f = at<T>(p.init_f, k * p.n), call.init_g = at<T>(p.init_g, k * p.m);
    call.tasks = tasks;
    call.save_plan = save_plan;
    call.plan = saved.plan, call.hist_u = saved.hist_u, call.hist_v = saved.hist_v, call.alpha = saved.alpha;
    call.f = f ? f + k * p.n : nullptr, call.g = g ? g + k * p.m : nullptr;
    call.value = value + k, call.dual = dual ? dual + k : nullptr;
    call.work = work.of(k);
    kernels<T>().sinkhorn.forward(call);
    for (int64_t word = 0; word < kPad * int64_t(sizeof(T)) / 8; ++word) saved.info[word] = 0;
    saved.info[0] = call.n_iter, saved.info[1] = static_cast<int64_t>(call.history);
    if (marginal_error) marginal_error[k] = call.marginal_error;
    if (n_iter) n_iter[k] = call.n_iter;
    status[k] = call.status;
  });
  for (Status s : status) {
    if (s == Status::kBadCost)
      return p.metric < 0 ? "cost must be a number or +inf (a forbidden pair) everywhere, got NaN or -inf"
                          : "the distances between x and y must stay in range, got one that overflows";
    if (s == Status::kForbidden)
      return "every row and column with mass needs a pair of finite cost with mass, got one that has none";
    if (s == Status::kOverflow)
      return "costs and potentials must stay in range, got some whose differences overflow";
  }
  return nullptr;
}

namespace {

template <class T>
Adjoint<T> adjoint_call(const Problem& p, const Upstream& up, int64_t k, int tasks) {
  const Saved<T> saved = saved_of<T>(p, k);
  Adjoint<T> call{};
  call.n = p.n, call.m = p.m, call.reg = T(p.reg), call.n_iter = saved.info[0];
  call.tolerance = adjoint_tolerance<T>(p.tol);
  call.range_limit = sizeof(T) == 4 ? T(30) : T(300);
  call.history = static_cast<History>(saved.info[1]);
  call.cost = at<T>(p.cost, k * p.n * p.m);
  call.a = at<T>(p.a, k * p.a_stride), call.b = at<T>(p.b, k * p.b_stride);
  call.init_f = at<T>(p.init_f, k * p.n), call.init_g = at<T>(p.init_g, k * p.m);
  call.plan = saved.plan, call.hist_u = saved.hist_u, call.hist_v = saved.hist_v, call.alpha = saved.alpha;
  call.value_weight = up.value ? *at<T>(up.value, k) : T(0);
  call.grad_f = at<T>(up.f, k * p.n), call.grad_g = at<T>(up.g, k * p.m);
  call.tasks = tasks;
  return call;
}

// Gradients of the masses of problem k, in `spare` (n + m elements) where nobody asked for them.
template <class T>
void set_mass_gradients(const Problem& p, const Gradients<T>& out, int64_t k, T* spare, T** grad_a,
                        T** grad_b) {
  *grad_a = out.a ? out.a + k * p.n : spare;
  *grad_b = out.b ? out.b + k * p.m : spare + p.n;
}

// dC of rows [begin, end) of one problem: `call`'s pointers are those of the whole problem, `out`'s of its rows.
template <class T>
void finish_rows(const Problem& p, const Adjoint<T>& call, int64_t begin, int64_t end, const T* row_sum,
                 const T* col_sum, bool plan_only, const Gradients<T>& out) {
  Gradient<T> last{};
  last.n = end - begin, last.m = p.m, last.reg = call.reg, last.value_weight = call.value_weight;
  last.plan_only = plan_only;
  last.cost = call.cost + begin * p.m, last.plan = call.plan + begin * padded(p.m),
  last.alpha = call.alpha + begin;
  last.row_sum = row_sum ? row_sum + begin : nullptr, last.col_sum = col_sum;
  last.tasks = call.tasks, last.grad_cost = out.cost;
  last.weight_rows = out.weight_rows, last.weight_cols = out.weight_cols;
  if (p.metric < 0) return kernels<T>().sinkhorn.gradient(last);
  const cost::Features<T> features = cost::features_of<T>(p).from(begin);
  Scratch<T> work(call.tasks * p.m);
  last.features = &features, last.work = work.data();
  kernels<T>().sinkhorn.gradient(last);
}

// That of all rows of problem k.
template <class T>
void finish_gradient(const Problem& p, const Adjoint<T>& call, const T* row_sum, const T* col_sum,
                     bool plan_only, const Gradients<T>& out, int64_t k) {
  Gradients<T> own = out;
  own.cost = out.cost + k * p.n * p.m;
  finish_rows<T>(p, call, 0, p.n, row_sum, col_sum, plan_only, own);
}

}  // namespace

template <class T>
int64_t adjoint(const Problem& p, const Upstream& up, T* left, T* right, const Gradients<T>& out,
                int64_t* depth) {
  const int inside = tasks_for(p.n, p.m);
  const int64_t own = adjoint_work(p.n, p.m, inside);
  WorkPool<T> work(p.batch, own + p.n + p.m);
  const int64_t rows = 2 * p.max_iter;
  over_batch(p, sweeps_back_work(p), inside, [&](int64_t k, int tasks) {
    Adjoint<T> call = adjoint_call<T>(p, up, k, tasks);
    call.left = left + k * rows * p.n, call.right = right + k * rows * p.m;
    call.work = work.of(k);
    set_mass_gradients(p, out, k, call.work + own, &call.grad_a, &call.grad_b);
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

template <class T>
void adjoint_finish(const Problem& p, const Upstream& up, const int64_t* depth, const Gradients<T>& out) {
  bool log_domain = false;
  for (int64_t k = 0; k < p.batch; ++k) log_domain |= depth[k] < 0;
  const int inside = tasks_for(p.n, p.m);
  const int64_t own = adjoint_work(p.n, p.m, inside);
  WorkPool<T> work(log_domain ? p.batch : 0, own + p.n + p.m);
  over_batch(p, log_domain ? sweeps_back_log_work(p) : last_work(p), inside, [&](int64_t k, int tasks) {
    Adjoint<T> call = adjoint_call<T>(p, up, k, tasks);
    if (depth[k] >= 0) return finish_gradient<T>(p, call, nullptr, nullptr, false, out, k);
    call.grad_cost = out.cost + k * p.n * p.m;
    call.work = work.of(k);
    set_mass_gradients(p, out, k, call.work + own, &call.grad_a, &call.grad_b);
    kernels<T>().sinkhorn.adjoint_log(call);
    if (p.metric < 0) return;
    Scratch<T> columns(tasks * p.m);
    kernels<T>().cost.weigh(cost::features_of<T>(p), call.cost, call.grad_cost, out.weight_rows,
                            out.weight_cols, columns.data(), tasks);
  });
}

template <class T>
bool implicit(const Problem& p, const Upstream& up, const Gradients<T>& out) {
  const int inside = tasks_for(p.n, p.m);
  const int64_t own = adjoint_work(p.n, p.m, inside);
  WorkPool<T> work(p.batch, own + padded(p.n) + padded(p.m) + p.n + p.m);
  std::vector<char> converged(p.batch);
  over_batch(p, sweeps_back_work(p) + last_work(p), inside, [&](int64_t k, int tasks) {
    const Adjoint<T> same = adjoint_call<T>(p, up, k, tasks);
    Implicit<T> call{};
    call.n = p.n, call.m = p.m, call.reg = same.reg, call.tolerance = same.tolerance;
    call.max_sweeps = p.max_iter * 10 > 1000 ? p.max_iter * 10 : 1000;
    call.cost = same.cost, call.a = same.a, call.b = same.b, call.plan = same.plan, call.alpha = same.alpha;
    call.value_weight = same.value_weight, call.grad_f = same.grad_f, call.grad_g = same.grad_g;
    call.tasks = tasks;
    call.work = work.of(k);
    call.row_sum = call.work + own, call.col_sum = call.row_sum + padded(p.n);
    set_mass_gradients(p, out, k, call.col_sum + padded(p.m), &call.grad_a, &call.grad_b);
    kernels<T>().sinkhorn.implicit(call);
    converged[k] = call.converged;
    if (!out.cost) {
      std::copy(call.row_sum, call.row_sum + p.n, out.weight_rows);
      std::copy(call.col_sum, call.col_sum + p.m, out.weight_cols);
      return;
    }
    finish_gradient<T>(p, same, call.row_sum, call.col_sum, false, out, k);
  });
  for (char c : converged)
    if (!c) return false;
  return true;
}

template <class T>
void envelope(const Problem& p, const Upstream& up, const Gradients<T>& out) {
  over_batch(p, last_work(p), tasks_for(p.n, p.m), [&](int64_t k, int tasks) {
    finish_gradient<T>(p, adjoint_call<T>(p, up, k, tasks), nullptr, nullptr, true, out, k);
  });
}

template <class T>
void gradient_rows(const Problem& p, Grad grad, const Upstream& up, int64_t begin, int64_t end,
                   const T* row_sum, const T* col_sum, const Gradients<T>& out) {
  const Adjoint<T> call = adjoint_call<T>(p, up, 0, tasks_for(end - begin, p.m));
  with_helpers(last_work(p) * double(end - begin) / double(p.n), [&] {
    finish_rows<T>(p, call, begin, end, row_sum, col_sum, grad == Grad::kEnvelope, out);
  });
}

#define UK_INSTANTIATE(T)                                                                                \
  template const char* forward<T>(const Problem&, bool, T*, T*, T*, T*, T*, int64_t*);                   \
  template int64_t adjoint<T>(const Problem&, const Upstream&, T*, T*, const Gradients<T>&, int64_t*);   \
  template void adjoint_finish<T>(const Problem&, const Upstream&, const int64_t*, const Gradients<T>&); \
  template bool implicit<T>(const Problem&, const Upstream&, const Gradients<T>&);                       \
  template void envelope<T>(const Problem&, const Upstream&, const Gradients<T>&);                       \
  template void gradient_rows<T>(const Problem&, Grad, const Upstream&, int64_t, int64_t, const T*,      \
                                 const T*, const Gradients<T>&);
UK_INSTANTIATE(float)
UK_INSTANTIATE(double)

}  // namespace sinkhorn
}  // namespace ucmkd

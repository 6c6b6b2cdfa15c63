// Problems of different sizes over the threads. A problem that is worth more than a thread's share of all
// work runs by itself on every thread; the others are taken one at a time by whichever thread is free,
// dearest first. A problem's numbers do not depend on who runs it.
#include "sinkhorn/ragged.h"

#include <algorithm>
#include <atomic>
#include <new>
#include <numeric>
#include <vector>

#include "core/levels.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "cost/entry.h"
#include "sinkhorn/entry.h"

namespace ucmkd {
namespace sinkhorn {
namespace {

// Element operations below which the threads are left alone.
constexpr double kSerial = 256 * 1024;

struct Table {
  struct Row {
    int64_t x0, y0, n, m;  // first rows and sizes
    int64_t cost, saved;   // where its blocks begin
    bool empty() const { return n == 0 || m == 0; }
  };
  std::vector<Row> rows;
  RaggedSizes sizes{0, 0};

  explicit Table(const Ragged& r) : rows(r.batch) {
    for (int64_t k = 0; k < r.batch; ++k) {
      Row& row = rows[k];
      row.x0 = r.x_offsets[k], row.n = r.x_offsets[k + 1] - row.x0;
      row.y0 = r.y_offsets[k], row.m = r.y_offsets[k + 1] - row.y0;
      row.cost = sizes.cost, row.saved = sizes.saved;
      if (row.empty()) continue;
      sizes.cost += padded(row.n * row.m);
      sizes.saved += saved_size(row.n, row.m, r.max_iter, r.history);
    }
  }
};

// body(k, tasks inside the problem) for every problem that has rows on both sides.
template <class Body>
void over_problems(const Table& table, double work_per_element, const Body& body) {
  std::vector<int64_t> order;
  double total = 0;
  auto work = [&](int64_t k) { return double(table.rows[k].n) * double(table.rows[k].m) * work_per_element; };
  for (int64_t k = 0; k < int64_t(table.rows.size()); ++k)
    if (!table.rows[k].empty()) order.push_back(k), total += work(k);
  std::stable_sort(order.begin(), order.end(), [&](int64_t p, int64_t q) { return work(p) > work(q); });
  const int threads = total < kSerial ? 1 : num_threads();
  std::atomic<bool> no_memory{false};
  auto both = [&] {
    size_t first = 0;
    for (; first < order.size() && (threads == 1 || work(order[first]) * threads > total); ++first)
      body(order[first], threads);
    std::atomic<size_t> next{first};
    auto take = [&](int) {  // a task must not throw
      try {
        for (size_t at = next++; at < order.size(); at = next++) body(order[at], 1);
      } catch (const std::bad_alloc&) {
        no_memory = true;
      }
    };
    parallel(std::min<int>(threads, int(order.size() - first)), take);
  };
  with_helpers(total, both);
  if (no_memory) throw std::bad_alloc();
}

template <class T>
const T* at(const void* base, int64_t offset) {
  return base ? static_cast<const T*>(base) + offset : nullptr;
}

template <class T>
T* at(T* base, int64_t offset) {
  return base ? base + offset : nullptr;
}

template <class T>
Problem problem_of(const Ragged& r, const Table::Row& row) {
  Problem p{};
  p.f64 = r.f64, p.batch = 1, p.n = row.n, p.m = row.m, p.max_iter = r.max_iter;
  p.reg = r.reg, p.tol = r.tol, p.relax = r.relax, p.history = r.history;
  p.cost = static_cast<T*>(r.cost) + row.cost;
  p.saved = static_cast<T*>(r.saved) + row.saved;
  p.a = at<T>(r.a, row.x0), p.init_f = at<T>(r.init_f, row.x0);
  p.b = at<T>(r.b, row.y0), p.init_g = at<T>(r.init_g, row.y0);
  p.metric = r.metric, p.d = r.d;
  p.x = at<T>(r.x, row.x0 * r.d), p.scale_x = at<T>(r.scale_x, row.x0);
  p.y = at<T>(r.y, row.y0 * r.d), p.scale_y = at<T>(r.scale_y, row.y0);
  p.given_x = at<T>(r.given_x, row.x0 * r.d), p.given_y = at<T>(r.given_y, row.y0 * r.d);
  const cost::Classes<T> classes = r.classes.typed<T>(row.x0, row.y0, row.cost);
  p.classes = {classes.count, classes.cost, classes.label, classes.distance, classes.grad};
  return p;
}

// <x_i, y_j>, where the cost will be.
template <class T>
void inner_products(const Problem& p, int tasks) {
  if (static_cast<cost::Metric>(p.metric) == cost::Metric::kL1) return;
  kernels<T>().product.inner({p.n, p.m, p.d, static_cast<const T*>(p.x), static_cast<const T*>(p.y),
                              static_cast<T*>(p.cost), tasks});
}

// The weights (n, m) of the products with x and y (cost/row.h), their row and column sums.
template <class T>
struct Weights {
  Scratch<T> all, rows, cols;
  Weights(int64_t n, int64_t m) : all(n * m), rows(n), cols(m) {}
};

template <class T>
void unrolled(const Problem& p, const Upstream& up, Gradients<T> out, int tasks) {
  const int64_t rows = 2 * p.max_iter;
  Scratch<T> left(rows * p.n), right(rows * p.m);
  int64_t used;
  const int64_t depth = adjoint<T>(p, up, left.data(), right.data(), out, &used);
  if (depth)
    kernels<T>().product.plain({p.n, p.m, depth, left.data(), 1, p.n, right.data(), out.cost, tasks});
  adjoint_finish<T>(p, up, &used, out);
}

// One side's gradient from the weights: n rows of x here against the rows of y there. Where the metric has near pairs,
// out holds their share.
template <class T>
void one_side(const Problem& p, Weights<T>& w, bool transposed, int tasks, T* out) {
  const T *x = static_cast<const T*>(p.x), *y = static_cast<const T*>(p.y);
  const T* scale = static_cast<const T*>(transposed ? p.scale_y : p.scale_x);
  const T *here = transposed ? y : x, *there = transposed ? x : y;
  const int64_t n = transposed ? p.m : p.n, other = transposed ? p.n : p.m;
  const int64_t row = transposed ? 1 : p.m, column = transposed ? p.m : 1;
  const auto metric = static_cast<cost::Metric>(p.metric);
  const T* weights = w.all.data();
  if (metric == cost::Metric::kL1)
    return kernels<T>().cost.l1_backward(n, other, p.d, here, there, weights, row, column, out, tasks);
  kernels<T>().product.plain({n, p.d, other, weights, row, column, there, out, tasks, cost::by_difference(metric)});
  if (cost::normalised(metric)) return kernels<T>().cost.project(n, p.d, here, scale, out, tasks);
  kernels<T>().cost.shift_rows(n, p.d, here, (transposed ? w.cols : w.rows).data(), out, tasks);
}

template <class T>
void fill(T* out, int64_t count, T value) {
  for (int64_t k = 0; out && k < count; ++k) out[k] = value;
}

}  // namespace

RaggedSizes ragged_sizes(const Ragged& r) { return Table(r).sizes; }
int64_t ragged_cost_offset(const Ragged& r, int64_t k) { return Table(r).rows[k].cost; }

template <class T>
std::string ragged_forward(const Ragged& r, bool save_plan, const RaggedOutputs<T>& out) {
  const Table table(r);
  std::vector<const char*> refused(r.batch, nullptr);
  for (int64_t k = 0; k < r.batch; ++k) {
    const Table::Row& row = table.rows[k];
    if (!row.empty()) continue;
    fill(out.f + row.x0, row.n, -T(__builtin_inf()));
    fill(out.g + row.y0, row.m, -T(__builtin_inf()));
    out.value[k] = out.dual[k] = out.marginal_error[k] = 0;
    out.n_iter[k] = 0;
  }
  over_problems(table, double(r.max_iter + r.d), [&](int64_t k, int tasks) {
    const Table::Row& row = table.rows[k];
    const Problem p = problem_of<T>(r, row);
    inner_products<T>(p, tasks);
    refused[k] = forward<T>(p, save_plan, out.f + row.x0, out.g + row.y0, out.value + k, out.dual + k,
                            out.marginal_error + k, out.n_iter + k);
  });
  for (int64_t k = 0; k < r.batch; ++k)
    if (refused[k]) return "problem " + std::to_string(k) + " of the batch: " + refused[k];
  return "";
}

template <class T>
bool ragged_backward(const Ragged& r, Grad grad, const T* up_value, const T* up_f, const T* up_g,
                     const RaggedGradients<T>& out) {
  const Table table(r);
  std::atomic<bool> converged{true};
  for (const Table::Row& row : table.rows) {
    if (!row.empty()) continue;
    fill(at(out.x, row.x0 * r.d), row.n * r.d, T(0)), fill(at(out.y, row.y0 * r.d), row.m * r.d, T(0));
    fill(at(out.a, row.x0), row.n, T(0)), fill(at(out.b, row.y0), row.m, T(0));
    fill(r.classes.typed<T>(row.x0).grad, row.n * r.classes.count, T(0));
  }
  over_problems(table, double(2 * r.max_iter + 2 * r.d), [&](int64_t k, int tasks) {
    const Table::Row& row = table.rows[k];
    const Problem p = problem_of<T>(r, row);
    const Upstream up{at(up_value, k), at(up_f, row.x0), at(up_g, row.y0)};
    Weights<T> w(p.n, p.m);
    const Gradients<T> parts{w.all.data(), at(out.a, row.x0), at(out.b, row.y0), w.rows.data(),
                             w.cols.data()};
    if (grad == Grad::kUnrolled)
      unrolled<T>(p, up, parts, tasks);
    else if (grad == Grad::kEnvelope)
      envelope<T>(p, up, parts);
    else if (!implicit<T>(p, up, parts))
      converged = false;
    T *dx = at(out.x, row.x0 * r.d), *dy = at(out.y, row.y0 * r.d);
    fill(dx, p.n * p.d, T(0)), fill(dy, p.m * p.d, T(0));
    cost::set_apart<T>(cost::features_of<T>(p), static_cast<const T*>(p.cost), w.all.data(), dx, dy);
    if (dx) one_side(p, w, false, tasks, dx);
    if (dy) one_side(p, w, true, tasks, dy);
  });
  return converged;
}

#define UK_INSTANTIATE(T)                                                               \
  template std::string ragged_forward<T>(const Ragged&, bool, const RaggedOutputs<T>&); \
  template bool ragged_backward<T>(const Ragged&, Grad, const T*, const T*, const T*,   \
                                   const RaggedGradients<T>&);
UK_INSTANTIATE(float)
UK_INSTANTIATE(double)

}  // namespace sinkhorn
}  // namespace ucmkd

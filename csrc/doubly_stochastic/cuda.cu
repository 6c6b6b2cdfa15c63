// A thread per matrix where that fits its registers, else a team of threads for each; then the log domain for those that
// left the range of their type, a launch that finds none most of the time. README.md beside this file has the formulas.
#include "doubly_stochastic/beyond.cuh"
#include "doubly_stochastic/cuda_call.h"
#include "doubly_stochastic/problem.cuh"
#include "doubly_stochastic/team.cuh"
#include "doubly_stochastic/thread.cuh"

namespace ucmkd {
namespace doubly_stochastic {
namespace {

constexpr int64_t kSharedForKept = 64 * 1024;  // of a block, so that several share a multiprocessor
constexpr int kBeyondBlocks = 64;
constexpr int kWarp = 32;

int64_t ceil_div(int64_t count, int64_t by) { return (count + by - 1) / by; }
int64_t in_lines(int64_t bytes) { return ceil_div(bytes, 16) * 16; }

// What a call comes to on its device: where the kernels keep what, and how many of them there are.
struct Plan {
  Steps s;
  int side = 0;  // of matrices that a thread holds; 0: teams
  int threads = 0, team = 0;
  int64_t grid = 0, beyond_grid = 0;
  int64_t shared = 0;                         // bytes of a block
  int64_t marks = 0, kernel = 0, beyond = 0;  // bytes of work space, one after the other
  int64_t all() const { return marks + kernel + beyond; }
};

template <class S>
bool aligned(const CudaProjection& c, int side) {
  const uintptr_t bytes = sizeof(S) * side;
  return (c.logits | c.upstream | c.out) % bytes == 0;
}

template <class S>
const char* make_plan(const CudaProjection& c, Plan* plan) {
  using T = Wide<S>;
  int multiprocessors = 0;
  int64_t shared_limit = 0;
  bool clusters = false;
  if (const char* refused = cuda::device_properties(c.device, &multiprocessors, &shared_limit, &clusters))
    return refused;
  const bool backward = c.upstream != 0;
  plan->s = make_steps(c.n, c.m, c.n_iter, T(c.eps) > 0, c.softmax, c.rows_first);
  const Steps& s = plan->s;
  plan->marks = in_lines(c.batch * int64_t(sizeof(int)));
  if (c.n == c.m && c.n == 4 && aligned<S>(c, static_cast<int>(c.n))) {
    plan->side = static_cast<int>(c.n);
    plan->threads = kMatrices < cuda::thread_limit() ? kMatrices : cuda::thread_limit();
    plan->grid = ceil_div(c.batch, plan->threads);
    const int64_t of_one = backward ? 2 * (s.column_steps() + 1) * plan->side * int64_t(sizeof(T)) : 0;
    plan->shared = of_one * plan->threads;
    if (plan->shared > kSharedForKept || plan->shared > shared_limit) {
      plan->shared = 0;
      plan->kernel = of_one * plan->grid * plan->threads;
    }
  } else {
    const int64_t longest = s.rows > s.columns ? s.rows : s.columns, of_one = team_size(s, backward) * sizeof(T);
    plan->threads = kMostThreads < cuda::thread_limit() ? kMostThreads : cuda::thread_limit();
    plan->team = plan->threads;
    while (plan->team / 2 >= longest) plan->team /= 2;
    int64_t teams = plan->threads / plan->team;
    const int64_t fewest = plan->team < kWarp ? kWarp / plan->team : 1;
    while (teams > fewest && (teams * of_one > kSharedForKept || teams * of_one > shared_limit)) teams /= 2;
    plan->threads = static_cast<int>(teams) * plan->team;
    const int64_t groups = ceil_div(c.batch, teams);
    if (teams * of_one <= shared_limit) {
      plan->shared = teams * of_one;
      plan->grid = groups;
    } else {
      const int64_t most = int64_t(multiprocessors) * 4;
      plan->grid = groups < most ? groups : most;
      plan->kernel = plan->grid * teams * of_one;
    }
    constexpr int64_t kMostBlocks = 1 << 20;  // blocks go on to further matrices
    plan->grid = plan->grid < kMostBlocks ? plan->grid : kMostBlocks;
  }
  plan->kernel = in_lines(plan->kernel);
  const int64_t looks = ceil_div(c.batch, kBeyondThreads);
  plan->beyond_grid = looks < kBeyondBlocks ? looks : kBeyondBlocks;
  plan->beyond = plan->beyond_grid * beyond_size(s, backward) * int64_t(sizeof(double));
  return nullptr;
}

template <class S, bool kBackward>
const char* launch(const CudaProjection& c, const Plan& plan) {
  using T = Wide<S>;
  Problem<S> p{};
  p.s = plan.s, p.batch = c.batch;
  p.p = static_cast<int>(plan.s.rows), p.q = static_cast<int>(plan.s.columns);
  p.logits = reinterpret_cast<const S*>(c.logits), p.upstream = reinterpret_cast<const S*>(c.upstream);
  p.out = reinterpret_cast<S*>(c.out);
  p.eps = T(c.eps), p.of_columns = T(1 / plan.s.column_sum), p.of_rows = T(1 / plan.s.row_sum);
  p.beyond = reinterpret_cast<int*>(c.work);
  p.work = plan.kernel ? reinterpret_cast<T*>(c.work + plan.marks) : nullptr;
  const cuda::Stream stream = reinterpret_cast<cuda::Stream>(c.stream);
  const size_t shared = static_cast<size_t>(plan.shared);
  const char* refused = nullptr;
  if (plan.side == 4)
    refused = cuda::launch(thread_kernel<S, 4, kBackward>, plan.grid, 1, plan.threads, shared, stream, p, shared > 0);
  else
    refused = cuda::launch(team_kernel<S, kBackward>, plan.grid, 1, plan.threads, shared, stream, p, plan.team);
  if (refused) return refused;
  const int threads = kBeyondThreads < cuda::thread_limit() ? kBeyondThreads : cuda::thread_limit();
  return cuda::launch(beyond_kernel<S, kBackward>, plan.beyond_grid, 1, threads, 0, stream, p,
                      reinterpret_cast<double*>(c.work + plan.marks + plan.kernel));
}

template <class S>
const char* run(const CudaProjection& c) {
  Plan plan;
  if (const char* refused = make_plan<S>(c, &plan)) return refused;
  return c.upstream ? launch<S, true>(c, plan) : launch<S, false>(c, plan);
}

template <class S>
int64_t work(const CudaProjection& c, const char** refused) {
  Plan plan;
  *refused = make_plan<S>(c, &plan);
  return *refused ? 0 : plan.all();
}

}  // namespace

int64_t cuda_project_work(const CudaProjection& c, const char** refused) {
  switch (static_cast<ElementType>(c.element_type)) {
    case ElementType::kHalf: return work<cuda::Half>(c, refused);
    case ElementType::kBFloat16: return work<cuda::BFloat16>(c, refused);
    default: return c.f64 ? work<double>(c, refused) : work<float>(c, refused);
  }
}

const char* cuda_project(const CudaProjection& c) {
  const cuda::DeviceGuard guard(c.device);
  if (guard.error()) return guard.error();
  switch (static_cast<ElementType>(c.element_type)) {
    case ElementType::kHalf: return run<cuda::Half>(c);
    case ElementType::kBFloat16: return run<cuda::BFloat16>(c);
    default: return c.f64 ? run<double>(c) : run<float>(c);
  }
}

}  // namespace doubly_stochastic
}  // namespace ucmkd

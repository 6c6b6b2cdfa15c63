// The kernel of a plan in which threads own columns, and its launches: the same forward and back.
#pragma once
#include "sinkhorn/cuda.h"
#include "sinkhorn/owned.cuh"

namespace ucmkd {
namespace sinkhorn {

// Quads of columns per thread, rows at a time, whether rows stay in shared memory, and whether blocks are clusters, as
// Owned takes them.
template <int kQ, int kR, int kKeep, bool kCluster = false>
struct Shape {
  static constexpr int kQuads = kQ, kRows = kR, kKeeps = kKeep;
  static constexpr bool kClusters = kCluster;
};

// body(Shape) for the shape of the plan where blocks are no cluster and keep all of their rows or none.
template <class T, class Body>
const char* with_plain_shape(const OwnedPlan& plan, Body body) {
  if (plan.quads == 1)
    return plan.rows == 1 ? body(Shape<1, 1, true>())
           : plan.kept    ? body(Shape<1, 4, true>())
                          : body(Shape<1, 4, false>());
  if constexpr (sizeof(T) == 4) {
    if (plan.quads == 2) return plan.kept ? body(Shape<2, 4, true>()) : body(Shape<2, 4, false>());
    if (plan.quads == 4) return plan.kept ? body(Shape<4, 2, true>()) : body(Shape<4, 2, false>());
    if (plan.quads == 8) return body(Shape<8, 1, false>());
    return body(Shape<16, 1, false>());
  }
  return "more columns than a thread can own";
}

// body(Shape) for the shape of any plan. Kernels of doubles own one quad, and keep all of their rows or none.
template <class T, class Body>
const char* with_shape(const OwnedPlan& plan, Body body) {
  if (plan.clusters) {
    if constexpr (sizeof(T) == 4)
      if (plan.quads == 2) return body(Shape<2, 4, true, true>());
    return body(Shape<1, 4, true, true>());
  }
  if constexpr (sizeof(T) == 4) {
    if (plan.held > 0 && plan.quads == 1) return body(Shape<1, 4, kKeepsSome>());
    if (plan.held > 0 && plan.quads == 2) return body(Shape<2, 4, kKeepsSome>());
    if (plan.held > 0 && plan.quads == 4) return body(Shape<4, 2, kKeepsSome>());
  }
  return with_plain_shape<T>(plan, body);
}

// Which problem a block works on.
template <bool kCluster>
__device__ int64_t problem_of(bool grid, int first_problem) {
  if constexpr (kCluster) return int(blockIdx.x) / cuda::cluster_size();
  return first_problem + (grid ? 0 : blockIdx.x);
}

// One launch of a block or a cluster per problem, or a cooperative one for each problem.
template <class T, class Call>
const char* launch_owned(void (*kernel)(DeviceProblem<T>, Call, int), const OwnedPlan& plan, const DeviceProblem<T>& p,
                         const Call& call, cuda::Stream stream) {
  if (one_block(p.plan.regime)) return cuda::launch(kernel, p.batch, 1, plan.threads, plan.shared, stream, p, call, 0);
  if (plan.clusters)
    return cuda::launch_clusters(kernel, p.batch * plan.grid, plan.grid, plan.threads, plan.shared, stream, p, call, 0);
  for (int k = 0; k < p.batch; ++k) {
    if (p.own_barrier)
      if (const char* refused = cuda::clear(p.work + k * p.plan.work, sizeof(unsigned), stream)) return refused;
    if (const char* refused =
            cuda::launch_cooperative(kernel, plan.grid, plan.threads, plan.shared, stream, p, call, k))
      return refused;
  }
  return nullptr;
}

}  // namespace sinkhorn
}  // namespace ucmkd

// The kernel of a plan in which threads own columns, and its launches: the same forward and back.
#pragma once
#include "sinkhorn/cuda.h"
#include "sinkhorn/owned.cuh"

namespace ucmkd {
namespace sinkhorn {

// Quads of columns per thread, rows at a time, and whether rows stay in shared memory, as Owned takes them.
template <int kQ, int kR, int kKeep>
struct Shape {
  static constexpr int kQuads = kQ, kRows = kR, kKeeps = kKeep;
};

// body(Shape) for the shape of the plan. Kernels of doubles own one quad, and keep all of their rows or none.
template <class T, class Body>
const char* with_shape(const OwnedPlan& plan, Body body) {
  if constexpr (sizeof(T) == 4) {
    if (plan.held > 0 && plan.quads == 1) return body(Shape<1, 4, kKeepsSome>());
    if (plan.held > 0 && plan.quads == 2) return body(Shape<2, 4, kKeepsSome>());
    if (plan.held > 0 && plan.quads == 4) return body(Shape<4, 2, kKeepsSome>());
  }
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

// One launch of a block per problem, or a cooperative one for each problem.
template <class T, class Call>
const char* launch_owned(void (*kernel)(DeviceProblem<T>, Call, int), const OwnedPlan& plan, const DeviceProblem<T>& p,
                         const Call& call, cuda::Stream stream) {
  if (one_block(p.plan.regime)) return cuda::launch(kernel, p.batch, 1, plan.threads, plan.shared, stream, p, call, 0);
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

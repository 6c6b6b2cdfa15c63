// The last pass: dC from the plan and from what the adjoint left behind, in place of the matrix product.
//
//   dC = P (value_weight - Z / reg)
//
// With features the row goes on, while it is in the cache, to the weights of the products with x and y.
#include "core/level_table.h"
#include "cost/row.h"
#include "sinkhorn/log_domain.h"

namespace ucmkd {
namespace UK_LEVEL {
namespace {

using sinkhorn::Grad;
using sinkhorn::Gradients;
using sinkhorn::LastPass;
using sinkhorn::padded;
using sinkhorn::View;

template <class T>
void rows(const View<T>& p, T value_weight, const LastPass<T>& q, const Gradients<T>& to, T* work) {
  constexpr int W = Lanes<T>::W;
  const int64_t n = q.end - q.begin, m = p.m, mp = padded(m);
  const bool features = has_features(p), sums = q.grad == Grad::kImplicit, plan_only = q.grad == Grad::kEnvelope;
  const T inverse = 1 / p.reg;
  auto body = [&](int index) {
    T* columns = features ? work + index * m : nullptr;
    for (int64_t j = 0; columns && j < m; ++j) columns[j] = 0;
    for (int64_t k = n * index / p.tasks; k < n * (index + 1) / p.tasks; ++k) {
      const int64_t i = q.begin + k;
      const Vec<T> shift = splat(p.saved.alpha[i]), row = splat(sums ? q.row_sum[i] : T(0));
      T* out = to.cost + k * m;
      for (int64_t j = 0; j < m; j += W) {
        const int64_t left = m - j;
        const Vec<T> plan = load(p.saved.plan + i * mp + j);
        if (plan_only) {
          left >= W ? store(out + j, value_weight * plan) : store_part(out + j, value_weight * plan, left);
          continue;
        }
        Vec<T> Z;
        if (sums)
          Z = row + (left >= W ? load(q.col_sum + j) : load_part(q.col_sum + j, left, T(0)));
        else
          Z = left >= W ? load(out + j) : load_part(out + j, left, T(0));
        Z += value_weight * (load_cost(p.cost + i * m, j, m) - shift);
        Vec<T> d = plan * (value_weight - Z * inverse);
        d = plan > 0 ? d : Vec<T>{};
        left >= W ? store(out + j, d) : store_part(out + j, d, left);
      }
      if (features) to.weight_rows[k] = weigh_row(p.features, i, p.cost + i * m, out, columns);
    }
  };
  parallel(p.tasks, body);
  for (int64_t j = 0; features && j < m; ++j) {
    to.weight_cols[j] = 0;
    for (int k = 0; k < p.tasks; ++k) to.weight_cols[j] += work[k * m + j];
  }
}

template <class T>
constexpr sinkhorn::GradientKernels<T> kTable = {rows<T>};

}  // namespace

const ByType<sinkhorn::GradientKernels> gradient_kernels = {kTable<float>, kTable<double>};

}  // namespace UK_LEVEL
}  // namespace ucmkd

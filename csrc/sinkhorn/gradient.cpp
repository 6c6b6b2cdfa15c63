// The last pass: dC from the plan and from what the adjoint left behind, in place of the matrix product.
//
//   dC = P (value_weight - Z / reg)
//
// With features the row goes on, while it is in the cache, to the weights of the products with x and y.
#include "cost/row.h"
#include "sinkhorn/kernels.h"
#include "sinkhorn/log_domain.h"

namespace ucmkd {
namespace UK_LEVEL {

using sinkhorn::Gradient;
using sinkhorn::padded;

template <class T>
void gradient(const Gradient<T>& p) {
  constexpr int W = Lanes<T>::W;
  const int64_t n = p.n, m = p.m, mp = padded(m);
  const T inverse = 1 / p.reg;
  auto body = [&](int index) {
    T* columns = p.features ? p.work + index * m : nullptr;
    for (int64_t j = 0; columns && j < m; ++j) columns[j] = 0;
    for (int64_t i = n * index / p.tasks; i < n * (index + 1) / p.tasks; ++i) {
      const Vec<T> shift = splat(p.alpha[i]), row = splat(p.row_sum ? p.row_sum[i] : T(0));
      T* out = p.grad_cost + i * m;
      for (int64_t j = 0; j < m; j += W) {
        const int64_t left = m - j;
        const Vec<T> plan = load(p.plan + i * mp + j);
        if (p.plan_only) {
          left >= W ? store(out + j, p.value_weight * plan)
                    : store_part(out + j, p.value_weight * plan, left);
          continue;
        }
        Vec<T> Z;
        if (p.row_sum)
          Z = row + (left >= W ? load(p.col_sum + j) : load_part(p.col_sum + j, left, T(0)));
        else
          Z = left >= W ? load(out + j) : load_part(out + j, left, T(0));
        Z += p.value_weight * (load_cost(p.cost + i * m, j, m) - shift);
        Vec<T> d = plan * (p.value_weight - Z * inverse);
        d = plan > 0 ? d : Vec<T>{};
        left >= W ? store(out + j, d) : store_part(out + j, d, left);
      }
      if (p.features) p.weight_rows[i] = weigh_row(*p.features, i, p.cost + i * m, out, columns);
    }
  };
  parallel(p.tasks, body);
  for (int64_t j = 0; p.features && j < m; ++j) {
    p.weight_cols[j] = 0;
    for (int k = 0; k < p.tasks; ++k) p.weight_cols[j] += p.work[k * m + j];
  }
}
template void gradient<float>(const Gradient<float>&);
template void gradient<double>(const Gradient<double>&);

}  // namespace UK_LEVEL
}  // namespace ucmkd

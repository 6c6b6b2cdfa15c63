// One read of both rows of logits gives the loss and both gradients.
//
//   L = CE(s, y) - kappa CE(t, y),  kappa = softmax(t)_y,  q = (1 - smoothing) e_y + smoothing / k
//   dL/ds = softmax(s) - q
//   dL/dt = -kappa (softmax(t) - q)                                               kappa detached
//         = -kappa ((softmax(t) - q) - CE(t, y) (softmax(t) - e_y))               kappa live
#include "core/level_table.h"
#include "core/math.h"
#include "core/parallel.h"
#include "core/simd.h"

namespace ucmkd {
namespace UK_LEVEL {
namespace {

using label_transport::Forward;

template <class T>
struct Row {
  T top;    // largest logit
  T total;  // sum of exp(z - top)
  T mean;   // mean logit
  T log_total() const { return log_of(total); }
  // Cross-entropy with the smoothed target.
  T cross_entropy(T at_label, T smoothing) const {
    return log_total() + top - (1 - smoothing) * at_label - (smoothing > 0 ? smoothing * mean : 0);
  }
};

// The sums of a row of logits; exp(z - top) into `out` where it is not null (it may be z itself).
template <class T>
Row<T> read_row(const T* z, int64_t k, T* out) {
  constexpr int W = Lanes<T>::W;
  const T inf = __builtin_inf();
  Vec<T> tops = splat(-inf), sums = {};
  int64_t j = 0;
  for (; j + W <= k; j += W) {
    tops = vmax<T>(tops, load(z + j));
    sums += load(z + j);
  }
  T top = greatest<T>(tops), rest = 0;
  for (; j < k; ++j) {
    top = z[j] > top ? z[j] : top;
    rest += z[j];
  }
  Vec<T> total = {};
  for (j = 0; j + W <= k; j += W) {
    const Vec<T> e = exp(load(z + j) - top);
    total += e;
    if (out) store(out + j, e);
  }
  if (j < k) {
    const Vec<T> e = exp(load_part(z + j, k - j, -inf) - top);
    total += e;
    if (out) store_part(out + j, e, k - j);
  }
  return {top, sum<T>(total), (sum<T>(sums) + rest) / T(k)};
}

// out = scale * out + constant
template <class T>
void scale_row(int64_t k, T scale, T constant, T* out) {
  constexpr int W = Lanes<T>::W;
  int64_t j = 0;
  for (; j + W <= k; j += W) store(out + j, load(out + j) * scale + constant);
  for (; j < k; ++j) out[j] = out[j] * scale + constant;
}

template <class T>
void forward(Forward<T>& p) {
  const int64_t k = p.k;
  int64_t kept[kMaxTasks], bad[kMaxTasks];
  auto body = [&](int index) {
    kept[index] = 0;
    bad[index] = -1;
    for (int64_t i = p.n * index / p.tasks; i < p.n * (index + 1) / p.tasks; ++i) {
      const int64_t y = p.target[i];
      T* ds = p.grad_student ? p.grad_student + i * p.grad_stride : nullptr;
      T* dt = p.grad_teacher ? p.grad_teacher + i * p.grad_stride : nullptr;
      p.loss[i] = 0;
      if (y == p.ignore_index || y < 0 || y >= k) {
        if (y != p.ignore_index && bad[index] < 0) bad[index] = i;
        for (int64_t j = 0; ds && j < k; ++j) ds[j] = 0;
        for (int64_t j = 0; dt && j < k; ++j) dt[j] = 0;
        continue;
      }
      ++kept[index];
      const T *s = p.student + i * p.student_stride, *t = p.teacher + i * p.teacher_stride;
      const T student_label = s[y], teacher_label = t[y];  // gradients may lie over the logits
      const Row<T> student = read_row(s, k, ds), teacher = read_row(t, k, dt);
      const T log_kappa = teacher_label - teacher.top - teacher.log_total();
      const T kappa = exp_of(log_kappa);
      const T teacher_ce = teacher.cross_entropy(teacher_label, p.label_smoothing);
      p.loss[i] = student.cross_entropy(student_label, p.label_smoothing) - kappa * teacher_ce;
      const T spread = p.label_smoothing / T(k), peak = 1 - p.label_smoothing, share = p.grad_share;
      if (ds) {
        scale_row(k, share / student.total, -share * spread, ds);
        ds[y] -= share * peak;
      }
      if (dt) {
        const T live = p.live_kappa ? teacher_ce : 0, weight = share * kappa;
        scale_row(k, -weight * (1 - live) / teacher.total, weight * spread, dt);
        dt[y] += weight * (peak - live);
      }
    }
  };
  parallel(p.tasks, body);
  p.kept = 0;
  p.bad_row = -1;
  for (int t = 0; t < p.tasks; ++t) {
    p.kept += kept[t];
    if (p.bad_row < 0) p.bad_row = bad[t];
  }
  p.total = 0;
  for (int64_t i = 0; i < p.n; ++i) p.total += p.loss[i];
}

template <class T>
constexpr label_transport::Kernels<T> kTable = {forward<T>};

}  // namespace

const ByType<label_transport::Kernels> label_transport_kernels = {kTable<float>, kTable<double>};

}  // namespace UK_LEVEL
}  // namespace ucmkd

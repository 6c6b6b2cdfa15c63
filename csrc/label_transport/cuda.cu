// A block per row. Both rows of logits are read from memory once, for their log-sums; the second look, which
// writes the gradients, finds them in the cache. The formulas are those of README.md beside this file.
#include "core/launch.cuh"
#include "label_transport/cuda_call.h"
#include "label_transport/params.h"
#include "sinkhorn/step.h"

namespace ucmkd {
namespace label_transport {
namespace {

using sinkhorn::LogSum;

constexpr int kWarp = 32, kMaxThreads = 256;

// Log-sum and sum of a row of logits.
template <class T>
struct Row {
  LogSum<T> terms;
  T sum;
  __device__ void merge(const Row& o) { terms.merge(o.terms), sum += o.sum; }
  // Cross-entropy with the smoothed target.
  __device__ T cross_entropy(T at_label, T smoothing, int64_t k) const {
    const T spread = smoothing > 0 ? smoothing * (sum / T(k)) : T(0);
    return terms.value() - (1 - smoothing) * at_label - spread;
  }
};

// The row's sums, the same on every thread. parts: shared (warps,).
template <class T>
__device__ Row<T> read_row(const T* z, int64_t k, Row<T>* parts) {
  Row<T> row{LogSum<T>::empty(), T(0)};
#pragma unroll 4
  for (int64_t j = threadIdx.x; j < k; j += blockDim.x) {
    row.terms.add(z[j]);
    row.sum += z[j];
  }
  for (int mask = kWarp / 2; mask > 0; mask /= 2)
    row.merge({{cuda::shuffle_xor(row.terms.top, mask), cuda::shuffle_xor(row.terms.sum, mask)},
               cuda::shuffle_xor(row.sum, mask)});
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = row;
  cuda::sync_block();
  row = parts[0];
  for (int w = 1; w < int(blockDim.x) / kWarp; ++w) row.merge(parts[w]);
  return row;
}

template <class T>
__device__ void fill(T* out, int64_t k, T value) {
  for (int64_t j = threadIdx.x; out && j < k; j += blockDim.x) out[j] = value;
}

template <class T>
__global__ void __launch_bounds__(kMaxThreads, 1) forward_kernel(const __grid_constant__ Forward<T> p) {
  const int64_t i = blockIdx.x, k = p.k, y = p.target[i];
  Row<T>* parts = reinterpret_cast<Row<T>*>(cuda::shared_memory());  // (2, warps)
  T* ds = p.grad_student ? p.grad_student + i * p.grad_stride : nullptr;
  T* dt = p.grad_teacher ? p.grad_teacher + i * p.grad_stride : nullptr;
  const bool out_of_range = y < 0 || y >= k;
  if (y == p.ignore_index || out_of_range) {  // the whole block
    const T value = y == p.ignore_index ? T(0) : T(NAN);
    if (threadIdx.x == 0) p.loss[i] = value;
    fill(ds, k, value);
    fill(dt, k, value);
    return;
  }
  const T *s = p.student + i * p.student_stride, *t = p.teacher + i * p.teacher_stride;
  const T s_label = s[y], t_label = t[y];  // before a gradient is written over them
  const Row<T> student = read_row(s, k, parts), teacher = read_row(t, k, parts + blockDim.x / kWarp);
  const T kappa = cuda::exp_of(t_label - teacher.terms.value());
  const T teacher_ce = teacher.cross_entropy(t_label, p.label_smoothing, k);
  // The sum of a row tells of NaN and +inf, which a log-sum would pass over.
  const bool bad = !(student.sum < T(INFINITY)) || !(teacher.sum < T(INFINITY));
  if (threadIdx.x == 0) {
    const T loss = student.cross_entropy(s_label, p.label_smoothing, k) - kappa * teacher_ce;
    p.loss[i] = bad ? T(NAN) : loss;
  }
  const T spread = p.label_smoothing / T(k), peak = 1 - p.label_smoothing;
  const T live = p.live_kappa ? teacher_ce : T(0);
  const T s_scale = bad ? T(NAN) : 1 / student.terms.sum;
  const T t_scale = bad ? T(NAN) : -kappa * (1 - live) / teacher.terms.sum;
  for (int64_t j = threadIdx.x; j < k; j += blockDim.x) {
    if (ds) {
      const T value = cuda::exp_of(s[j] - student.terms.top) * s_scale - spread;
      ds[j] = j == y ? value - peak : value;
    }
    if (dt) {
      const T value = cuda::exp_of(t[j] - teacher.terms.top) * t_scale + kappa * spread;
      dt[j] = j == y ? value + kappa * (peak - live) : value;
    }
  }
}

template <class T>
const char* run(const CudaLabel& c) {
  Forward<T> p{};
  p.n = c.n, p.k = c.k, p.student_stride = c.student_stride, p.teacher_stride = c.teacher_stride;
  p.student = reinterpret_cast<const T*>(c.student), p.teacher = reinterpret_cast<const T*>(c.teacher);
  p.target = reinterpret_cast<const int64_t*>(c.target), p.ignore_index = c.ignore_index;
  p.label_smoothing = T(c.label_smoothing), p.live_kappa = c.live_kappa;
  p.loss = reinterpret_cast<T*>(c.loss), p.grad_stride = c.grad_stride;
  p.grad_student = reinterpret_cast<T*>(c.grad_student);
  p.grad_teacher = reinterpret_cast<T*>(c.grad_teacher);
  int threads = kWarp;
  while (threads < kMaxThreads && threads * 8 < c.k) threads *= 2;
  return cuda::launch(forward_kernel<T>, c.n, 1, threads, 2 * (threads / kWarp) * sizeof(Row<T>),
                      reinterpret_cast<cuda::Stream>(c.stream), p);
}

}  // namespace

const char* cuda_forward(const CudaLabel& c) {
  const cuda::DeviceGuard guard(c.device);
  if (guard.error()) return guard.error();
  return c.f64 ? run<double>(c) : run<float>(c);
}

}  // namespace label_transport
}  // namespace ucmkd

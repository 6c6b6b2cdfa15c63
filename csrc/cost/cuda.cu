// Costs from features and back on a GPU: what is left of each metric around torch's matrix products.
// The formulas are those of row.h.
#include "core/host_device.h"
#include "core/launch.cuh"
#include "cost/cuda_call.h"
#include "cost/features.h"

namespace ucmkd {
namespace cost {
namespace {

constexpr int kWarp = 32, kThreads = 256;
constexpr int kTile = 16;  // of l1: kTile x kTile pairs a block, kTile features at a time

template <class T>
struct Call {
  Metric metric;
  int64_t n, m, d, classes;
  const T *x, *y;            // (n, d), (m, d)
  T* scale;                  // (n + m,)
  T *cost, *distance;        // (n, m)
  const T* class_cost;       // (n, classes)
  const int64_t* labels;     // (m,)
  T* grad_cost;              // (n, m)
  const int64_t *order, *starts;  // (m,), (classes + 1,)
  T* grad_class;             // (n, classes)
  const T* sums;             // (n,) or (m,)
  T* grad;                   // (n, d) or (m, d)
  bool of_y;
};

UK_HOST_DEVICE bool unit_rows(Metric metric) {
  return metric == Metric::kCosine || metric == Metric::kChordal;
}

template <class T>
__device__ T warp_sum(T x) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x += cuda::shuffle_xor(x, mask);
  return x;
}

// A warp per row of x, then of y.
template <class T>
__global__ void scales_kernel(const __grid_constant__ Call<T> c) {
  const int64_t row = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (row >= c.n + c.m) return;  // the whole warp
  const T* z = row < c.n ? c.x + row * c.d : c.y + (row - c.n) * c.d;
  T square = 0;
  for (int64_t k = lane; k < c.d; k += kWarp) square += z[k] * z[k];
  square = warp_sum(square);
  if (lane == 0) c.scale[row] = !unit_rows(c.metric) ? square : square > 0 ? 1 / cuda::root(square) : square;
}

// |p x - q y|^2, exactly 0 where both pairs are equal.
template <class T>
__device__ T squared_distance(const T* x, T p, const T* y, T q, int64_t d) {
  T total = 0;
  for (int64_t k = 0; k < d; ++k) {
    const T e = (x[k] - y[k]) * p + y[k] * (p - q);
    total += e * e;
  }
  return total;
}

// d(x_i, y_j) from <x_i, y_j>.
template <class T>
__device__ T distance(const Call<T>& c, int64_t i, int64_t j, T product) {
  const T sx = c.scale[i], sy = c.scale[c.n + j];
  if (c.metric == Metric::kCosine) {
    const T cosine = 1 - product * sx * sy;
    return cosine < 0 ? T(0) : cosine;  // NaN stays
  }
  const bool unit = c.metric == Metric::kChordal;
  const T total = unit ? T(sx > 0) + T(sy > 0) : sx + sy;
  T square = total - 2 * (unit ? product * sx * sy : product);
  square = square < 0 ? T(0) : square;
  // |x|^2 + |y|^2 - 2 <x, y> loses all digits where x is near y: such pairs are measured directly.
  if (square * 128 < total)
    square = squared_distance(c.x + i * c.d, unit ? sx : T(1), c.y + j * c.d, unit ? sy : T(1), c.d);
  return c.metric == Metric::kSqeuclidean ? square : cuda::root(square);
}

// The term by class is added; a distance that overflows becomes NaN: it is no forbidden pair.
template <class T>
__device__ void store_cost(const Call<T>& c, int64_t i, int64_t j, T d) {
  const int64_t at = i * c.m + j;
  if (!(d < T(INFINITY))) d = T(NAN);
  if (c.distance) c.distance[at] = d;
  if (c.classes) {
    const int64_t label = c.labels[j];
    d = label >= 0 && label < c.classes ? d + c.class_cost[i * c.classes + label] : T(NAN);
  }
  c.cost[at] = d;
}

template <class T>
__global__ void cost_kernel(const __grid_constant__ Call<T> c) {
  const int64_t count = c.n * c.m, step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < count; at += step)
    store_cost(c, at / c.m, at % c.m, distance(c, at / c.m, at % c.m, c.cost[at]));
}

template <class T>
__global__ void l1_cost_kernel(const __grid_constant__ Call<T> c) {
  T* xs = reinterpret_cast<T*>(cuda::shared_memory());  // (kTile, kTile + 1), rows of x by features
  T* ys = xs + kTile * (kTile + 1);
  const int64_t across = (c.m + kTile - 1) / kTile;
  const int64_t i0 = blockIdx.x / across * kTile, j0 = blockIdx.x % across * kTile;
  const int r = threadIdx.x / kTile, s = threadIdx.x % kTile;
  T total = 0;
  for (int64_t k0 = 0; k0 < c.d; k0 += kTile) {
    const int64_t k = k0 + s;
    xs[r * (kTile + 1) + s] = i0 + r < c.n && k < c.d ? c.x[(i0 + r) * c.d + k] : T(0);
    ys[r * (kTile + 1) + s] = j0 + r < c.m && k < c.d ? c.y[(j0 + r) * c.d + k] : T(0);
    cuda::sync_block();
    for (int e = 0; e < kTile; ++e) {
      const T difference = xs[r * (kTile + 1) + e] - ys[s * (kTile + 1) + e];
      total += difference < 0 ? -difference : difference;
    }
    cuda::sync_block();
  }
  if (i0 + r < c.n && j0 + s < c.m) store_cost(c, i0 + r, j0 + s, total);
}

// dC summed over the columns of each label, in their order: a thread per (row, label).
template <class T>
__global__ void class_kernel(const __grid_constant__ Call<T> c) {
  const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= c.n * c.classes) return;
  const int64_t i = at / c.classes, label = at % c.classes;
  T total = 0;
  for (int64_t e = c.starts[label]; e < c.starts[label + 1]; ++e) total += c.grad_cost[i * c.m + c.order[e]];
  c.grad_class[at] = total;
}

// dC -> W, in place (row.h, weigh_row).
template <class T>
__global__ void weigh_kernel(const __grid_constant__ Call<T> c) {
  const int64_t count = c.n * c.m, step = int64_t(gridDim.x) * blockDim.x;
  const T* distances = c.distance ? c.distance : c.cost;
  const bool unit = unit_rows(c.metric), divides = c.metric == Metric::kChordal || c.metric == Metric::kL2;
  for (int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < count; at += step) {
    T w = c.grad_cost[at];
    if (unit) w *= c.scale[at / c.m] * c.scale[c.n + at % c.m];
    if (divides) w = distances[at] > 0 ? w / distances[at] : T(0);
    if (c.metric == Metric::kSqeuclidean) w *= 2;
    c.grad_cost[at] = w;
  }
}

// grad = W y -> x^ <x^, grad> - grad for unit rows, else sum x - grad: a warp per row. NaN in W stays.
template <class T>
__global__ void finish_gradient_kernel(const __grid_constant__ Call<T> c) {
  const int64_t row = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (row >= (c.of_y ? c.m : c.n)) return;  // the whole warp
  const T* z = (c.of_y ? c.y : c.x) + row * c.d;
  T* g = c.grad + row * c.d;
  T factor;
  if (unit_rows(c.metric)) {
    const T scale = c.scale[c.of_y ? c.n + row : row];
    T along = 0;
    for (int64_t k = lane; k < c.d; k += kWarp) along += z[k] * scale * g[k];
    factor = warp_sum(along) * scale;
  } else {
    factor = c.sums[row];
  }
  for (int64_t k = lane; k < c.d; k += kWarp) g[k] = factor * z[k] - g[k];
}

// dx_i = sum_j dC_ij sign(x_i - y_j), of y likewise: a thread per feature of a row.
template <class T>
__global__ void l1_gradient_kernel(const __grid_constant__ Call<T> c) {
  const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= (c.of_y ? c.m : c.n) * c.d) return;
  const int64_t row = at / c.d, k = at % c.d, others = c.of_y ? c.n : c.m;
  const T mine = (c.of_y ? c.y : c.x)[at];
  const T* other = (c.of_y ? c.x : c.y) + k;
  T total = 0;
  for (int64_t e = 0; e < others; ++e) {
    const T w = c.grad_cost[c.of_y ? e * c.m + row : row * c.m + e], o = other[e * c.d];
    total += mine > o ? w : mine < o ? -w : T(0);
  }
  c.grad[at] = total;
}

template <class T>
T* to(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

template <class T>
Call<T> typed(const CudaCost& c) {
  return {static_cast<Metric>(c.metric), c.n, c.m, c.d, c.classes, to<T>(c.x), to<T>(c.y), to<T>(c.scale),
          to<T>(c.cost), to<T>(c.distance), to<T>(c.class_cost), to<int64_t>(c.labels), to<T>(c.grad_cost),
          to<int64_t>(c.order), to<int64_t>(c.starts), to<T>(c.grad_class), to<T>(c.sums), to<T>(c.grad), c.of_y};
}

// body(float()) or body(double()) on the device of the call.
template <class Body>
const char* dispatch(const CudaCost& c, Body body) {
  const cuda::DeviceGuard guard(c.device);
  if (guard.error()) return guard.error();
  return c.f64 ? body(double()) : body(float());
}

int64_t blocks_for(int64_t threads) { return (threads + kThreads - 1) / kThreads; }
// Grid-strided kernels: enough blocks to fill any device.
int64_t strided(int64_t threads) { return blocks_for(threads) < 4096 ? blocks_for(threads) : 4096; }
cuda::Stream stream_of(const CudaCost& c) { return reinterpret_cast<cuda::Stream>(c.stream); }

}  // namespace

const char* cuda_cost(const CudaCost& c) {
  return dispatch(c, [&](auto t) {
    using T = decltype(t);
    const Call<T> call = typed<T>(c);
    if (const char* refused = cuda::launch(scales_kernel<T>, blocks_for((c.n + c.m) * kWarp), 1, kThreads, 0,
                                           stream_of(c), call))
      return refused;
    if (call.metric == Metric::kL1)
      return cuda::launch(l1_cost_kernel<T>,
                          (c.n + kTile - 1) / kTile * ((c.m + kTile - 1) / kTile), 1, kTile * kTile,
                          2 * kTile * (kTile + 1) * sizeof(T), stream_of(c), call);
    return cuda::launch(cost_kernel<T>, strided(c.n * c.m), 1, kThreads, 0, stream_of(c), call);
  });
}

const char* cuda_weigh(const CudaCost& c) {
  return dispatch(c, [&](auto t) {
    using T = decltype(t);
    const Call<T> call = typed<T>(c);
    if (call.grad_class)
      if (const char* refused = cuda::launch(class_kernel<T>, blocks_for(c.n * c.classes), 1, kThreads, 0,
                                             stream_of(c), call))
        return refused;
    if (call.metric == Metric::kL1) return static_cast<const char*>(nullptr);
    return cuda::launch(weigh_kernel<T>, strided(c.n * c.m), 1, kThreads, 0, stream_of(c), call);
  });
}

const char* cuda_finish_gradient(const CudaCost& c) {
  return dispatch(c, [&](auto t) {
    using T = decltype(t);
    const Call<T> call = typed<T>(c);
    const int64_t rows = c.of_y ? c.m : c.n;
    if (call.metric == Metric::kL1)
      return cuda::launch(l1_gradient_kernel<T>, blocks_for(rows * c.d), 1, kThreads, 0, stream_of(c), call);
    return cuda::launch(finish_gradient_kernel<T>, blocks_for(rows * kWarp), 1, kThreads, 0, stream_of(c),
                        call);
  });
}

}  // namespace cost
}  // namespace ucmkd

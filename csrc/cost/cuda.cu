// Costs from features and back on a GPU: what is left of each metric around torch's matrix products.
// The formulas are those of row.h.
#include "core/pack.h"
#include "cost/near.cuh"

namespace ucmkd {
namespace cost {
namespace {

constexpr int kTile = 16;  // of sums: kTile x kTile pairs a block, kTile features at a time

// A warp per row of x, then of y.
template <class T, class F>
__global__ void scales_kernel(const __grid_constant__ Call<T, F> all) {
  const Call<T, F> c = all.of_problem();
  const int64_t row = c.thread() / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (row >= c.n + c.m) return;  // the whole warp
  const bool of_x = row < c.n;
  const F* z = of_x ? c.x + row * c.d : c.y + (row - c.n) * c.d;
  T square = 0;
  for (int64_t k = lane; k < c.d; k += kWarp) {
    const T e = cuda::wide(z[k]);
    square += e * e;
  }
  square = warp_sum(square);
  const T scale = !normalised(c.metric) ? square : square < cost::kLeastSquare<T> ? T(0) : 1 / cuda::root(square);
  if (lane == 0) (of_x ? c.scale_x[row] : c.scale_y[row - c.n]) = scale;
}

template <class T, class F>
__device__ T with_class(const Call<T, F>& c, int64_t i, int64_t j, T d) {
  d = finite_or_nan(d);
  if (c.distance) c.distance[i * c.m + j] = d;
  return c.classes ? with_class_term(d, c.class_cost + i * c.classes, c.classes, c.labels[j]) : d;
}

// Products -> costs. Near pairs are marked, a bit each, and measured when the rest is stored.
template <class T, class F, int kVec>
__global__ void cost_kernel(const __grid_constant__ Call<T, F> all) {
  using Vec = Pack<T, kVec>;
  const Call<T, F> c = all.of_problem();
  const Piece at(c, kVec);
  if (at.column >= c.m) return;
  Vec rows[Piece::kRows];
#pragma unroll
  for (int r = 0; r < Piece::kRows; ++r)
    if (at.row + r * at.down < c.n)
      rows[r] = *reinterpret_cast<const Vec*>(c.cost + (at.row + r * at.down) * c.m + at.column);
  Vec sy;
#pragma unroll
  for (int q = 0; q < kVec; ++q) sy.e[q] = c.scale_y[at.column + q];
  unsigned found = 0;
#pragma unroll
  for (int r = 0; r < Piece::kRows; ++r) {
    const int64_t i = at.row + r * at.down;
    if (i >= c.n) continue;
    const T sx = c.scale_x[i];
#pragma unroll
    for (int q = 0; q < kVec; ++q) {
      bool is_near = false;
      const T d = distance(c.metric, sx, sy.e[q], rows[r].e[q], &is_near);
      found |= unsigned(is_near) << (r * kVec + q);
      rows[r].e[q] = with_class(c, i, at.column + q, d);
    }
    *reinterpret_cast<Vec*>(c.cost + i * c.m + at.column) = rows[r];
  }
  for (int bit = 0; found >> bit; ++bit) {
    if (!(found >> bit & 1)) continue;
    const int64_t i = at.row + bit / kVec * at.down, j = at.column + bit % kVec;
    const T square = squared_distance<T>(normalised(c.metric), c.given_x + i * c.d, c.given_y + j * c.d, c.d);
    c.cost[i * c.m + j] = with_class(c, i, j, of_square(c.metric, square));
  }
}

template <class T, class F>
__global__ void sum_cost_kernel(const __grid_constant__ Call<T, F> all) {
  const Call<T, F> c = all.of_problem();
  T* xs = reinterpret_cast<T*>(cuda::shared_memory());  // (kTile, kTile + 1), rows of x by features
  T* ys = xs + kTile * (kTile + 1);
  const int64_t across = (c.m + kTile - 1) / kTile;
  const int64_t i0 = c.block / across * kTile, j0 = c.block % across * kTile;
  const int r = threadIdx.x / kTile, s = threadIdx.x % kTile;
  T total = 0;
  for (int64_t k0 = 0; k0 < c.d; k0 += kTile) {
    const int64_t k = k0 + s;
    xs[r * (kTile + 1) + s] = i0 + r < c.n && k < c.d ? T(cuda::wide(c.x[(i0 + r) * c.d + k])) : T(0);
    ys[r * (kTile + 1) + s] = j0 + r < c.m && k < c.d ? T(cuda::wide(c.y[(j0 + r) * c.d + k])) : T(0);
    cuda::sync_block();
    for (int e = 0; e < kTile; ++e) total += term(c.metric, xs[r * (kTile + 1) + e], ys[s * (kTile + 1) + e]);
    cuda::sync_block();
  }
  if (i0 + r < c.n && j0 + s < c.m) c.cost[(i0 + r) * c.m + j0 + s] = with_class(c, i0 + r, j0 + s, total);
}

// dC summed over the columns of each label, in their order: a thread per (row, label).
template <class T, class F>
__global__ void class_kernel(const __grid_constant__ Call<T, F> all) {
  const Call<T, F> c = all.of_problem();
  const int64_t at = c.thread();
  if (at >= c.n * c.classes) return;
  const int64_t i = at / c.classes, label = at % c.classes;
  T total = 0;
  for (int64_t e = c.starts[label]; e < c.starts[label + 1]; ++e) total += c.grad_cost[i * c.m + c.order[e]];
  c.grad_class[at] = total;
}

// dC -> W, in place (row.h, weigh_row). Returns whether a pair is near.
template <int kVec, class T, class F>
__device__ bool weigh_piece(const Call<T, F>& c, const Piece& at) {
  using Vec = Pack<T, kVec>;
  const T* distances = c.distance ? c.distance : c.cost;
  const bool unit = normalised(c.metric), squares = by_difference(c.metric);
  Vec rows[Piece::kRows], by[Piece::kRows], sy;
#pragma unroll
  for (int r = 0; r < Piece::kRows; ++r) {
    const int64_t first = (at.row + r * at.down) * c.m + at.column;
    if (at.row + r * at.down >= c.n) continue;
    rows[r] = *reinterpret_cast<const Vec*>(c.grad_cost + first);
    if (c.marks) by[r] = *reinterpret_cast<const Vec*>(distances + first);
  }
#pragma unroll
  for (int q = 0; q < kVec; ++q) sy.e[q] = c.scale_y[at.column + q];
  bool found = false;
#pragma unroll
  for (int r = 0; r < Piece::kRows; ++r) {
    const int64_t i = at.row + r * at.down;
    if (i >= c.n) continue;
    const T sx = c.scale_x[i];
    Vec w = rows[r];
#pragma unroll
    for (int q = 0; q < kVec; ++q) w.e[q] *= unit ? sx * sy.e[q] : T(1);
    if (c.marks) {
#pragma unroll
      for (int q = 0; q < kVec; ++q) found = found || near_at(c, by[r].e[q], sx, sy.e[q]);
    }
    if (squares) {
#pragma unroll
      for (int q = 0; q < kVec; ++q) w.e[q] = weight(c.metric, w.e[q], by[r].e[q]);
    }
    store_together(c.grad_cost + i * c.m + at.column, w);
  }
  return found;
}

// The weights, and a mark for each piece that holds a near pair.
template <class T, class F, int kVec>
__global__ void weigh_kernel(const __grid_constant__ Call<T, F> all) {
  const Call<T, F> c = all.of_problem();
  const Piece at(c, kVec);
  bool found = at.column < c.m && weigh_piece<kVec>(c, at);
  if (!c.marks) return;
  found = cuda::any_of_block(found);
  if (threadIdx.x == 0) c.marks[c.block] = found;
}

// One of the two gradients, and the features that it is of.
template <class T, class F>
struct Side {
  const F *mine, *other;
  int64_t row, others;  // its row, and how many there are on the other side
  const T *scale, *sums;
  T* grad;  // of all rows

  // A row of x, then of y, where both are wanted.
  __device__ Side(const Call<T, F>& c, int64_t at, bool* of_y) : row(at) {
    *of_y = !c.grad_x || at >= c.n;
    if (*of_y && c.grad_x) row -= c.n;
    mine = *of_y ? c.y : c.x, other = *of_y ? c.x : c.y, others = *of_y ? c.n : c.m;
    scale = *of_y ? c.scale_y : c.scale_x, sums = *of_y ? c.sums_y : c.sums_x, grad = *of_y ? c.grad_y : c.grad_x;
  }
};

// grad = W y -> x^ <x^, grad> - grad for unit rows, else sum x - grad: a warp per row. NaN in W stays.
template <class T, class F>
__global__ void finish_gradient_kernel(const __grid_constant__ Call<T, F> all) {
  const Call<T, F> c = all.of_problem();
  const int64_t at = c.thread() / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (at >= c.gradient_rows()) return;  // the whole warp
  bool of_y;
  const Side<T, F> side(c, at, &of_y);
  const F* z = side.mine + side.row * c.d;
  T* g = side.grad + side.row * c.d;
  T factor;
  if (normalised(c.metric)) {
    const T scale = side.scale[side.row];
    T along = 0;
    for (int64_t k = lane; k < c.d; k += kWarp) along += cuda::wide(z[k]) * scale * g[k];
    factor = warp_sum(along) * scale;
  } else {
    factor = side.sums[side.row];
  }
  for (int64_t k = lane; k < c.d; k += kWarp) g[k] = factor * cuda::wide(z[k]) - g[k];
}

// Of a sum: dx_i = sum_j dC_ij dterm/dx, of y likewise: a thread per feature of a row.
template <class T, class F>
__global__ void sum_gradient_kernel(const __grid_constant__ Call<T, F> all) {
  const Call<T, F> c = all.of_problem();
  const int64_t k = c.thread() % c.d;
  if (c.thread() / c.d >= c.gradient_rows()) return;
  bool of_y;
  const Side<T, F> side(c, c.thread() / c.d, &of_y);
  const T mine = cuda::wide(side.mine[side.row * c.d + k]);
  const F* other = side.other + k;
  T total = 0;
  for (int64_t e = 0; e < side.others; ++e) {
    const T w = c.grad_cost[of_y ? e * c.m + side.row : side.row * c.m + e];
    total += term_gradient<T>(c.metric, w, mine, cuda::wide(other[e * c.d]));
  }
  side.grad[side.row * c.d + k] = total;
}

template <class T>
T* to(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

template <class T, class F>
Call<T, F> typed(const CudaCost& c) {
  return {static_cast<Metric>(c.metric),
          c.n,
          c.m,
          c.d,
          c.classes,
          to<F>(c.x),
          to<F>(c.y),
          to<F>(c.given_x ? c.given_x : c.x),
          to<F>(c.given_y ? c.given_y : c.y),
          to<T>(c.scale_x),
          to<T>(c.scale_y),
          to<T>(c.cost),
          to<T>(c.distance),
          to<T>(c.class_cost),
          to<int64_t>(c.labels),
          to<T>(c.grad_cost),
          to<int64_t>(c.order),
          to<int64_t>(c.starts),
          to<T>(c.grad_class),
          to<T>(c.grad_x),
          to<T>(c.grad_y),
          c.adds_to_y,
          to<T>(c.sums_x),
          to<T>(c.sums_y),
          to<int>(c.marks),
          1,
          0,
          0,
          0,
          0};
}

// body(call) with the call in its types, on its device.
template <class Body>
const char* dispatch(const CudaCost& c, Body body) {
  const cuda::DeviceGuard guard(c.device);
  if (guard.error()) return guard.error();
  switch (static_cast<FeatureType>(c.feature_type)) {
    case FeatureType::kHalf: return body(typed<float, cuda::Half>(c));
    case FeatureType::kBFloat16: return body(typed<float, cuda::BFloat16>(c));
    default: return c.f64 ? body(typed<double, double>(c)) : body(typed<float, float>(c));
  }
}

int64_t blocks_for(int64_t threads) { return (threads + kThreads - 1) / kThreads; }
template <class T, class F>
const char* start(const CudaCost& c, void (*kernel)(Call<T, F>), int64_t blocks, Call<T, F> call,
                  int threads = kThreads, size_t shared = 0) {
  call.blocks = blocks;
  return cuda::launch(kernel, blocks * c.batch, 1, threads, shared, reinterpret_cast<cuda::Stream>(c.stream), call);
}

// Whether the rows of the matrices begin where vectors of kVec elements may, in every problem.
template <int kVec, class T, class F>
bool takes_vectors(const Call<T, F>& c) {
  auto address = [](const T* matrix) { return reinterpret_cast<uintptr_t>(matrix); };
  const uintptr_t addresses = address(c.cost) | address(c.grad_cost) | address(c.distance);
  return c.m % kVec == 0 && addresses % (kVec * sizeof(T)) == 0;
}

// The call for kernels over pieces of the matrix.
template <class T, class F>
Call<T, F> in_pieces(Call<T, F> call, int vec) {
  while ((int64_t(vec) << call.across) < call.m && 1 << call.across < kThreads) ++call.across;
  while (1 << call.piece_rows < (kThreads >> call.across) * Piece::kRows) ++call.piece_rows;
  while (1 << call.piece_columns < vec << call.across) ++call.piece_columns;
  return call;
}
template <class T, class F>
const char* start_pieces(const CudaCost& c, void (*kernel)(Call<T, F>), int vec, Call<T, F> call) {
  call = in_pieces(call, vec);
  return start(c, kernel, call.pieces_across() * call.pieces_down(), call);
}

// The weights, then near pairs out of them. A null `marks` says that the metric has none.
template <int kVec, class T, class F>
const char* weigh(const CudaCost& c, const Call<T, F>& given) {
  const Call<T, F> call = in_pieces(given, kVec);
  const char* refused = start_pieces(c, weigh_kernel<T, F, kVec>, kVec, given);
  if (refused || !call.marks) return refused;
  if (call.grad_x) refused = start(c, near_rows_kernel, blocks_for(c.n * kWarp), call);
  if (refused) return refused;
  return start(c, near_columns_kernel, (c.m + kWarp - 1) / kWarp, call, kThreads, kThreads * sizeof(unsigned));
}

}  // namespace

const char* cuda_scales(const CudaCost& c) {
  return dispatch(c, [&](auto call) { return start(c, scales_kernel, blocks_for((c.n + c.m) * kWarp), call); });
}

const char* cuda_cost(const CudaCost& c) {
  return dispatch(c, [&](auto call) {
    using T = std::decay_t<decltype(*call.cost)>;
    using F = std::decay_t<decltype(*call.x)>;
    constexpr int kVec = 16 / sizeof(T);
    if (!summed(call.metric))
      return takes_vectors<kVec>(call) ? start_pieces(c, cost_kernel<T, F, kVec>, kVec, call)
                                       : start_pieces(c, cost_kernel<T, F, 1>, 1, call);
    const int64_t tiles = (c.n + kTile - 1) / kTile * ((c.m + kTile - 1) / kTile);
    const size_t shared = 2 * kTile * (kTile + 1) * sizeof(*call.cost);
    return start(c, sum_cost_kernel, tiles, call, kTile * kTile, shared);
  });
}

int64_t cuda_cost_marks(const CudaCost& c) {
  const Call<float, float> call = in_pieces(typed<float, float>(c), 1);  // the smallest pieces
  return c.batch * call.pieces_across() * call.pieces_down();
}

const char* cuda_weigh(const CudaCost& c) {
  return dispatch(c, [&](auto call) -> const char* {
    if (call.grad_class)
      if (const char* refused = start(c, class_kernel, blocks_for(c.n * c.classes), call)) return refused;
    constexpr int kVec = 16 / sizeof(*call.cost);
    if (summed(call.metric)) return nullptr;
    return takes_vectors<kVec>(call) ? weigh<kVec>(c, call) : weigh<1>(c, call);
  });
}

const char* cuda_finish_gradient(const CudaCost& c) {
  return dispatch(c, [&](auto call) -> const char* {
    const int64_t rows = call.gradient_rows();
    if (rows == 0) return nullptr;
    return summed(call.metric) ? start(c, sum_gradient_kernel, blocks_for(rows * c.d), call)
                               : start(c, finish_gradient_kernel, blocks_for(rows * kWarp), call);
  });
}

}  // namespace cost
}  // namespace ucmkd

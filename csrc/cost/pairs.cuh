// One call of the cost kernels in its types, and what they say about one pair of features. The formulas are those of row.h.
#pragma once
#include "core/host_device.h"
#include "core/launch.cuh"
#include "cost/cuda_call.h"
#include "cost/features.h"

namespace ucmkd {
namespace cost {
namespace {

constexpr int kWarp = 32, kThreads = 256;

// F: the type of the features, T or a half-precision one that is widened as it is read.
template <class T, class F>
struct Call {
  Metric metric;
  int64_t n, m, d, classes;
  const F *x, *y;  // (n, d), (m, d)
  const F *given_x, *given_y;
  T *scale_x, *scale_y;           // (n,), (m,)
  T *cost, *distance;             // (n, m)
  const T* class_cost;            // (n, classes)
  const int64_t* labels;          // (m,)
  T* grad_cost;                   // (n, m)
  const int64_t *order, *starts;  // (m,), (classes + 1,)
  T* grad_class;                  // (n, classes)
  T *grad_x, *grad_y;             // (n, d), (m, d), or null
  bool adds_to_y;
  const T *sums_x, *sums_y;       // (n,), (m,)
  int* marks;                     // one for each piece
  int64_t blocks;                 // of each problem
  int64_t block;                  // of this problem, once of_problem has set it
  int across;                     // see Piece
  int piece_rows, piece_columns;  // their binary logarithms

  // The problem that this block works on; terms by class are for one problem.
  __device__ Call of_problem() const {
    const int64_t k = blockIdx.x / blocks;
    Call c = *this;
    c.block = blockIdx.x % blocks;
    c.x += k * n * d, c.y += k * m * d, c.scale_x += k * n, c.scale_y += k * m;
    c.given_x += k * n * d, c.given_y += k * m * d;
    if (grad_x) c.grad_x += k * n * d;
    if (grad_y) c.grad_y += k * m * d;
    if (marks) c.marks += k * pieces_across() * pieces_down();
    c.cost += k * n * m, c.grad_cost += k * n * m, c.sums_x += k * n, c.sums_y += k * m;
    return c;
  }
  UK_HOST_DEVICE int64_t pieces_across() const { return (m + (int64_t(1) << piece_columns) - 1) >> piece_columns; }
  UK_HOST_DEVICE int64_t pieces_down() const { return (n + (int64_t(1) << piece_rows) - 1) >> piece_rows; }
  UK_HOST_DEVICE int64_t gradient_rows() const { return (grad_x ? n : 0) + (grad_y ? m : 0); }
  __device__ int64_t thread() const { return block * blockDim.x + threadIdx.x; }
  __device__ int64_t threads() const { return blocks * blockDim.x; }
};

template <class T>
__device__ T warp_sum(T x) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x += cuda::shuffle_xor(x, mask);
  return x;
}

// 1 / |x| in double.
template <class F>
__device__ double inverse_length(const F* x, int64_t d) {
  double total = 0;
  for (int64_t k = 0; k < d; ++k) total += double(cuda::wide(x[k])) * double(cuda::wide(x[k]));
  return 1 / cuda::root(total);
}

// What a feature of near rows differs by, scaled to unit length in double where the metric is; 0 for equal rows.
template <class T, class F>
__device__ T difference(bool unit, const F* x, double p, const F* y, double q, int64_t k) {
  if (!unit) return cuda::wide(x[k]) - cuda::wide(y[k]);
  const double x_k = cuda::wide(x[k]), y_k = cuda::wide(y[k]);
  return T((x_k - y_k) * p + y_k * (p - q));
}

template <class T, class F>
__device__ T squared_distance(bool unit, const F* x, const F* y, int64_t d) {
  const double p = unit ? inverse_length(x, d) : 1, q = unit ? inverse_length(y, d) : 1;
  T total = 0;
  for (int64_t k = 0; k < d; ++k) {
    const T e = difference<T>(unit, x, p, y, q, k);
    total += e * e;
  }
  return unit && !(total > kParallel) ? T(0) : total;
}

// Pairs that |x|^2 + |y|^2 - 2 <x, y> loses (row.h).
template <class T>
__device__ bool near(T square, T total) {
  return square * 128 < total;
}

// d(x_i, y_j) from <x_i, y_j>; *is_near: it is lost in rounding, and is to be taken from the differences.
template <class T>
__device__ T distance(Metric metric, T sx, T sy, T product, bool* is_near) {
  const Kind kind = kind_of(metric);
  if (kind == Kind::kCosine) {
    const T cosine = 1 - product * sx * sy;
    return cosine < 0 ? T(0) : cosine;  // NaN stays
  }
  const bool unit = kind == Kind::kUnitSquare;
  const T total = unit ? T(sx > 0) + T(sy > 0) : sx + sy;
  T square = total - 2 * (unit ? product * sx * sy : product);
  square = square < 0 ? T(0) : square;
  *is_near = near(square, total);
  return of_square(metric, square);
}

// A distance that overflows becomes NaN: it is no forbidden pair.
template <class T>
__device__ T finite_or_nan(T d) {
  return d < T(INFINITY) ? d : T(NAN);
}
// d with the term of its row by class; NaN for a label that there is not.
template <class T>
__device__ T with_class_term(T d, const T* of_row, int64_t classes, int64_t label) {
  return label >= 0 && label < classes ? d + of_row[label] : T(NAN);
}

}  // namespace
}  // namespace cost
}  // namespace ucmkd

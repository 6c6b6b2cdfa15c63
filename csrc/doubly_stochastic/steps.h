// Which normalisations a call is made of. A step scales all columns or all rows; steps alternate. Kernels begin with
// columns: where rows come first, they are given the transposed matrix.
#pragma once
#include <stdint.h>

#include "core/host_device.h"

namespace ucmkd {
namespace doubly_stochastic {

struct Steps {
  int64_t rows, columns;  // of the matrix as kernels see it, p x q
  bool transposed;        // it is that of the logits turned over
  bool added;             // eps is added to the softmax of the rows (never transposed); else it is exp(logits)
  int64_t count;          // of steps
  double column_sum, row_sum;

  UK_HOST_DEVICE int64_t column_steps() const { return (count + 1) / 2; }
  UK_HOST_DEVICE int64_t row_steps() const { return count / 2; }
};

// exp, columns first:      C R C R ...            softmax, columns first:  S C R C R ...
// exp, rows first:         R C R C ...            softmax, rows first:     S C R C ...
//
// S is the softmax, which is the first normalisation of the rows. Without eps it is R on exp, and is taken so.
UK_HOST_DEVICE Steps make_steps(int64_t n, int64_t m, int64_t n_iter, bool eps, bool softmax, bool rows_first) {
  Steps s{};
  s.added = softmax && eps;
  s.count = 2 * n_iter;
  if (softmax && !rows_first && !eps) ++s.count;
  if (softmax && rows_first && eps) --s.count;
  s.transposed = !s.added && (softmax || rows_first);
  const double of_columns = double(n) / double(m);
  s.rows = s.transposed ? m : n;
  s.columns = s.transposed ? n : m;
  s.column_sum = s.transposed ? 1 : of_columns;
  s.row_sum = s.transposed ? of_columns : 1;
  return s;
}

// Within these the scalings are computed without shifts, or trusted.
template <class T>
struct Range;
template <>
struct Range<float> {
  static constexpr float kNarrow = 16;     // largest |logit| that needs no shift
  static constexpr float kLeast = 1e-18f;  // scalings outside of these: the log domain
  static constexpr float kMost = 1e18f;
  static constexpr float kPeak = 1e27f;  // entries below exp(-87) were dropped: max u max v up to which they stay so
  static constexpr float kDropped = -87.33f;  // where exp gives 0
};
template <>
struct Range<double> {
  static constexpr double kNarrow = 100;
  static constexpr double kLeast = 1e-140;
  static constexpr double kMost = 1e140;
  static constexpr double kPeak = 1e280;
  static constexpr double kDropped = -708.39;
};

}  // namespace doubly_stochastic
}  // namespace ucmkd

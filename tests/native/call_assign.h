// Both entry functions of balanced assignments, one after the other as Python calls them, on buffers of exactly the
// stated sizes.
#pragma once
#include "assign/entry.h"
#include "call.h"

namespace ucmkd {
namespace test {

template <class T>
struct Assigned {
  int64_t n, k, stride;
  Buffer<uint8_t> bytes;  // of the scores, of whichever type
  Buffer<T> weight, level, scale, kept;
  Buffer<double> log_sum, sum;
  Buffer<uint8_t> out;
  Element type;

  static int64_t size_of(Element type) { return type == Element::kDouble ? 8 : type == Element::kFloat ? 4 : 2; }
  Assigned(int64_t n, int64_t k, int64_t stride, Element type, int64_t shift)
      : n(n), k(k), stride(stride), bytes(((n - 1) * stride + k) * size_of(type), 0, shift * size_of(type)),
        weight(n, 1, shift), level(k, -T(INFINITY), shift), scale(k, 1, shift),
        kept((n - 1) * stride + k, T(NAN), shift), log_sum(k, 0, shift), sum(k, 0, shift),
        out(((n - 1) * stride + k) * size_of(type), 0xff, shift * size_of(type)), type(type) {}
  Assigned(const Assigned&) = delete;

  assign::Rows<T> rows(double rate, bool weighted) {
    return {n, k, bytes.data(), type, stride, weighted ? weight.data() : nullptr, T(rate), 1};
  }
  // The first sweep, log-sums, sums of a sweep whose exponentials are kept and of one that finds them, and the end.
  // Returns the sums of the columns.
  std::vector<double> run(double rate, bool weighted, bool keeps, bool in_place) {
    for (int64_t j = 0; j < k; ++j) level[j] = 0;
    assign::Sweep<T> sweep{};
    sweep.rows = rows(rate, weighted);
    sweep.level = level.data(), sweep.scale = scale.data();
    sweep.kept = keeps ? kept.data() : nullptr, sweep.kept_stride = stride;
    sweep.sum = sum.data(), sweep.first = true;
    assign::sweep(sweep);
    const bool usable = sweep.bad_row < 0 && sweep.lost_row < 0;
    if (!usable) return {};
    for (int64_t j = 0; j < k; ++j) level[j] = -T(INFINITY);
    assign::Columns<T> columns{};
    columns.rows = rows(rate, weighted);
    columns.level = level.data(), columns.sum = log_sum.data();
    assign::columns(columns);
    for (int64_t j = 0; j < k; ++j) {
      sum[j] = 0;
      scale[j] = level[j] == -T(INFINITY) ? T(0) : T(1 / (1e-30 + log_sum[j]));
      if (scale[j] == 0) level[j] = INFINITY;
    }
    sweep.first = false;
    assign::sweep(sweep);
    if (sweep.lost_row >= 0) return {};
    sweep.made = keeps;
    assign::sweep(sweep);
    sweep.sum = nullptr, sweep.out_stride = stride, sweep.out_type = type;
    sweep.out = in_place && !keeps ? bytes.data() : out.data();
    assign::sweep(sweep);
    return std::vector<double>(sum.data(), sum.data() + k);
  }
};

}  // namespace test
}  // namespace ucmkd

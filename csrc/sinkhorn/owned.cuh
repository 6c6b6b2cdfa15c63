// The sweep with one exponential per element: threads own columns.
//
//   e_ij = step.entry(shift_j, C_ij, power_i)     s_i = sum_j e_ij w_j     y_i = step.value(i, s_i)     acc_j += e_ij y_i
//
// and step.store(i, s_i) on one thread per row, behind the last row.
// A thread keeps the potentials and the sums of its columns in registers for all rows of its block, and takes kR rows
// at a time: the next ones are on their way while these are summed. Potentials are subtracted before anything is
// scaled: what remains of g - C is small, and its rounding with it. What blocks have gathered for the columns is
// put together in a fixed order: results do not depend on scheduling.
#pragma once
#include "sinkhorn/owned_rows.cuh"

namespace ucmkd {
namespace sinkhorn {

// A row that is not there: its entries are 0, as those of a column whose shift is -inf.
template <class T>
__device__ inline void leave_out(T& power) {
  power = -T(INFINITY);
}
template <class T>
__device__ inline void leave_out(RowValue<T>& y) {
  y.potential = -T(INFINITY);
}

template <class T, int kQ, int kR, int kKeep, bool kCluster = false>
struct Owned : OwnedRows<T, kQ, kR, kKeep, kCluster> {
  using Rows = OwnedRows<T, kQ, kR, kKeep, kCluster>;
  using Rows::at, Rows::count, Rows::group, Rows::groups, Rows::red, Rows::row_sum, Rows::rows, Rows::shifts,
      Rows::span;
  using Rows::col_begin, Rows::col_end, Rows::lane, Rows::m, Rows::rank, Rows::scratch, Rows::size, Rows::slots,
      Rows::sync;
  using Rows::column, Rows::cost_of, Rows::own_parts, Rows::parts, Rows::parts_of, Rows::parts_stride, Rows::row_of,
      Rows::steps, Rows::strip, Rows::stride;
  using Rows::kColumns, Rows::kLane, Rows::kSharedShift, Rows::kTwice;
  using Rows::over, Rows::threads, Rows::tid, Rows::turn, Rows::vectors, Rows::warp, Rows::warps, Rows::weights;
  using Rows::Rows;

  // The sums of kN numbers over the threads of each group. A lane gets that of number lane / (32 / kN).
  template <int kN>
  __device__ T group_sums(T (&x)[kN]) {
    constexpr int kLanes = kWarp / kN;
    constexpr int kMost = max_threads(sizeof(T)) / kWarp;
    const int warps_of_group = span / kWarp, mine = lane / kLanes, slot = lane % kLanes;
    const T of_warp = fold<kN, kWarp / 2>(x, lane);
    T* buffer = red + (turn ^= 1) * (2 * kR * warps) + group * kN * warps_of_group;
    if (slot == 0) buffer[mine * warps_of_group + at / kWarp] = of_warp;
    cuda::sync_block();
    T sum = 0;
#pragma unroll
    for (int w = 0; w < kMost; w += kLanes)
      if (w + slot < warps_of_group) sum += buffer[mine * warps_of_group + w + slot];
#pragma unroll
    for (int mask = kLanes / 2; mask > 0; mask /= 2) sum += cuda::shuffle_xor(sum, mask);
    return sum;
  }

  // What a sweep needs of this thread's columns: here, or in shared memory, where this thread alone reads it.
  struct Columns {
    T shift[kColumns][4], weight[kColumns][4];
  };
  template <class Step>
  __device__ void take_shifts(const Step& step, Columns& columns) const {
    take(columns.shift, shifts, -T(INFINITY), [&](int j) { return step.shift(j); });
  }
  template <class Step>
  __device__ void take_weights(const Step& step, Columns& columns) const {
    if constexpr (Step::kWeighted && !kTwice)
      take(columns.weight, weights, T(0), [&](int j) { return step.weight(j); });
  }

  // One pass over the rows of this block. Ends with the crew's sums of columns in `parts`, and a barrier of the crew.
  // `before` runs when the first rows are on their way, ahead of all that the step is asked for. It may wait for a barrier
  // at which this block has arrived; the arrival itself would wait for those rows.
  template <class Step>
  __device__ void sweep(Step& step) {
    sweep(step, [] {});
  }
  template <class Step, class Before>
  __device__ void sweep(Step& step, Before before) {
    Columns columns;
    sweep_with(step, columns, [&] {
      before();
      take_shifts(step, columns), take_weights(step, columns);
    });
  }
  // With what has been taken of the columns, or is once the first rows are on their way.
  template <class Step>
  __device__ void sweep_with(Step& step, Columns& columns) {
    sweep_with(step, columns, [] {});
  }
  template <class Step, class Take>
  __device__ void sweep_with(Step& step, Columns& columns, Take take_columns) {
    T acc[kQ][4] = {};
    if ((!Step::kOnce || kSharedShift) && vectors())
      pass<true>(step, columns, acc, take_columns);
    else
      pass<false>(step, columns, acc, take_columns);
    lay_out(acc);
    bool wrong = false;
    if constexpr (Step::kMends)
      wrong = cuda::any_of_block(step.wrong);
    else if (Step::kRows || groups > 1)
      cuda::sync_block();
    if constexpr (Step::kRows) {  // by the last threads: the first ones have the most columns to publish
#pragma unroll 1
      for (int row = threads - 1 - tid; row < count; row += threads) step.store(row, row_sum[row]);
    }
    if constexpr (Step::kMends)
      if (wrong) {
        cuda::sync_block();
        mend(step, acc);
        lay_out(acc);
        cuda::sync_block();
      }
    publish(acc);
    sync();
  }

  // The largest of what the bodies of `columns` found, none of them negative, the same on every thread: offered before a
  // barrier of the crew, read behind it, and offered again behind another. In a grid the first warp runs the bodies.
  __device__ void offer(T found) const {
    found = warp_largest(found);
    if (lane == 0 && (size == 1 || warp == 0)) offers()[size == 1 ? warp : rank] = found;
  }
  __device__ T largest_offer() const {
    const T* offer = offers();
    T most = 0;
#pragma unroll 4
    for (int k = lane; k < (size == 1 ? warps : size); k += kWarp) most = cuda::larger_of(most, offer[k]);
    return warp_largest(most);
  }

  // body(j, sum of column j) on one thread per column of this block. A barrier of the block must follow before the next.
  template <class Body>
  __device__ void columns(Body body) {
    if (size == 1) {
      over(0, m, [&](int j) { body(j, parts[j]); });
      return;
    }
    const int log_width = log_strip(col_end - col_begin), width = 1 << log_width, slices = threads >> log_width;
#pragma unroll 1
    for (int first = col_begin; first < col_end; first += width) {
      if (first > col_begin) cuda::sync_block();  // the strip may still be read from the round before
      const int j = first + (tid & (width - 1));
      T sum = 0;
      if (j < col_end)
#pragma unroll 1
        for (int s = tid >> log_width; s < size; s += kAtOnce * slices) {
          T x[kAtOnce];
#pragma unroll
          for (int k = 0; k < kAtOnce; ++k) x[k] = s + k * slices < size ? parts_of(s + k * slices)[j] : T(0);
#pragma unroll
          for (int k = 0; k < kAtOnce; ++k) sum += x[k];
        }
      for (int mask = kWarp / 2; mask >= width; mask /= 2) sum += cuda::shuffle_xor(sum, mask);
      strip[tid] = sum;
      cuda::sync_block();
      if (warp > 0) continue;
      T all = 0;
#pragma unroll 4
      for (int w = lane >> log_width; w < warps; w += kWarp >> log_width)
        all += strip[w * kWarp + (lane & (width - 1))];
      for (int mask = kWarp / 2; mask >= width; mask /= 2) all += cuda::shuffle_xor(all, mask);
      if (lane < width && j < col_end) body(j, all);
    }
  }

 private:
  static constexpr int kAtOnce = 6;  // sums of blocks that are on their way to a thread

  // of(j) of this thread's columns, `none` where there is none.
  template <class Of>
  __device__ void take(T (&to)[kColumns][4], T* shared, T none, Of of) const {
#pragma unroll
    for (int q = 0; q < kQ; ++q) {
      T(&four)[4] = to[kSharedShift ? 0 : q];
#pragma unroll
      for (int v = 0; v < 4; ++v) four[v] = column(q) + v < m ? of(column(q) + v) : none;
      if constexpr (kSharedShift) cuda::store_four(shared + column(q), four);
    }
  }

  __device__ T* offers() const { return reinterpret_cast<T*>(size == 1 ? scratch : slots); }
  __device__ static float warp_largest(float x) { return cuda::largest(x); }
  __device__ static double warp_largest(double x) {
    for (int mask = kWarp / 2; mask > 0; mask /= 2) x = cuda::larger_of(x, cuda::shuffle_xor(x, mask));
    return x;
  }

  template <bool kVector, class Step, class Take>
  __device__ void pass(Step& step, Columns& columns, T (&acc)[kQ][4], Take take_columns) {
    if constexpr (kTwice)
      two_looks<kVector>(step, acc, take_columns);
    else
      one_look<kVector>(step, columns, acc, take_columns);
  }

  // Rows too long for their entries to stay in registers are read again, from the second-level cache: a row at a
  // time, in parts, the next part on its way.
  template <bool kVector, class Step, class Take>
  __device__ void two_looks(Step& step, T (&acc)[kQ][4], Take take_columns) {
    constexpr int kPart = 4, kParts = kQ / kPart;
    T c[2][kPart][4] = {}, shift[4];
    this->template load<kVector, false>(c[0], rows + column(0));
    take_columns();
#pragma unroll 1
    for (int row = 0; row < count; ++row) {
      const T* from = rows + row * stride + column(0);
      const auto power = step.power(row);
      T sums[1] = {0}, y = 1;
#pragma unroll
      for (int k = Step::kRows ? 0 : kParts; k < 2 * kParts; ++k) {
        const int next = k + 1 < 2 * kParts ? k + 1 : Step::kRows ? 0 : kParts;
        if (k + 1 < 2 * kParts || row + 1 < count)
          this->template load<kVector, false>(c[(k + 1) % 2], k + 1 < 2 * kParts ? from : from + stride,
                                              next % kParts * kPart);
        if constexpr (Step::kRows) {
          if (k == kParts) {
            const T sum = group_sums<1>(sums);
            if (at == 0) row_sum[row] = sum;
            y = step.value(row, sum);
          }
        }
#pragma unroll
        for (int part = 0; part < kPart; ++part) {
          const int q = k % kParts * kPart + part;
          cuda::load_four(shifts + column(q), shift);
          T weight[4] = {1, 1, 1, 1};  // of so many columns: from global memory
          if constexpr (Step::kWeighted)
            if (k < kParts && column(q) < m) cuda::load_four(step.weights + column(q), weight);
#pragma unroll
          for (int v = 0; v < 4; ++v) {
            const T x = c[k % 2][part][v], e = step.entry(shift[v], x, power);
            if constexpr (Step::kLooks) step.look(x);
            if (k < kParts)
              sums[0] += Step::kWeighted ? e * weight[v] : e;
            else
              acc[q][v] += e * y;
          }
        }
      }
    }
  }

  template <bool kVector, class Step, class Take>
  __device__ void one_look(Step& step, Columns& columns, T (&acc)[kQ][4], Take take_columns) {
    T(&shift)[kColumns][4] = columns.shift, (&weight)[kColumns][4] = columns.weight;
    T c[kR][kQ][4], e[kR][kQ][4];
    const int apart = groups * stride;  // rows of this group, one after the other
    const T* next = rows + group * stride + column(0);
#pragma unroll
    for (int r = 0; r < kR; ++r) {
#pragma unroll
      for (int q = 0; q < kQ; ++q)
#pragma unroll
        for (int v = 0; v < 4; ++v) c[r][q][v] = 0;
      this->template load_row<kVector>(c[r], row_of(0, r), next + r * apart);
    }
    take_columns();
    const int last = steps();
#pragma unroll 1
    for (int turn_of_rows = 0; turn_of_rows < last; ++turn_of_rows) {
      next += kR * apart;
      T sums[kR];
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        const int row = row_of(turn_of_rows, r);
        auto power = step.power(row < count ? row : count - 1);
        if (row >= count) leave_out(power);
        sums[r] = 0;
#pragma unroll
        for (int q = 0; q < kQ; ++q) {
          if constexpr (kSharedShift) cuda::load_four(shifts + column(q), shift[0]);
          if constexpr (kSharedShift && Step::kWeighted) cuda::load_four(weights + column(q), weight[0]);
#pragma unroll
          for (int v = 0; v < 4; ++v) {
            const T x = c[r][q][v];
            if constexpr (Step::kLooks) step.look(x);
            e[r][q][v] = step.entry(shift[kSharedShift ? 0 : q][v], x, power);
            sums[r] += Step::kWeighted ? e[r][q][v] * weight[kSharedShift ? 0 : q][v] : e[r][q][v];
          }
        }
        this->template load_row<kVector>(c[r], row_of(turn_of_rows + 1, r), next + r * apart);
      }
      if constexpr (Step::kRows) {
        const T sum = group_sums<kR>(sums);
        const int row = row_of(turn_of_rows, lane / kLane);
        const T mine = row < count ? step.value(row, sum) : T(0);
        if (at < kWarp && lane % kLane == 0 && row < count) row_sum[row] = sum;
#pragma unroll
        for (int r = 0; r < kR; ++r) sums[r] = cuda::shuffle_from(mine, r * kLane);
      }
#pragma unroll
      for (int r = 0; r < kR; ++r)
#pragma unroll
        for (int q = 0; q < kQ; ++q)
#pragma unroll
          for (int v = 0; v < 4; ++v) acc[q][v] += Step::kRows ? e[r][q][v] * sums[r] : e[r][q][v];
    }
  }

  // Rows whose sums left the range: their log-sums exactly, then their entries against the new potential.
  template <class Step>
  __device__ void mend(Step& step, T (&acc)[kQ][4]) {
    for (int row = 0; row < count; ++row) {
      if (!step.to_mend(row)) continue;  // the same on every thread
      double top = -double(INFINITY), sum = 0;
      each(step, row, [&](int, int, T x) { top = x > top ? double(x) : top; });
      top = this->template in_block<true>(top);
      const T shift = top > -double(INFINITY) ? T(top) : T(0);
      if (group == 0) each(step, row, [&](int, int, T x) { sum += cuda::power_of_two((x - shift) * step.k); });
      sum = this->template in_block<false>(sum);
      const T power = step.mended(row, shift, T(sum));
      if (group == 0) each(step, row, [&](int q, int v, T x) { acc[q][v] += cuda::power_of_two(x * step.k + power); });
      cuda::sync_block();
      if (tid == 0) step.store_mended(row, shift, T(sum));
    }
  }
  // body(q, v, shift - cost) of this thread's elements of a row.
  template <class Step, class Body>
  __device__ void each(const Step& step, int row, Body body) const {
#pragma unroll
    for (int q = 0; q < kQ; ++q) {
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const int j = column(q) + v;
        if (j < m) body(q, v, step.shift(j) - cost_of(row, j));
      }
    }
  }

  // The sums of this block's columns to where the crew finds them: where several groups have some, by the strip.
  __device__ void lay_out(const T (&acc)[kQ][4]) {
    if (groups == 1) return;
    const int wide = span * 4 * kQ;
#pragma unroll
    for (int q = 0; q < kQ; ++q) cuda::store_four(strip + group * wide + column(q), acc[q]);
  }
  __device__ void publish(const T (&acc)[kQ][4]) {
    T* out = own_parts();
    if (groups == 1) {
#pragma unroll
      for (int q = 0; q < kQ; ++q)
        if (column(q) < m) cuda::store_four(out + column(q), acc[q]);
      return;
    }
    const int wide = span * 4 * kQ;
#pragma unroll 1
    for (int j = tid; j < m; j += threads) {
      T sum = strip[j];
#pragma unroll 1
      for (int g = 1; g < groups; ++g) sum += strip[g * wide + j];
      out[j] = sum;
    }
  }
};

}  // namespace sinkhorn
}  // namespace ucmkd

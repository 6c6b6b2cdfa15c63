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
#include "sinkhorn/crew.cuh"
#include "sinkhorn/regime.h"

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

// T, quads of columns per thread, rows at a time, and whether rows stay in shared memory: none, all, or evenly spread some.
constexpr int kKeepsSome = 2;
template <class T, int kQ, int kR, int kKeep>
struct Owned : Crew {
  static constexpr bool kKept = kKeep == 1, kSome = kKeep == kKeepsSome;
  static constexpr bool kSharedShift = kQ >= kSharedQuads;
  static constexpr bool kTwice = kQ > kStreamedQuads;  // entries do not stay in registers
  static constexpr int kLane = kWarp / kR;  // lanes of a warp that stand for one of the rows at a time

  int span, group, groups, at;  // threads of a group, which one this is in, and where in it
  int stride;                   // of the rows that are read
  int count;                    // rows of this block
  bool aligned;
  const T* rows;  // of this block: shared, or the cost
  const T* tile;  // shared, of the rows that stay there
  int share;      // of the rows that do, times 2^16
  T* red;         // shared, sums of rows on their way; two rounds
  T *potential, *mass;  // shared (count,): of the rows, for the steps
  T* row_sum;           // shared (count,): s_i
  T* strip;             // shared, sums of columns on their way
  T* shifts;            // shared (span, 4 kQ)
  T* parts;             // global (size, stride of parts)
  T* held;              // global (3, stride of parts)
  int parts_stride, turn = 0;

  // `work`: the work space of this problem (OwnedPlan::work elements).
  __device__ Owned(const OwnedPlan& plan, bool grid_, int n_, int m_, const T* cost, T* work, bool own_barrier)
      : Crew(grid_, n_, m_, own_barrier ? reinterpret_cast<unsigned*>(work) : nullptr) {
    span = plan.span, groups = plan.groups, group = tid / span, at = tid % span;
    count = row_end - row_begin;
    parts_stride = int(in_fours(m));
    slots = reinterpret_cast<double*>(work + 4);
    parts = work + 4 + 4 * int64_t(size), held = parts + int64_t(size) * parts_stride;
    scratch = reinterpret_cast<double*>(cuda::shared_memory());
    red = reinterpret_cast<T*>(scratch + 64);
    potential = red + owned_red(plan), mass = potential + in_fours(count);
    row_sum = mass + in_fours(count);
    strip = row_sum + in_fours(count), shifts = strip + owned_strip(plan);
    T* shared = shifts + (kSharedShift ? int64_t(threads) * 4 * kQ : 0);
    const T* own = cost + int64_t(row_begin) * m;
    aligned = m % 4 == 0 && reinterpret_cast<uintptr_t>(cost) % 16 == 0;
    rows = kKept ? shared : own, stride = kKept ? parts_stride : m;
    if constexpr (kSome) tile = shared, share = (plan.held << 16) / count;
    if constexpr (kKept || kSome) {
      keep(shared, own, kKept ? count : kept_before(count));
      cuda::sync_block();
    }
  }

  // Four columns of this thread begin here; there may be fewer, or none, below m. A warp's columns lie together: the
  // distances between its loads are constants.
  __device__ int column(int q) const { return at / kWarp * (kWarp * 4 * kQ) + (q * kWarp + lane) * 4; }
  // The row of this block that this group takes as number r of its turn `step`; `count` and more: none.
  __device__ int row_of(int step, int r) const { return (step * kR + r) * groups + group; }
  // How many rows before this one stay in shared memory, where some do.
  __device__ int kept_before(int row) const { return row * share >> 16; }
  __device__ int steps() const { return (count + groups * kR - 1) / (groups * kR); }

  __device__ T cost_of(int row, int j) const { return rows[row * stride + j]; }
  // kN times four of this thread's costs of a row, from those at `from`, number `first` times four; where there are
  // none, `c` stays as it is.
  template <bool kVector, bool kShared, int kN>
  __device__ void load(T (&c)[kN][4], const T* from, int first = 0) const {
    const int left = m - column(0);
#pragma unroll
    for (int q = 0; q < kN; ++q) {
      const int j = (first + q) * kWarp * 4;
      if constexpr (kShared) {
        if (j < left) cuda::load_four(from + j, c[q]);
      } else if constexpr (kVector) {
        if (j < left) cuda::load_four_once(from + j, c[q]);
      } else {
#pragma unroll
        for (int v = 0; v < 4; ++v)
          if (j + v < left) c[q][v] = from[j + v];
      }
    }
  }
  // Those of a row of this block; `from` is where it begins among all rows.
  template <bool kVector>
  __device__ void load_row(T (&c)[kQ][4], int row, const T* from) const {
    if (row >= count) return;
    if constexpr (kSome) {
      const int slot = kept_before(row);
      if (kept_before(row + 1) > slot) {
        load<kVector, true, kQ>(c, tile + slot * parts_stride + column(0));
        return;
      }
    }
    load<kVector, kKept, kQ>(c, from);
  }
  __device__ bool vectors() const { return kKept || aligned; }

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

  // One pass over the rows of this block. Ends with the crew's sums of columns in `parts`, and a barrier of the crew.
  // `before` runs when the first rows are on their way, ahead of all that the step is asked for. It may wait for a barrier
  // at which this block has arrived; the arrival itself would wait for those rows.
  template <class Step>
  __device__ void sweep(Step& step) {
    sweep(step, [] {});
  }
  template <class Step, class Before>
  __device__ void sweep(Step& step, Before before) {
    T acc[kQ][4];
    if (!Step::kOnce && vectors())
      pass<true>(step, acc, before);
    else
      pass<false>(step, acc, before);
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
          for (int k = 0; k < kAtOnce; ++k)
            x[k] = s + k * slices < size ? parts[int64_t(s + k * slices) * parts_stride + j] : T(0);
#pragma unroll
          for (int k = 0; k < kAtOnce; ++k) sum += x[k];
        }
      for (int mask = kWarp / 2; mask >= width; mask /= 2) sum += cuda::shuffle_xor(sum, mask);
      strip[tid] = sum;
      cuda::sync_block();
      if (warp > 0) continue;
      T all = 0;
#pragma unroll 4
      for (int w = lane >> log_width; w < warps; w += kWarp >> log_width) all += strip[w * kWarp + (lane & (width - 1))];
      for (int mask = kWarp / 2; mask >= width; mask /= 2) all += cuda::shuffle_xor(all, mask);
      if (lane < width && j < col_end) body(j, all);
    }
  }

 private:
  static constexpr int kAtOnce = 6;  // sums of blocks that are on their way to a thread

  template <bool kVector, class Step, class Before>
  __device__ void pass(Step& step, T (&acc)[kQ][4], Before before) {
    if constexpr (kTwice)
      two_looks<kVector>(step, acc, before);
    else
      one_look<kVector>(step, acc, before);
  }

  // Rows too long for their entries to stay in registers are read again, from the second-level cache: a row at a
  // time, in parts, the next part on its way.
  template <bool kVector, class Step, class Before>
  __device__ void two_looks(Step& step, T (&acc)[kQ][4], Before before) {
    static_assert(!Step::kWeighted, "the weights of so many columns have no place");
    constexpr int kPart = 4, kParts = kQ / kPart;
    T c[2][kPart][4] = {}, shift[4];
    load<kVector, false>(c[0], rows + column(0));
    before();
#pragma unroll
    for (int q = 0; q < kQ; ++q) {
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        shift[v] = column(q) + v < m ? step.shift(column(q) + v) : -T(INFINITY);
        acc[q][v] = 0;
      }
      cuda::store_four(shifts + column(q), shift);
    }
#pragma unroll 1
    for (int row = 0; row < count; ++row) {
      const T* from = rows + row * stride + column(0);
      const T power = step.power(row);
      T sums[1] = {0}, y = 1;
#pragma unroll
      for (int k = Step::kRows ? 0 : kParts; k < 2 * kParts; ++k) {
        const int next = k + 1 < 2 * kParts ? k + 1 : Step::kRows ? 0 : kParts;
        if (k + 1 < 2 * kParts || row + 1 < count)
          load<kVector, false>(c[(k + 1) % 2], k + 1 < 2 * kParts ? from : from + stride, next % kParts * kPart);
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
#pragma unroll
          for (int v = 0; v < 4; ++v) {
            const T x = c[k % 2][part][v], e = cuda::power_of_two((shift[v] - x) * step.k + power);
            if constexpr (Step::kLooks) step.look(x);
            if (k < kParts)
              sums[0] += e;
            else
              acc[q][v] += e * y;
          }
        }
      }
    }
  }

  template <bool kVector, class Step, class Before>
  __device__ void one_look(Step& step, T (&acc)[kQ][4], Before before) {
    T shift[kSharedShift ? 1 : kQ][4], weight[Step::kWeighted ? kQ : 1][4], c[kR][kQ][4], e[kR][kQ][4];
    const int apart = groups * stride;  // rows of this group, one after the other
    const T* next = rows + group * stride + column(0);
#pragma unroll
    for (int r = 0; r < kR; ++r) {
#pragma unroll
      for (int q = 0; q < kQ; ++q)
#pragma unroll
        for (int v = 0; v < 4; ++v) c[r][q][v] = 0;
      load_row<kVector>(c[r], row_of(0, r), next + r * apart);
    }
    before();
#pragma unroll
    for (int q = 0; q < kQ; ++q) {
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const int j = column(q) + v;
        shift[kSharedShift ? 0 : q][v] = j < m ? step.shift(j) : -T(INFINITY);
        if constexpr (Step::kWeighted) weight[q][v] = j < m ? step.weight(j) : T(0);
        acc[q][v] = 0;
      }
      if constexpr (kSharedShift) cuda::store_four(shifts + column(q), shift[0]);  // read by this thread alone
    }
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
#pragma unroll
          for (int v = 0; v < 4; ++v) {
            const T x = c[r][q][v];
            if constexpr (Step::kLooks) step.look(x);
            e[r][q][v] = step.entry(shift[kSharedShift ? 0 : q][v], x, power);
            sums[r] += Step::kWeighted ? e[r][q][v] * weight[q][v] : e[r][q][v];
          }
        }
        load_row<kVector>(c[r], row_of(turn_of_rows + 1, r), next + r * apart);
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

  __device__ void keep(T* to, const T* own, int many) const {
    const int fours = parts_stride / 4;
    for (int64_t k = tid; k < int64_t(many) * fours; k += threads) {
      const int slot = int(k / fours), j = int(k % fours) * 4;
      const int row = kSome ? (((slot + 1) << 16) + share - 1) / share - 1 : slot;
      T c[4];
      if (aligned)
        cuda::load_four_once(own + int64_t(row) * m + j, c);
      else
        for (int v = 0; v < 4; ++v) c[v] = j + v < m ? own[int64_t(row) * m + j + v] : T(INFINITY);
      cuda::store_four(to + int64_t(slot) * parts_stride + j, c);
    }
  }

  // Rows whose sums left the range: their log-sums exactly, then their entries against the new potential.
  template <class Step>
  __device__ void mend(Step& step, T (&acc)[kQ][4]) {
    for (int row = 0; row < count; ++row) {
      if (!step.to_mend(row)) continue;  // the same on every thread
      double top = -double(INFINITY), sum = 0;
      each(step, row, [&](int, int, T x) { top = x > top ? double(x) : top; });
      top = in_block<true>(top);
      const T shift = top > -double(INFINITY) ? T(top) : T(0);
      if (group == 0) each(step, row, [&](int, int, T x) { sum += cuda::power_of_two((x - shift) * step.k); });
      sum = in_block<false>(sum);
      const T power = step.mended(row, shift, T(sum));
      if (group == 0)
        each(step, row, [&](int q, int v, T x) { acc[q][v] += cuda::power_of_two(x * step.k + power); });
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
    T* out = parts + int64_t(rank) * parts_stride;
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

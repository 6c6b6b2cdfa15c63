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

// T, quads of columns per thread, rows at a time, whether the rows of the block stay in shared memory.
template <class T, int kQ, int kR, bool kKept>
struct Owned : Crew {
  static constexpr bool kSharedShift = kQ >= kSharedQuads;
  static constexpr bool kTwice = kQ > kStreamedQuads;  // entries do not stay in registers
  static constexpr int kColumns = kSharedShift ? 1 : kQ;  // quads of columns whose potentials are in registers
  static constexpr int kLane = kWarp / kR;  // lanes of a warp that stand for one of the rows at a time

  int span, group, groups, at;  // threads of a group, which one this is in, and where in it
  int stride;                   // of the rows that are read
  int count;                    // rows of this block
  bool aligned;
  const T* rows;  // of this block: shared, or the cost
  T* red;         // shared, sums of rows on their way; two rounds
  T *potential, *mass;  // shared (count,): of the rows, for the steps
  T* row_sum;           // shared (count,): s_i
  T* strip;             // shared, sums of columns on their way
  T *shifts, *weights;  // shared (span, 4 kQ)
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
    weights = shifts + int64_t(threads) * 4 * kQ;
    T* tile = shifts + owned_columns(plan);
    const T* own = cost + int64_t(row_begin) * m;
    aligned = m % 4 == 0 && reinterpret_cast<uintptr_t>(cost) % 16 == 0;
    rows = kKept ? tile : own, stride = kKept ? parts_stride : m;
    if constexpr (kKept) {
      keep(tile, own);
      cuda::sync_block();
    }
  }

  // Four columns of this thread begin here; there may be fewer, or none, below m. A warp's columns lie together: the
  // distances between its loads are constants.
  __device__ int column(int q) const { return at / kWarp * (kWarp * 4 * kQ) + (q * kWarp + lane) * 4; }
  // The row of this block that this group takes as number r of its turn `step`; `count` and more: none.
  __device__ int row_of(int step, int r) const { return (step * kR + r) * groups + group; }
  __device__ int steps() const { return (count + groups * kR - 1) / (groups * kR); }

  __device__ T cost_of(int row, int j) const { return rows[row * stride + j]; }
  // kN times four of this thread's costs of a row, from those at `from`, number `first` times four; where there are
  // none, `c` stays as it is.
  template <bool kVector, int kN>
  __device__ void load(T (&c)[kN][4], const T* from, int first = 0) const {
    const int left = m - column(0);
#pragma unroll
    for (int q = 0; q < kN; ++q) {
      const int j = (first + q) * kWarp * 4;
      if constexpr (kKept) {
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
  __device__ bool vectors() const { return kKept || aligned; }

  // The sums of kN numbers over the threads of each group. A lane gets that of number lane / (32 / kN).
  template <int kN>
  __device__ T group_sums(T (&x)[kN]) {
    constexpr int kLanes = kWarp / kN;
    constexpr int kMost = max_threads(sizeof(T)) / kWarp;
    const int warps_of_group = span / kWarp, mine = lane / kLanes, slot = lane % kLanes;
    const T of_warp = fold<kN, kWarp / 2>(x);
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
    if constexpr (Step::kWeighted && !kTwice) take(columns.weight, weights, T(0), [&](int j) { return step.weight(j); });
  }

  // One pass over the rows of this block. Ends with the crew's sums of columns in `parts`, and a barrier of the crew.
  template <class Step>
  __device__ void sweep(Step& step) {
    Columns columns;
    take_shifts(step, columns), take_weights(step, columns);
    sweep(step, columns);
  }
  template <class Step>
  __device__ void sweep(Step& step, Columns& columns) {
    T acc[kQ][4] = {};
    if ((!Step::kOnce || kSharedShift) && vectors())
      pass<true>(step, columns, acc);
    else
      pass<false>(step, columns, acc);
    if constexpr (Step::kRows) {
      cuda::sync_block();
      over(0, count, [&](int row) { step.store(row, row_sum[row]); });
    }
    if constexpr (Step::kMends)
      if (cuda::any_of_block(step.wrong)) mend(step, acc);
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

  // body(j, sum of column j) on one thread per column of this block.
  template <class Body>
  __device__ void columns(Body body) {
    if (size == 1) {
      over(0, m, [&](int j) { body(j, parts[j]); });
      return;
    }
    const int log_width = log_strip(col_end - col_begin), width = 1 << log_width, slices = threads >> log_width;
#pragma unroll 1
    for (int first = col_begin; first < col_end; first += width) {
      const int j = first + (tid & (width - 1));
      T sum = 0;
      if (j < col_end)
#pragma unroll 4
        for (int s = tid >> log_width; s < size; s += slices) sum += parts[int64_t(s) * parts_stride + j];
      for (int mask = kWarp / 2; mask >= width; mask /= 2) sum += cuda::shuffle_xor(sum, mask);
      strip[tid] = sum;
      cuda::sync_block();
      if (tid < width && j < col_end) {
        T all = 0;
#pragma unroll 4
        for (int w = 0; w < warps; ++w) all += strip[w * kWarp + tid];
        body(j, all);
      }
      cuda::sync_block();
    }
  }

 private:
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

  template <bool kVector, class Step>
  __device__ void pass(Step& step, Columns& columns, T (&acc)[kQ][4]) {
    if constexpr (kTwice)
      two_looks<kVector>(step, acc);
    else
      one_look<kVector>(step, columns, acc);
  }

  // Rows too long for their entries to stay in registers are read again, from the second-level cache: a row at a
  // time, in parts, the next part on its way.
  template <bool kVector, class Step>
  __device__ void two_looks(Step& step, T (&acc)[kQ][4]) {
    constexpr int kPart = 4, kParts = kQ / kPart;
    T c[2][kPart][4] = {}, shift[4];
    load<kVector>(c[0], rows + column(0));
#pragma unroll 1
    for (int row = 0; row < count; ++row) {
      const T* from = rows + row * stride + column(0);
      const auto power = step.power(row);
      T sums[1] = {0}, y = 1;
#pragma unroll
      for (int k = Step::kRows ? 0 : kParts; k < 2 * kParts; ++k) {
        const int next = k + 1 < 2 * kParts ? k + 1 : Step::kRows ? 0 : kParts;
        if (k + 1 < 2 * kParts || row + 1 < count)
          load<kVector>(c[(k + 1) % 2], k + 1 < 2 * kParts ? from : from + stride, next % kParts * kPart);
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

  template <bool kVector, class Step>
  __device__ void one_look(Step& step, Columns& columns, T (&acc)[kQ][4]) {
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
      if (row_of(0, r) < count) load<kVector, kQ>(c[r], next + r * apart);
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
          if constexpr (kSharedShift && Step::kWeighted) cuda::load_four(weights + column(q), weight[0]);
#pragma unroll
          for (int v = 0; v < 4; ++v) {
            const T x = c[r][q][v];
            if constexpr (Step::kLooks) step.look(x);
            e[r][q][v] = step.entry(shift[kSharedShift ? 0 : q][v], x, power);
            sums[r] += Step::kWeighted ? e[r][q][v] * weight[kSharedShift ? 0 : q][v] : e[r][q][v];
          }
        }
        if (row_of(turn_of_rows + 1, r) < count) load<kVector, kQ>(c[r], next + r * apart);
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

  // So many threads beside each other, as a power of two, read the sums of columns beside each other.
  __device__ static int log_strip(int columns) {
    int log_width = 0;
    while ((1 << log_width) < columns && (1 << log_width) < kWarp) ++log_width;
    return log_width;
  }

  __device__ void keep(T* tile, const T* own) const {
    const int fours = stride / 4;
    for (int64_t k = tid; k < int64_t(count) * fours; k += threads) {
      const int row = int(k / fours), j = int(k % fours) * 4;
      T c[4];
      if (aligned)
        cuda::load_four_once(own + int64_t(row) * m + j, c);
      else
        for (int v = 0; v < 4; ++v) c[v] = j + v < m ? own[int64_t(row) * m + j + v] : T(INFINITY);
      cuda::store_four(tile + int64_t(row) * stride + j, c);
    }
  }

  // Sums over a warp of kN numbers in turn: half of them at each step, then the butterfly of the last.
  template <int kN, int kMask>
  __device__ T fold(T (&x)[kN]) const {
    if constexpr (kN == 1) {
      T sum = x[0];
#pragma unroll
      for (int mask = kMask; mask > 0; mask /= 2) sum += cuda::shuffle_xor(sum, mask);
      return sum;
    } else {
      T half[kN / 2];
      const bool upper = lane & kMask;
#pragma unroll
      for (int k = 0; k < kN / 2; ++k) {
        const T mine = upper ? x[k + kN / 2] : x[k], other = upper ? x[k] : x[k + kN / 2];
        half[k] = mine + cuda::shuffle_xor(other, kMask);
      }
      return fold<kN / 2, kMask / 2>(half);
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

  // The sums of this block's columns to where the crew finds them.
  __device__ void publish(T (&acc)[kQ][4]) {
    T* out = parts + int64_t(rank) * parts_stride;
    if (groups == 1) {
#pragma unroll
      for (int q = 0; q < kQ; ++q)
        if (column(q) < m) cuda::store_four(out + column(q), acc[q]);
      return;
    }
    const int wide = span * 4 * kQ;
#pragma unroll
    for (int q = 0; q < kQ; ++q) cuda::store_four(strip + group * wide + column(q), acc[q]);
    cuda::sync_block();
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

// What a block and its threads own in the sweep of owned.cuh: rows of the cost, in shared memory or on their way from
// global memory, columns, and the places of what is known of both.
#pragma once
#include "sinkhorn/crew.cuh"
#include "sinkhorn/regime.h"

namespace ucmkd {
namespace sinkhorn {

// T, quads of columns per thread, rows at a time, whether rows stay in shared memory: none, all, or evenly spread some; and
// whether the crew is a cluster.
constexpr int kKeepsSome = 2;
template <class T, int kQ, int kR, int kKeep, bool kCluster>
struct OwnedRows : Crew {
  static constexpr bool kKept = kKeep == 1, kSome = kKeep == kKeepsSome;
  static constexpr bool kSharedShift = kQ >= kSharedQuads;
  static constexpr bool kTwice = kQ > kStreamedQuads;     // entries do not stay in registers
  static constexpr int kColumns = kSharedShift ? 1 : kQ;  // quads of columns whose potentials are in registers
  static constexpr int kLane = kWarp / kR;                // lanes of a warp that stand for one of the rows at a time

  int span, group, groups, at;  // threads of a group, which one this is in, and where in it
  int stride;                   // of the rows that are read
  int count;                    // rows of this block
  bool aligned;
  const T* rows;        // of this block: shared, or the cost
  const T* tile;        // shared, of the rows that stay there
  int share;            // of the rows that do, times 2^16
  T* red;               // shared, sums of rows on their way; two rounds
  T *potential, *mass;  // shared (count,): of the rows, for the steps
  T* row_sum;           // shared (count,): s_i
  T* strip;             // shared, sums of columns on their way
  T *shifts, *weights;  // shared (span, 4 kQ)
  T* parts;             // global (size, stride of parts); of a cluster shared, each block's own
  T* held;              // global (3, stride of parts)
  int parts_stride, turn = 0;

  // `work`: the work space of this problem (OwnedPlan::work elements).
  __device__ OwnedRows(const OwnedPlan& plan, bool grid_, int n_, int m_, const T* cost, T* work, bool own_barrier)
      : Crew(grid_, n_, m_, own_barrier ? reinterpret_cast<unsigned*>(work) : nullptr, kCluster) {
    span = plan.span, groups = plan.groups, group = tid / span, at = tid % span;
    count = row_end - row_begin;
    parts_stride = int(in_fours(m));
    slots = reinterpret_cast<double*>(work + 4);
    parts = work + 4 + 4 * int64_t(size), held = parts + int64_t(size) * parts_stride;
    scratch = reinterpret_cast<double*>(cuda::shared_memory());
    red = reinterpret_cast<T*>(scratch + 64);
    potential = red + owned_red(plan);
    if constexpr (kCluster) parts = potential, potential += parts_stride;  // at the same place in every block
    mass = potential + in_fours(count);
    row_sum = mass + in_fours(count);
    strip = row_sum + in_fours(count), shifts = strip + owned_strip(plan);
    weights = shifts + int64_t(threads) * 4 * kQ;
    T* shared = shifts + owned_columns(plan);
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
  // The sums of columns of a block.
  __device__ const T* parts_of(int block) const {
    if constexpr (kCluster) return cuda::of_block(parts, block);
    return parts + int64_t(block) * parts_stride;
  }
  __device__ T* own_parts() const { return kCluster ? parts : parts + int64_t(rank) * parts_stride; }
  __device__ bool vectors() const { return kKept || aligned; }

 private:
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
};

}  // namespace sinkhorn
}  // namespace ucmkd

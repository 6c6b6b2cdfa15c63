// Which regime a problem runs in, and the launch that it gets: pure functions of sizes and device.
//
//   registers one block per problem of at most 128 rows and columns, float: the cost in its registers (small.cuh)
//   block     one block per problem, all iterations in one launch; the cost in shared memory where it fits
//   resident  one cooperative launch; every block keeps its rows of the cost in shared memory, or as many as fit
//   sweep     one cooperative launch; rows of the cost pass through shared memory once per iteration
//   cluster   a cluster of blocks per problem, whose cost is in their shared memory; where it is asked for
//   panel     the cost is rebuilt panel by panel (features only); asked for by a memory budget
//
// What fits the registers runs there. Else the least predicted time decides (Costs), then capacity.
#pragma once
#include <stdint.h>

#include <initializer_list>

#include "core/host_device.h"

namespace ucmkd {
namespace sinkhorn {

enum class Regime : int { kAuto = 0, kBlock = 1, kResident = 2, kSweep = 3, kPanel = 4, kRegisters = 5, kCluster = 6 };

struct DeviceProperties {
  int multiprocessors;
  int64_t shared_per_block;  // bytes that a block may ask for
  int max_threads;           // of a block, at most max_threads(element)
  bool clusters;             // blocks may run as clusters: the device has them, and the call asks for them
};

// What a call may ask for instead of what is chosen here; 0: nothing.
struct Tuning {
  int threads = 0;  // of a block, at most
  int quads = 0;    // of columns that a thread owns
  int grid = 0;     // blocks, at most what the device, or a cluster, holds
};

// The launch of a sweep in which threads own columns (owned.cuh). `groups` of `span` threads share the rows of a block
// in turns; each thread has `quads` times four columns, and takes `rows` rows at a time.
struct OwnedPlan {
  int threads;  // groups * span; 0: there are more columns, or rows of a block, than it can have
  int span, groups, quads, rows;
  int grid;
  bool kept;       // the rows of a block stay in shared memory
  bool clusters;   // the blocks are a cluster
  int held;        // of them, where not all do
  bool weighted;   // columns have weights beside their potentials
  int64_t shared;  // bytes
  int64_t work;    // elements of work space
};

struct Plan {
  Regime regime;
  int multiprocessors;    // of the device
  int threads;            // of a block
  int grid;               // blocks per problem
  int tile_rows;          // rows of the cost in shared memory at a time; 0: rows are read from global memory
  bool kept;              // the tile holds all rows of the block for good
  bool state_shared;      // sums of the columns live in shared memory, else in the work space
  int64_t shared;         // bytes of shared memory of a block
  int64_t work;           // elements of work space per problem, a multiple of 4
  OwnedPlan owned, back;  // of the forward, and of the adjoint
};

// Doubles take twice the registers: half the threads.
UK_HOST_DEVICE constexpr int max_threads(int64_t element) { return element == 8 ? 256 : 512; }
constexpr int kUnstagedRows = 16;  // rows between two updates of the column sums where nothing is staged

UK_HOST_DEVICE int64_t in_fours(int64_t count) { return (count + 3) / 4 * 4; }
UK_HOST_DEVICE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
UK_HOST_DEVICE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
UK_HOST_DEVICE double smaller_of(double a, double b) { return a < b ? a : b; }

// One block solves a problem. In the registers' regime the kernels that have no such form run as blocks do.
UK_HOST_DEVICE bool one_block(Regime regime) { return regime == Regime::kBlock || regime == Regime::kRegisters; }

// How the threads of a block share the columns: `groups` threads take turns with the rows of each column.
UK_HOST_DEVICE int column_span(int threads, int64_t m) {
  return static_cast<int>(smaller(threads, (m + 31) / 32 * 32));
}
UK_HOST_DEVICE int column_groups(int threads, int64_t m) { return threads / column_span(threads, m); }

// Elements of shared memory (of size T) beside the tile: values of rows, their parts, reductions, masses of
// a column state. Kept in step with Team in team.cuh.
UK_HOST_DEVICE int64_t shared_elements(int threads, int rows_at_once, int64_t m, bool state_shared) {
  const int64_t parts = larger(rows_at_once, threads / 32) * 2;
  return 3 * rows_at_once + parts + 2 * 64 + (state_shared ? 2 * column_groups(threads, m) * m : 0);
}

UK_HOST_DEVICE int rows_at_once(int tile_rows) { return tile_rows > 0 ? tile_rows : kUnstagedRows; }

// The tile of a block that owns `rows` rows: all of them where they fit, else as many as fit with the state of
// the columns beside them, else without it.
UK_HOST_DEVICE void furnish(Plan& plan, int64_t rows, int64_t m, int64_t element, int64_t budget) {
  for (int with_state = 1; with_state >= 0; --with_state) {
    const int64_t base = shared_elements(plan.threads, 0, m, with_state) * element;
    const int64_t per_row = (m + 5) * element;  // the row, its values and its parts
    const int64_t fit = base < budget ? (budget - base) / per_row : 0;
    if (fit < 1 && with_state) continue;
    plan.tile_rows = static_cast<int>(smaller(fit, rows));
    plan.kept = fit >= rows;
    plan.state_shared = with_state;
    break;
  }
  plan.shared = (int64_t(plan.tile_rows) * m +
                 shared_elements(plan.threads, rows_at_once(plan.tile_rows), m, plan.state_shared)) *
                element;
}

UK_HOST_DEVICE int64_t shared_of_block(int64_t n, int64_t m, int64_t element, int threads) {
  return (n * m + shared_elements(threads, static_cast<int>(n), m, true)) * element;
}

// Warps follow the number of elements: eight per thread keep a block of one small problem busy.
UK_HOST_DEVICE int threads_for(int64_t n, int64_t m, int most) {
  int threads = 64 < most ? 64 : most;
  while (threads < most && int64_t(threads) * 8 < n * m) threads *= 2;
  return threads;
}

constexpr int64_t kMostHeld =
    4096;  // columns, of a sweep that keeps some of its rows: of more, keeping them was slower

constexpr int64_t kSmallSize = 128;
constexpr int64_t kSmallShared = 81 * 1024;  // bytes, of the largest; up to 64 rows or columns take a fifth

UK_HOST_DEVICE bool fits_registers(int64_t n, int64_t m, int64_t element, const DeviceProperties& device) {
  const bool large = n > kSmallSize / 2 && m > kSmallSize / 2;
  return element == 4 && n <= kSmallSize && m <= kSmallSize && (!large || device.shared_per_block >= kSmallShared);
}

// Whether one block solves a problem with all of its cost on chip.
UK_HOST_DEVICE bool fits_block(int64_t n, int64_t m, int64_t element, const DeviceProperties& device) {
  return fits_registers(n, m, element, device) ||
         shared_of_block(n, m, element, threads_for(n, m, device.max_threads)) <= device.shared_per_block;
}

// What an iteration costs, in microseconds: measured on an H100 in float (forward; 160 in one block, 160 to 4096 on the
// grid). An element in doubles is an estimate.
struct Costs {
  static constexpr double kBarrier = 1.0, kGrid = 2.6;  // of the grid; between its two barriers, whatever the size
  static constexpr double kBlock = 2.0;                 // of one block, whatever the size
  static constexpr double kElement = 1.2e-4;            // of one multiprocessor
  static constexpr double kDoubles = 4;                 // times as much
  static constexpr double kClusterBarrier = 0.25, kCluster = 1.0;  // the same of a cluster: estimates
  static constexpr double kLaunch = 4, kIterations = 50;           // a launch, spread over so many
  static constexpr double kBytes = 23e3;  // that reach one multiprocessor per microsecond, all at work
};

UK_HOST_DEVICE double time_of_element(int64_t element) {
  return Costs::kElement * (element == 8 ? Costs::kDoubles : 1);
}

// One launch, a block per problem.
UK_HOST_DEVICE double time_of_blocks(int64_t n, int64_t m, int64_t batch, int64_t element,
                                     const DeviceProperties& device) {
  const double elements = double(n) * double(m);
  const double passing = fits_block(n, m, element, device) ? 0 : elements * double(element) / Costs::kBytes;
  const int64_t turns = (batch + device.multiprocessors - 1) / device.multiprocessors;
  return Costs::kLaunch / Costs::kIterations +
         double(turns) * (Costs::kBlock + elements * time_of_element(element) + passing);
}

// A launch of the whole grid for each problem; `streams`: its cost does not stay on chip.
UK_HOST_DEVICE double time_of_grids(int64_t n, int64_t m, int64_t batch, int64_t element, bool streams,
                                    const DeviceProperties& device) {
  const int64_t rows = (n + device.multiprocessors - 1) / device.multiprocessors;
  const double elements = double(rows) * double(m), computing = elements * time_of_element(element);
  const double passing = streams ? elements * double(element) / Costs::kBytes : 0;
  return double(batch) * (Costs::kLaunch / Costs::kIterations + 2 * Costs::kBarrier + Costs::kGrid +
                          (computing < passing ? passing : computing));
}

// Of the rows of a block, how many stay in shared memory where `fit` would: less than an eighth gains less than it costs.
// Their share times 2^16 is counted in an int.
UK_HOST_DEVICE int worth_holding(int64_t fit, int64_t rows) {
  return fit * 8 < rows || rows >= 1 << 15 ? 0 : static_cast<int>(smaller(fit, rows - 1));
}

// Most quads of columns that one thread owns: beyond, registers would spill.
UK_HOST_DEVICE constexpr int most_quads(int64_t element) { return element == 8 ? 1 : 16; }
// With so many, the columns' potentials are in shared memory, and their weights where there is room.
constexpr int kSharedQuads = 4;
// With so many, rows are always read from global memory: few blocks own rows of such length and have room for them.
constexpr int kStreamedQuads = 8;
// Rows at a time, as compiled: as many as leave registers for the rows that are on their way meanwhile.
UK_HOST_DEVICE constexpr int owned_rows(int quads, bool few) {
  return few && quads == 1 ? 1 : quads <= 2 ? 4 : quads == 4 ? 2 : 1;
}

// Elements of shared memory beside kept rows, in the order of Owned: sums of rows (two rounds, two values a row),
// three vectors of the rows, columns on their way between groups or warps, potentials and weights.
UK_HOST_DEVICE int64_t owned_red(const OwnedPlan& p) { return in_fours(4 * p.rows * (p.threads / 32)); }
UK_HOST_DEVICE int64_t owned_strip(const OwnedPlan& p) {
  return p.groups > 1 ? int64_t(p.threads) * 4 * p.quads : p.threads;
}
UK_HOST_DEVICE int64_t owned_columns(const OwnedPlan& p) {
  const int vectors = p.quads < kSharedQuads ? 0 : p.weighted && p.quads <= kStreamedQuads ? 2 : 1;
  return vectors * int64_t(p.threads) * 4 * p.quads;
}
UK_HOST_DEVICE int64_t owned_elements(const OwnedPlan& p, int64_t rows) {
  return owned_red(p) + 3 * in_fours(rows) + owned_strip(p) + owned_columns(p);
}
constexpr int64_t kOwnedScratch = 64 * 8;  // bytes of doubles before them

UK_HOST_DEVICE OwnedPlan make_owned(Regime regime, int64_t n, int64_t m, int64_t element, int grid, bool weighted,
                                    const DeviceProperties& device, const Tuning& tuning) {
  OwnedPlan p{};
  p.weighted = weighted;
  const int most = tuning.threads ? static_cast<int>(smaller(tuning.threads, device.max_threads)) : device.max_threads;
  p.quads = 1;
  while (p.quads < most_quads(element) && int64_t(4) * p.quads * most < m) p.quads *= 2;
  if (tuning.quads) p.quads = tuning.quads;
  p.grid = tuning.grid && grid > 1 ? static_cast<int>(smaller(tuning.grid, n)) : grid;
  p.work = 4 + 4 * int64_t(p.grid) + (p.grid + 3) * in_fours(m);
  const int64_t rows = (n + p.grid - 1) / p.grid;
  if (int64_t(4) * p.quads * most < m || rows * in_fours(m) > 0x7fffffff) return p;  // offsets in a block are int
  const int64_t fours = (m + 4 * p.quads - 1) / (4 * p.quads);
  p.span = static_cast<int>((fours + 31) / 32 * 32);
  p.groups = p.quads > kStreamedQuads ? 1 : static_cast<int>(smaller(most / p.span, rows));
  p.clusters = regime == Regime::kCluster;
  p.rows = owned_rows(p.quads, !p.clusters && rows <= 2 * p.groups);
  p.threads = p.groups * p.span;
  const int64_t bytes = kOwnedScratch + (owned_elements(p, rows) + (p.clusters ? in_fours(m) : 0)) * element;
  const int64_t kept = bytes + rows * in_fours(m) * element;
  p.kept = regime != Regime::kSweep && p.quads < kStreamedQuads && kept <= device.shared_per_block;
  if (!p.kept) p.rows = owned_rows(p.quads, false);
  p.shared = p.kept ? kept : kOwnedScratch + owned_elements(p, rows) * element;
  if (p.shared > device.shared_per_block || (p.clusters && !p.kept)) p.threads = 0;
  if (regime == Regime::kResident && !p.kept && p.threads > 0 && p.quads < kStreamedQuads && element == 4)
    p.held = worth_holding((device.shared_per_block - p.shared) / (in_fours(m) * element), rows);
  p.shared += p.held * in_fours(m) * element;
  return p;
}

// Blocks of a grid: all, but where they have so few rows that the barriers take more time than half as many blocks.
UK_HOST_DEVICE int grid_of(int64_t n, int64_t m, int multiprocessors) {
  const bool few = n < int64_t(3) * multiprocessors && m < int64_t(3) * multiprocessors;
  return static_cast<int>(smaller(few ? (multiprocessors + 1) / 2 : multiprocessors, n));
}

// Most blocks of a cluster that every device with clusters takes; up to twice as many may be asked for.
constexpr int kMostCluster = 8;

// One launch, a cluster of `size` blocks per problem.
UK_HOST_DEVICE double time_of_clusters(int64_t n, int64_t m, int64_t batch, int64_t element, int size,
                                       const DeviceProperties& device) {
  const int64_t at_once = larger(1, device.multiprocessors / size), turns = (batch + at_once - 1) / at_once;
  const double elements = double((n + size - 1) / size) * double(m);
  return Costs::kLaunch / Costs::kIterations +
         double(turns) * (2 * Costs::kClusterBarrier + Costs::kCluster + elements * time_of_element(element));
}

UK_HOST_DEVICE bool fits_cluster(int64_t n, int64_t m, int64_t element, int size, const DeviceProperties& device,
                                 const Tuning& tuning) {
  if (size > n) return false;
  for (const bool weighted : {false, true}) {
    const OwnedPlan p = make_owned(Regime::kCluster, n, m, element, size, weighted, device, tuning);
    if (p.threads == 0 || p.quads > (element == 8 ? 1 : 2)) return false;
  }
  return true;
}

// Blocks of the cluster of least predicted time whose shared memory holds the cost; 0: there is none.
UK_HOST_DEVICE int cluster_size(int64_t n, int64_t m, int64_t batch, int64_t element, const DeviceProperties& device,
                                const Tuning& tuning = Tuning()) {
  if (tuning.grid) return fits_cluster(n, m, element, tuning.grid, device, tuning) ? tuning.grid : 0;
  int best = 0;
  for (int size = 2; size <= kMostCluster; size *= 2) {
    if (!fits_cluster(n, m, element, size, device, tuning)) continue;
    if (best == 0 ||
        time_of_clusters(n, m, batch, element, size, device) < time_of_clusters(n, m, batch, element, best, device))
      best = size;
  }
  return best;
}

// One block per problem where that takes less time than a grid for one problem after the other; a cluster per problem
// where there are any. A grid keeps what rows it can; doubles all or none.
UK_HOST_DEVICE Regime choose_regime(int64_t n, int64_t m, int64_t batch, int64_t element,
                                    const DeviceProperties& device) {
  if (fits_registers(n, m, element, device)) return Regime::kRegisters;
  const int64_t rows = (n + device.multiprocessors - 1) / device.multiprocessors;
  const int64_t room = device.shared_per_block - shared_elements(device.max_threads, 0, m, false) * element;
  const int64_t fit = room > 0 ? room / ((m + 5) * element) : 0;
  const double blocks = time_of_blocks(n, m, batch, element, device);
  const double grids = time_of_grids(n, m, batch, element, fit < rows, device);
  const int cluster = device.clusters ? cluster_size(n, m, batch, element, device) : 0;
  if (cluster > 0 && time_of_clusters(n, m, batch, element, cluster, device) < smaller_of(blocks, grids))
    return Regime::kCluster;
  if (blocks <= grids) return Regime::kBlock;
  const bool keeps = fit >= rows || (element == 4 && m <= kMostHeld && worth_holding(fit, rows) > 0);
  return keeps ? Regime::kResident : Regime::kSweep;
}

// The launch of one problem. What does not fit the registers runs in a regime of its own choice.
UK_HOST_DEVICE Plan make_plan(Regime regime, int64_t n, int64_t m, int64_t batch, int64_t element,
                              const DeviceProperties& device, const Tuning& tuning = Tuning()) {
  Plan plan{};
  plan.multiprocessors = device.multiprocessors;
  const int cluster = device.clusters ? cluster_size(n, m, batch, element, device, tuning) : 0;
  const bool free = regime == Regime::kAuto ||
                    (regime == Regime::kRegisters && !fits_registers(n, m, element, device)) ||
                    (regime == Regime::kCluster && cluster == 0);
  DeviceProperties choice = device;
  choice.clusters = cluster > 0;  // of so many blocks as the tuning asks for
  plan.regime = free ? choose_regime(n, m, batch, element, choice) : regime;
  const bool block = one_block(plan.regime);
  plan.threads = block ? threads_for(n, m, device.max_threads) : device.max_threads;
  plan.grid = block ? 1 : plan.regime == Regime::kCluster ? cluster : grid_of(n, m, device.multiprocessors);
  const int64_t rows = (n + plan.grid - 1) / plan.grid;
  int64_t budget = device.shared_per_block;
  furnish(plan, rows, m, element, budget);
  if (plan.regime == Regime::kSweep && plan.kept) {  // forced: stage, as it would for more rows
    plan.kept = false;
    plan.tile_rows = static_cast<int>(larger(1, plan.tile_rows / 2));
  }
  const int64_t parts = int64_t(plan.grid) * column_groups(plan.threads, m);
  // sums of the columns, two doubles per block, three vectors of the implicit gradient
  plan.work = in_fours(2 * parts * m + 4 * int64_t(plan.grid) + (3 * m + 1) / 2 * 2);
  plan.owned = make_owned(plan.regime, n, m, element, plan.grid, false, device, tuning);
  plan.back = make_owned(plan.regime, n, m, element, plan.grid, true, device, tuning);
  plan.work = larger(plan.work, larger(plan.owned.work, plan.back.work));
  return plan;
}

// The same launch as unbalanced transport has it: not in registers, and its blocks keep all of their rows or none.
UK_HOST_DEVICE void generalise(Plan& plan) {
  if (plan.regime == Regime::kRegisters) plan.regime = Regime::kBlock;
  plan.owned.held = plan.back.held = 0;
}

// Side of the square tiles in which blocks make the gradient: the one of least predicted time. That is the tiles that one
// multiprocessor makes after each other, times what an element costs: of smaller tiles more, for the loads of a
// multiply-add from shared memory, and the ratios that each tile makes for itself.
UK_HOST_DEVICE int gradient_tile(int64_t rows, int64_t m, int64_t batch, int64_t element, int multiprocessors) {
  int best = 0;
  double least = 0;
  for (int side = element == 8 ? 64 : 128; side >= 32; side /= 2) {
    const int64_t tiles = (rows + side - 1) / side * ((m + side - 1) / side) * batch;
    const int64_t turns = (tiles + multiprocessors - 1) / multiprocessors;
    const double time = double(turns) * side * side * (side == 128 ? 1.0 : side == 64 ? 1.2 : 2.5);
    if (best == 0 || time < least) best = side, least = time;
  }
  return best;
}

// Sweeps over features whose cost does not fit (streamed.cu, panel.cu). What sums over the features are made by: threads,
// of products or of the terms of a sum, or tensor cores.
enum class Multiply { kThreads, kTerms, kTensorCores };

struct StreamPlan {
  bool streams;  // costs are made in both passes of a sweep, else panels of them are stored
  Multiply by;
  int row_groups, column_groups;  // blocks that share a tile of rows, of columns
};

// What a pair costs in a sweep, in picoseconds of the whole device: estimates for an H100 in float, from instructions and
// bytes. Of doubles, times as much.
struct StreamCosts {
  static constexpr double kPair = 1.0;            // of one pass of streamed.cu, beside its features
  static constexpr double kStored = 5 * 4 / 2.9;  // of a panel: what is written and read
  static constexpr double kDoubles = 2, kDoublePair = 4;

  // A feature, in one pass of streamed.cu; and of a panel: by torch's product, or the terms of a sum.
  static UK_HOST_DEVICE double streamed(Multiply by) {
    return by == Multiply::kThreads ? 0.05 : by == Multiply::kTerms ? 0.1 : 0.006;
  }
  static UK_HOST_DEVICE double of_panel(Multiply by) {
    return by == Multiply::kThreads ? 0.045 : by == Multiply::kTerms ? 0.17 : 0.003;
  }
};

// Blocks of which one multiprocessor holds two, for three turns of them.
UK_HOST_DEVICE int groups_for(int64_t tiles, int64_t others, int multiprocessors) {
  if (tiles == 0) return 1;
  const int64_t wanted = (int64_t(6) * multiprocessors + tiles - 1) / tiles;
  return static_cast<int>(larger(1, smaller(wanted, others)));
}

UK_HOST_DEVICE StreamPlan make_stream_plan(int64_t n, int64_t m, int64_t d, int64_t element, Multiply by,
                                           const DeviceProperties& device) {
  const int64_t side = element == 8 ? 64 : 128, rows = (n + side - 1) / side, columns = (m + side - 1) / side;
  StreamPlan plan{};
  plan.by = by;
  plan.row_groups = groups_for(rows, columns, device.multiprocessors);
  plan.column_groups = groups_for(columns, rows, device.multiprocessors);
  const double feature = StreamCosts::streamed(by), of_panel = StreamCosts::of_panel(by);
  const double doubles = element == 8 ? StreamCosts::kDoubles : 1, pair = element == 8 ? StreamCosts::kDoublePair : 1;
  const double streamed = 2 * (double(d) * feature * doubles + StreamCosts::kPair * pair);
  const double stored = double(d) * of_panel * (by == Multiply::kTerms ? doubles : 1) + StreamCosts::kStored * doubles;
  plan.streams = n > 0 && streamed <= stored;
  return plan;
}

}  // namespace sinkhorn
}  // namespace ucmkd

// Fibers and their barriers; see cuda_model.h.
#include "cuda_model.h"

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#ifndef __x86_64__
#include <ucontext.h>
#endif

ModelIndex threadIdx, blockIdx, blockDim, gridDim;

namespace ucmkd {
namespace cuda {
namespace model {
namespace {

constexpr int kWarp = 32;
constexpr size_t kStack = 64 * 1024;
constexpr size_t kGuard = 256;
constexpr unsigned char kGuardByte = 0xA5;

#ifdef __x86_64__
struct Context {
  void* sp = nullptr;
};
extern "C" void uk_model_switch(void** save, void* load);
asm(R"(
.text
.globl uk_model_switch
.hidden uk_model_switch
uk_model_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
void prepare(Context& context, char* stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + kStack) & ~uintptr_t(15));
  *--top = nullptr;  // entry never returns; keeps the stack aligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int k = 0; k < 6; ++k) *--top = nullptr;
  context.sp = top;
}
void switch_to(Context& from, Context& to) { uk_model_switch(&from.sp, to.sp); }
#else
struct Context {
  ucontext_t saved;
};
void prepare(Context& context, char* stack, void (*entry)()) {
  getcontext(&context.saved);
  context.saved.uc_stack.ss_sp = stack;
  context.saved.uc_stack.ss_size = kStack;
  context.saved.uc_link = nullptr;
  makecontext(&context.saved, entry, 0);
}
void switch_to(Context& from, Context& to) { swapcontext(&from.saved, &to.saved); }
#endif

struct Barrier {
  int expected = 0, arrived = 0;
  int64_t generation = 0;
};

struct Warp {
  Barrier barrier;
  unsigned char slot[2][kWarp][16];
};

struct Block {
  ModelIndex index;
  Barrier barrier;
  bool vote[2] = {false, false};
  std::vector<Warp> warps;
  std::vector<unsigned char> memory;  // guard, shared memory, guard
};

struct Fiber {
  Context context;
  Block* block;
  int thread;
  int64_t exchanges = 0, votes = 0;
  Barrier* waits_for = nullptr;
  int64_t waits_since = 0;
  bool done = false;
};

struct Machine {
  Context scheduler;
  Fiber* current = nullptr;
  Barrier grid;
  int together = kAlone;
  std::vector<Block>* blocks = nullptr;  // that run at the same time
  const std::function<void()>* body = nullptr;
  std::string error;
};

Machine machine;
std::vector<std::unique_ptr<char[]>> stacks;
std::string last_error;
int64_t launch_count = 0, cluster_count = 0;

void fail(const std::string& text) {
  if (machine.error.empty()) machine.error = text;
}

void wait(Barrier& barrier) {
  Fiber* self = machine.current;
  const int64_t generation = barrier.generation;
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  self->waits_for = &barrier;
  self->waits_since = generation;
  switch_to(self->context, machine.scheduler);
}

void fiber_main() {
  (*machine.body)();
  machine.current->done = true;
  switch_to(machine.current->context, machine.scheduler);
  __builtin_unreachable();
}

// Runs the fibers until all are done. False: none can go on.
bool schedule(std::vector<Fiber>& fibers, std::mt19937_64& random) {
  std::vector<int> order(fibers.size());
  for (size_t k = 0; k < order.size(); ++k) order[k] = static_cast<int>(k);
  if (settings().order == Order::kReverse) std::reverse(order.begin(), order.end());
  size_t left = fibers.size();
  while (left > 0) {
    if (settings().order == Order::kRandom) std::shuffle(order.begin(), order.end(), random);
    bool moved = false;
    for (int k : order) {
      Fiber& fiber = fibers[k];
      if (fiber.done || (fiber.waits_for && fiber.waits_for->generation == fiber.waits_since)) continue;
      fiber.waits_for = nullptr;
      threadIdx = {fiber.thread, 0};
      blockIdx = fiber.block->index;
      machine.current = &fiber;
      switch_to(machine.scheduler, fiber.context);
      moved = true;
      left -= fiber.done;
    }
    if (!moved) return false;
  }
  return true;
}

void check_guards(const Block& block) {
  for (size_t k = 0; k < kGuard; ++k)
    if (block.memory[k] != kGuardByte || block.memory[block.memory.size() - 1 - k] != kGuardByte)
      return fail("a kernel wrote outside its shared memory");
}

void run_blocks(std::vector<Block>& blocks, int threads, std::mt19937_64& random) {
  std::vector<Fiber> fibers(blocks.size() * threads);
  while (stacks.size() < fibers.size()) stacks.emplace_back(new char[kStack]);
  for (size_t k = 0; k < fibers.size(); ++k) {
    fibers[k].block = &blocks[k / threads];
    fibers[k].thread = static_cast<int>(k % threads);
    prepare(fibers[k].context, stacks[k].get(), fiber_main);
  }
  machine.grid = Barrier();
  machine.blocks = &blocks;
  machine.grid.expected = static_cast<int>(fibers.size());
  if (!schedule(fibers, random)) fail("deadlock: a barrier that some threads never reach");
  for (const Block& block : blocks) check_guards(block);
}

}  // namespace

Settings& settings() {
  static Settings the_settings;
  return the_settings;
}

int64_t launches() { return launch_count; }
int64_t clusters_launched() { return cluster_count; }
void forget_clusters() { cluster_count = 0; }

void block_barrier() {
  if (!settings().skip_block_barrier) wait(machine.current->block->barrier);
}

void grid_barrier() {
  if (machine.together != kCooperative) return fail("grid sync in a kernel that was not started cooperatively");
  wait(machine.grid);
}

bool any_of_block(bool mine) {
  Block& block = *machine.current->block;
  const int side = machine.current->votes++ & 1;
  block.vote[side] |= mine;
  wait(block.barrier);
  const bool any = block.vote[side];
  wait(block.barrier);
  block.vote[side] = false;
  return any;
}

void counted_arrive(unsigned* counter) {
  wait(machine.current->block->barrier);
  if (machine.current->thread == 0) ++*counter;
}

void counted_wait(unsigned* counter, unsigned target) {
  grid_barrier();
  if (*counter != target) fail("the counter of a grid barrier is not where it ought to be");
  wait(machine.grid);
}

int cluster_rank() { return machine.current->block->index.x % cluster_size(); }
int cluster_size() { return machine.together; }
void cluster_barrier() {
  if (machine.together == kCooperative) return fail("a cluster's barrier in a kernel that has none");
  wait(machine.grid);
}
const void* of_block(const void* shared, int rank) {
  Block* mine = machine.current->block;
  const ptrdiff_t offset = static_cast<const unsigned char*>(shared) - mine->memory.data();
  for (Block& block : *machine.blocks)
    if (block.index.x % cluster_size() == rank) return block.memory.data() + offset;
  fail("a block that is not in the cluster");
  return shared;
}

void need_alignment(const void* at) {
  if (reinterpret_cast<uintptr_t>(at) % 16) fail("a vector access at an address that is no multiple of 16 bytes");
}

void* exchange(const void* value, size_t bytes, int flip, int from) {
  Fiber* self = machine.current;
  Warp& warp = self->block->warps[self->thread / kWarp];
  const int lane = self->thread % kWarp, side = self->exchanges++ & 1;
  memcpy(warp.slot[side][lane], value, bytes);
  wait(warp.barrier);
  return warp.slot[side][flip < 0 ? from : lane ^ flip];
}

unsigned char* shared() { return machine.current->block->memory.data() + kGuard; }

const char* run(int64_t grid_x, int64_t grid_y, int threads, size_t shared, int together,
                const std::function<void()>& body) {
  ++launch_count;
  if (threads % kWarp || threads < 1 || threads > 1024) return "threads must be whole warps, 1024 at most";
  if (grid_x < 1 || grid_y < 1) return "a grid must hold a block";
  if (int64_t(shared) > settings().shared_per_block) return "more shared memory than the device has";
  const bool cooperative = together == kCooperative;
  if (cooperative && grid_x * grid_y > settings().multiprocessors)
    return "a cooperative grid must be resident as a whole";
  if (together > kAlone && (grid_x % together || together > 16 || !settings().clusters))
    return "a grid must be whole clusters, of sixteen blocks at most, on a device that has them";
  std::mt19937_64 random(settings().seed);
  machine.error.clear();
  machine.together = together;
  cluster_count += together > kAlone;
  machine.body = &body;
  blockDim = {threads, 1};
  gridDim = {int(grid_x), int(grid_y)};
  std::vector<Block> all;
  for (int64_t y = 0; y < grid_y; ++y)
    for (int64_t x = 0; x < grid_x; ++x) {
      Block block;
      block.index = {int(x), int(y)};
      all.push_back(block);
    }
  if (together <= kAlone && settings().order == Order::kReverse) std::reverse(all.begin(), all.end());
  if (together <= kAlone && settings().order == Order::kRandom) std::shuffle(all.begin(), all.end(), random);
  auto furnish = [&](Block& block) {
    block.barrier.expected = threads;
    block.warps.resize(threads / kWarp);
    for (Warp& warp : block.warps) warp.barrier.expected = kWarp;
    block.memory.assign(shared + 2 * kGuard, 0xFF);  // NaN in every floating type
    std::fill_n(block.memory.begin(), kGuard, kGuardByte);
    std::fill_n(block.memory.end() - kGuard, kGuard, kGuardByte);
  };
  if (cooperative) {
    for (Block& block : all) furnish(block);
    run_blocks(all, threads, random);
  } else {
    for (size_t first = 0; first < all.size(); first += together) {
      if (!machine.error.empty()) break;
      std::vector<Block> some(all.begin() + first, all.begin() + first + together);
      for (Block& block : some) furnish(block);
      run_blocks(some, threads, random);
    }
  }
  last_error = machine.error;
  return last_error.empty() ? nullptr : last_error.c_str();
}

}  // namespace model
}  // namespace cuda
}  // namespace ucmkd

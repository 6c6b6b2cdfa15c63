// The execution model that stands in for a GPU: the host twins of csrc/core/launch.cuh.
//
// One fiber per CUDA thread. A fiber runs until it reaches a barrier (of its warp, block or grid) that is
// not full yet; which fiber runs next is decided by the order under test. Shared memory starts as NaN and
// lies between guard zones. A barrier that some fibers never reach ends in an error, not in a hang.
//
// Not modelled: memory ordering between barriers, speed, anything asynchronous.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct ModelIndex {
  int x, y;
};
extern ModelIndex threadIdx, blockIdx, blockDim, gridDim;

namespace ucmkd {
namespace cuda {

using Stream = void*;

namespace model {

enum class Order : int { kForward = 0, kReverse = 1, kRandom = 2 };

struct Settings {
  int multiprocessors = 3;
  int64_t shared_per_block = 96 * 1024;
  int thread_limit = 64;
  bool clusters = true;
  Order order = Order::kForward;
  uint64_t seed = 0;
  bool skip_block_barrier = false;  // plants a bug: sync_block does nothing
};
Settings& settings();
int64_t launches();
int64_t clusters_launched();  // kernels, since they were forgotten
void forget_clusters();

void block_barrier();
void grid_barrier();
// Another lane's value: of this one's number with `flip` changed, or where that is below 0, of lane `from`.
void* exchange(const void* value, size_t bytes, int flip, int from);
bool any_of_block(bool mine);
void counted_arrive(unsigned* counter);
void counted_wait(unsigned* counter, unsigned target);
int cluster_rank();
int cluster_size();
void cluster_barrier();
const void* of_block(const void* shared, int rank);
void need_alignment(const void* at);  // of 16 bytes, else the launch fails
unsigned char* shared();

// Which blocks run at the same time and meet: none, all of a grid, or so many beside each other.
constexpr int kAlone = 1, kCooperative = 0;
// Null, or what went wrong.
const char* run(int64_t grid_x, int64_t grid_y, int threads, size_t shared, int together,
                const std::function<void()>& body);

}  // namespace model

inline void sync_block() { model::block_barrier(); }
inline void sync_grid() { model::grid_barrier(); }
template <class T>
inline T shuffle_xor(T value, int lane_mask) {
  T other;
  memcpy(&other, model::exchange(&value, sizeof(T), lane_mask, 0), sizeof(T));
  return other;
}
inline void sync_warp() { shuffle_xor(0, 0); }
template <class T>
inline T shuffle_from(T value, int lane) {
  T other;
  memcpy(&other, model::exchange(&value, sizeof(T), -1, lane), sizeof(T));
  return other;
}
inline bool any_of_block(bool mine) { return model::any_of_block(mine); }
// What is done between the halves is seen by all here, as it need not be on a GPU.
inline unsigned arrive_at_grid() { return 1; }
inline void wait_for_grid(unsigned) { model::grid_barrier(); }
inline void counted_arrive(unsigned* counter) { model::counted_arrive(counter); }
inline void counted_wait(unsigned* counter, unsigned target) { model::counted_wait(counter, target); }
inline int cluster_rank() { return model::cluster_rank(); }
inline int cluster_size() { return model::cluster_size(); }
inline void arrive_at_cluster() {}
inline void wait_for_cluster() { model::cluster_barrier(); }
template <class T>
inline const T* of_block(const T* shared, int rank) {
  return static_cast<const T*>(model::of_block(shared, rank));
}
template <class T>
inline void load_four(const T* at, T (&to)[4]) {
  model::need_alignment(at);
  memcpy(to, at, sizeof to);
}
template <class T>
inline void load_four_once(const T* at, T (&to)[4]) {
  load_four(at, to);
}
template <class T>
inline void store_four(T* at, const T (&x)[4]) {
  model::need_alignment(at);
  memcpy(at, x, sizeof x);
}
inline bool any(bool here) {
  int found = here;
  for (int mask = 16; mask > 0; mask /= 2) found |= shuffle_xor(found, mask);
  return found;
}
inline unsigned lanes_where(bool here) {
  unsigned found = here ? 1u << threadIdx.x % 32 : 0;
  for (int mask = 16; mask > 0; mask /= 2) found |= shuffle_xor(found, mask);
  return found;
}
inline int lowest_bit(unsigned bits) { return __builtin_ctz(bits); }
inline float largest(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  for (int mask = 16; mask > 0; mask /= 2) {
    const uint32_t other = shuffle_xor(bits, mask);
    bits = bits < other ? other : bits;
  }
  memcpy(&x, &bits, sizeof bits);
  return x;
}
inline void atomic_or(int* at, int bits) { *at |= bits; }
inline unsigned char* shared_memory() { return model::shared(); }

inline float exp_of(float x) { return expf(x); }
inline double exp_of(double x) { return ::exp(x); }
inline float log_of(float x) { return logf(x); }
inline double log_of(double x) { return ::log(x); }
inline float larger_of(float x, float y) { return fmaxf(x, y); }
inline double larger_of(double x, double y) { return ::fmax(x, y); }
// As the hardware: what is below the normal numbers is 0.
inline float power_of_two(float x) {
  const float y = exp2f(x);
  return y < 1.17549435e-38f ? 0.0f : y;
}
inline double power_of_two(double x) { return exp2(x); }
inline int opaque(int x) { return x; }
inline float fused(float x, float y, float z) { return fmaf(x, y, z); }
inline double fused(double x, double y, double z) { return fma(x, y, z); }
inline float quotient(float a, float b) { return a / b; }
inline double quotient(double a, double b) { return a / b; }
inline float log2_of(float x) { return log2f(x < 1.17549435e-38f && x > 0 ? 0.f : x); }
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};
inline float wide(float x) { return x; }
inline double wide(double x) { return x; }
inline float wide(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
inline float wide(Half x) {
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  const float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                     : exponent     ? ldexpf(1024 + fraction, exponent - 25)
                                    : ldexpf(fraction, -24);
  return x.bits >> 15 ? -size : size;
}

struct alignas(16) Eight {
  unsigned two[4];
};
// Each lane fetches the rows of a and b that its four sums are made of.
template <class F>
inline void multiply_add(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  struct A {
    unsigned e[4];
  } of_a;
  struct B {
    unsigned e[2];
  } of_b;
  memcpy(&of_a, a, sizeof of_a), memcpy(&of_b, b, sizeof of_b);
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  auto feature = [](unsigned two, int k) {
    const F f{uint16_t(two >> 16 * k)};
    return wide(f);
  };
  float rows[2][16], columns[2][16];
  for (int s = 0; s < 4; ++s) {  // lanes of a group: features 2 s, 2 s + 1, and eight on
    const A from_a = shuffle_from(of_a, 4 * g + s);
    for (int k = 0; k < 2; ++k)
      for (int part = 0; part < 4; ++part) rows[part % 2][part / 2 * 8 + 2 * s + k] = feature(from_a.e[part], k);
    for (int column = 0; column < 2; ++column) {
      const B from_b = shuffle_from(of_b, 4 * (2 * t + column) + s);
      for (int k = 0; k < 2; ++k)
        for (int part = 0; part < 2; ++part) columns[column][part * 8 + 2 * s + k] = feature(from_b.e[part], k);
    }
  }
  for (int k = 0; k < 16; ++k)
    for (int e = 0; e < 4; ++e) c[e] += rows[e / 2][k] * columns[e % 2][k];
}

template <class S>
inline S narrow(S x) {
  return x;
}
// The nearest, of two as near the even one; NaN stays.
template <class S>
inline std::enable_if_t<std::is_same<S, BFloat16>::value, S> narrow(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return {uint16_t(x != x ? 0x7FC0 : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}
template <class S>
inline std::enable_if_t<std::is_same<S, Half>::value, S> narrow(float x) {
  const uint16_t sign = signbit(x) ? 0x8000 : 0;
  const float size = fabsf(x);
  if (!(size < 65520)) return {uint16_t(x != x ? 0x7E00 : sign | 0x7C00)};
  if (size < 0x1p-14f) return {uint16_t(sign | uint16_t(nearbyintf(size * 0x1p24f)))};
  int exponent;
  const float fraction = nearbyintf(ldexpf(frexpf(size, &exponent), 11));  // 1024 to 2048, which carries
  return {uint16_t(sign + ((exponent + 13) << 10) + int(fraction))};
}

inline float root(float x) { return sqrtf(x); }
inline double root(double x) { return ::sqrt(x); }

class DeviceGuard {
 public:
  explicit DeviceGuard(int) {}
  const char* error() const { return nullptr; }
};

template <class... P, class... A>
const char* launch(void (*kernel)(P...), int64_t grid_x, int64_t grid_y, int threads, size_t shared, Stream,
                   A... args) {
  return model::run(grid_x, grid_y, threads, shared, model::kAlone, [=] { kernel(static_cast<P>(args)...); });
}

template <class... P, class... A>
const char* launch_cooperative(void (*kernel)(P...), int64_t grid_x, int threads, size_t shared, Stream, A... args) {
  return model::run(grid_x, 1, threads, shared, model::kCooperative, [=] { kernel(static_cast<P>(args)...); });
}

template <class... P, class... A>
const char* launch_clusters(void (*kernel)(P...), int64_t grid_x, int cluster, int threads, size_t shared, Stream,
                            A... args) {
  return model::run(grid_x, 1, threads, shared, cluster, [=] { kernel(static_cast<P>(args)...); });
}

inline const char* clear(void* memory, size_t bytes, Stream) {
  memset(memory, 0, bytes);
  return nullptr;
}

template <class... P>
const char* blocks_per_multiprocessor(void (*)(P...), int, size_t, int* blocks) {
  *blocks = 1;
  return nullptr;
}

inline int thread_limit() { return model::settings().thread_limit; }

inline const char* device_properties(int, int* multiprocessors, int64_t* shared_per_block, bool* clusters) {
  *multiprocessors = model::settings().multiprocessors;
  *shared_per_block = model::settings().shared_per_block;
  *clusters = model::settings().clusters;
  return nullptr;
}

}  // namespace cuda
}  // namespace ucmkd

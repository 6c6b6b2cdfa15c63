// How kernels are started, and the few primitives that they use. Each has a host twin of the same name in
// tests/cuda_model/cuda_model.h: a test build compiles the same .cu files with the host compiler and runs
// them there, one fiber per CUDA thread. So kernels name no other intrinsic, and blocks are one-dimensional.
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef UK_MODEL
#include "cuda_model.h"
#else
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <type_traits>

namespace ucmkd {
namespace cuda {

using Stream = cudaStream_t;

__device__ inline void sync_block() { __syncthreads(); }
// In kernels that were started by launch_cooperative.
__device__ inline void sync_grid() { cooperative_groups::this_grid().sync(); }

template <class T>
__device__ inline T shuffle_xor(T value, int lane_mask) {
  return __shfl_xor_sync(0xffffffffu, value, lane_mask);
}
// Lanes of a warp see what any of them has read or written before.
__device__ inline void sync_warp() { __syncwarp(); }
// Whether it is true on any lane of the warp.
__device__ inline bool any(bool here) { return __any_sync(0xffffffffu, here); }
// The lanes of the warp on which it is true, a bit each; and the lowest bit of a number that is not 0.
__device__ inline unsigned lanes_where(bool here) { return __ballot_sync(0xffffffffu, here); }
__device__ inline int lowest_bit(unsigned bits) { return __ffs(static_cast<int>(bits)) - 1; }
// The largest over the warp of numbers that are not negative; a NaN is the largest.
__device__ inline float largest(float x) { return __uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(x))); }
__device__ inline void atomic_or(int* at, int bits) { atomicOr(at, bits); }

// x itself, but what is made from it is made where it stands: not before a loop, to wait in registers.
__device__ inline int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// That of one lane, for the whole warp.
template <class T>
__device__ inline T shuffle_from(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
// A barrier of the block that says whether any thread of it came with true.
__device__ inline bool any_of_block(bool mine) { return __syncthreads_or(mine); }

// The barrier of sync_grid in two halves: what a block does between them is not ordered with what others do.
__device__ inline unsigned arrive_at_grid() { return cooperative_groups::this_grid().barrier_arrive(); }
__device__ inline void wait_for_grid(unsigned arrival) {
  cooperative_groups::this_grid().barrier_wait(static_cast<unsigned&&>(arrival));
}

// The same on a counter that was 0 when the kernel started and only grows; `target` is what it reads when all have come.
// What a block wrote before is seen by all behind it: the block's own barriers pass on what its first thread releases
// and acquires, so no further fence is needed.
__device__ inline void counted_arrive(unsigned* counter) {
  __syncthreads();
  if (threadIdx.x == 0) asm volatile("red.release.gpu.global.add.u32 [%0], %1;" : : "l"(counter), "r"(1u) : "memory");
}
__device__ inline void counted_wait(unsigned* counter, unsigned target) {
  if (threadIdx.x == 0) {
    unsigned seen;
    do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
    while (static_cast<int>(seen - target) < 0);
  }
  __syncthreads();
}

// Blocks of a cluster, from compute capability 9.0 on: they run at the same time, meet at a barrier of the hardware and
// read each other's shared memory. In kernels that were started by launch_clusters.
__device__ inline int cluster_rank() {
  unsigned rank = 0;
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return static_cast<int>(rank);
}
__device__ inline int cluster_size() {
  unsigned size = 1;
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
#endif
  return static_cast<int>(size);
}
// What a thread wrote before it arrived is seen by all behind the wait.
__device__ inline void arrive_at_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" : : : "memory");
#endif
}
__device__ inline void wait_for_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" : : : "memory");
#endif
}
// The same place in the shared memory of another block of the cluster; until the barrier behind the last read that block
// must not end.
template <class T>
__device__ inline const T* of_block(const T* shared, int rank) {
  const T* there = shared;
#if __CUDA_ARCH__ >= 900
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(shared), "r"(rank));
#endif
  return there;
}

// Four elements in a row at an address of 16 bytes' alignment. `once`: constant while the kernel runs, and not wanted
// in the first-level cache; volatile, or the compiler takes it out of a loop and ahead of the question whether the
// address is aligned.
__device__ inline void load_four(const float* at, float (&to)[4]) {
  const float4 x = *reinterpret_cast<const float4*>(at);
  to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
}
__device__ inline void load_four(const double* at, double (&to)[4]) {
  const double2 x = reinterpret_cast<const double2*>(at)[0], y = reinterpret_cast<const double2*>(at)[1];
  to[0] = x.x, to[1] = x.y, to[2] = y.x, to[3] = y.y;
}
__device__ inline void load_four_once(const float* at, float (&to)[4]) {
  asm volatile("ld.global.nc.L1::no_allocate.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(to[0]), "=f"(to[1]), "=f"(to[2]), "=f"(to[3])
               : "l"(at));
}
__device__ inline void load_four_once(const double* at, double (&to)[4]) { load_four(at, to); }
__device__ inline void store_four(float* at, const float (&x)[4]) {
  *reinterpret_cast<float4*>(at) = make_float4(x[0], x[1], x[2], x[3]);
}
__device__ inline void store_four(double* at, const double (&x)[4]) {
  reinterpret_cast<double2*>(at)[0] = make_double2(x[0], x[1]);
  reinterpret_cast<double2*>(at)[1] = make_double2(x[2], x[3]);
}

// The dynamic shared memory of the block.
__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return bytes;
}

__device__ inline float exp_of(float x) { return expf(x); }
__device__ inline double exp_of(double x) { return ::exp(x); }
__device__ inline float log_of(float x) { return logf(x); }
__device__ inline double log_of(double x) { return ::log(x); }
// The one that is not NaN where the other is.
__device__ inline float larger_of(float x, float y) { return fmaxf(x, y); }
__device__ inline double larger_of(double x, double y) { return ::fmax(x, y); }
// 2^x as the hardware has it (2 units in the last place; below the normal numbers: 0), and a quotient likewise.
__device__ inline float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline double power_of_two(double x) { return ::exp2(x); }
// x y + z with one rounding
__device__ inline float fused(float x, float y, float z) { return __fmaf_rn(x, y, z); }
__device__ inline double fused(double x, double y, double z) { return __fma_rn(x, y, z); }
__device__ inline float quotient(float a, float b) { return __fdividef(a, b); }
__device__ inline double quotient(double a, double b) { return a / b; }
// log2 x likewise
__device__ inline float log2_of(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Features as they are read: half precision is computed in float.
using Half = __half;
using BFloat16 = __nv_bfloat16;
__device__ inline float wide(float x) { return x; }
__device__ inline double wide(double x) { return x; }
__device__ inline float wide(Half x) { return __half2float(x); }
__device__ inline float wide(BFloat16 x) { return __bfloat162float(x); }

// Eight of half precision, as they are read together.
struct alignas(16) Eight {
  unsigned two[4];
};

// c += a b' over 16 features by a warp on its tensor cores: a has 16 rows, b 8. With g = lane / 4 and t = lane % 4, a
// register holds features 2 t and 2 t + 1
//
//   a[0], a[1]  of rows g, g + 8      a[2], a[3]  likewise, 8 features on
//   b[0], b[1]  of row g of b, and 8 features on
//   c[0], c[1]  row g, columns 2 t and 2 t + 1      c[2], c[3]  row g + 8
template <class F>
__device__ inline void multiply_add(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  if constexpr (std::is_same<F, Half>::value)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
        "%2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The nearest of a narrower type.
template <class S>
__device__ inline S narrow(S x) {
  return x;
}
template <class S>
__device__ inline std::enable_if_t<std::is_same<S, Half>::value, S> narrow(float x) {
  return __float2half(x);
}
template <class S>
__device__ inline std::enable_if_t<std::is_same<S, BFloat16>::value, S> narrow(float x) {
  return __float2bfloat16(x);
}

__device__ inline float root(float x) { return sqrtf(x); }
__device__ inline double root(double x) { return ::sqrt(x); }

inline const char* error_text(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // else the next launch would report it again
  return cudaGetErrorString(error);
}

// Makes a device current for a scope. This library's own runtime has its own idea of the current device.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) : device_(device) {
    failed_ = cudaGetDevice(&before_);
    if (failed_ == cudaSuccess && before_ != device) failed_ = cudaSetDevice(device);
  }
  ~DeviceGuard() {
    if (before_ >= 0 && before_ != device_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  const char* error() const { return error_text(failed_); }

 private:
  int device_, before_ = -1;
  cudaError_t failed_;
};

// Beyond 48 KB a kernel must be told how much shared memory it gets.
template <class Kernel>
inline cudaError_t allow_shared(Kernel kernel, size_t bytes) {
  if (bytes <= 48 * 1024) return cudaSuccess;
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(bytes));
}

// Null, or what the driver says. Grid (grid_x, grid_y); nothing waits.
template <class... P, class... A>
const char* launch(void (*kernel)(P...), int64_t grid_x, int64_t grid_y, int threads, size_t shared, Stream stream,
                   A... args) {
  if (cudaError_t refused = allow_shared(kernel, shared)) return error_text(refused);
  kernel<<<dim3(static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y)), threads, shared, stream>>>(
      static_cast<P>(args)...);
  return error_text(cudaGetLastError());
}

// By value: the driver copies the arguments while it starts the kernel.
template <class... P>
const char* cooperative(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, Stream stream,
                        std::decay_t<P>... args) {
  void* addresses[] = {&args...};
  return error_text(
      cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), grid, block, addresses, shared, stream));
}

template <class... P, class... A>
const char* launch_cooperative(void (*kernel)(P...), int64_t grid_x, int threads, size_t shared, Stream stream,
                               A... args) {
  if (cudaError_t refused = allow_shared(kernel, shared)) return error_text(refused);
  return cooperative(kernel, dim3(static_cast<unsigned>(grid_x)), dim3(threads), shared, stream,
                     static_cast<P>(args)...);
}

// Clusters of so many blocks.
template <class... P, class... A>
const char* launch_clusters(void (*kernel)(P...), int64_t grid_x, int cluster, int threads, size_t shared,
                            Stream stream, A... args) {
  if (cudaError_t refused = allow_shared(kernel, shared)) return error_text(refused);
  constexpr int kPortable = 8;
  if (cluster > kPortable)
    if (cudaError_t refused = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeNonPortableClusterSizeAllowed, 1))
      return error_text(refused);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid_x)), config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared, config.stream = stream;
  config.attrs = &attribute, config.numAttrs = 1;
  return error_text(cudaLaunchKernelEx(&config, kernel, static_cast<std::decay_t<P>>(args)...));
}

inline const char* clear(void* memory, size_t bytes, Stream stream) {
  return error_text(cudaMemsetAsync(memory, 0, bytes, stream));
}

// How many blocks of a kernel one multiprocessor holds at a time.
template <class... P>
const char* blocks_per_multiprocessor(void (*kernel)(P...), int threads, size_t shared, int* blocks) {
  if (cudaError_t refused = allow_shared(kernel, shared)) return error_text(refused);
  return error_text(cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, threads, shared));
}

inline int thread_limit() { return 1024; }

// Multiprocessors, the most shared memory that a block may ask for, and whether it can run blocks as clusters.
inline const char* device_properties(int device, int* multiprocessors, int64_t* shared_per_block, bool* clusters) {
  int bytes = 0, major = 0;
  cudaError_t failed = cudaDeviceGetAttribute(multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (failed == cudaSuccess) failed = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  *clusters = major >= 9;
  if (failed == cudaSuccess) failed = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  *shared_per_block = bytes;
  return error_text(failed);
}

}  // namespace cuda
}  // namespace ucmkd
#endif

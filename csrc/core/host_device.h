// Marks functions that both compilers build: the per-element mathematics is tested on the host. Always inlined: the
// linker must never take one level's copy (levels.h) for another's.
#pragma once
#ifdef __CUDACC__
#define UK_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define UK_HOST_DEVICE __attribute__((always_inline)) inline
#endif

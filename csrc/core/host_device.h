// Marks functions that both compilers build: the per-element mathematics is tested on the host.
#pragma once
#ifdef __CUDACC__
#define UK_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define UK_HOST_DEVICE inline
#endif

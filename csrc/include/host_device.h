// Functions that hold an operator's arithmetic: compiled for the CPU and, under nvcc, for the GPU.
#pragma once

#ifdef __CUDACC__
#define IADD_HD __host__ __device__ __forceinline__
#else
#define IADD_HD inline __attribute__((always_inline))
#endif

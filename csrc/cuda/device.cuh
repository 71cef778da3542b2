// What the CUDA operators share: storage dtypes around float32 arithmetic, sums over a block, and
// the stream that torch has chosen.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/util/shim_utils.h>

namespace iadd {

__device__ __forceinline__ float widened(float value) { return value; }
__device__ __forceinline__ float widened(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class T>
__device__ __forceinline__ T narrowed(float value) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return value;
  } else {
    return __float2bfloat16_rn(value);
  }
}

// The sum over all threads of a block of whole warps, the same to the last bit in each of them.
// `warp_sums` holds 32 numbers in shared memory; a second sum may use it after a __syncthreads().
template <class T>
__device__ __forceinline__ T block_sum(T value, T* warp_sums) {
  for (int apart = 16; apart > 0; apart /= 2) value += __shfl_xor_sync(~0u, value, apart);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = value;
  __syncthreads();
  T total = 0;
  for (int warp = 0; warp < blockDim.x / 32; ++warp) total += warp_sums[warp];
  return total;
}

inline cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

}  // namespace iadd

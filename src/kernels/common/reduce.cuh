// Sums over a warp and a thread block in a fixed order, and the GPU's storage types.
#ifndef BLOCKSPARSE_KERNELS_COMMON_REDUCE_CUH_
#define BLOCKSPARSE_KERNELS_COMMON_REDUCE_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "src/kernels/common/arch.h"
#include "src/kernels/common/dtype.h"
#include "src/kernels/common/status.h"

namespace blocksparse {

__device__ __forceinline__ float SumOfWarp(float value) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2)
    value += __shfl_xor_sync(~0u, value, offset);
  return value;
}

// The sum over all kThreads threads, in thread 0. Called by every thread.
template <int kThreads>
__device__ __forceinline__ float SumOfBlock(float value) {
  constexpr int kWarps = kThreads / kWarpSize;
  static_assert(kThreads % kWarpSize == 0, "a thread block is a whole number of warps");
  __shared__ float sums[kWarps];
  value = SumOfWarp(value);
  if (threadIdx.x % kWarpSize == 0) sums[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  float sum = 0.f;
  if (threadIdx.x == 0) {
    for (const float warp_sum : sums) sum += warp_sum;
  }
  return sum;
}

// Calls f with a value of the GPU storage type of `dtype`.
template <class F>
Status WithGpuType(DType dtype, F f) {
  switch (dtype) {
    case DType::kFloat16:
      return f(__half{});
    case DType::kBFloat16:
      return f(__nv_bfloat16{});
    case DType::kFloat32:
      return f(float{});
  }
  return Unsupported("dtype must be float32, float16 or bfloat16");
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_COMMON_REDUCE_CUH_

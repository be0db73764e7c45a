// Roundings of float32 to what tensor cores read.
#ifndef BLOCKSPARSE_KERNELS_COMMON_ROUND_CUH_
#define BLOCKSPARSE_KERNELS_COMMON_ROUND_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace blocksparse {

// The bits of the nearest TensorFloat-32. Without it the tensor cores truncate, which doubles the
// error and biases sums.
__device__ __forceinline__ uint32_t RoundToTf32(float v) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(v));
  return rounded;
}

// Two numbers as fp16, `low` in the low half; what is beyond its range, infinities too, becomes its
// largest number. sm_90.
__device__ __forceinline__ uint32_t SaturatedHalves(float low, float high) {
  uint32_t halves;
  asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(halves) : "f"(high), "f"(low));
  return halves;
}

// Two numbers as T = __half or __nv_bfloat16, `low` in the low half.
template <typename T>
__device__ __forceinline__ uint32_t PackPair(float low, float high) {
  uint32_t bits;
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 pair = __floats2half2_rn(low, high);
    bits = *reinterpret_cast<const uint32_t*>(&pair);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    bits = *reinterpret_cast<const uint32_t*>(&pair);
  }
  return bits;
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_COMMON_ROUND_CUH_

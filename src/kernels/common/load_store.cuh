// Moving vectors between global and shared memory, with predication and any alignment in one place.
#ifndef BLOCKSPARSE_KERNELS_COMMON_LOAD_STORE_CUH_
#define BLOCKSPARSE_KERNELS_COMMON_LOAD_STORE_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "src/kernels/common/arch.h"

namespace blocksparse {

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Starts an asynchronous copy of 16 bytes to shared memory; writes zeros and reads nothing unless
// `is_wanted`.
__device__ __forceinline__ void CopyVectorAsync(void* shared, const void* global, bool is_wanted) {
  const int num_bytes = is_wanted ? kVectorBytes : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], %2, %3;\n" ::"r"(SharedAddress(shared)),
               "l"(global), "n"(kVectorBytes), "r"(num_bytes)
               : "memory");
}
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
// Waits until at most kPending of this thread's committed groups are still under way.
template <int kPending>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Fills one vector of shared memory from `global`, of which the first `num_valid` elements exist;
// the rest is zero. is_aligned: global is 16-byte aligned and num_valid is 0 or a whole vector.
template <typename T>
__device__ __forceinline__ void LoadVector(T* shared, const T* global, int64_t num_valid,
                                           bool is_aligned) {
  constexpr int kVector = kVectorBytes / sizeof(T);
  if (is_aligned) {
    CopyVectorAsync(shared, global, num_valid > 0);
    return;
  }
  alignas(kVectorBytes) T values[kVector];
#pragma unroll
  for (int i = 0; i < kVector; ++i) values[i] = i < num_valid ? global[i] : T(0.f);
  *reinterpret_cast<uint4*>(shared) = *reinterpret_cast<const uint4*>(values);
}

// The reverse: writes the first `num_valid` elements of a vector of shared memory.
template <typename T>
__device__ __forceinline__ void StoreVector(T* global, const T* shared, int64_t num_valid,
                                            bool is_aligned) {
  constexpr int kVector = kVectorBytes / sizeof(T);
  if (is_aligned) {
    if (num_valid > 0) *reinterpret_cast<uint4*>(global) = *reinterpret_cast<const uint4*>(shared);
    return;
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    if (i < num_valid) global[i] = shared[i];
  }
}

inline bool IsVectorAligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % kVectorBytes == 0;
}

template <typename T>
__device__ __forceinline__ float LoadFloat(const T* pointer) {
  return static_cast<float>(*pointer);
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_COMMON_LOAD_STORE_CUH_

// Barriers of some warps of a thread block, numbered 1 to 15: more forms than SyncThreads
// (hopper.cuh). kThreads: how many take part, whole warps.
#ifndef BLOCKSPARSE_KERNELS_COMMON_NAMED_BARRIER_CUH_
#define BLOCKSPARSE_KERNELS_COMMON_NAMED_BARRIER_CUH_

#include <cstdint>

namespace blocksparse {

// SyncThreads for warps that wait in different instances of a function.
template <int kThreads>
__device__ __forceinline__ void SyncInstances(int id) {
  asm volatile("barrier.sync %0, %1;" ::"r"(id), "n"(kThreads) : "memory");
}

// SyncThreads; whether any thread says so, the same to all.
template <int kThreads>
__device__ __forceinline__ bool AnyThread(int id, bool is_true) {
  uint32_t any;
  asm volatile(
      "{ .reg .pred p, q; setp.ne.u32 p, %1, 0;\n"
      "bar.red.or.pred q, %2, %3, p;\n"
      "selp.u32 %0, 1, 0, q; }"
      : "=r"(any)
      : "r"(uint32_t{is_true}), "r"(id), "n"(kThreads)
      : "memory");
  return any != 0;
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_COMMON_NAMED_BARRIER_CUH_

// Tensor maps written by a kernel (sm_90a), for more matrices than kernel parameters can describe.
// A map is made in shared memory from one that the host encoded, and copied to where other kernels
// find it.
#ifndef BLOCKSPARSE_KERNELS_COMMON_TENSOR_MAP_REPLACE_CUH_
#define BLOCKSPARSE_KERNELS_COMMON_TENSOR_MAP_REPLACE_CUH_

#include <cuda.h>

#include <cstdint>

#include "src/kernels/common/load_store.cuh"

namespace blocksparse {

// `map` is the shared address of a tensor map, aligned to 128 bytes; the calls are one thread's.
__device__ __forceinline__ void ReplaceAddress(uint32_t map, const void* data) {
  asm volatile("tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%0], %1;" ::"r"(map),
               "l"(data)
               : "memory");
}
template <int kDimension>
__device__ __forceinline__ void ReplaceSize(uint32_t map, uint32_t size) {
  asm volatile("tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%0], %1, %2;" ::"r"(map),
               "n"(kDimension), "r"(size)
               : "memory");
}
// Bytes from one row of a matrix to the next.
__device__ __forceinline__ void ReplaceRowBytes(uint32_t map, uint64_t num_bytes) {
  asm volatile("tensormap.replace.tile.global_stride.shared::cta.b1024.b64 [%0], 0, %1;" ::"r"(map),
               "l"(num_bytes)
               : "memory");
}

// Copies a map to global memory, for those who acquire it there. By a whole warp, after a
// __syncwarp that follows the replacements.
__device__ __forceinline__ void PublishTensorMap(CUtensorMap* global, uint32_t map) {
  asm volatile(
      "tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned "
      "[%0], [%1], 128;" ::"l"(global),
      "r"(map)
      : "memory");
}
// Once by a thread of the thread block, and a barrier, before the map is used.
__device__ __forceinline__ void AcquireTensorMap(const CUtensorMap* global) {
  asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(global) : "memory");
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_COMMON_TENSOR_MAP_REPLACE_CUH_

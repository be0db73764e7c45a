// Moving vectors between global and shared memory, with predication and any alignment in one place.
#ifndef BLOCKSPARSE_KERNELS_COMMON_LOAD_STORE_CUH_
#define BLOCKSPARSE_KERNELS_COMMON_LOAD_STORE_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

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
// Starts bringing bytes, a multiple of 16, to the L2 cache, where a later write changes them: it
// may come before the kernel that writes them has ended, unlike a load. Does nothing before sm_90.
__device__ __forceinline__ void PrefetchBytes(const void* global, uint32_t num_bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(num_bytes));
#endif
}
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
// Waits until at most kPending of this thread's committed groups are still under way.
template <int kPending>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Fills one vector of shared memory with the first `num_valid` elements from `global` on, and
// zeros. Any alignment.
template <typename T>
__device__ __forceinline__ void LoadUnaligned(T* shared, const T* global, int64_t num_valid) {
  constexpr int kVector = kVectorBytes / sizeof(T);
  alignas(kVectorBytes) T values[kVector];
#pragma unroll
  for (int i = 0; i < kVector; ++i) values[i] = i < num_valid ? global[i] : T(0.f);
  *reinterpret_cast<uint4*>(shared) = *reinterpret_cast<const uint4*>(values);
}

// Tiles in shared memory, rows of kCols elements, in which eight rows of one column of 16-byte
// vectors lie in different banks, as matrix loads want it: either the rows are padded, which costs
// no address arithmetic, or the vectors of a row are permuted, which keeps them aligned to 32
// bytes: copies of short rows into a padded tile read their sectors of global memory twice.
template <typename T, int kCols>
struct PaddedTile {
  // A row of eight elements needs no padding.
  static constexpr int kPitch =
      kCols == 8 ? kCols : kCols + kVectorBytes / static_cast<int>(sizeof(T));

  T* data;

  __device__ __forceinline__ T* At(int row, int col) const { return data + row * kPitch + col; }
};

template <typename T, int kCols>
struct SwizzledTile {
  static constexpr int kVector = kVectorBytes / sizeof(T);
  static constexpr int kVectors = kCols / kVector;
  static_assert(kVectors > 0 && (kVectors & (kVectors - 1)) == 0, "rows of 2^n vectors");
  static constexpr int kMask = kVectors < 8 ? kVectors - 1 : 7;
  static constexpr int kRowsPerLine = 8 / (kMask + 1);  // rows that share 128 bytes

  T* data;

  __device__ __forceinline__ T* At(int row, int col) const {
    const int vector = col / kVector ^ (row / kRowsPerLine & kMask);
    return data + row * kCols + vector * kVector + col % kVector;
  }
};

// A thread's share of copying kRows x kCols elements into a tile. Where its vectors lie in global
// memory, relative to a base that moves from tile to tile, is computed once: the arithmetic of
// addresses would otherwise outweigh that of the product.
template <typename T, int kRows, int kCols, int kThreads>
struct TileCopy {
  static constexpr int kVector = kVectorBytes / sizeof(T);
  static constexpr int kVectorsPerRow = kCols / kVector;
  static constexpr int kVectors = kRows * kVectorsPerRow;
  static constexpr int kPasses = (kVectors + kThreads - 1) / kThreads;

  int64_t offsets[kPasses];

  TileCopy() = default;

  static __device__ __forceinline__ int Row(int pass) {
    return (threadIdx.x + pass * kThreads) / kVectorsPerRow;
  }
  static __device__ __forceinline__ int Col(int pass) {
    return (threadIdx.x + pass * kThreads) % kVectorsPerRow * kVector;
  }
  static __device__ __forceinline__ bool HasVector(int pass) {
    return kVectors % kThreads == 0 || threadIdx.x + pass * kThreads < kVectors;
  }

  // offset_of(row, col): elements from the base to the vector that starts there.
  template <class F>
  explicit __device__ __forceinline__ TileCopy(F offset_of) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) offsets[pass] = offset_of(Row(pass), Col(pass));
  }

  // Fills the tile from (first_row, first_col) on. num_valid(row, col): how many elements exist
  // from there on; what does not exist is not read but zero. is_aligned: every vector is 16-byte
  // aligned and exists wholly or not at all; the copy is then asynchronous.
  template <class SharedTile, class F>
  __device__ __forceinline__ void Load(SharedTile tile, int first_row, int first_col, const T* base,
                                       bool is_aligned, F num_valid) const {
    if (is_aligned) {
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass)
        if (HasVector(pass))
          CopyVectorAsync(tile.At(first_row + Row(pass), first_col + Col(pass)),
                          base + offsets[pass], num_valid(Row(pass), Col(pass)) > 0);
    } else {
#pragma unroll 1
      for (int pass = 0; pass < kPasses; ++pass)
        if (HasVector(pass))
          LoadUnaligned(tile.At(first_row + Row(pass), first_col + Col(pass)), base + offsets[pass],
                        num_valid(Row(pass), Col(pass)));
    }
  }
};

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

// Four neighbours, converted. is_aligned: `global` is aligned to all four.
template <typename T>
__device__ __forceinline__ void StoreFour(T* global, float4 values, bool is_aligned) {
  alignas(kVectorBytes) const T four[4] = {T(values.x), T(values.y), T(values.z), T(values.w)};
  if (is_aligned) {
    using Vector = std::conditional_t<sizeof(T) == 4, uint4, uint2>;
    *reinterpret_cast<Vector*>(global) = *reinterpret_cast<const Vector*>(four);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) global[i] = four[i];
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

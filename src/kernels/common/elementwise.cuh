// What elementwise kernels share: neighbours as one vector of float32, and exponentials as accurate
// as the storage type can show.
#ifndef BLOCKSPARSE_KERNELS_COMMON_ELEMENTWISE_CUH_
#define BLOCKSPARSE_KERNELS_COMMON_ELEMENTWISE_CUH_

#include <type_traits>

#include "src/kernels/common/load_store.cuh"

namespace blocksparse {

// Elements in one 16-byte access.
template <typename T>
constexpr int kVectorOf = kVectorBytes / static_cast<int>(sizeof(T));

// kVector neighbours: 1, or as many as a 16-byte aligned address has. They stay in their storage
// type, so that a kernel that takes them one by one needs few registers.
template <typename T, int kVector>
struct Vector {
  static_assert(kVector == 1 || kVector == kVectorOf<T>, "one element or one vector");
  alignas(kVector * sizeof(T)) T elements[kVector];

  __device__ __forceinline__ void Load(const T* pointer) {
    if constexpr (kVector == 1) {
      elements[0] = *pointer;
    } else {
      *reinterpret_cast<uint4*>(elements) = *reinterpret_cast<const uint4*>(pointer);
    }
  }
  __device__ __forceinline__ void Store(T* pointer) const {
    if constexpr (kVector == 1) {
      *pointer = elements[0];
    } else {
      *reinterpret_cast<uint4*>(pointer) = *reinterpret_cast<const uint4*>(elements);
    }
  }
  __device__ __forceinline__ float Get(int i) const { return static_cast<float>(elements[i]); }
  __device__ __forceinline__ void Set(int i, float value) { elements[i] = T(value); }
  __device__ __forceinline__ void SetZero() {
#pragma unroll
    for (T& element : elements) element = T(0.f);
  }
};

// exp(x) for a kernel whose tensors are stored as T. The fast one errs by 2 + 1.2 |x| units in the
// last place of float32, which is nothing beside the rounding of a 16-bit type.
template <typename T>
__device__ __forceinline__ float Exp(float x) {
  if constexpr (std::is_same_v<T, float>) return expf(x);
  return __expf(x);
}

// 1 / x; the fast one errs by 1 unit in the last place and gives 0 from 2^126.
template <typename T>
__device__ __forceinline__ float Reciprocal(float x) {
  if constexpr (std::is_same_v<T, float>) return 1.f / x;
  return __fdividef(1.f, x);
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_COMMON_ELEMENTWISE_CUH_

// Vectors of 8 lanes: AVX2, FMA, F16C. Included like simd_words.h.
#ifndef BLOCKSPARSE_KERNELS_COMMON_SIMD_AVX2_H_
#define BLOCKSPARSE_KERNELS_COMMON_SIMD_AVX2_H_

#include "src/kernels/common/simd_words.h"

namespace blocksparse {
namespace {

using Vec = __m256;
constexpr int kLanes = 8;
constexpr int kRegisters = 16;

inline Vec ZeroVec() { return _mm256_setzero_ps(); }
inline Vec LoadVec(const float* from) { return _mm256_loadu_ps(from); }
inline void StoreVec(float* to, Vec value) { _mm256_storeu_ps(to, value); }
inline Vec Broadcast(const float* from) { return _mm256_broadcast_ss(from); }

// The lanes from and to kLanes / 8 places, eight each.
inline Vec GatherVec(const float* const* from, int64_t offset) {
  return _mm256_loadu_ps(from[0] + offset);
}

inline void ScatterVec(float* const* to, int64_t offset, Vec value) {
  StoreVec(to[0] + offset, value);
}

// Eight lanes.
inline Words PartOf(Vec value, int) { return value; }

template <typename T>
inline void Round(T* to, Vec value) {
  Store8(to, value);
}

struct FloatMath {
  static constexpr bool kIsPairs = false;
  static Vec MulAdd(Vec a, Vec b, Vec sum) { return _mm256_fmadd_ps(a, b, sum); }
  // For tiles that leave no register free. Of the intrinsic GCC 12 makes forms that overwrite a
  // factor, and then keeps sums in memory.
  static Vec MulAddTight(Vec a, Vec b, Vec sum) {
    asm("vfmadd231ps %1, %2, %0" : "+x"(sum) : "x"(a), "x"(b));
    return sum;
  }
  static Vec MulAddBroadcast(const float* a, Vec b, Vec sum) {
    return MulAdd(Broadcast(a), b, sum);
  }
};

}  // namespace
}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_COMMON_SIMD_AVX2_H_

// Vectors of 16 lanes: AVX-512 F, BW, DQ, VL, and AVX512_BF16 where BLOCKSPARSE_PAIRS is defined.
// Included like simd_words.h.
#ifndef BLOCKSPARSE_KERNELS_COMMON_SIMD_AVX512_H_
#define BLOCKSPARSE_KERNELS_COMMON_SIMD_AVX512_H_

#include "src/kernels/common/simd_words.h"

namespace blocksparse {
namespace {

using Vec = __m512;
constexpr int kLanes = 16;
constexpr int kRegisters = 32;

inline Vec ZeroVec() { return _mm512_setzero_ps(); }
inline Vec LoadVec(const float* from) { return _mm512_loadu_ps(from); }
inline void StoreVec(float* to, Vec value) { _mm512_storeu_ps(to, value); }
inline Vec Broadcast(const float* from) { return _mm512_set1_ps(*from); }

// The lanes from kLanes / 8 places, eight from each.
inline Vec GatherVec(const float* const* from, int64_t offset) {
  return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(from[0] + offset)),
                            _mm256_loadu_ps(from[1] + offset), 1);
}

struct FloatMath {
  static Vec MulAdd(Vec a, Vec b, Vec sum) { return _mm512_fmadd_ps(a, b, sum); }
};

#ifdef BLOCKSPARSE_PAIRS
// Words are pairs of bfloat16; a lane adds two products, each rounded to nearest. The instruction
// takes subnormal inputs for zero and flushes subnormal sums.
struct PairMath {
  static Vec MulAdd(Vec a, Vec b, Vec sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};
#endif

}  // namespace
}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_COMMON_SIMD_AVX512_H_

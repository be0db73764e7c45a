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

// The lanes from and to kLanes / 8 places, eight each.
inline Vec GatherVec(const float* const* from, int64_t offset) {
  // A load under a mask costs no shuffle.
  return _mm512_mask_loadu_ps(_mm512_castps256_ps512(_mm256_loadu_ps(from[0] + offset)), 0xff00,
                              from[1] + offset - kWords);
}

inline void ScatterVec(float* const* to, int64_t offset, Vec value) {
  _mm256_storeu_ps(to[0] + offset, _mm512_castps512_ps256(value));
  _mm256_storeu_ps(to[1] + offset, _mm512_extractf32x8_ps(value, 1));
}

inline Words PartOf(Vec value, int part) {
  return part == 0 ? _mm512_castps512_ps256(value) : _mm512_extractf32x8_ps(value, 1);
}

// Rounded as Store8 does it.
inline void Round(float* to, Vec value) { StoreVec(to, value); }
inline void Round(Half* to, Vec value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void Round(BFloat16* to, Vec value) {
#ifdef BLOCKSPARSE_PAIRS
  const __m256i rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), rounded);
#else
  Store8(to, PartOf(value, 0));
  Store8(to + kWords, PartOf(value, 1));
#endif
}

struct FloatMath {
  static constexpr bool kIsPairs = false;
  static Vec MulAdd(Vec a, Vec b, Vec sum) { return _mm512_fmadd_ps(a, b, sum); }
  static Vec MulAddTight(Vec a, Vec b, Vec sum) { return MulAdd(a, b, sum); }
  static Vec MulAddBroadcast(const float* a, Vec b, Vec sum) {
    return _mm512_fmadd_ps(_mm512_set1_ps(*a), b, sum);
  }
};

#ifdef BLOCKSPARSE_PAIRS
// Words are pairs of bfloat16; a lane adds two products, each rounded to nearest. The instruction
// takes subnormal inputs for zero and flushes subnormal sums.
struct PairMath {
  static constexpr bool kIsPairs = true;
  static Vec MulAdd(Vec a, Vec b, Vec sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
  static Vec MulAddTight(Vec a, Vec b, Vec sum) { return MulAdd(a, b, sum); }
  // NOTE(measured): with a broadcast of its own for each product, which is what GCC 12 makes of the
  // intrinsics, Zen 4 reaches 70 % of its rate; with the memory operand 92 %.
  static Vec MulAddBroadcast(const float* a, Vec b, Vec sum) {
    asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(b), "m"(*a));
    return sum;
  }

  // kVecs vectors of pairs {first[i], second[i]}, from rows of bfloat16 that hold kVecs kLanes
  // each.
  template <int kVecs>
  static void Interleave(const float* first, const float* second, Vec* pairs) {
    static_assert(kVecs == 1 || kVecs == 2, "a row fills half a register or a whole one");
    // Of 32 and 32 numbers: 0, 32, 1, 33, ...
    const __m512i low =
        _mm512_add_epi16(_mm512_maskz_mov_epi16(0xaaaaaaaau, _mm512_set1_epi16(32)),
                         _mm512_cvtepu8_epi16(_mm256_setr_epi8(
                             0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11,
                             11, 12, 12, 13, 13, 14, 14, 15, 15)));
    if constexpr (kVecs == 1) {
      const __m512i a = _mm512_castsi256_si512(_mm256_castps_si256(_mm256_loadu_ps(first)));
      const __m512i b = _mm512_castsi256_si512(_mm256_castps_si256(_mm256_loadu_ps(second)));
      pairs[0] = _mm512_castsi512_ps(_mm512_permutex2var_epi16(a, low, b));
    } else {
      const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
      const __m512i a = _mm512_castps_si512(_mm512_loadu_ps(first));
      const __m512i b = _mm512_castps_si512(_mm512_loadu_ps(second));
      pairs[0] = _mm512_castsi512_ps(_mm512_permutex2var_epi16(a, low, b));
      pairs[1] = _mm512_castsi512_ps(_mm512_permutex2var_epi16(a, high, b));
    }
  }
};
#endif

}  // namespace
}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_COMMON_SIMD_AVX512_H_

// Eight 32-bit words at a time with AVX2: loads that convert, stores that round, transposition.
//
// Included, after the headers that everybody shares, between BLOCKSPARSE_BEGIN_TARGET and
// BLOCKSPARSE_END_TARGET of a file for one level; everything is local to that file.
#ifndef BLOCKSPARSE_KERNELS_COMMON_SIMD_WORDS_H_
#define BLOCKSPARSE_KERNELS_COMMON_SIMD_WORDS_H_

#include <immintrin.h>

#include "src/kernels/common/dtype.h"

namespace blocksparse {
namespace {

// Eight float32, or eight pairs of bfloat16.
using Words = __m256;
constexpr int kWords = 8;

inline Words LoadWords(const void* from) {
  return _mm256_loadu_ps(static_cast<const float*>(from));
}
inline void StoreWords(float* to, Words words) { _mm256_storeu_ps(to, words); }
inline Words ZeroWords() { return _mm256_setzero_ps(); }

// Eight values as float32.
inline Words Load8(const float* from) { return _mm256_loadu_ps(from); }
inline Words Load8(const Half* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
inline Words Load8(const BFloat16* from) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

// Word i: {first[i], second[i]}.
inline Words Interleave8(const BFloat16* first, const BFloat16* second) {
  const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(first));
  const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(second));
  return _mm256_castsi256_ps(_mm256_or_si256(_mm256_cvtepu16_epi32(low),
                                             _mm256_slli_epi32(_mm256_cvtepu16_epi32(high), 16)));
}

// Rounds to nearest, ties to even. BFloat16 as FromFloat does it: unlike the instruction of
// AVX512_BF16, this keeps subnormal numbers, so that every level rounds alike.
inline void Store8(float* to, Words value) { _mm256_storeu_ps(to, value); }
inline void Store8(Half* to, Words value) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void Store8(BFloat16* to, Words value) {
#ifdef BLOCKSPARSE_PAIRS
  const __m128i packed = reinterpret_cast<__m128i>(_mm256_cvtneps_pbh(value));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), packed);
#else
  const __m256i bits = _mm256_castps_si256(value);
  const __m256i high = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
  const __m256i quiet_nan = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
  const __m256i result = _mm256_blendv_epi8(rounded, quiet_nan, is_nan);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(result, result), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
#endif
}

// Copies past the caches; `to` is aligned to as many bytes. FenceStreams comes before other threads
// read them.
template <int kBytes>
inline void StreamBytes(void* to, const void* from) {
  if constexpr (kBytes == 16) {
    _mm_stream_si128(static_cast<__m128i*>(to), _mm_loadu_si128(static_cast<const __m128i*>(from)));
  } else {
    for (int i = 0; i < kBytes / 32; ++i)
      _mm256_stream_si256(static_cast<__m256i*>(to) + i,
                          _mm256_loadu_si256(static_cast<const __m256i*>(from) + i));
  }
}
inline void FenceStreams() { _mm_sfence(); }

// rows[i] word j <-> rows[j] word i.
inline void Transpose8(Words* rows) {
  Words pairs[kWords];
  for (int i = 0; i < kWords; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
  Words fours[kWords];
  for (int i = 0; i < kWords; i += 4) {
    fours[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    fours[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
    fours[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    fours[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
  }
}

}  // namespace
}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_COMMON_SIMD_WORDS_H_

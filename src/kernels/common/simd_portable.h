// The vectors and words of simd_avx2.h and simd_words.h for any CPU, in the compilers' vector
// extension, which becomes whatever the instruction set has.
#ifndef BLOCKSPARSE_KERNELS_COMMON_SIMD_PORTABLE_H_
#define BLOCKSPARSE_KERNELS_COMMON_SIMD_PORTABLE_H_

#include <cstring>
#include <utility>

#include "src/kernels/common/dtype.h"

namespace blocksparse {
namespace {

constexpr int kLanes = 8;
constexpr int kRegisters = 8;  // of this size, where the hardware has 16 of four lanes
struct Vec {
  typedef float Floats __attribute__((vector_size(16)));
  Floats low, high;
};

inline Vec ZeroVec() { return Vec{}; }
inline Vec LoadVec(const float* from) {
  Vec value;
  std::memcpy(&value.low, from, 16);
  std::memcpy(&value.high, from + 4, 16);
  return value;
}
inline void StoreVec(float* to, Vec value) {
  std::memcpy(to, &value.low, 16);
  std::memcpy(to + 4, &value.high, 16);
}
inline Vec Broadcast(const float* from) {
  const Vec::Floats value = {*from, *from, *from, *from};
  return {value, value};
}
inline Vec GatherVec(const float* const* from, int64_t offset) { return LoadVec(from[0] + offset); }

inline void ScatterVec(float* const* to, int64_t offset, Vec value) {
  StoreVec(to[0] + offset, value);
}

struct FloatMath {
  static constexpr bool kIsPairs = false;
  static Vec MulAdd(Vec a, Vec b, Vec sum) {
    return {sum.low + a.low * b.low, sum.high + a.high * b.high};
  }
  static Vec MulAddTight(Vec a, Vec b, Vec sum) { return MulAdd(a, b, sum); }
  static Vec MulAddBroadcast(const float* a, Vec b, Vec sum) {
    return MulAdd(Broadcast(a), b, sum);
  }
};

constexpr int kWords = 8;
struct Words {
  float word[kWords];
};

inline Words LoadWords(const void* from) {
  Words words;
  std::memcpy(&words, from, sizeof words);
  return words;
}
inline void StoreWords(float* to, Words words) { std::memcpy(to, &words, sizeof words); }
inline Words ZeroWords() { return Words{}; }
inline Words PartOf(Vec value, int) {
  Words words;
  StoreVec(words.word, value);
  return words;
}

template <typename T>
inline void Round(T* to, Vec value) {
  Store8(to, PartOf(value, 0));
}
template <typename T>
inline Words Load8(const T* from) {
  Words words;
  for (int i = 0; i < kWords; ++i) words.word[i] = ToFloat(from[i]);
  return words;
}
template <typename T>
inline void Store8(T* to, Words words) {
  for (int i = 0; i < kWords; ++i) to[i] = FromFloat<T>(words.word[i]);
}
template <int kBytes>
inline void StreamBytes(void* to, const void* from) {
  std::memcpy(to, from, kBytes);
}
inline void FenceStreams() {}
inline void Transpose8(Words* rows) {
  for (int i = 0; i < kWords; ++i)
    for (int j = 0; j < i; ++j) std::swap(rows[i].word[j], rows[j].word[i]);
}

}  // namespace
}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_COMMON_SIMD_PORTABLE_H_

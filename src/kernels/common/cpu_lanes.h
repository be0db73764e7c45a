// Sums and maxima on the CPU in the order that vector units need: one for each of kLanes lanes,
// element i in lane i % kLanes, then the lanes halved until one is left. A compiler turns loops
// over the lanes into a few vectors, but does not reorder a sum of floats itself.
#ifndef BLOCKSPARSE_KERNELS_COMMON_CPU_LANES_H_
#define BLOCKSPARSE_KERNELS_COMMON_CPU_LANES_H_

#include <cstdint>

#include "src/kernels/common/cpu_clones.h"

namespace blocksparse {

constexpr int64_t kLanes = 32;

// Calls f(i, lane) for all i in [begin, end), which need not come in order; begin is in lane 0.
template <class F>
BLOCKSPARSE_INLINE void ForEachInLanes(int64_t begin, int64_t end, F f) {
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    BLOCKSPARSE_INDEPENDENT
    for (int64_t lane = 0; lane < kLanes; ++lane) f(i + lane, lane);
  }
  for (int64_t lane = 0; i + lane < end; ++lane) f(i + lane, lane);
}

// f over the lanes, f(a, b) of two halves first.
template <int64_t kSize = kLanes, class F>
BLOCKSPARSE_INLINE float Reduce(const float* lanes, F f) {
  if constexpr (kSize == 1) {
    return lanes[0];
  } else {
    constexpr int64_t kHalf = kSize / 2;
    float halves[kHalf];
    for (int64_t lane = 0; lane < kHalf; ++lane) halves[lane] = f(lanes[lane], lanes[lane + kHalf]);
    return Reduce<kHalf>(halves, f);
  }
}

BLOCKSPARSE_INLINE float SumOf(const float* lanes) {
  return Reduce(lanes, [](float a, float b) __attribute__((always_inline)) { return a + b; });
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_COMMON_CPU_LANES_H_

// How the GPU kernels of cross_entropy.h divide rows among threads.
#ifndef BLOCKSPARSE_KERNELS_CROSS_ENTROPY_POLICY_H_
#define BLOCKSPARSE_KERNELS_CROSS_ENTROPY_POLICY_H_

#include <cstdint>

#include "src/kernels/common/arch.h"

namespace blocksparse {

// A row by kRowThreads_ threads: a warp, several of which make a thread block, or a thread block.
template <int kRowThreads_>
struct CrossEntropyPolicy {
  static constexpr int kRowThreads = kRowThreads_;
  static constexpr bool kIsWarp = kRowThreads == kWarpSize;
  static constexpr int kRows = kIsWarp ? 4 : 1;  // of a thread block
  static constexpr int kThreads = kRowThreads * kRows;
  // The gradient needs no sum over a row, so a thread block takes this many classes of it.
  static constexpr int64_t kGradClasses = kIsWarp ? INT64_MAX : 8192;
  static_assert(kRowThreads % kWarpSize == 0, "a row has whole warps");
  static_assert(kRowThreads / kWarpSize <= kWarpSize, "one warp adds up the others' sums");
};

using CrossEntropyOfWarp = CrossEntropyPolicy<kWarpSize>;
using CrossEntropyOfBlock = CrossEntropyPolicy<512>;

// Up to here a warp takes a row: 4 vectors of a 16-bit type for each of its threads. Not tuned by
// measurement yet.
constexpr int64_t kCrossEntropyWarpClasses = 1024;

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_CROSS_ENTROPY_POLICY_H_

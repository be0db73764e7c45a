// Which tiles the GPU kernels of layer_norm.h use, and how many thread blocks.
//
// The sizes and the alignment of the pointers decide, never the device: results are the same on
// every GPU. Two families of kernels:
//
//   features last: a group of threads holds a row (one segment of one sample) in registers and
//   walks down the samples, so that x, dy and dx cross the memory bus once and a thread keeps the
//   same features, whose g, b, dg and db stay in registers too.
//
//     L up to          64   256  1024  2048  4096  8192  more
//     threads a row     8    32   128   256   512   512   256
//     values a thread   8     8     8     8     8    16     8, in steps
//
//   The next row is loaded early, except with 16 values (registers) and in steps (the cache has
//   it).
//
//   features first: a thread block owns a strip of columns (samples) and walks down the features.
//   A column is too long for registers, so it is read twice.
//
//   features first, few samples (a step of a recurrent network): one kernel finds the sums of parts
//   of the columns, a second adds them up and computes the result.
//
// On an H200, bfloat16 [5552, 128]: one block a strip took 19 us forward and 31 us for the
// gradient. NOTE: the rest is chosen by arithmetic (bytes in flight a multiprocessor, registers a
// thread).
#ifndef BLOCKSPARSE_KERNELS_LAYER_NORM_POLICY_H_
#define BLOCKSPARSE_KERNELS_LAYER_NORM_POLICY_H_

#include <algorithm>
#include <cstdint>

#include "src/kernels/common/arch.h"
#include "src/kernels/common/status.h"

namespace blocksparse {

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- features last ------------------------------------------------------------------------------

// kRowThreads threads hold kElements values each of a row of up to kCapacity.
template <int kVector_, int kRowThreads_, int kElements_>
struct RowTile {
  static constexpr int kVector = kVector_;  // neighbouring values in one load
  static constexpr int kRowThreads = kRowThreads_;
  static constexpr int kElements = kElements_;
  static constexpr int kPacks = kElements / kVector;
  static constexpr int kCapacity = kRowThreads * kElements;
  // Short rows share a block. From 128 threads on a block holds one row, so that a barrier of the
  // row is one of the block.
  static constexpr int kThreads = kRowThreads <= kWarpSize ? 256 : kRowThreads;
  static constexpr int kRows = kThreads / kRowThreads;
  // Left to itself ptxas aims at more blocks a multiprocessor, and spills a register or two for it.
  static constexpr int kMinBlocks = 1;
  // 16 values a thread, of x and dy, leave no registers for the next row's.
  static constexpr bool kLoadsEarly = kElements <= 8;
  static_assert(kElements % kVector == 0, "a thread holds whole vectors");
  static_assert(kRowThreads <= kWarpSize ? kWarpSize % kRowThreads == 0
                                         : kRowThreads % kWarpSize == 0,
                "a row is a part of a warp, or whole warps");
};

constexpr int64_t kMaxRegisterRow = 8192;
// The tile in whose steps longer rows are walked.
template <int kVector>
using LongRowTile = RowTile<kVector, 256, 8>;
// Samples that the gradient's block takes at a time where rows are long: it adds to its partial
// sums of dg and db, which lie in memory then, once for all of them.
constexpr int kLongRowSamples = 4;

// Calls f with the tile for rows of `size` <= kMaxRegisterRow.
template <int kVector, class F>
auto WithRowTile(int64_t size, F f) {
  if (size <= 64) return f(RowTile<kVector, 8, 8>{});
  if (size <= 256) return f(RowTile<kVector, 32, 8>{});
  if (size <= 1024) return f(RowTile<kVector, 128, 8>{});
  if (size <= 2048) return f(RowTile<kVector, 256, 8>{});
  if (size <= 4096) return f(RowTile<kVector, 512, 8>{});
  return f(RowTile<kVector, 512, 16>{});
}

// ---- features first -----------------------------------------------------------------------------

// A block's strip is kLanes vectors of columns wide; its threads stand kRows features high.
template <int kVector_, int kLanes_>
struct ColumnTile {
  static constexpr int kVector = kVector_;
  static constexpr int kLanes = kLanes_;
  static constexpr int kThreads = 512;
  static constexpr int kRows = kThreads / kLanes;
  static constexpr int kColumns = kLanes * kVector;
  static constexpr int kMinBlocks = 1;  // as above
  static constexpr int kUnroll = 4;     // features that a thread loads at once
  static_assert(kWarpSize % kLanes == 0, "a row of the strip lies in one warp");
};

// Strips of 128 bytes read memory best; with fewer than this many of them most multiprocessors
// would idle, and strips of one 32-byte sector serve better.
constexpr int64_t kEnoughStrips = 96;
constexpr int kStripBytes = 128;
constexpr int kNarrowStripBytes = 32;

// Lanes of a strip of elements of this size. Single loads (kVector 1) make do with 32 or 8 lanes.
template <int kVector, int kElementBytes, bool kIsNarrow>
constexpr int StripLanes() {
  constexpr int kBytes = kIsNarrow ? kNarrowStripBytes : kStripBytes;
  constexpr int kLanes = kBytes / (kVector * kElementBytes);
  return kVector == 1 ? (kIsNarrow ? 8 : kWarpSize) : kLanes;
}

// Calls f with the tile for `batch` columns.
template <int kVector, int kElementBytes, class F>
auto WithColumnTile(int64_t batch, int64_t segments, F f) {
  using Wide = ColumnTile<kVector, StripLanes<kVector, kElementBytes, false>()>;
  using Narrow = ColumnTile<kVector, StripLanes<kVector, kElementBytes, true>()>;
  if (CeilDiv(batch, Wide::kColumns) * segments >= kEnoughStrips) return f(Wide{});
  return f(Narrow{});
}

// Fewer samples than this, times segments, and the columns of one strip are shared by many blocks.
constexpr int64_t kFewColumns = 4096;

template <class Args>
bool HasFewColumns(const Args& args) {
  return args.feature_axis == 0 && args.batch * args.segments <= kFewColumns;
}

// Parts of a column in the first kernel: 64 bytes of samples by 256 features (fewer without
// vectors).
template <int kVector_>
struct PartTile {
  static constexpr int kVector = kVector_;
  static constexpr int kLanes = kVector == 1 ? 8 : 4;
  static constexpr int kThreads = 256;
  static constexpr int kRows = kThreads / kLanes;
  static constexpr int kColumns = kLanes * kVector;
  static constexpr int kUnroll = 4;
  static constexpr int kFeatures = kRows * kUnroll;
};

// Tiles of the second kernel: up to 128 samples, so that dg and db need no further sums, and few
// features, so that many blocks run.
template <int kVector_>
struct FewColumnsTile {
  static constexpr int kVector = kVector_;
  static constexpr int kLanes = kVector == 1 ? kWarpSize : 128 / kVector;
  static constexpr int kThreads = 256;
  static constexpr int kRows = kThreads / kLanes;
  static constexpr int kColumns = kLanes * kVector;
  static constexpr int kUnroll = 32 / kRows;
  static constexpr int kFeatures = kRows * kUnroll;
  static_assert(kWarpSize % kLanes == 0, "a row of the tile lies in one warp");
  static_assert(kThreads >= kColumns && kThreads / kColumns <= kWarpSize,
                "threads for each column");
};

// ---- thread blocks ------------------------------------------------------------------------------

// Each block works on one segment; blocks of a segment share out the samples. Few enough that the
// partial sums of dg and db stay small, enough for 132 multiprocessors.
constexpr int64_t kMaxBlocks = 512;
constexpr int64_t kMinSamplesOfPartial = 8;
// With few samples the blocks count more than the size of the partial sums.
constexpr int64_t kFewRows = 512;
constexpr int64_t kMinSamplesOfFewRows = 2;

// Blocks of each segment, where one block takes `samples` at a time.
inline int64_t NumSplits(int64_t batch, int64_t segments, int64_t samples) {
  const int64_t limit = std::max<int64_t>(1, kMaxBlocks / segments);
  return std::min(CeilDiv(batch, samples), limit);
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_LAYER_NORM_POLICY_H_

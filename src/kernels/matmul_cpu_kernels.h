// The inner loops of the CPU products, included like common/simd_words.h after the vectors of a
// level.
//
// Two inner loops do all the work; inlined elsewhere they would lack registers (AVX2: 3 to 9 %). In
// both a tile of the result stays in registers over the whole sum, one operand is read as vectors
// and the other one broadcast, word by word:
//
//   RowsKernel   kRows rows of a strip (samples) x vectors of W: features in lanes
//   OuterKernel  kOuterRows columns of a strip x vectors of other strips: samples in lanes, and dw
#ifndef BLOCKSPARSE_KERNELS_MATMUL_CPU_KERNELS_H_
#define BLOCKSPARSE_KERNELS_MATMUL_CPU_KERNELS_H_

#include "src/kernels/matmul_cpu.h"

// Before a loop over registers.
#ifdef __clang__
#define BLOCKSPARSE_UNROLL _Pragma("unroll")
#else
#define BLOCKSPARSE_UNROLL _Pragma("GCC unroll 16")
#endif

namespace blocksparse {
namespace {

#ifdef BLOCKSPARSE_PAIRS
constexpr bool kHasPairs = true;
#else
constexpr bool kHasPairs = false;
using PairMath = FloatMath;
#endif

// Stores past the caches cost kernels with few registers 3 to 14 % of their speed, used or not.
constexpr bool kCanStream = kRegisters >= 32;
constexpr int kStripsOfVec = kLanes / kWords;
constexpr int kMostVecs = 2;
constexpr int kMostRows = 14;
constexpr int64_t kLineBytes = 64;  // of a cache line
constexpr int kLineWords = 16;

constexpr int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }

// Rows of the tile in registers, beside its vectors of W and a broadcast word.
constexpr int RowsFor(int vecs) {
  const int rows = (kRegisters - vecs - 1) / vecs / 2 * 2;
  return rows < kMostRows ? rows : kMostRows;
}
// OuterKernel's tile.
constexpr int kOuterRows = kRegisters >= 32 ? 8 : 4;
constexpr int kOuterVecs = kRegisters >= 16 ? 2 : 1;
constexpr int kOuterLanes = kOuterVecs * kLanes;
constexpr int kOuterStrips = kOuterVecs * kStripsOfVec;

// Rounds to `to`, past the caches.
template <typename To>
inline void Stream(To* to, Vec value) {
  alignas(kLineBytes) To rounded[kLanes];
  Round(rounded, value);
  StreamBytes<sizeof rounded>(to, rounded);
}

// Whether rows that start at `to`, `stride` elements apart, are made of whole cache lines.
template <typename To>
inline bool HasLines(const To* to, int64_t stride) {
  return (reinterpret_cast<uintptr_t>(to) | stride * sizeof(To)) % kLineBytes == 0;
}

// sums += *value row.
template <class Math, int kVecs, bool kIsTight>
inline void AddProducts(const float* value, const Vec* row, Vec* sums) {
  if constexpr (kVecs == 1) {
    sums[0] = Math::MulAddBroadcast(value, row[0], sums[0]);
  } else {
    const Vec broadcast = Broadcast(value);
    BLOCKSPARSE_UNROLL for (int v = 0; v < kVecs; ++v) sums[v] =
        kIsTight ? Math::MulAddTight(broadcast, row[v], sums[v])
                 : Math::MulAdd(broadcast, row[v], sums[v]);
  }
}

// to[r][..] = sum over steps s, strips i and words d of x[s.x + i x_stride + 8 r + d] times
// row 8 i + d of s.w, rounded to To; if kIsInterleaved, of pairs of rows of bfloat16.
struct RowsTile {
  const ProductStep* steps;
  int64_t num_steps;
  const float* x;
  int64_t x_stride;
  int num_strips;    // of a block
  int64_t w_offset;  // of the vectors in a row of W
  int64_t w_stride;
  void* to;
  int64_t to_stride;
  bool is_streamed;
};

template <class Math, typename To, bool kIsInterleaved, int kRows, int kVecs>
__attribute__((noinline)) void RowsKernel(const RowsTile& tile) {
  Vec sums[kRows][kVecs];
  BLOCKSPARSE_UNROLL for (int r = 0; r < kRows; ++r)
      BLOCKSPARSE_UNROLL for (int v = 0; v < kVecs; ++v) sums[r][v] = ZeroVec();
  for (int64_t s = 0; s < tile.num_steps; ++s) {
    const float* w = tile.steps[s].w + tile.w_offset;
    const float* x = tile.x + tile.steps[s].x;
    const float* next_w = tile.steps[s + kStepsAhead].w + tile.w_offset;
    const float* next_x = tile.x + tile.steps[s + 1].x;
    for (int i = 0; i < tile.num_strips; ++i, x += tile.x_stride, next_x += tile.x_stride) {
      BLOCKSPARSE_UNROLL for (int line = 0; line < kRows / 2; ++line)
          __builtin_prefetch(next_x + line * kLineWords);
      BLOCKSPARSE_UNROLL for (int d = 0; d < kWords;
                              ++d, w += tile.w_stride, next_w += tile.w_stride) {
        BLOCKSPARSE_UNROLL for (int v = 0; v < kVecs * kLanes; v += kLineWords)
            __builtin_prefetch(next_w + v);
        Vec w_row[kVecs];
        if constexpr (kIsInterleaved) {
          Math::template Interleave<kVecs>(w, w + tile.w_stride / 2, w_row);
        } else {
          BLOCKSPARSE_UNROLL for (int v = 0; v < kVecs; ++v) w_row[v] = LoadVec(w + v * kLanes);
        }
        BLOCKSPARSE_UNROLL for (int r = 0; r < kRows; ++r) {
          AddProducts<Math, kVecs, true>(x + r * kWords + d, w_row, sums[r]);
        }
      }
    }
  }
  To* to = static_cast<To*>(tile.to);
  if (kCanStream && tile.is_streamed) {
    BLOCKSPARSE_UNROLL for (int r = 0; r < kRows; ++r)
        BLOCKSPARSE_UNROLL for (int v = 0; v < kVecs; ++v)
            Stream(to + r * tile.to_stride + v * kLanes, sums[r][v]);
    return;
  }
  BLOCKSPARSE_UNROLL for (int r = 0; r < kRows; ++r)
      BLOCKSPARSE_UNROLL for (int v = 0; v < kVecs; ++v)
          Round(to + r * tile.to_stride + v * kLanes, sums[r][v]);
}

// Runs RowsKernel with the right number of rows.
template <class Math, typename To, bool kIsInterleaved, int kVecs, int kRows = RowsFor(kVecs)>
void RunRows(int rows, const RowsTile& tile) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return RunRows<Math, To, kIsInterleaved, kVecs, kRows - 1>(rows, tile);
  }
  RowsKernel<Math, To, kIsInterleaved, kRows, kVecs>(tile);
}

// A vector whose lanes lie in kParts places.
template <int kParts>
inline Vec LoadParts(const float* const* from, int64_t offset) {
  return kParts == 1 ? LoadVec(from[0] + offset) : GatherVec(from, offset);
}
template <int kParts>
inline void StoreParts(float* const* to, int64_t offset, Vec value) {
  return kParts == 1 ? StoreVec(to[0] + offset, value) : ScatterVec(to, offset, value);
}
// The same, rounded.
template <int kParts, typename To>
inline void RoundParts(void* const* to, int64_t offset, Vec value) {
  if constexpr (kParts == 1) return Round(static_cast<To*>(to[0]) + offset, value);
  BLOCKSPARSE_UNROLL for (int i = 0; i < kParts; ++i)
      Store8(static_cast<To*>(to[i]) + offset, PartOf(value, i));
}

// The same past the caches.
template <int kParts, typename To>
inline void StreamParts(void* const* to, int64_t offset, Vec value) {
  if constexpr (kParts == 1) return Stream(static_cast<To*>(to[0]) + offset, value);
  BLOCKSPARSE_UNROLL for (int i = 0; i < kParts; ++i) {
    To rounded[kWords];
    Store8(rounded, PartOf(value, i));
    StreamBytes<sizeof rounded>(static_cast<To*>(to[i]) + offset, rounded);
  }
}

// to[r][lane] = sum over steps s and words d < depth of
//   s.w[w_offset + w_depth_stride d + w_row_stride r] times
//   word s.x + kRowWords d + lane % kRowWords of strip lane / kRowWords,
// and, if is_added, what was there. Lanes [kRowWords i, kRowWords (i + 1)) of row r are
// to[i] + to_stride (first_row + r). If To is not float, or is_streamed, the result goes to
// rounded[i] + rounded_stride (first_row + r) instead.
struct OuterTile {
  const ProductStep* steps;
  int64_t num_steps;
  int64_t depth;
  int64_t w_offset;
  int64_t w_depth_stride;
  int w_row_stride;                   // 1, or a block's row in words
  const float* strips[kOuterStrips];  // kRowWords wide: kStripWords or kLanes
  bool is_added;
  int64_t first_row;  // of `to` and `rounded`
  float* to[kOuterStrips];
  int64_t to_stride;
  void* rounded[kOuterStrips];
  int64_t rounded_stride;  // in elements
  bool is_streamed;
};

// Rows [row, row + kOuterRows). kIsPrefetching: asks for the operands of the step after next.
template <class Math, typename To, int kRowWords, int kVecs, int kRowStride, bool kIsPrefetching>
__attribute__((noinline)) void OuterKernel(const OuterTile& tile, int row) {
  constexpr int kParts = kLanes / kRowWords;  // of a vector
  const int64_t w_offset = tile.w_offset + row * kRowStride;
  const int64_t to_row = (tile.first_row + row) * tile.to_stride;
  const int64_t rounded_row = (tile.first_row + row) * tile.rounded_stride;
  Vec sums[kOuterRows][kVecs];
  BLOCKSPARSE_UNROLL for (int r = 0; r < kOuterRows; ++r)
      BLOCKSPARSE_UNROLL for (int v = 0; v < kVecs; ++v) sums[r][v] =
          tile.is_added ? LoadParts<kParts>(tile.to + v * kParts, to_row + r * tile.to_stride)
                        : ZeroVec();
  for (int64_t s = 0; s < tile.num_steps; ++s) {
    const float* w = tile.steps[s].w + w_offset;
    int64_t x = tile.steps[s].x;
    const float* next_w = nullptr;
    int64_t to_next_x = 0;
    if constexpr (kIsPrefetching) {
      next_w = tile.steps[s + kStepsAhead].w + w_offset;
      to_next_x = tile.steps[s + kStepsAhead].x - x;
    }
#pragma GCC unroll 4
    for (int64_t d = 0; d < tile.depth; ++d, x += kRowWords, w += tile.w_depth_stride) {
      if constexpr (kIsPrefetching) {
        // Eight rows of W in turn, or the next one.
        __builtin_prefetch(kRowStride > 1 ? next_w + (d & 7) * kRowStride + (d & ~7) : next_w);
        BLOCKSPARSE_UNROLL for (int v = 0; v < kVecs; ++v)
            __builtin_prefetch(tile.strips[v] + x + to_next_x);
        next_w += kRowStride > 1 ? 0 : tile.w_depth_stride;
      }
      Vec columns[kVecs];
      BLOCKSPARSE_UNROLL for (int v = 0; v < kVecs; ++v) columns[v] =
          LoadParts<kParts>(tile.strips + v * kParts, x);
      BLOCKSPARSE_UNROLL for (int r = 0; r < kOuterRows; ++r) {
        AddProducts<Math, kVecs, kIsPrefetching>(w + r * kRowStride, columns, sums[r]);
      }
    }
  }
  BLOCKSPARSE_UNROLL for (int r = 0; r < kOuterRows; ++r)
      BLOCKSPARSE_UNROLL for (int v = 0; v < kVecs; ++v) {
    if (kCanStream && tile.is_streamed) {
      StreamParts<kParts, To>(tile.rounded + v * kParts, rounded_row + r * tile.rounded_stride,
                              sums[r][v]);
    } else if constexpr (sizeof(To) == sizeof(float)) {
      StoreParts<kParts>(tile.to + v * kParts, to_row + r * tile.to_stride, sums[r][v]);
    } else {
      RoundParts<kParts, To>(tile.rounded + v * kParts, rounded_row + r * tile.rounded_stride,
                             sums[r][v]);
    }
  }
}

template <class Math, typename To, int kRowWords, int kRowStride, bool kIsPrefetching>
void RunOuterRows(const OuterTile& tile, int64_t num_lanes) {
  for (int row = 0; row < kWords; row += kOuterRows) {
    if (num_lanes > kLanes) {
      OuterKernel<Math, To, kRowWords, kOuterVecs, kRowStride, kIsPrefetching>(tile, row);
    } else {
      OuterKernel<Math, To, kRowWords, 1, kRowStride, kIsPrefetching>(tile, row);
    }
  }
}

// Rows [0, 8) of `to`, of which the first `num_lanes` lanes count, for samples in lanes.
template <class Math>
void RunOuter(const OuterTile& tile, int64_t num_lanes) {
  switch (tile.w_row_stride) {
    case 4:
      return RunOuterRows<Math, float, kLanes, 4, true>(tile, num_lanes);
    case 8:
      return RunOuterRows<Math, float, kLanes, 8, true>(tile, num_lanes);
    case 16:
      return RunOuterRows<Math, float, kLanes, 16, true>(tile, num_lanes);
    case 32:
      return RunOuterRows<Math, float, kLanes, 32, true>(tile, num_lanes);
    case 64:
      return RunOuterRows<Math, float, kLanes, 64, true>(tile, num_lanes);
    case 128:
      return RunOuterRows<Math, float, kLanes, 128, true>(tile, num_lanes);
    default:
      return RunOuterRows<Math, float, kLanes, 1, true>(tile, num_lanes);
  }
}

}  // namespace
}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_CPU_KERNELS_H_

// Tiles of the matrix-product kernels: what varies by arithmetic, block size and orientation, as
// types.
//
// All three products are C[128, B] = A[128, depth] B[depth, B], walked in chunks of the depth:
//   fprop, dx   A: 128 rows of the batch   B: blocks of W      depth: the features of a block
//   column's blocks dw          A: up to 128 / B blocks of x, stacked   B: one block column of dy
//   depth: the batch
// A chunk is cut into pieces that each lie in one block (fprop, dx): small blocks share a chunk, so
// that B = 8 too fills the tensor cores' depth of 16.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_POLICY_H_
#define BLOCKSPARSE_KERNELS_MATMUL_POLICY_H_

#include "src/kernels/common/arch.h"
#include "src/kernels/common/lut.h"

namespace blocksparse {

// Which index of an operand's tile is contiguous in shared memory, as it is in global memory.
enum class Major {
  kDepth,  // rows of A or columns of B hold the depth contiguously
  kOther,  // the depth is the slow index
};

template <class Math_, int kBlockSize_, Major kMajorA_, Major kMajorB_>
struct MatmulPolicy {
  using Math = Math_;
  using T = typename Math::T;
  static constexpr int kBlockSize = kBlockSize_;
  static constexpr Major kMajorA = kMajorA_;
  static constexpr Major kMajorB = kMajorB_;

  static constexpr int kTileRows = kDwTileRows;
  // 64 bytes of depth a row, or 128 where blocks are wide enough to fill them.
  static constexpr int kChunk = sizeof(T) == 2 && kBlockSize >= 64 ? 64 : 32;
  // As many stages as leave room for two thread blocks on an SM up to B = 32, and for one on the
  // smallest (99 KiB).
  static constexpr int kStages = kBlockSize <= 32 ? 4 : kBlockSize == 64 ? 3 : 2;

  // Warps: 32 rows each; B = 128 is shared between two, so that no thread holds over 64 sums.
  static constexpr int kWarpRows = 32;
  static constexpr int kWarpCols = kBlockSize < 64 ? kBlockSize : 64;
  static constexpr int kWarpsAlongRows = kTileRows / kWarpRows;
  static constexpr int kWarpsAlongCols = kBlockSize / kWarpCols;
  static constexpr int kThreads = kWarpSize * kWarpsAlongRows * kWarpsAlongCols;

  static constexpr int kPieceDepth = kBlockSize < kChunk ? kBlockSize : kChunk;
  static constexpr int kPiecesPerChunk = kChunk / kPieceDepth;
  static constexpr int kPiecesPerBlock = kBlockSize / kPieceDepth;

  static constexpr int kVector = kVectorBytes / sizeof(T);  // elements of one vector access

  // Columns of the tiles of a stage, and sizes in elements with 16 bytes of padding a row, which a
  // row of 8 elements of 16 bits does without.
  static constexpr int kColsA = kMajorA == Major::kDepth ? kChunk : kTileRows;
  static constexpr int kColsB = kMajorB == Major::kDepth ? kChunk : kBlockSize;
  static constexpr int kPitch(int cols) { return cols == 8 ? cols : cols + kVector; }
  static constexpr int kSizeA = kPitch(kColsA) * (kMajorA == Major::kDepth ? kTileRows : kChunk);
  static constexpr int kSizeB = kPitch(kColsB) * (kMajorB == Major::kDepth ? kBlockSize : kChunk);
  static constexpr int kStageElements = kSizeA + kSizeB;

  // The epilogue reuses the stages for a tile of the result, at most float32, in either
  // orientation.
  static constexpr int kLdResult = kBlockSize + kVector;
  static constexpr int kLdResultT = kTileRows + kVector;
  static constexpr int Max(int a, int b) { return a > b ? a : b; }
  static constexpr int kResultBytes = Max(kTileRows * kLdResult, kBlockSize* kLdResultT) * 4;
  static constexpr int kPipelineBytes = kStages * kStageElements * static_cast<int>(sizeof(T));
  static constexpr int kSmemBytes = Max(kPipelineBytes, kResultBytes);

  static_assert(kTileRows % kBlockSize == 0, "dw stacks whole blocks");
  static_assert(kChunk % Math::kDepth == 0,
                "a chunk is a whole number of matrix instructions deep");
  static_assert(kPieceDepth % kVector == 0, "a vector lies in one piece");
  static_assert(kSizeA % kVector == 0 && kSizeB % kVector == 0, "vector stores are aligned");
  static_assert(kSmemBytes <= kMaxSmemBytes, "the tile must fit every supported architecture");
};

// dw splits the batch over several thread blocks when there are too few items to fill the device.
constexpr int kMaxDwSplits = 16;
// Least depth of a split, in chunks: below, the partial sums cost more than they gain.
constexpr int kMinDwChunksPerSplit = 8;

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_POLICY_H_

// y = x W and dx = dy W^T for small blocks on sm_90: W is copied, in every call, into the order in
// which the kernel multiplies, so that one bulk copy brings what a step needs.
//
// Terms, with B the block size and "features" those of the direction at hand (dx: exchanged):
//   unit   16 input features x `width` (16 or 32) output features of W: the blocks stored there,
//          and zeros in place of others. Packed as 8 x 8 matrices, those of the two halves of the
//          depth side by side, for each 8 output features.
//   span   64 input features, a box of x; 4 rows of units.
//   stage  up to two spans, and the units that a group has there: what is loaded at a time.
//   group  block columns of y that one thread block computes side by side: six shares of 4 columns
//          of narrow units, or two of 6 columns of wide units.
//
// The section of the lut (kSectionPackedFprop, kSectionPackedDx), made by
// blocksparse/_packed_table.py:
//   int64 stage_ptr[groups + 1]   first stage of each group
//   PackedStage stages[]
//   int32 columns[groups][384 / B]   of share, unit column, place: block columns of y, or -1
//   int32 blocks[units][16 width / B^2]   blocks of a unit, in the order of the matrices; -1 for
//   zeros
// Its parameters: groups; stages; most units of a stage | spans of a stage << 16 | width << 24.
//
// Because of the zeros, an infinity or NaN of x may reach outputs beside those that a stored block
// joins to it; blocks with gate 0 are zeros too.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_PACKED_H_
#define BLOCKSPARSE_KERNELS_MATMUL_PACKED_H_

#include "src/kernels/matmul.h"

namespace blocksparse {

constexpr int kPackedDepth = 16;      // input features of a unit
constexpr int kPackedRows = 4;        // of units in a span
constexpr int kPackedSpans = 2;       // of a stage, at most
constexpr int kPackedFeatures = 384;  // of a group, at most
// Mask bits of a stage: 4 for each row and share of narrow units, 8 for wide ones.
constexpr int kPackedMaskBits = 192;

struct PackedStage {
  // By share, then row: which of the share's unit columns have a unit there.
  uint8_t masks[kPackedMaskBits / 8];
  int32_t features[kPackedSpans];  // first input feature of a span, or -1
  int32_t first_unit;              // units are numbered by stage, share, row, column
  int32_t num_units;
};
constexpr int kPackedMaskWords = kPackedMaskBits / 64;
constexpr int kPackedStageWords = kPackedMaskWords + 2;
static_assert(sizeof(PackedStage) == kPackedStageWords * sizeof(int64_t), "the form of the table");

// Whether this kernel computes `args`: an sm_90 GPU; float16 or bfloat16; block size 8 or 16; at
// least kMinPackedBatch samples, and kMinPackedTiles tiles, below which most SMs would idle; x, w,
// y aligned to 16 bytes, as must be the rows of x and y; a layout with the section.
bool PackedServes(const MatmulArgs& args);
// The packed W: at most 8 times w for B = 8, 2 times for B = 16, near 1 where most blocks are
// stored.
Status PackedWorkspaceBytes(const MatmulArgs& args, int64_t* bytes);
Status MatmulPacked(const MatmulArgs& args, Stream stream);

constexpr int64_t kMinPackedBatch = 512;
constexpr int64_t kMinPackedTiles = 66;  // of 128 samples by a group

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_PACKED_H_

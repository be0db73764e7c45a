// y = x W and dx = dy W^T for small blocks on sm_90: W is copied, in every call, into the order in
// which the kernel multiplies, so that one bulk copy brings what a step needs.
//
// Terms, with B the block size and "features" those of the direction at hand (dx: exchanged):
//   unit   16 input features x `width` output features of W: the blocks stored there, and zeros in
//          place of others. Packed as 8 x 8 matrices, those of the two halves of the depth side by
//          side, for each 8 output features.
//   span   64 input features, a box of x; 4 rows of units.
//   stage  up to two spans, and the units that a group has there: what is loaded at a time.
//   group  block columns of y that one thread block computes side by side.
//   share  of a group: unit columns whose units lie one behind the other in a stage.
//   shape  of a thread block's tile and of the shares:
//            kNarrow  128 samples x 384 features: 6 shares of 4 unit columns, 16 features wide
//            kBroad   64 samples x 768 features: 12 shares like those
//            kWide    128 samples x 384 features: 2 shares of 6 unit columns, 32 features wide
//
// The section of the lut (kSectionPackedFprop, kSectionPackedDx), made by
// blocksparse/_packed_table.py:
//   int64 stage_ptr[groups + 1]   first stage of each group
//   stages[], each
//     uint64 masks[3; kBroad: 6]   by share, then row of units: which of the share's unit columns
//                                  have a unit there, 4 bits (kWide: 8) for each row
//     int32 features[2]            first input feature of a span, or -1
//     int32 first_unit, num_units  units are numbered by stage, share, row, column
//   int32 columns[groups][384 / B; kBroad: 768 / B]
//                                  of share, unit column, place: block columns of y, or -1
//   int32 blocks[units][16 width / B^2]
//                                  blocks of a unit, in the order of the matrices; -1 for zeros
// Its parameters: groups; stages; most units of a stage | spans of a stage << 16 | shape << 24.
//
// Because of the zeros, an infinity or NaN of x may reach outputs beside those that a stored block
// joins to it; blocks with gate 0 are zeros too.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_PACKED_H_
#define BLOCKSPARSE_KERNELS_MATMUL_PACKED_H_

#include "src/kernels/matmul.h"

namespace blocksparse {

constexpr int kPackedDepth = 16;  // input features of a unit
constexpr int kPackedRows = 4;    // of units in a span
constexpr int kPackedSpans = 2;   // of a stage, at most
// Units of a stage times width, at most: two stages fit in shared memory.
constexpr int kMaxPackedStage = 2048;

enum class PackedShape { kNarrow, kBroad, kWide };
constexpr int PackedWidth(PackedShape shape) { return shape == PackedShape::kWide ? 32 : 16; }
constexpr int PackedTileRows(PackedShape shape) { return shape == PackedShape::kBroad ? 64 : 128; }
// Features of a group, at most.
constexpr int PackedFeaturesOf(PackedShape shape) {
  return shape == PackedShape::kBroad ? 768 : 384;
}
constexpr int PackedMaskWords(PackedShape shape) { return shape == PackedShape::kBroad ? 6 : 3; }
constexpr int PackedStageWords(PackedShape shape) { return PackedMaskWords(shape) + 2; }

// Whether this kernel computes `args`: an sm_90 GPU; float16 or bfloat16; block size 8 or 16; at
// least kMinPackedBatch samples, and kMinPackedTiles tiles, below which so many SMs would idle that
// the streaming kernel is faster; x, w, y aligned to 16 bytes, as must be the rows of x and y; a
// layout with the section; and up to 768 samples by its stages and units streaming would take
// longer.
bool PackedServes(const MatmulArgs& args);
// The packed W: at most 8 times w for B = 8, 2 times for B = 16, near 1 where most blocks are
// stored.
Status PackedWorkspaceBytes(const MatmulArgs& args, int64_t* bytes);
Status MatmulPacked(const MatmulArgs& args, Stream stream);

constexpr int64_t kMinPackedBatch = 384;
constexpr int64_t kMinPackedTiles = 40;  // of samples by a group

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_PACKED_H_

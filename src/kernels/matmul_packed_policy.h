// Tiles of the packed products (matmul_packed.h), as types.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_PACKED_POLICY_H_
#define BLOCKSPARSE_KERNELS_MATMUL_PACKED_POLICY_H_

#include <cuda.h>

#include "src/kernels/matmul_packed.h"

namespace blocksparse {

// What PackedServes found in the section, checked against its size.
struct PackedTable {
  const int64_t* stage_ptr;
  const int64_t* stages;
  const int32_t* columns;
  const int32_t* blocks;
  int num_groups;
  int num_stages;
  int64_t num_units;
  int max_units;  // of a stage
  int num_spans;  // of a stage
  PackedShape shape;
};

struct PackedParams {
  CUtensorMap x;       // axis 1: [N, C]; axis 0: [N / 64][C][64], kBroad: [C, N]
  CUtensorMap x_tail;  // axis 0: [C, N], for what [N / 64] leaves out
  PackedTable table;
  const unsigned char* w;  // packed
  void* y;
  int64_t batch;
  int64_t num_columns;  // of blocks
  int num_inputs;       // features of x
  int first_tail_row;   // from which tile on x_tail is needed
  int num_tiles;
  int block_size;
  int ring_stages;
};

template <typename T_, bool kIsAxis1_, bool kIsDx_, PackedShape kShape_>
struct PackedPolicy {
  using T = T_;
  static constexpr bool kIsAxis1 = kIsAxis1_;
  static constexpr bool kIsDx = kIsDx_;
  static constexpr PackedShape kShape = kShape_;
  static constexpr int kWidth = PackedWidth(kShape);
  // Narrow units are multiplied by mma.sync, whose warps go each their own way through a sparse
  // group; wide ones by wgmma, which is faster where most units are there.
  static constexpr bool kIsWide = kShape == PackedShape::kWide;

  // As many sums as the registers hold, so that x, which a sparse product loads most of, serves
  // many columns.
  static constexpr int kTileRows = PackedTileRows(kShape);
  static constexpr int kFeatures = PackedFeaturesOf(kShape);
  static constexpr int kMaskWords = PackedMaskWords(kShape);
  static constexpr int kShares = kIsWide ? 2 : kFeatures / 64;
  static constexpr int kUnits = kFeatures / kWidth / kShares;  // columns of a share
  static constexpr int kMaskBits = kIsWide ? 8 : 4;            // of a row
  static_assert(kUnits <= kMaskBits, "a bit for each column");
  // A warpgroup multiplies a wide share; a warp 64 samples of a narrow one.
  static constexpr int kWarpgroups = kIsWide ? 2 : 3;
  static constexpr int kWarpsOfShare = kWarpgroups * 4 / kShares;
  static constexpr int kUnitBytes = kPackedDepth * kWidth * static_cast<int>(sizeof(T));
  static constexpr int kMatrixBytes = 8 * 8 * static_cast<int>(sizeof(T));

  static constexpr int kSpan = kPackedRows * kPackedDepth;
  static constexpr int kSpanBytes = kTileRows * kSpan * static_cast<int>(sizeof(T));
  static constexpr int kRowBytes = kSpanBytes / kPackedRows;  // axis 0: 16 features
  // x comes in boxes of a span, or of a row of units, so that those which no unit needs are left
  // out: next to none of a broad group's.
  static constexpr bool kBoxIsSpan = kIsAxis1 || kShape == PackedShape::kBroad;
  static constexpr int kBoxBytes = kBoxIsSpan ? kSpanBytes : kRowBytes;
  static_assert(kSpan * sizeof(T) == 128, "a row of x is as wide as the swizzle");

  static constexpr int kThreads = (kWarpgroups + 1) * 128;
  static constexpr int kConsumerRegisters = kIsWide ? 240 : 160;
  static constexpr int kProducerRegisters = kIsWide ? 24 : 32;
};

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_PACKED_POLICY_H_

// dw of fp16 and bf16 with blocks of 8, 16 and 32 on sm_90, for long minibatches.
//
// A table for each feature axis (kSectionDwRegions0, 1) divides the stored blocks into regions. A
// region is a few chunks of x and of dy and those blocks at their crossings that are its own. A
// thread block reads a region's chunks once and keeps its sums in registers, so what it reads is
// shared by many blocks even where few are stored.
//
// Sums are made in units of `unit` x `unit`, 16 or 32: a block, or where blocks are smaller several
// of them, stored or not. A region's vertices are units of features, numbered through its chunks of
// x and then of dy; its units are edges between them. Each warp has walks along edges, of RegionRun
// units each but the last: entries that name a vertex and the unit between it and the entry before,
// which a walk's first entry lacks. Vertices of x and dy take turns in a walk. A step without
// blocks joins two parts of one.
//
//   parameters  number of regions R; unit | clocks << 8, what 16 samples of a region take, or 0
//               where that is not known; number of entries
//   section     int64[R * warps + 1]    the first entry of each warp
//               int32[R][32]            {chunks of x, chunks of dy, the chunks: x's, then dy's}
//               int32[entries][words]   {vertex, blocks}, padded to whole int64. The blocks of the
//                                       unit, (unit / B)^2 by rows; -1 where none is stored
#ifndef BLOCKSPARSE_KERNELS_MATMUL_REGION_DW_H_
#define BLOCKSPARSE_KERNELS_MATMUL_REGION_DW_H_

#include "src/kernels/matmul_region_dw_batch.h"

namespace blocksparse {

// A chunk's features, and the samples in shared memory at a time: either way one copies rows of 128
// bytes, which is what copies are fast for.
BLOCKSPARSE_HOST_DEVICE constexpr int RegionChunk(int feature_axis) {
  return feature_axis == 1 ? 64 : 32;
}
BLOCKSPARSE_HOST_DEVICE constexpr int RegionStep(int feature_axis) {
  return feature_axis == 1 ? 32 : 64;
}
constexpr int kMaxRegionChunks = 28;   // of x and dy together: two steps fit shared memory
constexpr int kRegionChunkWords = 32;  // of the table, for each region
constexpr int kMaxRegionSplits = 8;

// Warps that multiply.
BLOCKSPARSE_HOST_DEVICE constexpr int RegionWarps(int unit) { return unit == 16 ? 12 : 8; }

// Units of a walk. What bounds units of 16 is reading vertices, so their walks are long. Units of
// 32 are bound by products, of which all warps must have as many: two of them share a vertex.
BLOCKSPARSE_HOST_DEVICE constexpr int RegionRun(int unit) { return unit == 16 ? 14 : 2; }

// int32s of an entry.
BLOCKSPARSE_HOST_DEVICE constexpr int RegionEntryWords(int blocks_per_unit) {
  return (1 + blocks_per_unit + 1) / 2 * 2;
}

// Samples in all pairs together.
constexpr int64_t kMinRegionBatch = 129;

struct RegionDwParams : RegionBatch {
  const int64_t* walks;
  const int32_t* chunks;
  const int32_t* entries;
  const float* gate;
  void* dw;  // T or float, or the workspace: num_splits copies of float
  int64_t num_blocks;
  int64_t num_entries;
  int num_regions;
  int block_shift;  // the block size's binary logarithm
  int step_clocks;  // for the host: what 16 samples of a region take
  bool is_dw_float;
  bool is_dw_aligned;
};

// Whether the kernel is there for these arguments: sm_90 (Hopper) and no other; fp16 or bf16;
// B = 8, 16 or 32; at least kMinRegionBatch samples; x and dy aligned to 16 bytes, and their rows
// too (feature_axis 0: each N a multiple of 8); and the layout has the table.
bool CanRegionDw(const MatmulDwArgs& args);
// Whether, besides, by the table's clocks the general kernel takes longer.
bool RegionDwServes(const MatmulDwArgs& args);
// Partial sums, where regions are fewer than multiprocessors: at most kMaxRegionSplits copies of dw
// in float32. 32 KiB more for over kParameterPairs pairs.
Status RegionDwWorkspaceBytes(const MatmulDwArgs& args, int64_t* bytes);
Status MatmulRegionDw(const MatmulDwArgs& args, Stream stream);
// The same without the last addition: args.workspace gets *num_copies copies of dw in float32, one
// after the other. Tensor cores truncate sums; so those of pairs from num_plain on, if that is not
// 0, are made of 16 samples, and rounded into the rest. All pairs have samples; fp16.
Status RegionDwSumsBytes(const MatmulDwArgs& args, int64_t* bytes);
Status RegionDwSums(const MatmulDwArgs& args, int num_plain, Stream stream, int* num_copies);

// The kernel's instances, one .cu file for each type and unit. kAddsApart: heeds first_apart.
template <typename T, int kUnit, bool kAddsApart = false>
struct RegionDwKernels {
  static bool AreCompiled();
  static Status Run(int feature_axis, const RegionDwParams& params, Stream stream);
};

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_REGION_DW_H_

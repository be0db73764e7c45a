// dw of fp16 and bf16 with blocks of 64 and 128 on sm_90, for long minibatches: regions as in
// matmul_region_dw.h, multiplied by wgmma. Thread blocks that share a region, each with a part of
// the batch, are a cluster and add their sums through shared memory.
//
// One table (kSectionDwRegions0) serves both feature axes:
//
//   parameters  number of regions; clocks that kLargeDwStep samples take: the mean of all regions,
//               the most
//   section     int32[regions][kLargeDwWords]
//                 0     number of chunks of x, each a block's features
//                 1     of dy
//                 2     of blocks
//                 4...  the chunks, x's then dy's
//                 20... the blocks
//                 32... where each block's chunks are: x's + 256 dy's, each counted from its first
#ifndef BLOCKSPARSE_KERNELS_MATMUL_REGION_DW_LARGE_H_
#define BLOCKSPARSE_KERNELS_MATMUL_REGION_DW_LARGE_H_

#include "src/kernels/matmul_region_dw_batch.h"

namespace blocksparse {

constexpr int kLargeDwWords = 44;
constexpr int kLargeDwFirstChunk = 4;
constexpr int kLargeDwFirstBlock = 20;
constexpr int kLargeDwFirstPlace = 32;
constexpr int kLargeDwStep = 64;  // samples in shared memory at a time
// Blocks of a region: their sums fit the registers of two warpgroups. Chunks: two steps fit the
// ring.
BLOCKSPARSE_HOST_DEVICE constexpr int LargeDwBlocks(int block_size) {
  return block_size == 64 ? 12 : 3;
}
BLOCKSPARSE_HOST_DEVICE constexpr int LargeDwChunks(int block_size) {
  return block_size == 64 ? 14 : 6;
}

// Samples in all pairs together.
constexpr int64_t kMinLargeDwBatch = 512;

struct LargeDwParams : RegionBatch {
  const int32_t* regions;
  const float* gate;
  void* dw;  // T or float
  int64_t num_blocks;
  int num_regions;
  bool is_dw_float;
  bool is_dw_aligned;
};

// Whether the kernel is there for these arguments: sm_90 (Hopper) and no other; fp16 or bf16; B =
// 64 or 128; at least kMinLargeDwBatch samples, below which it is not worth its start; x and dy as
// RegionDwServes wants them; and the layout has the table.
bool LargeDwServes(const MatmulDwArgs& args);
// 32 KiB for over kParameterPairs pairs.
Status LargeDwWorkspaceBytes(const MatmulDwArgs& args, int64_t* bytes);
Status MatmulLargeDw(const MatmulDwArgs& args, Stream stream);

// The kernel's instances, one .cu file for each type and block size.
template <typename T, int kBlockSize>
struct LargeDwKernels {
  static bool AreCompiled();
  // Clusters of `size` thread blocks that the current device runs at a time.
  static Status CountClusters(int feature_axis, int size, int* count);
  static Status Run(int feature_axis, const LargeDwParams& params, Stream stream);
};

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_REGION_DW_LARGE_H_

// The batch of dw by regions: steps of samples through all pairs, how they are split over thread
// blocks, and the tensor maps of x and dy.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_REGION_DW_BATCH_H_
#define BLOCKSPARSE_KERNELS_MATMUL_REGION_DW_BATCH_H_

#include <cuda.h>

#include "src/kernels/matmul.h"

namespace blocksparse {

// Pairs whose tensor maps travel as kernel parameters; more are written to the workspace.
constexpr int kParameterPairs = 8;

struct RegionBatch {
  CUtensorMap maps[2 * kParameterPairs];  // x and dy of each pair
  const CUtensorMap* more_maps;           // the same of all pairs, or null
  int num_pairs;
  int num_steps;  // of all pairs, each a whole number
  int num_splits;
  int steps_per_split;
  int pair_steps[kMaxMatmulPairs];
};

// The features and samples that one copy brings.
struct RegionBox {
  int features;
  int samples;
};

// Whether the pairs have at least min_batch samples together, and tensor maps: x and dy aligned to
// 16 bytes, and their rows too (feature_axis 0: each N a multiple of 8). 16-bit types.
bool AreRegionPairsServed(const MatmulDwArgs& args, int64_t min_batch);
// Pairs without samples are left out.
void CountRegionSteps(const MatmulDwArgs& args, int samples_per_step, RegionBatch* batch);
void SplitRegionSteps(int num_splits, RegionBatch* batch);
// Workspace for the maps of many pairs, up to 32 KiB.
int64_t RegionMapBytes(const RegionBatch& batch);
// Tensor maps of the pairs that have samples; more_maps: RegionMapBytes aligned to 64.
Status MakeRegionMaps(const MatmulDwArgs& args, const RegionBox& box, CUtensorMap* more_maps,
                      RegionBatch* batch, Stream stream);

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_REGION_DW_BATCH_H_

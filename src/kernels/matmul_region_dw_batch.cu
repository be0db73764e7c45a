// The host's side of matmul_region_dw_batch.h, and the kernel that writes many tensor maps.
#include <limits>

#include "src/kernels/common/cuda_launch.h"
#include "src/kernels/common/hopper.cuh"
#include "src/kernels/common/load_store.cuh"
#include "src/kernels/common/tensor_map.h"
#include "src/kernels/common/tensor_map_replace.cuh"
#include "src/kernels/matmul_region_dw_batch.h"

namespace blocksparse {
namespace {

struct PairMapsParams {
  CUtensorMap maps[2];  // of x and dy of any pair
  CUtensorMap* results;
  int feature_axis;
  int num_pairs;
  MatmulPair pairs[kMaxMatmulPairs];
};

// Writes the tensor maps of all pairs: one thread block of one warp for each matrix.
__global__ void PairMapsKernel(const __grid_constant__ PairMapsParams p) {
#ifdef BLOCKSPARSE_HAS_HOPPER
  __shared__ __align__(128) uint32_t words[sizeof(CUtensorMap) / sizeof(uint32_t)];
  const int operand = blockIdx.x % 2;
  const MatmulPair& pair = p.pairs[blockIdx.x / 2];
  words[threadIdx.x] = reinterpret_cast<const uint32_t*>(p.maps + operand)[threadIdx.x];
  __syncwarp();
  const uint32_t map = SharedAddress(words);
  if (threadIdx.x == 0) {
    ReplaceAddress(map, operand == 0 ? pair.x : pair.dy);
    if (p.feature_axis == 1) {
      ReplaceSize<1>(map, static_cast<uint32_t>(pair.batch));
    } else {
      ReplaceSize<0>(map, static_cast<uint32_t>(pair.batch));
      ReplaceRowBytes(map, 2 * pair.batch);
    }
  }
  __syncwarp();
  PublishTensorMap(p.results + blockIdx.x, map);
#endif
}

Status EncodeMaps(const MatmulDwArgs& args, const MatmulPair& pair, const RegionBox& box,
                  CUtensorMap* maps) {
  const int64_t features[2] = {args.layout.in_blocks * args.layout.block_size,
                               args.layout.out_blocks * args.layout.block_size};
  for (int i = 0; i < 2; ++i) {
    const void* data = i == 0 ? pair.x : pair.dy;
    const TensorBox tensor_box =
        args.feature_axis == 1 ? TensorBox{args.dtype,   data,        features[i],     pair.batch,
                                           box.features, box.samples, 2 * box.features}
                               : TensorBox{args.dtype,  data,         pair.batch,     features[i],
                                           box.samples, box.features, 2 * box.samples};
    BLOCKSPARSE_RETURN_IF_ERROR(EncodeTensorMap(tensor_box, maps + i));
  }
  return Status();
}

}  // namespace

bool AreRegionPairsServed(const MatmulDwArgs& args, int64_t min_batch) {
  const int64_t kMaxSize = std::numeric_limits<int32_t>::max();
  int64_t batch = 0;
  for (int i = 0; i < args.num_pairs; ++i) {
    const MatmulPair& pair = args.pairs[i];
    if (!IsVectorAligned(pair.x) || !IsVectorAligned(pair.dy) || pair.batch > kMaxSize / 2 ||
        (args.feature_axis == 0 && pair.batch % 8 != 0))
      return false;
    batch += pair.batch;
  }
  return batch >= min_batch && batch <= kMaxSize / 2;
}

void CountRegionSteps(const MatmulDwArgs& args, int samples_per_step, RegionBatch* batch) {
  batch->num_pairs = 0;
  batch->num_steps = 0;
  for (int i = 0; i < args.num_pairs; ++i) {
    const int64_t steps = (args.pairs[i].batch + samples_per_step - 1) / samples_per_step;
    if (steps == 0) continue;
    batch->pair_steps[batch->num_pairs++] = static_cast<int>(steps);
    batch->num_steps += static_cast<int>(steps);
  }
}

void SplitRegionSteps(int num_splits, RegionBatch* batch) {
  batch->num_splits = num_splits;
  batch->steps_per_split = (batch->num_steps + num_splits - 1) / num_splits;
}

int64_t RegionMapBytes(const RegionBatch& batch) {
  return batch.num_pairs > kParameterPairs
             ? int64_t{2} * batch.num_pairs * static_cast<int64_t>(sizeof(CUtensorMap))
             : 0;
}

Status MakeRegionMaps(const MatmulDwArgs& args, const RegionBox& box, CUtensorMap* more_maps,
                      RegionBatch* batch, Stream stream) {
  PairMapsParams all = {};
  for (int i = 0; i < args.num_pairs; ++i)
    if (args.pairs[i].batch > 0) all.pairs[all.num_pairs++] = args.pairs[i];
  if (all.num_pairs <= kParameterPairs) {
    for (int i = 0; i < all.num_pairs; ++i)
      BLOCKSPARSE_RETURN_IF_ERROR(EncodeMaps(args, all.pairs[i], box, batch->maps + 2 * i));
    return Status();
  }
  BLOCKSPARSE_RETURN_IF_ERROR(EncodeMaps(args, all.pairs[0], box, all.maps));
  all.feature_axis = args.feature_axis;
  all.results = more_maps;
  batch->more_maps = more_maps;
  return Launch("PairMapsKernel", PairMapsKernel, 2 * all.num_pairs, kWarpSize, 0, stream, all);
}

}  // namespace blocksparse

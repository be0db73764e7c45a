// The GPU side of layer_norm.h: chooses the family of kernels, and adds up what the gradient's
// blocks have left of dg and db.
//
// A thread block adds up kWarpSize features: each of its warps every kSumRows-th partial sum, then
// one warp what the warps have, in order.
#include "src/kernels/layer_norm_kernels.cuh"

namespace blocksparse {
namespace {

constexpr int kSumRows = 32;
constexpr int kSumThreads = kWarpSize * kSumRows;

__global__ void __launch_bounds__(kSumThreads)
    LayerNormSumPartialsKernel(const __grid_constant__ SplitArgs<LayerNormGradArgs> p) {
  __shared__ float sums[kSumRows][kWarpSize];
  const int lane = threadIdx.x % kWarpSize;
  const int row = threadIdx.x / kWarpSize;
  // dg and db lie behind each other in a partial sum.
  const int64_t k = int64_t{blockIdx.x} * kWarpSize + lane;
  const int64_t size = 2 * p.args.features;
  float sum = 0.f;
  if (k < size) {
    for (int64_t split = row; split < p.num_splits; split += kSumRows)
      sum += p.args.workspace[split * size + k];
  }
  sums[row][lane] = sum;
  __syncthreads();
  if (row > 0 || k >= size) return;
  for (int r = 1; r < kSumRows; ++r) sum += sums[r][lane];
  if (k < p.args.features) {
    p.args.dg[k] = sum;
  } else {
    p.args.db[k - p.args.features] = sum;
  }
}

Status SplitsOf(const LayerNormGradArgs& args, int64_t* num_splits) {
  return args.feature_axis == 1 ? LayerNormRowsSplits(args, num_splits)
                                : LayerNormColumnsSplits(args, num_splits);
}

}  // namespace

Status LayerNormGpu(const LayerNormArgs& args, Stream stream) {
  return args.feature_axis == 1 ? LayerNormRowsGpu(args, stream)
                                : LayerNormColumnsGpu(args, stream);
}

Status LayerNormGpuWorkspace(const LayerNormArgs& args, int64_t* floats) {
  *floats = HasFewColumns(args) ? LayerNormPartFloats(args.features, args.segments, args.batch) : 0;
  return Status();
}

Status LayerNormGradGpuWorkspace(const LayerNormGradArgs& args, int64_t* floats) {
  int64_t num_splits = 0;
  BLOCKSPARSE_RETURN_IF_ERROR(SplitsOf(args, &num_splits));
  *floats = num_splits * 2 * args.features;
  if (HasFewColumns(args)) *floats += LayerNormPartFloats(args.features, args.segments, args.batch);
  return Status();
}

Status LayerNormGradGpu(const LayerNormGradArgs& args, Stream stream) {
  SplitArgs<LayerNormGradArgs> p = {args, 0};
  BLOCKSPARSE_RETURN_IF_ERROR(SplitsOf(args, &p.num_splits));
  BLOCKSPARSE_RETURN_IF_ERROR(args.feature_axis == 1
                                  ? LayerNormRowsGradGpu(args, p.num_splits, stream)
                                  : LayerNormColumnsGradGpu(args, p.num_splits, stream));
  if (HasFewColumns(args) && p.num_splits == 1) return Status();  // dg and db are complete
  return Launch("LayerNormSumPartialsKernel", LayerNormSumPartialsKernel,
                CeilDiv(2 * args.features, kWarpSize), kSumThreads, 0, stream, p);
}

}  // namespace blocksparse

// Whether and how dw by regions runs: what it serves, how the batch is split, tensor maps.
#include <algorithm>
#include <limits>

#include "src/kernels/common/cuda_launch.h"
#include "src/kernels/common/hopper.cuh"
#include "src/kernels/common/load_store.cuh"
#include "src/kernels/common/tensor_map.h"
#include "src/kernels/common/tensor_map_replace.cuh"
#include "src/kernels/matmul_instances.h"
#include "src/kernels/matmul_region_dw.h"

namespace blocksparse {
namespace {

constexpr int64_t kMinStepsPerSplit = 4;

// The parts of the table; false unless they fill it.
bool ReadTable(const MatmulDwArgs& args, RegionDwParams* params, int* unit) {
  const Layout& layout = args.layout;
  const Table& table =
      layout.OptionalTable(args.feature_axis == 1 ? kSectionDwRegions1 : kSectionDwRegions0);
  const int64_t num_regions = table.parameters[0];
  const int64_t num_entries = table.parameters[2];
  *unit = table.parameters[1];
  if (num_regions < 1 || num_entries < 1 || (*unit != 16 && *unit != 32) ||
      *unit < layout.block_size)
    return false;
  const int64_t num_walks = num_regions * RegionWarps(*unit);
  const int per_edge = *unit / layout.block_size;
  const int entry_words = RegionEntryWords(per_edge * per_edge);
  if (table.size !=
      num_walks + 1 + num_regions * kRegionChunkWords / 2 + num_entries * entry_words / 2)
    return false;
  params->num_regions = static_cast<int>(num_regions);
  params->num_entries = num_entries;
  params->walks = table.data;
  params->chunks = reinterpret_cast<const int32_t*>(params->walks + num_walks + 1);
  params->entries = params->chunks + num_regions * kRegionChunkWords;
  return true;
}

int64_t DwSize(const Layout& layout) {
  return layout.num_blocks * layout.block_size * layout.block_size;
}

// Steps of all pairs, and how they are divided.
Status CountSteps(const MatmulDwArgs& args, RegionDwParams* params) {
  int num_sms = 0;
  BLOCKSPARSE_RETURN_IF_ERROR(CountSms(&num_sms));
  const int step = RegionStep(args.feature_axis);
  int64_t num_steps = 0;
  params->num_pairs = 0;
  for (int i = 0; i < args.num_pairs; ++i) {
    const int64_t steps = (args.pairs[i].batch + step - 1) / step;
    if (steps == 0) continue;
    params->pair_steps[params->num_pairs++] = static_cast<int>(steps);
    num_steps += steps;
  }
  // The number of splits with which waves of thread blocks end soonest: in microseconds a thread
  // block takes about half of one for 32 samples, and partial sums move at 3 TB/s.
  const double step_us = 0.5 * step / 32;
  const double sum_us = 2e-6 / 3 * sizeof(float) * static_cast<double>(DwSize(args.layout));
  int64_t num_splits = 1;
  double least_us = 0;
  for (int64_t splits = 1; splits <= kMaxRegionSplits; ++splits) {
    if (splits > 1 && num_steps < splits * kMinStepsPerSplit) break;
    const int64_t waves = (params->num_regions * splits + num_sms - 1) / num_sms;
    const int64_t steps = (num_steps + splits - 1) / splits;
    const double us = waves * steps * step_us + (splits > 1 ? 3 + splits * sum_us : 0);
    if (splits > 1 && us >= least_us) continue;
    least_us = us;
    num_splits = splits;
  }
  params->num_steps = static_cast<int>(num_steps);
  params->num_splits = static_cast<int>(num_splits);
  params->steps_per_split = static_cast<int>((num_steps + num_splits - 1) / num_splits);
  return Status();
}

int64_t SumBytes(const MatmulDwArgs& args, const RegionDwParams& params) {
  if (params.num_splits == 1) return 0;
  return params.num_splits * DwSize(args.layout) * static_cast<int64_t>(sizeof(float));
}

int64_t MapBytes(const RegionDwParams& params) {
  return params.num_pairs > kParameterPairs
             ? int64_t{2} * params.num_pairs * static_cast<int64_t>(sizeof(CUtensorMap))
             : 0;
}

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

Status EncodeMaps(const MatmulDwArgs& args, const MatmulPair& pair, CUtensorMap* maps) {
  const int64_t features[2] = {args.layout.in_blocks * args.layout.block_size,
                               args.layout.out_blocks * args.layout.block_size};
  for (int i = 0; i < 2; ++i) {
    const void* data = i == 0 ? pair.x : pair.dy;
    const int chunk = RegionChunk(args.feature_axis);
    const int step = RegionStep(args.feature_axis);
    const TensorBox box =
        args.feature_axis == 1
            ? TensorBox{args.dtype, data, features[i], pair.batch, chunk, step, 2 * chunk}
            : TensorBox{args.dtype, data, pair.batch, features[i], step, chunk, 2 * step};
    BLOCKSPARSE_RETURN_IF_ERROR(EncodeTensorMap(box, maps + i));
  }
  return Status();
}

// Tensor maps of the pairs that have samples, in the order of their steps.
Status MakeMaps(const MatmulDwArgs& args, CUtensorMap* more_maps, RegionDwParams* params,
                Stream stream) {
  PairMapsParams all = {};
  for (int i = 0; i < args.num_pairs; ++i)
    if (args.pairs[i].batch > 0) all.pairs[all.num_pairs++] = args.pairs[i];
  if (all.num_pairs <= kParameterPairs) {
    for (int i = 0; i < all.num_pairs; ++i)
      BLOCKSPARSE_RETURN_IF_ERROR(EncodeMaps(args, all.pairs[i], params->maps + 2 * i));
    return Status();
  }
  BLOCKSPARSE_RETURN_IF_ERROR(EncodeMaps(args, all.pairs[0], all.maps));
  all.feature_axis = args.feature_axis;
  all.results = more_maps;
  params->more_maps = more_maps;
  return Launch("PairMapsKernel", PairMapsKernel, 2 * all.num_pairs, kWarpSize, 0, stream, all);
}

// Calls f(RegionDwKernels<T, unit>).
template <class F>
Status WithKernels(DType dtype, int unit, F f) {
  const auto with_type = [&](auto t) {
    using T = decltype(t);
    return unit == 16 ? f(RegionDwKernels<T, 16>{}) : f(RegionDwKernels<T, 32>{});
  };
  return dtype == DType::kFloat16 ? with_type(__half{}) : with_type(__nv_bfloat16{});
}

bool AreCompiled(DType dtype, int unit) {
  bool are = false;
  const Status status = WithKernels(dtype, unit, [&](auto kernels) {
    are = decltype(kernels)::AreCompiled();
    return Status();
  });
  return status.ok() && are;
}

bool ArePairsServed(const MatmulDwArgs& args) {
  const int64_t kMaxSize = std::numeric_limits<int32_t>::max();
  int64_t batch = 0;
  for (int i = 0; i < args.num_pairs; ++i) {
    const MatmulPair& pair = args.pairs[i];
    if (!IsVectorAligned(pair.x) || !IsVectorAligned(pair.dy) || pair.batch > kMaxSize / 2 ||
        (args.feature_axis == 0 && pair.batch % 8 != 0))
      return false;
    batch += pair.batch;
  }
  return batch >= kMinRegionBatch && batch <= kMaxSize / 2;
}

}  // namespace

bool RegionDwServes(const MatmulDwArgs& args) {
  const int64_t kMaxFeatures = std::numeric_limits<int32_t>::max() - 64;
  const int size = args.layout.block_size;
  RegionDwParams params = {};
  int unit = 0;
  return (args.dtype == DType::kFloat16 || args.dtype == DType::kBFloat16) && size >= 8 &&
         size <= 32 && args.layout.in_blocks <= kMaxFeatures / size &&
         args.layout.out_blocks <= kMaxFeatures / size && ArePairsServed(args) &&
         ReadTable(args, &params, &unit) && IsHopper() && AreCompiled(args.dtype, unit);
}

Status RegionDwWorkspaceBytes(const MatmulDwArgs& args, int64_t* bytes) {
  RegionDwParams params = {};
  int unit = 0;
  if (!ReadTable(args, &params, &unit)) return Invalid("the layout has no region table");
  BLOCKSPARSE_RETURN_IF_ERROR(CountSteps(args, &params));
  *bytes = SumBytes(args, params) + MapBytes(params);
  return Status();
}

Status MatmulRegionDw(const MatmulDwArgs& args, Stream stream) {
  RegionDwParams params = {};
  int unit = 0;
  if (!ReadTable(args, &params, &unit)) return Invalid("the layout has no region table");
  BLOCKSPARSE_RETURN_IF_ERROR(CountSteps(args, &params));
  // Sums come first: whole blocks, so what follows is aligned too.
  char* workspace = reinterpret_cast<char*>(args.workspace);
  BLOCKSPARSE_RETURN_IF_ERROR(MakeMaps(
      args, reinterpret_cast<CUtensorMap*>(workspace + SumBytes(args, params)), &params, stream));
  const bool is_split = params.num_splits > 1;
  params.gate = args.gate;
  params.dw = is_split ? args.workspace : args.dw;
  params.is_dw_aligned = IsVectorAligned(params.dw);
  params.is_dw_float = is_split || args.dw_dtype == DType::kFloat32;
  params.num_blocks = args.layout.num_blocks;
  while (1 << params.block_shift < args.layout.block_size) ++params.block_shift;
  BLOCKSPARSE_RETURN_IF_ERROR(WithKernels(args.dtype, unit, [&](auto kernels) {
    return decltype(kernels)::Run(args.feature_axis, params, stream);
  }));
  return is_split ? SumDwSplits(args, params.num_splits, stream) : Status();
}

}  // namespace blocksparse

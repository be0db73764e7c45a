// Whether and how dw by regions of large blocks runs: what it serves, how the batch is split.
#include <atomic>
#include <limits>

#include "src/kernels/common/cuda_cluster.h"
#include "src/kernels/common/load_store.cuh"
#include "src/kernels/common/tensor_map.h"
#include "src/kernels/matmul_region_dw_large.h"

namespace blocksparse {
namespace {

constexpr int kMinStepsPerSplit = 4;
// Rates of an H200 for the choice of splits.
constexpr double kClocksPerUs = 1755;
constexpr double kStartUs = 3;      // of a thread block, and its end
constexpr double kClusterUs = 1.5;  // more for each thread block of a cluster

// Calls f(LargeDwKernels<T, B>).
template <class F>
Status WithKernels(const MatmulDwArgs& args, F f) {
  const auto with_type = [&](auto t) {
    using T = decltype(t);
    return args.layout.block_size == 64 ? f(LargeDwKernels<T, 64>{}) : f(LargeDwKernels<T, 128>{});
  };
  return args.dtype == DType::kFloat16 ? with_type(__half{}) : with_type(__nv_bfloat16{});
}

bool AreCompiled(const MatmulDwArgs& args) {
  bool are = false;
  const Status status = WithKernels(args, [&](auto kernels) {
    are = decltype(kernels)::AreCompiled();
    return Status();
  });
  return status.ok() && are;
}

// Clusters of `size` thread blocks that the current device runs at a time: the same for all types,
// and asked once for each device.
Status CountClusters(const MatmulDwArgs& args, int size, int* count) {
  constexpr int kMaxDevices = 64;
  static std::atomic<int> known[kMaxDevices][kMaxClusterSize + 1];
  int device = 0;
  BLOCKSPARSE_RETURN_IF_ERROR(CudaStatus("CountClusters", cudaGetDevice(&device)));
  const bool is_kept = device >= 0 && device < kMaxDevices;
  *count = is_kept ? known[device][size].load() : 0;
  if (*count > 0) return Status();
  BLOCKSPARSE_RETURN_IF_ERROR(WithKernels(args, [&](auto kernels) {
    return decltype(kernels)::CountClusters(args.feature_axis, size, count);
  }));
  if (is_kept) known[device][size] = *count;
  return Status();
}

bool HasTable(const MatmulDwArgs& args) {
  const Table& table = args.layout.OptionalTable(kSectionDwRegions0);
  return table.parameters[0] > 0 && table.size == table.parameters[0] * int64_t{kLargeDwWords} / 2;
}

// Steps of all pairs, divided so that waves of clusters end soonest.
Status CountSteps(const MatmulDwArgs& args, LargeDwParams* params) {
  CountRegionSteps(args, kLargeDwStep, params);
  const Table& table = args.layout.OptionalTable(kSectionDwRegions0);
  params->num_regions = table.parameters[0];
  const double mean_us = table.parameters[1] / kClocksPerUs;
  const double most_us = table.parameters[2] / kClocksPerUs;
  int num_splits = 1;
  double least_us = std::numeric_limits<double>::infinity();
  for (int splits = 1; splits <= kMaxClusterSize; ++splits) {
    if (splits > 1 && params->num_steps < splits * kMinStepsPerSplit) break;
    int num_clusters = 0;
    BLOCKSPARSE_RETURN_IF_ERROR(CountClusters(args, splits, &num_clusters));
    if (num_clusters < 1) continue;
    const int waves = (params->num_regions + num_clusters - 1) / num_clusters;
    const int steps = (params->num_steps + splits - 1) / splits;
    const double start_us = kStartUs + (splits > 1 ? kClusterUs * splits : 0);
    const double us =
        waves == 1 ? steps * most_us + start_us : waves * (steps * mean_us + start_us);
    if (us >= least_us) continue;
    least_us = us;
    num_splits = splits;
  }
  SplitRegionSteps(num_splits, params);
  return Status();
}

}  // namespace

bool LargeDwServes(const MatmulDwArgs& args) {
  const int64_t kMaxFeatures = std::numeric_limits<int32_t>::max() - 128;
  const int size = args.layout.block_size;
  return (args.dtype == DType::kFloat16 || args.dtype == DType::kBFloat16) &&
         (size == 64 || size == 128) && args.layout.in_blocks <= kMaxFeatures / size &&
         args.layout.out_blocks <= kMaxFeatures / size && HasTable(args) &&
         AreRegionPairsServed(args, kMinLargeDwBatch) && IsHopper() && AreCompiled(args);
}

Status LargeDwWorkspaceBytes(const MatmulDwArgs& args, int64_t* bytes) {
  LargeDwParams params = {};
  CountRegionSteps(args, kLargeDwStep, &params);
  *bytes = RegionMapBytes(params);
  return Status();
}

Status MatmulLargeDw(const MatmulDwArgs& args, Stream stream) {
  LargeDwParams params = {};
  BLOCKSPARSE_RETURN_IF_ERROR(CountSteps(args, &params));
  const RegionBox box = {64, kLargeDwStep};
  BLOCKSPARSE_RETURN_IF_ERROR(
      MakeRegionMaps(args, box, reinterpret_cast<CUtensorMap*>(args.workspace), &params, stream));
  params.regions =
      reinterpret_cast<const int32_t*>(args.layout.OptionalTable(kSectionDwRegions0).data);
  params.gate = args.gate;
  params.dw = args.dw;
  params.num_blocks = args.layout.num_blocks;
  params.is_dw_float = args.dw_dtype == DType::kFloat32;
  params.is_dw_aligned = IsVectorAligned(args.dw);
  return WithKernels(args, [&](auto kernels) {
    return decltype(kernels)::Run(args.feature_axis, params, stream);
  });
}

}  // namespace blocksparse

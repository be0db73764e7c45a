// Whether and how dw by regions runs: what it serves, how the batch is split.
#include <algorithm>
#include <limits>

#include "src/kernels/common/cuda_launch.h"
#include "src/kernels/common/load_store.cuh"
#include "src/kernels/common/tensor_map.h"
#include "src/kernels/matmul_instances.h"
#include "src/kernels/matmul_region_dw.h"

namespace blocksparse {
namespace {

constexpr int64_t kMinStepsPerSplit = 4;
// Measured on an H200: what a region takes beside its steps, and a launch; the clock rate.
constexpr double kRegionUs = 9.5;
constexpr double kLaunchUs = 2.5;
constexpr double kClocksPerUs = 1755;

// The parts of the table; false unless they fill it.
bool ReadTable(const MatmulDwArgs& args, RegionDwParams* params, int* unit) {
  const Layout& layout = args.layout;
  const Table& table =
      layout.OptionalTable(args.feature_axis == 1 ? kSectionDwRegions1 : kSectionDwRegions0);
  const int64_t num_regions = table.parameters[0];
  const int64_t num_entries = table.parameters[2];
  *unit = table.parameters[1] & 0xff;
  if (num_regions < 1 || num_entries < 1 || (*unit != 16 && *unit != 32) ||
      *unit < layout.block_size)
    return false;
  const int64_t num_walks = num_regions * RegionWarps(*unit);
  const int per_edge = *unit / layout.block_size;
  const int entry_words = RegionEntryWords(per_edge * per_edge);
  if (table.size !=
      num_walks + 1 + num_regions * kRegionChunkWords / 2 + num_entries * entry_words / 2)
    return false;
  params->step_clocks = table.parameters[1] >> 8;
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

// Steps of all pairs, and how they are divided; how long that should take.
Status CountSteps(const MatmulDwArgs& args, RegionDwParams* params, double* found_us = nullptr) {
  int num_sms = 0;
  BLOCKSPARSE_RETURN_IF_ERROR(CountSms(&num_sms));
  const int step = RegionStep(args.feature_axis);
  CountRegionSteps(args, step, params);
  const int64_t num_steps = params->num_steps;
  // The number of splits with which waves of thread blocks end soonest. Partial sums move at 3
  // TB/s.
  const double step_us = params->step_clocks / kClocksPerUs * step / 16;
  const double sum_us = 2e-6 / 3 * sizeof(float) * static_cast<double>(DwSize(args.layout));
  int64_t num_splits = 1;
  double least_us = 0;
  for (int64_t splits = 1; splits <= kMaxRegionSplits; ++splits) {
    if (splits > 1 && num_steps < splits * kMinStepsPerSplit) break;
    const int64_t waves = (params->num_regions * splits + num_sms - 1) / num_sms;
    const int64_t steps = (num_steps + splits - 1) / splits;
    const double us =
        kLaunchUs + waves * (steps * step_us + kRegionUs) + (splits > 1 ? 3 + splits * sum_us : 0);
    if (splits > 1 && us >= least_us) continue;
    least_us = us;
    num_splits = splits;
  }
  SplitRegionSteps(static_cast<int>(num_splits), params);
  if (found_us != nullptr) *found_us = least_us;
  return Status();
}

// What the general kernel takes: it reads x for each block, and dy for each 128 / B of a column; or
// where there are few, it waits for one chunk after the other.
double GeneralUs(const MatmulDwArgs& args) {
  const int size = args.layout.block_size;
  double samples = 0;
  for (int i = 0; i < args.num_pairs; ++i) samples += static_cast<double>(args.pairs[i].batch);
  const double num_bytes = 2.0 * size * (1 + size / 128.0) * samples * args.layout.num_blocks;
  const double bytes_us = num_bytes / (args.feature_axis == 1 && size < 32 ? 2.5e6 : 4e6);
  return 4 + std::max(bytes_us, 0.0175 * samples);
}

// Whether the general kernel would take longer, or not clearly less.
bool IsFaster(const MatmulDwArgs& args, RegionDwParams* params) {
  double us = 0;
  return params->step_clocks == 0 ||
         (CountSteps(args, params, &us).ok() && us < 1.15 * GeneralUs(args));
}

int64_t SumBytes(const MatmulDwArgs& args, int num_copies) {
  return num_copies * DwSize(args.layout) * static_cast<int64_t>(sizeof(float));
}

// Calls f(RegionDwKernels<T, unit>).
template <class F>
Status WithKernels(DType dtype, int unit, bool adds_apart, F f) {
  const auto with_unit = [&](auto of_16, auto of_32) { return unit == 16 ? f(of_16) : f(of_32); };
  if (adds_apart)
    return with_unit(RegionDwKernels<__half, 16, true>{}, RegionDwKernels<__half, 32, true>{});
  if (dtype == DType::kFloat16)
    return with_unit(RegionDwKernels<__half, 16>{}, RegionDwKernels<__half, 32>{});
  return with_unit(RegionDwKernels<__nv_bfloat16, 16>{}, RegionDwKernels<__nv_bfloat16, 32>{});
}

// Copies of dw that a call needs beside its result.
int CopiesOf(const RegionDwParams& params) { return params.num_splits > 1 ? params.num_splits : 0; }

// Makes the sums; num_copies of dw come first in the workspace: whole blocks, so that what follows
// is aligned too.
Status Run(const MatmulDwArgs& args, int unit, int num_copies, RegionDwParams* params,
           Stream stream) {
  char* maps = reinterpret_cast<char*>(args.workspace) + SumBytes(args, num_copies);
  const RegionBox box = {RegionChunk(args.feature_axis), RegionStep(args.feature_axis)};
  BLOCKSPARSE_RETURN_IF_ERROR(
      MakeRegionMaps(args, box, reinterpret_cast<CUtensorMap*>(maps), params, stream));
  params->gate = args.gate;
  params->is_dw_aligned = IsVectorAligned(params->dw);
  params->num_blocks = args.layout.num_blocks;
  while (1 << params->block_shift < args.layout.block_size) ++params->block_shift;
  return WithKernels(args.dtype, unit, params->first_apart > 0, [&](auto kernels) {
    return decltype(kernels)::Run(args.feature_axis, *params, stream);
  });
}

bool AreCompiled(DType dtype, int unit) {
  bool are = false;
  const Status status = WithKernels(dtype, unit, false, [&](auto kernels) {
    are = decltype(kernels)::AreCompiled();
    return Status();
  });
  return status.ok() && are;
}

}  // namespace

bool CanRegionDw(const MatmulDwArgs& args) {
  const int64_t kMaxFeatures = std::numeric_limits<int32_t>::max() - 64;
  const int size = args.layout.block_size;
  RegionDwParams params = {};
  int unit = 0;
  return (args.dtype == DType::kFloat16 || args.dtype == DType::kBFloat16) && size >= 8 &&
         size <= 32 && args.layout.in_blocks <= kMaxFeatures / size &&
         args.layout.out_blocks <= kMaxFeatures / size &&
         AreRegionPairsServed(args, kMinRegionBatch) && ReadTable(args, &params, &unit) &&
         IsHopper() && AreCompiled(args.dtype, unit);
}

bool RegionDwServes(const MatmulDwArgs& args) {
  RegionDwParams params = {};
  int unit = 0;
  return CanRegionDw(args) && ReadTable(args, &params, &unit) && IsFaster(args, &params);
}

Status RegionDwWorkspaceBytes(const MatmulDwArgs& args, int64_t* bytes) {
  RegionDwParams params = {};
  int unit = 0;
  if (!ReadTable(args, &params, &unit)) return Invalid("the layout has no region table");
  BLOCKSPARSE_RETURN_IF_ERROR(CountSteps(args, &params));
  *bytes = SumBytes(args, CopiesOf(params)) + RegionMapBytes(params);
  return Status();
}

Status MatmulRegionDw(const MatmulDwArgs& args, Stream stream) {
  RegionDwParams params = {};
  int unit = 0;
  if (!ReadTable(args, &params, &unit)) return Invalid("the layout has no region table");
  BLOCKSPARSE_RETURN_IF_ERROR(CountSteps(args, &params));
  const int num_copies = CopiesOf(params);
  params.dw = num_copies > 0 ? args.workspace : args.dw;
  params.is_dw_float = num_copies > 0 || args.dw_dtype == DType::kFloat32;
  BLOCKSPARSE_RETURN_IF_ERROR(Run(args, unit, num_copies, &params, stream));
  return num_copies > 0 ? SumDwSplits(args, num_copies, stream) : Status();
}

Status RegionDwSumsBytes(const MatmulDwArgs& args, int64_t* bytes) {
  RegionDwParams params = {};
  int unit = 0;
  if (!ReadTable(args, &params, &unit)) return Invalid("the layout has no region table");
  BLOCKSPARSE_RETURN_IF_ERROR(CountSteps(args, &params));
  *bytes = SumBytes(args, params.num_splits) + RegionMapBytes(params);
  return Status();
}

Status RegionDwSums(const MatmulDwArgs& args, int num_plain, Stream stream, int* num_copies) {
  RegionDwParams params = {};
  int unit = 0;
  if (!ReadTable(args, &params, &unit)) return Invalid("the layout has no region table");
  BLOCKSPARSE_RETURN_IF_ERROR(CountSteps(args, &params));
  params.dw = args.workspace;
  params.is_dw_float = true;
  for (int i = 0; i < num_plain; ++i) params.first_apart += params.pair_steps[i];
  *num_copies = params.num_splits;
  return Run(args, unit, params.num_splits, &params, stream);
}

}  // namespace blocksparse

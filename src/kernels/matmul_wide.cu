// Whether and how the wide kernel runs: what it serves, the grid, tensor maps, the workspace.
#include <algorithm>
#include <limits>

#include "src/kernels/common/cuda_launch.h"
#include "src/kernels/common/load_store.cuh"
#include "src/kernels/common/tensor_map.h"
#include "src/kernels/matmul_stream.h"
#include "src/kernels/matmul_wide.h"
#include "src/kernels/matmul_wide_pack.h"

namespace blocksparse {
namespace {

const Table& TableOf(const MatmulArgs& args) {
  return args.layout.OptionalTable(args.is_dx ? kSectionWideDx : kSectionWideFprop);
}

int64_t NumInputs(const MatmulArgs& args) {
  return args.is_dx ? args.layout.out_blocks : args.layout.in_blocks;
}

int64_t NumOutputs(const MatmulArgs& args) {
  return args.is_dx ? args.layout.in_blocks : args.layout.out_blocks;
}

// Edge of the blocks that the kernel knows.
int KernelBlock(const MatmulArgs& args) { return std::min(args.layout.block_size, 64); }

// The parts of the table; false unless they fill it.
bool ReadTable(const MatmulArgs& args, WideParams* params) {
  const Table& table = TableOf(args);
  const int64_t num_groups = table.parameters[0];
  const int64_t num_entries = table.parameters[1];
  const int num_workers = table.parameters[2] & 0xff;
  const bool is_small = args.layout.block_size == 32;
  if (num_groups < 1 || num_entries < 1 || (num_workers != 3 && (num_workers != 2 || !is_small)))
    return false;
  const int64_t group = kWideFeatures / KernelBlock(args);
  const int64_t halves = args.layout.block_size / KernelBlock(args);
  const int64_t num_ids = args.layout.num_blocks * halves * halves;
  if (table.size != num_groups + 1 + num_groups * group + 2 * num_entries + num_ids) return false;
  params->last_half = static_cast<int>(halves - 1);
  params->num_workers = num_workers;
  params->num_granules = table.parameters[2] >> 8;
  params->num_groups = static_cast<int>(num_groups);
  params->num_entries = num_entries;
  params->num_ids = num_ids;
  params->num_outputs = NumOutputs(args) * halves;
  params->ptr = table.data;
  params->columns = params->ptr + num_groups + 1;
  params->entries = reinterpret_cast<const WideEntry*>(params->columns + num_groups * group);
  params->ids = reinterpret_cast<const uint64_t*>(params->entries + num_entries);
  return true;
}

// Of tiles of x that thread blocks read at a time: a third of an H200's L2 cache.
constexpr int64_t kMaxTileBytes = 16 << 20;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Of a thread block.
int64_t NumTiles(const WideParams& params) {
  return CeilDiv(params.num_groups, params.group_lanes) *
         CeilDiv(params.strip_rows, params.tile_rows);
}

Status EncodeMaps(const MatmulArgs& args, const void* w, WideParams* params) {
  const int block_size = args.layout.block_size;
  const int block = KernelBlock(args);
  const int64_t inputs = NumInputs(args) * block_size;
  const int64_t outputs = NumOutputs(args) * block_size;
  const auto encode = [&](const void* data, int64_t inner, int64_t outer, int box_inner,
                          int box_outer, CUtensorMap* map) {
    return EncodeTensorMap({args.dtype, data, inner, outer, box_inner, box_outer, 2 * box_inner},
                           map);
  };
  if (args.feature_axis == 1) {
    const int rows = params->panel_rows;
    BLOCKSPARSE_RETURN_IF_ERROR(encode(args.x, inputs, args.batch, block, rows, &params->x));
    BLOCKSPARSE_RETURN_IF_ERROR(encode(args.x, inputs, args.batch, 64, rows, &params->x_pair));
    BLOCKSPARSE_RETURN_IF_ERROR(encode(args.y, outputs, args.batch, block, rows, &params->y));
  } else {
    BLOCKSPARSE_RETURN_IF_ERROR(encode(args.x, args.batch, inputs, 64, block, &params->x));
    BLOCKSPARSE_RETURN_IF_ERROR(encode(args.x, args.batch, inputs, 64, 64, &params->x_pair));
    BLOCKSPARSE_RETURN_IF_ERROR(encode(args.y, args.batch, outputs, 64, block, &params->y));
  }
  return encode(w, block_size, args.layout.num_blocks * block_size, block, block, &params->w);
}

// Calls f(WideKernels<T, B>) for what the kernel serves.
template <class F>
Status WithKernels(const MatmulArgs& args, F f) {
  const auto with_type = [&](auto t) {
    using T = decltype(t);
    return args.layout.block_size == 32 ? f(WideKernels<T, 32>{}) : f(WideKernels<T, 64>{});
  };
  return args.dtype == DType::kFloat16 ? with_type(__half{}) : with_type(__nv_bfloat16{});
}

bool AreCompiled(const MatmulArgs& args) {
  bool are = false;
  const Status status = WithKernels(args, [&](auto kernels) {
    are = decltype(kernels)::AreCompiled();
    return Status();
  });
  return status.ok() && are;
}

// The grid, and whether W is packed.
Status Plan(const MatmulArgs& args, WideParams* params, int64_t* num_thread_blocks) {
  int num_sms = 0;
  BLOCKSPARSE_RETURN_IF_ERROR(CountSms(&num_sms));
  params->batch = args.batch;
  const int64_t sample_bytes = 2 * NumInputs(args) * args.layout.block_size;
  ChooseWideGrid(args.feature_axis, num_sms, sample_bytes, params, num_thread_blocks);
  // Where W is read few times, it costs more to copy it than to read small blocks.
  const bool is_read_often = args.batch > kMaxUnpackedBatch && NumTiles(*params) > 1;
  const bool is_small = args.layout.block_size == 32;
  params->is_packed =
      args.gate != nullptr || (is_small && (is_read_often || params->num_workers == 2));
  return Status();
}

// Microseconds on an H200, fitted to products of 1 to 50 % with up to 20480 features: what a tile
// loads at the rate of shared memory, and x and y at that of device memory.
double WideUs(const MatmulArgs& args, const WideParams& params) {
  const double block_bytes = 2.0 * KernelBlock(args) * KernelBlock(args);
  const double w_bytes = block_bytes * static_cast<double>(params.num_ids);
  const double group_bytes = block_bytes * params.num_granules;
  const double x_bytes = group_bytes - w_bytes / params.num_groups;
  const double fullness = std::max(params.tile_rows, kWideRows / 2) / double{kWideRows};
  const double tile_us = 3 + (group_bytes - (1 - fullness) * x_bytes) / 68e3;
  const double features = static_cast<double>(NumInputs(args) + NumOutputs(args));
  const double memory_us = 2.0 * features * args.layout.block_size * args.batch / 4.3e6;
  const double pack_us = params.is_packed ? 2 + w_bytes / 2.2e6 : 0;
  const double start_us = args.layout.block_size == 32 ? 5 : 2;
  return start_us + pack_us + memory_us + NumTiles(params) * tile_us;
}

}  // namespace

void ChooseWideGrid(int feature_axis, int num_sms, int64_t sample_bytes, WideParams* params,
                    int64_t* num_thread_blocks) {
  const int64_t batch = params->batch;
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int waves = 1; waves <= params->num_groups; ++waves) {
    const int lanes = static_cast<int>(CeilDiv(params->num_groups, waves));
    if (lanes > num_sms) continue;
    const int64_t strips = num_sms / lanes;
    int64_t tiles = CeilDiv(batch, strips * kWideRows);
    int64_t tile_rows = kWideRows;
    int64_t strip_rows;
    if (feature_axis == 1) {
      tile_rows = CeilDiv(batch, strips * tiles);
      strip_rows = tile_rows * tiles;
    } else {
      strip_rows = 64 * CeilDiv(CeilDiv(batch, 64), strips);
      tiles = CeilDiv(strip_rows, kWideRows);
    }
    // What a tile costs beside its samples, W above all, is about 64 of them.
    int64_t cost = waves * (strip_rows + 64 * tiles);
    // All groups read these tiles: elsewhere than in the cache they would cost twice as much.
    if (strips * tile_rows * sample_bytes > kMaxTileBytes) cost *= 2;
    if (cost >= least) continue;
    least = cost;
    params->group_lanes = lanes;
    params->panel_rows = feature_axis == 1 ? static_cast<int>(tile_rows) : 64;
    params->tile_rows = static_cast<int>(tile_rows);
    params->strip_rows = static_cast<int>(strip_rows);
    *num_thread_blocks = lanes * CeilDiv(batch, strip_rows);
  }
}

bool WideServes(const MatmulArgs& args) {
  const int size = args.layout.block_size;
  const int64_t kMaxSize = std::numeric_limits<int32_t>::max();
  WideParams params = {};
  int num_sms = 0;
  if (args.dtype != DType::kFloat16 && args.dtype != DType::kBFloat16) return false;
  if (size != 32 && size != 64 && size != 128) return false;
  if (args.batch < kMinWideBatch || args.batch > kMaxSize / 2 ||
      NumInputs(args) > kMaxSize / size || NumOutputs(args) > kMaxSize / size ||
      args.layout.num_blocks > kMaxSize / size / 4)
    return false;
  if ((args.feature_axis == 0 && args.batch % 8 != 0) || !IsVectorAligned(args.x) ||
      !IsVectorAligned(args.w) || !IsVectorAligned(args.y))
    return false;
  if (!ReadTable(args, &params) || !IsHopper() || !AreCompiled(args) || !CountSms(&num_sms).ok())
    return false;
  if (params.num_granules == 0)
    return args.batch * params.num_groups >= MinWideRows(size) * num_sms;
  int64_t num_thread_blocks = 0;
  return args.batch > kMaxStreamBatchHopper16Bit ||
         (Plan(args, &params, &num_thread_blocks).ok() && WideUs(args, params) < StreamUs(args));
}

Status WideWorkspaceBytes(const MatmulArgs& args, int64_t* bytes) {
  WideParams params = {};
  int64_t num_thread_blocks = 0;
  if (!ReadTable(args, &params)) return Invalid("the layout has no wide table");
  BLOCKSPARSE_RETURN_IF_ERROR(Plan(args, &params, &num_thread_blocks));
  *bytes = WideWorkspace(args, params).bytes;
  return Status();
}

Status MatmulWide(const MatmulArgs& args, Stream stream) {
  WideParams params = {};
  int64_t num_thread_blocks = 0;
  if (!ReadTable(args, &params)) return Invalid("the layout has no wide table");
  BLOCKSPARSE_RETURN_IF_ERROR(Plan(args, &params, &num_thread_blocks));
  const void* w = args.w;
  BLOCKSPARSE_RETURN_IF_ERROR(PackWide(args, stream, &params, &w));
  BLOCKSPARSE_RETURN_IF_ERROR(EncodeMaps(args, w, &params));
  return WithKernels(args, [&](auto kernels) {
    return decltype(kernels)::Run(args, num_thread_blocks, params, stream);
  });
}

}  // namespace blocksparse

// The host's side of matmul_packed.h, and the kernel that packs W.
#include <limits>

#include "src/kernels/common/dispatch.h"
#include "src/kernels/common/load_store.cuh"
#include "src/kernels/common/tensor_map.h"
#include "src/kernels/matmul_packed.h"
#include "src/kernels/matmul_packed_instances.h"
#include "src/kernels/matmul_stream.h"

namespace blocksparse {
namespace {

constexpr int kMatrix = 8;  // edge of the matrices that a unit is made of
constexpr int kPackThreads = 256;
// Up to this minibatch the streaming kernel may be faster.
constexpr int64_t kMaxComparedBatch = 768;

// The section, if it is there and as large as it says. Its contents are checked where they are
// read.
bool FindTable(const MatmulArgs& args, PackedTable* table) {
  const Layout& layout = args.layout;
  const Table& section = layout.OptionalTable(args.is_dx ? kSectionPackedDx : kSectionPackedFprop);
  if (section.data == nullptr || (layout.block_size != 8 && layout.block_size != 16)) return false;
  table->num_groups = section.parameters[0];
  table->num_stages = section.parameters[1];
  table->max_units = section.parameters[2] & 0xffff;
  table->num_spans = section.parameters[2] >> 16 & 0xff;
  const int shape = section.parameters[2] >> 24;
  if (table->num_groups < 1 || table->num_stages < 0) return false;
  if (table->num_spans < 1 || table->num_spans > kPackedSpans) return false;
  if (shape < 0 || shape > static_cast<int>(PackedShape::kWide)) return false;
  table->shape = static_cast<PackedShape>(shape);
  const int width = PackedWidth(table->shape);
  const int features = PackedFeaturesOf(table->shape);
  if (table->max_units * width > kMaxPackedStage) return false;

  const int64_t stages = table->num_groups + int64_t{1};
  const int64_t columns = stages + int64_t{PackedStageWords(table->shape)} * table->num_stages;
  const int64_t blocks = columns + int64_t{table->num_groups} * features / layout.block_size / 2;
  const int per_unit = kPackedDepth * width / (layout.block_size * layout.block_size);
  table->num_units = (section.size - blocks) * 2 / per_unit;
  if (table->num_units < 0 || table->num_units > std::numeric_limits<int32_t>::max()) return false;
  table->stage_ptr = section.data;
  table->stages = section.data + stages;
  table->columns = reinterpret_cast<const int32_t*>(section.data + columns);
  table->blocks = reinterpret_cast<const int32_t*>(section.data + blocks);
  return true;
}

// Multiplies 8 elements by a gate.
template <typename T>
__device__ __forceinline__ void Scale(uint4& vector, float gate) {
  T* values = reinterpret_cast<T*>(&vector);
#pragma unroll
  for (int i = 0; i < kMatrix; ++i) values[i] = T(static_cast<float>(values[i]) * gate);
}

struct PackParams {
  const unsigned char* w;
  const float* gate;
  const int32_t* blocks;
  unsigned char* packed;
  int64_t num_blocks;
  int64_t num_rows;  // of 8 elements
  bool is_dx;
};

// Each thread copies one row of a matrix: 8 elements that lie side by side in w, whichever way the
// product reads them.
template <typename T, int kBlockSize, int kWidth>
__global__ void __launch_bounds__(kPackThreads) PackUnitsKernel(const PackParams p) {
  LetNextKernelStart();
  WaitForPreviousKernel();
  constexpr int kRowsPerUnit = kPackedDepth * kWidth / kMatrix;
  constexpr int kBlocksPerUnit = kPackedDepth * kWidth / (kBlockSize * kBlockSize);
  constexpr int kMatricesPerBlock = kBlockSize * kBlockSize / (kMatrix * kMatrix);
  const int64_t idx = blockIdx.x * int64_t{kPackThreads} + threadIdx.x;
  if (idx >= p.num_rows) return;
  const int64_t unit = idx / kRowsPerUnit;
  const int matrix = static_cast<int>(idx % kRowsPerUnit) / kMatrix;
  const int row = static_cast<int>(idx) % kMatrix;
  const int32_t block = p.blocks[unit * kBlocksPerUnit + matrix / kMatricesPerBlock];
  const bool is_valid = block >= 0 && block < p.num_blocks;
  const float gate = p.gate != nullptr && is_valid ? p.gate[block] : 1.f;

  uint4 values = {};
  if (is_valid && gate != 0.f) {
    // Within the block: halves of the depth first, then 8 output features after 8.
    const int deep = matrix % kMatricesPerBlock % 2 * kMatrix;
    const int wide = matrix % kMatricesPerBlock / 2 * kMatrix;
    const int i = p.is_dx ? wide + row : deep + row;
    const int j = p.is_dx ? deep : wide;
    values = *reinterpret_cast<const uint4*>(
        p.w + (block * int64_t{kBlockSize * kBlockSize} + i * kBlockSize + j) * sizeof(T));
    if (p.gate != nullptr) Scale<T>(values, gate);
  }
  reinterpret_cast<uint4*>(p.packed)[idx] = values;
}

int64_t PackedRows(const PackedTable& table) {
  return table.num_units * (kPackedDepth * PackedWidth(table.shape) / kMatrix);
}

template <typename T>
Status PackUnits(const MatmulArgs& args, const PackedTable& table, Stream stream) {
  const PackParams params = {static_cast<const unsigned char*>(args.w),
                             args.gate,
                             table.blocks,
                             static_cast<unsigned char*>(args.workspace),
                             args.layout.num_blocks,
                             PackedRows(table),
                             args.is_dx};
  const int64_t num_thread_blocks = (params.num_rows + kPackThreads - 1) / kPackThreads;
  return WithBool(args.layout.block_size == 8, [&](auto is_8) {
    return WithBool(table.shape == PackedShape::kWide, [&](auto is_wide) {
      return LaunchEarly("PackUnitsKernel", PackUnitsKernel < T, is_8() ? 8 : 16,
                         is_wide() ? 32 : 16 >, num_thread_blocks, kPackThreads, 0, stream, params);
    });
  });
}

template <typename T>
Status PackAndMultiply(const MatmulArgs& args, PackedParams params, Stream stream) {
  int num_sms = 0;
  BLOCKSPARSE_RETURN_IF_ERROR(CountSms(&num_sms));
  BLOCKSPARSE_RETURN_IF_ERROR(PackUnits<T>(args, params.table, stream));
  return WithBool(args.feature_axis == 1, [&](auto is_axis_1) {
    return MatmulPackedKernels<T, is_axis_1()>::Run(args, params, num_sms, stream);
  });
}

int64_t NumTiles(const MatmulArgs& args, const PackedTable& table) {
  const int tile_rows = PackedTileRows(table.shape);
  return (args.batch + tile_rows - 1) / tile_rows * table.num_groups;
}

// Microseconds on an H200, fitted to products of 1.6 to 25 % and 512 samples: waves of tiles, which
// take so long for each stage, and for each unit by 64 samples.
double PackedUs(const MatmulArgs& args, const PackedTable& table) {
  int num_sms = 0;
  if (!CountSms(&num_sms).ok()) return 0;
  const int64_t waves = (NumTiles(args, table) + num_sms - 1) / num_sms;
  const double units = static_cast<double>(table.num_units) * (PackedTileRows(table.shape) / 64);
  const double tile_us = (0.2 * table.num_stages + 0.0105 * units) / table.num_groups;
  const double pack_us = static_cast<double>(PackedRows(table) * kVectorBytes) / 3e6;
  return 5 + pack_us + waves * tile_us;
}

}  // namespace

bool PackedServes(const MatmulArgs& args) {
  PackedTable table = {};
  if (args.dtype == DType::kFloat32 || !FindTable(args, &table)) return false;
  constexpr int64_t kMaxCoordinate = std::numeric_limits<int32_t>::max() - 128;
  if (args.batch < kMinPackedBatch || args.batch > kMaxCoordinate) return false;
  if (args.feature_axis == 0 && args.batch % 8 != 0) return false;
  const Direction& direction = args.is_dx ? args.layout.dx : args.layout.fprop;
  if (direction.num_inputs * args.layout.block_size > kMaxCoordinate) return false;
  const int64_t num_tiles = NumTiles(args, table);
  if (num_tiles < kMinPackedTiles || num_tiles > kMaxCoordinate) return false;
  return IsVectorAligned(args.x) && IsVectorAligned(args.w) && IsVectorAligned(args.y) &&
         IsHopper() && (args.batch > kMaxComparedBatch || PackedUs(args, table) < StreamUs(args));
}

Status PackedWorkspaceBytes(const MatmulArgs& args, int64_t* bytes) {
  PackedTable table = {};
  if (!FindTable(args, &table)) return Invalid("the layout has no table for packed weights");
  *bytes = PackedRows(table) * kVectorBytes;
  return Status();
}

Status MatmulPacked(const MatmulArgs& args, Stream stream) {
  PackedParams params = {};
  if (!FindTable(args, &params.table)) return Invalid("the layout has no table for packed weights");
  const Direction& direction = args.is_dx ? args.layout.dx : args.layout.fprop;
  const int64_t num_features = direction.num_inputs * args.layout.block_size;
  const int tile_rows = PackedTileRows(params.table.shape);
  if (args.feature_axis == 1) {
    const TensorBox box = {args.dtype, args.x, num_features, args.batch, 64, tile_rows, 128};
    BLOCKSPARSE_RETURN_IF_ERROR(EncodeTensorMap(box, &params.x));
  } else if (params.table.shape == PackedShape::kBroad) {
    const TensorBox box = {args.dtype, args.x, args.batch, num_features, tile_rows, 64, 128};
    BLOCKSPARSE_RETURN_IF_ERROR(EncodeTensorMap(box, &params.x));
  } else {
    const TensorBox box = {args.dtype, args.x, args.batch, num_features, 64, kPackedDepth, 128};
    BLOCKSPARSE_RETURN_IF_ERROR(EncodeSlabTensorMap(box, tile_rows / 64, &params.x));
    BLOCKSPARSE_RETURN_IF_ERROR(EncodeTensorMap(box, &params.x_tail));
  }
  params.w = static_cast<const unsigned char*>(args.workspace);
  params.y = args.y;
  params.batch = args.batch;
  params.num_columns = direction.num_outputs;
  params.num_inputs = static_cast<int>(num_features);
  params.first_tail_row =
      static_cast<int>(args.batch % 64 == 0 ? args.batch : args.batch / tile_rows * tile_rows);
  params.num_tiles = static_cast<int>(NumTiles(args, params.table));
  params.block_size = args.layout.block_size;
  return args.dtype == DType::kFloat16 ? PackAndMultiply<__half>(args, params, stream)
                                       : PackAndMultiply<__nv_bfloat16>(args, params, stream);
}

}  // namespace blocksparse

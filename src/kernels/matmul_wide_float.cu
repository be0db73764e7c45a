// Whether and how the wide float32 kernel runs: what it serves, the grid, the tensor map.
#include <limits>

#include "src/kernels/common/cuda_launch.h"
#include "src/kernels/common/dispatch.h"
#include "src/kernels/common/load_store.cuh"
#include "src/kernels/common/tensor_map.h"
#include "src/kernels/matmul_wide_float.h"
#include "src/kernels/matmul_wide_float_pack.h"

namespace blocksparse {
namespace {

int64_t NumInputs(const MatmulArgs& args) {
  return (args.is_dx ? args.layout.out_blocks : args.layout.in_blocks) * args.layout.block_size;
}

int64_t NumOutputs(const MatmulArgs& args) {
  return (args.is_dx ? args.layout.in_blocks : args.layout.out_blocks) * args.layout.block_size;
}

// The parts of the table; false unless they fill it.
bool ReadTable(const MatmulArgs& args, WideFloatParams* params) {
  const Table& table =
      args.layout.OptionalTable(args.is_dx ? kSectionWideFloatDx : kSectionWideFloatFprop);
  WideParams* wide = &params->wide;
  const int64_t num_groups = table.parameters[0];
  const int64_t num_entries = table.parameters[1];
  if (num_groups < 1 || num_entries < 1 || table.parameters[2] != kWideFloatGroup) return false;
  const int64_t parts = args.layout.block_size / kWideFloatBlock;
  const int64_t num_ids = args.layout.num_blocks * parts * parts;
  if (table.size != num_groups + 1 + num_groups * kWideFloatGroup + 2 * num_entries + num_ids)
    return false;
  wide->num_groups = static_cast<int>(num_groups);
  wide->num_entries = num_entries;
  wide->num_ids = num_ids;
  wide->num_outputs = NumOutputs(args) / kWideFloatBlock;
  wide->ptr = table.data;
  wide->columns = wide->ptr + num_groups + 1;
  wide->entries = reinterpret_cast<const WideEntry*>(wide->columns + num_groups * kWideFloatGroup);
  wide->ids = reinterpret_cast<const uint64_t*>(wide->entries + num_entries);
  wide->batch = args.batch;
  params->y = static_cast<float*>(args.y);
  params->num_features = NumOutputs(args);
  return true;
}

Status ChooseGrid(const MatmulArgs& args, WideParams* wide, int64_t* num_thread_blocks) {
  int num_sms = 0;
  BLOCKSPARSE_RETURN_IF_ERROR(CountSms(&num_sms));
  ChooseWideGrid(args.feature_axis, num_sms, 4 * NumInputs(args), wide, num_thread_blocks);
  if (args.feature_axis == 0) wide->panel_rows = WideFloatPolicy<false, 0>::kPanelSamples;
  return Status();
}

Status EncodeMap(const MatmulArgs& args, WideParams* wide) {
  const int64_t inputs = NumInputs(args);
  const int panel = wide->panel_rows;
  const TensorBox box =
      args.feature_axis == 1
          ? TensorBox{args.dtype,        args.x, inputs, args.batch, kWideFloatBlock, panel,
                      kWideFloatRowBytes}
          : TensorBox{args.dtype, args.x,          args.batch,        inputs,
                      panel,      kWideFloatBlock, kWideFloatRowBytes};
  return EncodeTensorMap(box, &wide->x);
}

}  // namespace

bool WideFloatServes(const MatmulArgs& args) {
  const int size = args.layout.block_size;
  const int64_t kMaxSize = std::numeric_limits<int32_t>::max();
  WideFloatParams params = {};
  int num_sms = 0;
  if (args.dtype != DType::kFloat32 || (size != 32 && size != 64 && size != 128)) return false;
  if (args.batch < kMinWideBatch || args.batch > kMaxSize / 2 || NumInputs(args) > kMaxSize ||
      NumOutputs(args) > kMaxSize || args.layout.num_blocks > kMaxSize / size / 4)
    return false;
  if ((args.feature_axis == 0 && args.batch % 4 != 0) || !IsVectorAligned(args.x) ||
      !IsVectorAligned(args.w) || !IsVectorAligned(args.y))
    return false;
  if (!ReadTable(args, &params) || !IsHopper() ||
      !(args.allow_tf32 ? WideFloatKernels<false>::AreCompiled()
                        : WideFloatKernels<true>::AreCompiled()))
    return false;
  return CountSms(&num_sms).ok() &&
         args.batch * params.wide.num_groups >= kMinWideFloatRows * num_sms;
}

Status WideFloatWorkspaceBytes(const MatmulArgs& args, int64_t* bytes) {
  WideFloatParams params = {};
  if (!ReadTable(args, &params)) return Invalid("the layout has no wide_float table");
  *bytes = WideFloatWorkspace(params.wide).bytes;
  return Status();
}

Status MatmulWideFloat(const MatmulArgs& args, Stream stream) {
  WideFloatParams params = {};
  if (!ReadTable(args, &params)) return Invalid("the layout has no wide_float table");
  int64_t num_thread_blocks = 0;
  BLOCKSPARSE_RETURN_IF_ERROR(ChooseGrid(args, &params.wide, &num_thread_blocks));
  BLOCKSPARSE_RETURN_IF_ERROR(PackWideFloat(args, stream, &params));
  BLOCKSPARSE_RETURN_IF_ERROR(EncodeMap(args, &params.wide));
  return WithBool(!args.allow_tf32, [&](auto is_split) {
    return WideFloatKernels<is_split()>::Run(args.feature_axis, num_thread_blocks, params, stream);
  });
}

}  // namespace blocksparse

#include "src/kernels/c_api.h"

#include <string>

#include "src/kernels/common/cpu_level.h"
#include "src/kernels/matmul.h"

namespace blocksparse {
namespace {

std::string& LastError() {
  thread_local std::string message;
  return message;
}

int Finish(const Status& status) {
  LastError() = status.message();
  return static_cast<int>(status.code());
}

int32_t& NumParts() {
  static int32_t num_parts = 1;
  return num_parts;
}

void RunSerially(int64_t total, int64_t, const std::function<void(int64_t, int64_t)>& body) {
  const int64_t parts = NumParts();
  for (int64_t i = parts - 1; i >= 0; --i) {
    const int64_t begin = total * i / parts;
    const int64_t end = total * (i + 1) / parts;
    if (begin < end) body(begin, end);
  }
}

#ifndef BLOCKSPARSE_WITH_CUDA
Status NoGpu() {
  return Unsupported("this library was built without nvcc and holds no GPU kernels");
}
#endif

Status Parse(const BlocksparseTables& tables, int32_t dtype, int32_t feature_axis, Layout* layout) {
  BLOCKSPARSE_RETURN_IF_ERROR(
      ParseLayout(tables.plan, tables.plan_size, tables.lut, tables.lut_size, layout));
  if (!IsMatmulSupported(static_cast<DType>(dtype), layout->block_size, feature_axis))
    return Unsupported("no kernel for dtype " + std::to_string(dtype) + ", block_size " +
                       std::to_string(layout->block_size) + ", feature_axis " +
                       std::to_string(feature_axis));
  return Status();
}

Status ReadCall(const BlocksparseMatmul& call, MatmulArgs* args) {
  BLOCKSPARSE_RETURN_IF_ERROR(Parse(call.tables, call.dtype, call.feature_axis, &args->layout));
  args->dtype = static_cast<DType>(call.dtype);
  args->feature_axis = call.feature_axis;
  args->is_dx = call.is_dx != 0;
  args->allow_tf32 = call.allow_tf32 != 0;
  args->batch = call.batch;
  args->x = call.x;
  args->w = call.w;
  args->gate = call.gate;
  args->y = call.y;
  args->workspace = call.workspace;
  return Status();
}

#ifdef BLOCKSPARSE_WITH_CUDA
Status CheckWorkspace(const void* workspace, int64_t num_bytes) {
  if (workspace != nullptr || num_bytes == 0) return Status();
  return Invalid("expected a workspace of " + std::to_string(num_bytes) + " bytes. Received: none");
}
#endif

Status RunMatmul(const BlocksparseMatmul& call) {
  MatmulArgs args = {};
  BLOCKSPARSE_RETURN_IF_ERROR(ReadCall(call, &args));
  if (call.device == kBlocksparseCpu) return MatmulCpu(args, RunSerially);
#ifdef BLOCKSPARSE_WITH_CUDA
  int64_t num_bytes = 0;
  BLOCKSPARSE_RETURN_IF_ERROR(MatmulWorkspaceBytes(args, &num_bytes));
  BLOCKSPARSE_RETURN_IF_ERROR(CheckWorkspace(args.workspace, num_bytes));
  return MatmulGpu(args, static_cast<Stream>(call.stream));
#else
  return NoGpu();
#endif
}

Status FindWorkspace(const BlocksparseMatmul& call, int64_t* bytes) {
  MatmulArgs args = {};
  BLOCKSPARSE_RETURN_IF_ERROR(ReadCall(call, &args));
  *bytes = 0;
  if (call.device == kBlocksparseCpu) return Status();
#ifdef BLOCKSPARSE_WITH_CUDA
  return MatmulWorkspaceBytes(args, bytes);
#else
  return NoGpu();
#endif
}

Status ReadDwCall(const BlocksparseMatmulDw& call, MatmulDwArgs* args) {
  BLOCKSPARSE_RETURN_IF_ERROR(Parse(call.tables, call.dtype, call.feature_axis, &args->layout));
  if (call.num_pairs < 0 || call.num_pairs > kMaxMatmulPairs)
    return Unsupported("num_pairs must be 0 to " + std::to_string(kMaxMatmulPairs) +
                       ". Received: " + std::to_string(call.num_pairs));
  if (call.dw_dtype != call.dtype && call.dw_dtype != static_cast<int32_t>(DType::kFloat32))
    return Unsupported("dw_dtype must be dtype or float32");
  args->dtype = static_cast<DType>(call.dtype);
  args->dw_dtype = static_cast<DType>(call.dw_dtype);
  args->feature_axis = call.feature_axis;
  args->allow_tf32 = call.allow_tf32 != 0;
  args->num_pairs = call.num_pairs;
  args->gate = call.gate;
  args->dw = call.dw;
  args->workspace = static_cast<float*>(call.workspace);
  for (int i = 0; i < call.num_pairs; ++i) args->pairs[i] = {call.x[i], call.dy[i], call.batch[i]};
  return Status();
}

Status RunMatmulDw(const BlocksparseMatmulDw& call) {
  MatmulDwArgs args = {};
  BLOCKSPARSE_RETURN_IF_ERROR(ReadDwCall(call, &args));
  if (call.device == kBlocksparseCpu) return MatmulDwCpu(args, RunSerially);
#ifdef BLOCKSPARSE_WITH_CUDA
  int64_t num_bytes = 0;
  BLOCKSPARSE_RETURN_IF_ERROR(MatmulDwWorkspaceBytes(args, &num_bytes));
  BLOCKSPARSE_RETURN_IF_ERROR(CheckWorkspace(args.workspace, num_bytes));
  return MatmulDwGpu(args, static_cast<Stream>(call.stream));
#else
  return NoGpu();
#endif
}

Status FindWorkspace(const BlocksparseMatmulDw& call, int64_t* bytes) {
  MatmulDwArgs args = {};
  BLOCKSPARSE_RETURN_IF_ERROR(ReadDwCall(call, &args));
  *bytes = 0;
  if (call.device == kBlocksparseCpu) return Status();
#ifdef BLOCKSPARSE_WITH_CUDA
  return MatmulDwWorkspaceBytes(args, bytes);
#else
  return NoGpu();
#endif
}

}  // namespace
}  // namespace blocksparse

using blocksparse::Finish;

int blocksparse_matmul(const BlocksparseMatmul* call) {
  return Finish(blocksparse::RunMatmul(*call));
}

int64_t blocksparse_matmul_workspace(const BlocksparseMatmul* call) {
  int64_t bytes = 0;
  return Finish(blocksparse::FindWorkspace(*call, &bytes)) == 0 ? bytes : -1;
}

int blocksparse_matmul_dw(const BlocksparseMatmulDw* call) {
  return Finish(blocksparse::RunMatmulDw(*call));
}

int64_t blocksparse_matmul_dw_workspace(const BlocksparseMatmulDw* call) {
  int64_t bytes = 0;
  return Finish(blocksparse::FindWorkspace(*call, &bytes)) == 0 ? bytes : -1;
}

int blocksparse_matmul_is_supported(int32_t dtype, int32_t block_size, int32_t feature_axis) {
  return blocksparse::IsMatmulSupported(static_cast<blocksparse::DType>(dtype), block_size,
                                        feature_axis);
}

int blocksparse_has_gpu(void) {
#ifdef BLOCKSPARSE_WITH_CUDA
  return 1;
#else
  return 0;
#endif
}

const char* blocksparse_cpu_level(void) {
  blocksparse::CpuLevel level;
  return Finish(blocksparse::FindCpuLevel(&level)) == 0 ? blocksparse::NameOf(level) : nullptr;
}

int blocksparse_set_cpu_level(const char* name) { return Finish(blocksparse::SetCpuLevel(name)); }

void blocksparse_set_cpu_parts(int32_t num_parts) {
  blocksparse::NumParts() = num_parts < 1 ? 1 : num_parts;
}

const char* blocksparse_last_error(void) { return blocksparse::LastError().c_str(); }

// The GPU side of matmul.h: chooses the arithmetic, and the small kernels around the products.
#include <algorithm>

#include "src/kernels/common/cuda_launch.h"
#include "src/kernels/common/load_store.cuh"
#include "src/kernels/common/reduce.cuh"
#include "src/kernels/common/tensor_map.h"
#include "src/kernels/matmul_instances.h"
#include "src/kernels/matmul_packed.h"
#include "src/kernels/matmul_region_dw.h"
#include "src/kernels/matmul_region_dw_large.h"
#include "src/kernels/matmul_stream.h"
#include "src/kernels/matmul_wide.h"
#include "src/kernels/matmul_wide_float.h"

namespace blocksparse {
namespace {

// Calls f(MatmulKernels<Math>) for a dtype.
template <class F>
Status WithMath(DType dtype, bool allow_tf32, F f) {
  switch (dtype) {
    case DType::kFloat16:
      return f(MatmulKernels<Fp16Math>{});
    case DType::kBFloat16:
      return f(MatmulKernels<Bf16Math>{});
    case DType::kFloat32:
      return allow_tf32 ? f(MatmulKernels<Tf32Math>{}) : f(MatmulKernels<Fp32Math>{});
  }
  return Unsupported("dtype must be float32, float16 or bfloat16");
}

struct SumParams {
  const float4* partial;  // [num_splits, size]
  void* sum;              // [size] fours
  bool is_sum_aligned;
  int num_splits;
  int64_t size;
};

// sum[i] = the splits' partial sums, in order; four elements a thread.
template <typename T>
__global__ void SumSplitsKernel(const __grid_constant__ SumParams p) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= p.size) return;
  float4 sum = p.partial[i];
  for (int s = 1; s < p.num_splits; ++s) {
    const float4 next = p.partial[s * p.size + i];
    sum.x += next.x;
    sum.y += next.y;
    sum.z += next.z;
    sum.w += next.w;
  }
  StoreFour(static_cast<T*>(p.sum) + 4 * i, sum, p.is_sum_aligned);
}

constexpr int kSumThreads = 256;
constexpr int kGateThreads = 128;

// One thread block for each block of W.
template <typename Dw, typename W>
__global__ void __launch_bounds__(kGateThreads)
    GateGradKernel(const __grid_constant__ MatmulGateGradArgs p) {
  const int64_t size = int64_t{p.block_size} * p.block_size;
  const int64_t offset = blockIdx.x * size;
  const Dw* dw = static_cast<const Dw*>(p.dw) + offset;
  const W* w = static_cast<const W*>(p.w) + offset;
  Dw* dw_out = static_cast<Dw*>(p.dw_out) + offset;
  const float gate = p.gate[blockIdx.x];
  float sum = 0.f;
  for (int64_t i = threadIdx.x; i < size; i += kGateThreads) {
    const float value = LoadFloat(dw + i);
    sum += value * LoadFloat(w + i);
    dw_out[i] = Dw(gate * value);
  }
  sum = SumOfBlock<kGateThreads>(sum);
  if (threadIdx.x == 0) p.dg[blockIdx.x] = sum;
}

Status SplitOf(const MatmulDwArgs& args, DwSplit* split) {
  int num_sms = 0;
  BLOCKSPARSE_RETURN_IF_ERROR(CountSms(&num_sms));
  return WithMath(args.dtype, args.allow_tf32, [&](auto kernels) {
    return decltype(kernels)::ChooseSplit(args, num_sms, split);
  });
}

int64_t DwSize(const Layout& layout) {
  return layout.num_blocks * layout.block_size * layout.block_size;
}

}  // namespace

bool StreamServes(const MatmulArgs& args) {
  const int64_t vector = kVectorBytes / SizeOf(args.dtype);
  const bool is_hopper_16_bit = args.dtype != DType::kFloat32 && IsHopper();
  return args.batch <= (is_hopper_16_bit ? kMaxStreamBatchHopper16Bit : kMaxStreamBatch) &&
         IsVectorAligned(args.x) && IsVectorAligned(args.w) && IsVectorAligned(args.y) &&
         (args.feature_axis == 1 || args.batch % vector == 0);
}

double StreamUs(const MatmulArgs& args) {
  const Direction& direction = args.is_dx ? args.layout.dx : args.layout.fprop;
  const int size = args.layout.block_size;
  // Tiles of 64 samples by up to 32 features, and in each its chunks of 32 input features: what
  // one costs in nanoseconds.
  const double tile_ns = size == 8 ? 0.83 : size == 16 ? 1.9 : 2.5;
  const double chunk_ns = size == 8 ? 0.6 : size == 16 ? 0.45 : 0.64;
  const double parts = std::max(size / 32.0, 1.0);
  const double batch_tiles = static_cast<double>((args.batch + 63) / 64);
  const double num_tiles = static_cast<double>(direction.num_outputs) * parts * batch_tiles;
  const double num_chunks =
      static_cast<double>(args.layout.num_blocks) * (size / 32.0) * parts * batch_tiles;
  const double copy_us = StreamWorkspaceBytes(args) > 0 ? 2 : 0;
  return 3.5 + copy_us + 1e-3 * (num_tiles * tile_ns + num_chunks * chunk_ns);
}

Status MatmulGpu(const MatmulArgs& args, Stream stream) {
  if (PackedServes(args)) return MatmulPacked(args, stream);
  if (WideServes(args)) return MatmulWide(args, stream);
  if (WideFloatServes(args)) return MatmulWideFloat(args, stream);
  return WithMath(args.dtype, args.allow_tf32, [&](auto kernels) {
    using Kernels = decltype(kernels);
    if (StreamServes(args)) return MatmulStreamFor<typename Kernels::Math>(args, stream);
    return Kernels::Fprop(args, stream);
  });
}

Status MatmulWorkspaceBytes(const MatmulArgs& args, int64_t* bytes) {
  if (PackedServes(args)) return PackedWorkspaceBytes(args, bytes);
  if (WideServes(args)) return WideWorkspaceBytes(args, bytes);
  if (WideFloatServes(args)) return WideFloatWorkspaceBytes(args, bytes);
  *bytes = StreamServes(args) ? StreamWorkspaceBytes(args) : 0;
  return Status();
}

Status MatmulDwWorkspaceBytes(const MatmulDwArgs& args, int64_t* bytes) {
  if (RegionDwServes(args)) return RegionDwWorkspaceBytes(args, bytes);
  if (LargeDwServes(args)) return LargeDwWorkspaceBytes(args, bytes);
  DwSplit split = {};
  BLOCKSPARSE_RETURN_IF_ERROR(SplitOf(args, &split));
  *bytes = split.num_splits > 1
               ? split.num_splits * DwSize(args.layout) * static_cast<int64_t>(sizeof(float))
               : 0;
  return Status();
}

Status MatmulDwGpu(const MatmulDwArgs& args, Stream stream) {
  if (RegionDwServes(args)) return MatmulRegionDw(args, stream);
  if (LargeDwServes(args)) return MatmulLargeDw(args, stream);
  DwSplit split = {};
  BLOCKSPARSE_RETURN_IF_ERROR(SplitOf(args, &split));
  BLOCKSPARSE_RETURN_IF_ERROR(WithMath(args.dtype, args.allow_tf32, [&](auto kernels) {
    return decltype(kernels)::Dw(args, split, stream);
  }));
  return split.num_splits == 1 ? Status() : SumDwSplits(args, split.num_splits, stream);
}

Status SumDwSplits(const MatmulDwArgs& args, int num_splits, Stream stream) {
  const SumParams params = {reinterpret_cast<const float4*>(args.workspace), args.dw,
                            IsVectorAligned(args.dw), num_splits, DwSize(args.layout) / 4};
  const int64_t num_thread_blocks = (params.size + kSumThreads - 1) / kSumThreads;
  return WithGpuType(args.dw_dtype, [&](auto t) {
    return Launch("SumSplitsKernel", SumSplitsKernel<decltype(t)>, num_thread_blocks, kSumThreads,
                  0, stream, params);
  });
}

Status MatmulGateGradGpu(const MatmulGateGradArgs& args, Stream stream) {
  return WithGpuType(args.dw_dtype, [&](auto dw) {
    return WithGpuType(args.dtype, [&](auto w) {
      return Launch("GateGradKernel", GateGradKernel<decltype(dw), decltype(w)>, args.num_blocks,
                    kGateThreads, 0, stream, args);
    });
  });
}

}  // namespace blocksparse

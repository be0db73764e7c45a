// The GPU side of l2_norm.h: one thread block for each block column, two passes over its blocks.
//
// A thread keeps to one column of the blocks and takes every (threads / B)-th row, so that
// neighbours read neighbours and the sum of a column is a sum over threads, added in order through
// shared memory.
#include "src/kernels/common/cuda_launch.h"
#include "src/kernels/common/load_store.cuh"
#include "src/kernels/common/reduce.cuh"
#include "src/kernels/l2_norm.h"

namespace blocksparse {
namespace {

constexpr int kThreads = 256;  // a multiple of every block size

// Calls f(i) with the index of every weight of this thread's feature.
template <class F>
__device__ __forceinline__ void ForEachWeight(const Layout& layout, F f) {
  const int64_t size = layout.block_size;
  const EntryRange range = ColumnEntries(layout.fprop, layout.num_blocks, blockIdx.x);
  for (int64_t e = range.begin; e < range.end; ++e) {
    const LutEntry entry = layout.fprop.entries[e];
    if (!IsValid(entry, layout.in_blocks, layout.num_blocks)) continue;
    const int64_t offset = entry.block * size * size;
    for (int64_t i = threadIdx.x; i < size * size; i += kThreads) f(offset + i);
  }
}

// The sum over the threads of one feature, for each of them.
__device__ __forceinline__ float SumOfFeature(float value, int block_size) {
  __shared__ float values[kThreads];
  values[threadIdx.x] = value;
  __syncthreads();
  float sum = 0.f;
  for (int i = threadIdx.x % block_size; i < kThreads; i += block_size) sum += values[i];
  return sum;
}

__device__ __forceinline__ int64_t Feature(const Layout& layout) {
  return blockIdx.x * int64_t{layout.block_size} + threadIdx.x % layout.block_size;
}

template <typename TX, typename TY>
__global__ void __launch_bounds__(kThreads) L2NormKernel(const __grid_constant__ L2NormArgs p) {
  const TX* x = static_cast<const TX*>(p.x);
  TY* y = static_cast<TY*>(p.y);
  float sum = 0.f;
  ForEachWeight(p.layout, [&](int64_t i) { sum += LoadFloat(x + i) * LoadFloat(x + i); });
  sum = SumOfFeature(sum, p.layout.block_size);

  const int64_t k = Feature(p.layout);
  if (threadIdx.x < p.layout.block_size) p.sum_sqr[k] = sum;
  const float factor = (p.gain == nullptr ? 1.f : p.gain[k]) / sqrtf(fmaxf(sum, p.epsilon));
  ForEachWeight(p.layout, [&](int64_t i) { y[i] = TY(LoadFloat(x + i) * factor); });
}

template <typename TX, typename TY>
__global__ void __launch_bounds__(kThreads)
    L2NormGradKernel(const __grid_constant__ L2NormGradArgs p) {
  const TX* x = static_cast<const TX*>(p.x);
  const TY* dy = static_cast<const TY*>(p.dy);
  TX* dx = static_cast<TX*>(p.dx);
  float dot = 0.f;
  ForEachWeight(p.layout, [&](int64_t i) { dot += LoadFloat(dy + i) * LoadFloat(x + i); });
  dot = SumOfFeature(dot, p.layout.block_size);

  const int64_t k = Feature(p.layout);
  const float gain = p.gain == nullptr ? 1.f : p.gain[k];
  const float bounded = fmaxf(p.sum_sqr[k], p.epsilon);
  const float r = 1.f / sqrtf(bounded);
  if (p.dgain != nullptr && threadIdx.x < p.layout.block_size) p.dgain[k] = r * dot;
  const float dy_factor = gain * r;
  const float x_factor = p.sum_sqr[k] >= p.epsilon ? gain * r * dot / bounded : 0.f;
  ForEachWeight(p.layout, [&](int64_t i) {
    dx[i] = TX(dy_factor * LoadFloat(dy + i) - x_factor * LoadFloat(x + i));
  });
}

// Calls f with values of the two storage types.
template <class F>
Status WithGpuTypes(DType x_dtype, DType y_dtype, F f) {
  return WithGpuType(
      x_dtype, [&](auto tx) { return WithGpuType(y_dtype, [&](auto ty) { return f(tx, ty); }); });
}

}  // namespace

Status L2NormGpu(const L2NormArgs& args, Stream stream) {
  return WithGpuTypes(args.x_dtype, args.y_dtype, [&](auto tx, auto ty) {
    return Launch("L2NormKernel", L2NormKernel<decltype(tx), decltype(ty)>, args.layout.out_blocks,
                  kThreads, 0, stream, args);
  });
}

Status L2NormGradGpu(const L2NormGradArgs& args, Stream stream) {
  return WithGpuTypes(args.x_dtype, args.y_dtype, [&](auto tx, auto ty) {
    return Launch("L2NormGradKernel", L2NormGradKernel<decltype(tx), decltype(ty)>,
                  args.layout.out_blocks, kThreads, 0, stream, args);
  });
}

}  // namespace blocksparse

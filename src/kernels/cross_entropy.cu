// The GPU side of cross_entropy.h. A warp or a thread block reads a row once and keeps a running
// maximum and the sum of exponentials relative to it; where a larger logit comes, the sum is
// rescaled. Threads, then warps, merge theirs in a fixed order.
//
// Rows of an odd number of classes begin anywhere, so every row is read as a few single elements,
// then aligned vectors, then single elements.
#include "src/kernels/common/cuda_launch.h"
#include "src/kernels/common/dispatch.h"
#include "src/kernels/common/elementwise.cuh"
#include "src/kernels/common/reduce.cuh"
#include "src/kernels/cross_entropy.h"
#include "src/kernels/cross_entropy_policy.h"

namespace blocksparse {
namespace {

// sum = the exponentials of the logits so far, divided by exp(max).
struct RunningSum {
  float max = -INFINITY;
  float sum = 0.f;

  // A maximum to subtract; where there is only -infinity, any number makes the exponentials zero.
  static __device__ __forceinline__ float Finite(float max) { return max == -INFINITY ? 0.f : max; }

  template <typename T, int kVector>
  __device__ __forceinline__ void Add(const Vector<T, kVector>& x) {
    float new_max = max;
#pragma unroll
    for (int v = 0; v < kVector; ++v) new_max = fmaxf(new_max, x.Get(v));
    const float base = Finite(new_max);
    sum *= Exp<T>(max - base);
#pragma unroll
    for (int v = 0; v < kVector; ++v) sum += Exp<T>(x.Get(v) - base);
    max = new_max;
  }
  __device__ __forceinline__ void Merge(float other_max, float other_sum) {
    const float new_max = fmaxf(max, other_max);
    const float base = Finite(new_max);
    sum = sum * expf(max - base) + other_sum * expf(other_max - base);
    max = new_max;
  }
  __device__ __forceinline__ void MergeWarp() {
#pragma unroll
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
      const float other_max = __shfl_xor_sync(~0u, max, offset);
      const float other_sum = __shfl_xor_sync(~0u, sum, offset);
      Merge(other_max, other_sum);
    }
  }
};

// The whole row's sum, in its thread 0.
template <class Policy>
__device__ __forceinline__ void MergeRow(RunningSum& running) {
  running.MergeWarp();
  if constexpr (!Policy::kIsWarp) {
    constexpr int kWarps = Policy::kThreads / kWarpSize;
    __shared__ float maxima[kWarps];
    __shared__ float sums[kWarps];
    if (threadIdx.x % kWarpSize == 0) {
      maxima[threadIdx.x / kWarpSize] = running.max;
      sums[threadIdx.x / kWarpSize] = running.sum;
    }
    __syncthreads();
    if (threadIdx.x >= kWarpSize) return;
    running = RunningSum();
    if (threadIdx.x < kWarps) running = {maxima[threadIdx.x], sums[threadIdx.x]};
    running.MergeWarp();
  }
}

// Calls f(Int<kVector>, j) so that this thread and its fellows of the row visit every j in
// [begin, end) once, as vectors where row + j is aligned. The loops over the few elements beside
// the vectors are not unrolled: that would only cost registers.
template <class Policy, typename T, class F>
__device__ __forceinline__ void ForEachVector(const T* row, int64_t begin, int64_t end,
                                              bool can_vectorise, F f) {
  constexpr int kVector = kVectorOf<T>;
  const int thread = threadIdx.x % Policy::kRowThreads;
  const int phase =
      static_cast<int>(reinterpret_cast<uintptr_t>(row + begin) / sizeof(T) % kVector);
  const int64_t head =
      can_vectorise ? min(begin + static_cast<int64_t>((kVector - phase) % kVector), end) : end;
  const int64_t tail = head + (end - head) / kVector * kVector;
#pragma unroll 1
  for (int64_t j = begin + thread; j < head; j += Policy::kRowThreads) f(Int<1>{}, j);
  for (int64_t j = head + thread * kVector; j < tail; j += Policy::kRowThreads * kVector)
    f(Int<kVector>{}, j);
#pragma unroll 1
  for (int64_t j = tail + thread; j < end; j += Policy::kRowThreads) f(Int<1>{}, j);
}

template <class Policy, typename T>
__global__ void __launch_bounds__(Policy::kThreads)
    CrossEntropyKernel(const __grid_constant__ CrossEntropyArgs p) {
  const CrossEntropyInputs& in = p.in;
  const int64_t row = blockIdx.x * int64_t{Policy::kRows} + threadIdx.x / Policy::kRowThreads;
  if (row >= in.rows) return;
  const T* x = static_cast<const T*>(in.x) + row * in.classes;
  RunningSum running;
  ForEachVector<Policy>(x, 0, in.classes, true, [&](auto vector, int64_t j) {
    Vector<T, decltype(vector)::value> values;
    values.Load(x + j);
    running.Add(values);
  });
  MergeRow<Policy>(running);
  if (threadIdx.x % Policy::kRowThreads != 0) return;
  const float log_sum = logf(running.sum);
  const int64_t label = LabelOf(in, row);
  const bool is_valid = 0 <= label && label < in.classes;
  p.loss[row] = is_valid ? running.max - LoadFloat(x + label) + log_sum : NAN;
  p.row_max[row] = running.max;
  p.log_sum[row] = log_sum;
}

struct GradParams {
  CrossEntropyGradArgs args;
  uint32_t num_chunks;  // of a row; divides 32-bit block numbers
  bool can_vectorise;   // x and dx are aligned at the same elements
};

template <class Policy, typename T>
__global__ void __launch_bounds__(Policy::kThreads)
    CrossEntropyGradKernel(const __grid_constant__ GradParams p) {
  const CrossEntropyInputs& in = p.args.in;
  // A warp takes whole rows.
  const uint32_t group = Policy::kIsWarp ? blockIdx.x : blockIdx.x / p.num_chunks;
  const int64_t row = group * int64_t{Policy::kRows} + threadIdx.x / Policy::kRowThreads;
  if (row >= in.rows) return;
  const int64_t chunk = blockIdx.x - group * (Policy::kIsWarp ? 1 : p.num_chunks);
  const int64_t begin = Policy::kIsWarp ? 0 : chunk * Policy::kGradClasses;
  const int64_t end = Policy::kIsWarp ? in.classes : min(begin + Policy::kGradClasses, in.classes);
  const T* x = static_cast<const T*>(in.x) + row * in.classes;
  T* dx = static_cast<T*>(p.args.dx) + row * in.classes;
  const int64_t label = LabelOf(in, row);
  const bool is_valid = 0 <= label && label < in.classes;
  const float dloss = p.args.dloss[row];
  const float row_max = p.args.row_max[row];
  const float log_sum = p.args.log_sum[row];
  ForEachVector<Policy>(x, begin, end, p.can_vectorise, [&](auto vector, int64_t j) {
    constexpr int kVector = decltype(vector)::value;
    Vector<T, kVector> values;
    values.Load(x + j);
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
      const float p_j = Exp<T>(values.Get(v) - row_max - log_sum);
      values.Set(v, is_valid ? dloss * (p_j - (j + v == label ? 1.f : 0.f)) : 0.f);
    }
    values.Store(dx + j);
  });
}

// Calls f(Policy, T) with the kernel's template arguments.
template <class F>
Status WithKernel(const CrossEntropyInputs& in, F f) {
  return WithGpuType(in.dtype, [&](auto t) {
    return in.classes <= kCrossEntropyWarpClasses ? f(CrossEntropyOfWarp{}, t)
                                                  : f(CrossEntropyOfBlock{}, t);
  });
}

bool AreAlignedAlike(const CrossEntropyGradArgs& args) {
  const uintptr_t x = reinterpret_cast<uintptr_t>(args.in.x);
  return (x - reinterpret_cast<uintptr_t>(args.dx)) % kVectorBytes == 0;
}

int64_t CeilDiv(int64_t a, int64_t b) { return a / b + (a % b != 0); }

}  // namespace

Status CrossEntropyGpu(const CrossEntropyArgs& args, Stream stream) {
  return WithKernel(args.in, [&](auto policy, auto t) {
    using Policy = decltype(policy);
    return Launch("CrossEntropyKernel", CrossEntropyKernel<Policy, decltype(t)>,
                  CeilDiv(args.in.rows, Policy::kRows), Policy::kThreads, 0, stream, args);
  });
}

Status CrossEntropyGradGpu(const CrossEntropyGradArgs& args, Stream stream) {
  return WithKernel(args.in, [&](auto policy, auto t) {
    using Policy = decltype(policy);
    const int64_t num_chunks = CeilDiv(args.in.classes, Policy::kGradClasses);
    const GradParams params = {args, static_cast<uint32_t>(num_chunks), AreAlignedAlike(args)};
    return Launch("CrossEntropyGradKernel", CrossEntropyGradKernel<Policy, decltype(t)>,
                  CeilDiv(args.in.rows, Policy::kRows) * num_chunks, Policy::kThreads, 0, stream,
                  params);
  });
}

}  // namespace blocksparse

// The kernels of matmul_region_dw_float_split.h.
#include <algorithm>

#include "src/kernels/common/cuda_cluster.h"
#include "src/kernels/common/dispatch.h"
#include "src/kernels/common/hopper.cuh"
#include "src/kernels/common/load_store.cuh"
#include "src/kernels/common/round.cuh"
#include "src/kernels/matmul_region_dw_float.h"
#include "src/kernels/matmul_region_dw_float_split.h"
#include "src/kernels/matmul_wide_float_policy.h"

namespace blocksparse {
namespace {

// feature_axis 1: a cluster of thread blocks has kPanel features of all slots, a thread block
// kBlockSlots of them, a thread four features of two groups, one of which it keeps in shared
// memory.
constexpr int kSampleThreads = 512;
constexpr int kPanel = 32;
constexpr int kPanelFours = kPanel / 4;
constexpr int kHalfSlots = kSampleThreads / kPanelFours * kSlotGroup;
constexpr int kBlockSlots = 2 * kHalfSlots;
constexpr int kKeptBytes = kHalfSlots * kPanel * static_cast<int>(sizeof(float));
static_assert(kBlockSlots * kMaxClusterSize >= kMaxFloatDwBatch, "a cluster has all slots");

// feature_axis 0: a thread block has one feature.
constexpr int kRowThreads = 256;

constexpr int kSumThreads = 256;

__host__ __device__ int NumPanels(const SplitOperand& operand) {
  return static_cast<int>((operand.features + kPanel - 1) / kPanel);
}
__host__ __device__ int ClusterSize(const SplitParams& params) {
  return (params.num_slots + kBlockSlots - 1) / kBlockSlots;
}

// v times two powers of two, which are given as the bits of float32s. Rounds once at most, and
// what is between is neither too large nor too small if the result is not.
__device__ __forceinline__ float Scaled(float v, uint32_t a, uint32_t b) {
  const int sum = static_cast<int>(a >> 23) + static_cast<int>(b >> 23);  // each biased by 127
  const int half = sum / 2;
  return v * __uint_as_float(static_cast<uint32_t>(half) << 23) *
         __uint_as_float(static_cast<uint32_t>(sum - half) << 23);
}

#ifdef BLOCKSPARSE_HAS_HOPPER

// The samples of a group of slots; `count` of them exist.
struct SlotSamples {
  const float* data;
  int64_t batch;
  int64_t first;
  int count;
};

__device__ __forceinline__ SlotSamples FindSamples(const SplitParams& p, int operand, int slot) {
  slot += p.first_slot;
  int pair = 0;
  for (int end = p.num_pairs; end - pair > 1;) {
    const int middle = (pair + end) / 2;
    (slot < p.pair_slots[middle] ? end : pair) = middle;
  }
  const MatmulPair& of = p.pairs[pair];
  const int64_t first = slot - p.pair_slots[pair];
  const int64_t count = slot < p.end_slot ? min(of.batch - first, int64_t{kSlotGroup}) : 0;
  return {static_cast<const float*>(operand == 0 ? of.x : of.dy), of.batch, first,
          static_cast<int>(max(count, int64_t{0}))};
}

// The larger of `largest` and |v|, if v is finite, as float32's bits.
__device__ __forceinline__ uint32_t Larger(uint32_t largest, float v) {
  constexpr uint32_t kInfinity = 0x7F800000u;
  const uint32_t bits = __float_as_uint(v) & 0x7FFFFFFFu;
  return max(largest, bits < kInfinity ? bits : 0);
}

// Two numbers in fp16, and what that leaves. An infinity goes into `low` alone, which meets only
// the other operand's high part: infinity times its low part would be NaN.
template <bool kIsSplit>
__device__ __forceinline__ void SplitPair(float u, float v, float u_factor, float v_factor,
                                          uint32_t* high, uint32_t* low) {
  if constexpr (kIsSplit) {
    *high = SaturatedHalves(u * u_factor, v * v_factor);
    const float2 back = __half22float2(*reinterpret_cast<const __half2*>(high));
    *low = PackPair<__half>(fmaf(u, u_factor, -back.x), fmaf(v, v_factor, -back.y));
  } else {
    *high = PackPair<__half>(u * u_factor, v * v_factor);
  }
}

// A thread's four features of a group of slots of [samples, features].
struct SlotFours {
  float4 values[kSlotGroup];

  __device__ __forceinline__ void Load(const SplitParams& p, int operand, int slot,
                                       int64_t feature) {
    const int64_t stride = p.operands[operand].features;
    const SlotSamples samples = FindSamples(p, operand, slot);
    const int count = feature < stride ? samples.count : 0;
    const float* from = samples.data + samples.first * stride + feature;
#pragma unroll
    for (int i = 0; i < kSlotGroup; ++i) {
      values[i] = i < count ? __ldcs(reinterpret_cast<const float4*>(from))
                            : make_float4(0.f, 0.f, 0.f, 0.f);
      from += stride;
    }
  }
  __device__ __forceinline__ void FindLargest(uint32_t (&largest)[4]) const {
#pragma unroll
    for (int i = 0; i < kSlotGroup; ++i) {
      const float4 v = values[i];
      largest[0] = Larger(largest[0], v.x);
      largest[1] = Larger(largest[1], v.y);
      largest[2] = Larger(largest[2], v.z);
      largest[3] = Larger(largest[3], v.w);
    }
  }
  template <bool kIsSplit>
  __device__ __forceinline__ void Store(const SplitOperand& to, int slot, int64_t feature,
                                        const float4& factors) const {
    int64_t at = slot * to.features + feature;
#pragma unroll
    for (int i = 0; i < kSlotGroup; ++i) {
      const float4 v = values[i];
      uint2 high;
      uint2 low;
      SplitPair<kIsSplit>(v.x, v.y, factors.x, factors.y, &high.x, &low.x);
      SplitPair<kIsSplit>(v.z, v.w, factors.z, factors.w, &high.y, &low.y);
      *reinterpret_cast<uint2*>(to.high + at) = high;
      if constexpr (kIsSplit) *reinterpret_cast<uint2*>(to.low + at) = low;
      at += to.features;
    }
  }
};

#endif  // BLOCKSPARSE_HAS_HOPPER

// [samples, features]
template <bool kIsSplit>
__global__ void __launch_bounds__(kSampleThreads, 2)
    SplitSamplesKernel(const __grid_constant__ SplitParams p) {
#ifdef BLOCKSPARSE_HAS_HOPPER
  constexpr int kWarps = kSampleThreads / kWarpSize;
  __shared__ uint32_t of_warps[kWarps][kPanel];
  __shared__ __align__(16) uint32_t of_block[kPanel];
  extern __shared__ float4 kept[];
  const int cluster_size = ClusterSize(p);
  const int rank = blockIdx.x % cluster_size;
  const int x_panels = NumPanels(p.operands[0]);
  const int which = blockIdx.x / cluster_size;
  const int operand = which >= x_panels;
  const SplitOperand& to = p.operands[operand];
  const int four = threadIdx.x % kPanelFours;
  const int64_t feature = int64_t{which - operand * x_panels} * kPanel + four * 4;
  const int slot = rank * kBlockSlots + threadIdx.x / kPanelFours * kSlotGroup;

  uint32_t largest[4] = {};
  SlotFours fours;
  fours.Load(p, operand, slot + kHalfSlots, feature);
  fours.FindLargest(largest);
#pragma unroll
  for (int i = 0; i < kSlotGroup; ++i) kept[i * kSampleThreads + threadIdx.x] = fours.values[i];
  fours.Load(p, operand, slot, feature);
  fours.FindLargest(largest);
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int step = kPanelFours; step < kWarpSize; step *= 2)
      largest[i] = max(largest[i], __shfl_xor_sync(~0u, largest[i], step));
    if (lane < kPanelFours) of_warps[threadIdx.x / kWarpSize][lane * 4 + i] = largest[i];
  }
  __syncthreads();
  if (threadIdx.x < kPanel) {
    uint32_t found = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) found = max(found, of_warps[i][threadIdx.x]);
    of_block[threadIdx.x] = found;
  }
  SyncCluster();
  float4 of_cluster = make_float4(0.f, 0.f, 0.f, 0.f);
  for (int i = 0; i < cluster_size; ++i) {
    const float4 other = LoadClusterFour(SharedAddress(of_block + four * 4), i);
    of_cluster = make_float4(fmaxf(of_cluster.x, other.x), fmaxf(of_cluster.y, other.y),
                             fmaxf(of_cluster.z, other.z), fmaxf(of_cluster.w, other.w));
  }
  SyncCluster();  // or others may still read of_block when this thread block ends
  const uint4 scales = {
      SplitScale(__float_as_uint(of_cluster.x)), SplitScale(__float_as_uint(of_cluster.y)),
      SplitScale(__float_as_uint(of_cluster.z)), SplitScale(__float_as_uint(of_cluster.w))};
  const float4 factors = {
      __uint_as_float(SplitReciprocal(scales.x)), __uint_as_float(SplitReciprocal(scales.y)),
      __uint_as_float(SplitReciprocal(scales.z)), __uint_as_float(SplitReciprocal(scales.w))};
  if (feature >= to.features || slot >= p.num_slots) return;
  if (slot == 0) *reinterpret_cast<uint4*>(to.scales + feature) = scales;
  fours.Store<kIsSplit>(to, slot, feature, factors);
  if (slot + kHalfSlots >= p.num_slots) return;
#pragma unroll
  for (int i = 0; i < kSlotGroup; ++i) fours.values[i] = kept[i * kSampleThreads + threadIdx.x];
  fours.Store<kIsSplit>(to, slot + kHalfSlots, feature, factors);
#endif
}

// [features, samples]
template <bool kIsSplit>
__global__ void __launch_bounds__(kRowThreads)
    SplitRowsKernel(const __grid_constant__ SplitParams p) {
#ifdef BLOCKSPARSE_HAS_HOPPER
  constexpr int kRowGroups = kMaxFloatDwBatch / kRowThreads / kSlotGroup;  // of a thread
  __shared__ uint32_t of_warps[kRowThreads / kWarpSize];
  const int64_t x_features = p.operands[0].features;
  const int operand = blockIdx.x >= x_features;
  const SplitOperand& to = p.operands[operand];
  const int64_t feature = blockIdx.x - operand * x_features;

  float4 values[kRowGroups][2];
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kRowGroups; ++i) {
    const int slot = (i * blockDim.x + threadIdx.x) * kSlotGroup;
    const SlotSamples samples = FindSamples(p, operand, slot);
    const float* from = samples.data + feature * samples.batch + samples.first;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float4& v = values[i][j];
      v = 4 * j < samples.count ? __ldcs(reinterpret_cast<const float4*>(from) + j)
                                : make_float4(0.f, 0.f, 0.f, 0.f);
      largest = Larger(Larger(Larger(Larger(largest, v.x), v.y), v.z), v.w);
    }
  }
  largest = __reduce_max_sync(~0u, largest);
  if (threadIdx.x % kWarpSize == 0) of_warps[threadIdx.x / kWarpSize] = largest;
  __syncthreads();
  for (int i = 0; i < blockDim.x / kWarpSize; ++i) largest = max(largest, of_warps[i]);
  const uint32_t scale = SplitScale(largest);
  const float factor = __uint_as_float(SplitReciprocal(scale));
  if (threadIdx.x == 0) to.scales[feature] = scale;

#pragma unroll
  for (int i = 0; i < kRowGroups; ++i) {
    const int slot = (i * blockDim.x + threadIdx.x) * kSlotGroup;
    if (slot >= p.num_slots) break;
    uint4 high;
    uint4 low;
    const float4(&v)[2] = values[i];
    SplitPair<kIsSplit>(v[0].x, v[0].y, factor, factor, &high.x, &low.x);
    SplitPair<kIsSplit>(v[0].z, v[0].w, factor, factor, &high.y, &low.y);
    SplitPair<kIsSplit>(v[1].x, v[1].y, factor, factor, &high.z, &low.z);
    SplitPair<kIsSplit>(v[1].z, v[1].w, factor, factor, &high.w, &low.w);
    const int64_t at = feature * p.num_slots + slot;
    *reinterpret_cast<uint4*>(to.high + at) = high;
    if constexpr (kIsSplit) *reinterpret_cast<uint4*>(to.low + at) = low;
  }
#endif
}

// Four elements a thread.
__global__ void __launch_bounds__(kSumThreads)
    ScaledSumKernel(const __grid_constant__ ScaledSumParams p) {
  const int64_t i = blockIdx.x * int64_t{kSumThreads} + threadIdx.x;
  if (i >= p.size) return;
  float4 sum = p.copies[i];
  for (int s = 1; s < p.num_copies; ++s) {
    const float4 next = p.copies[s * p.size + i];
    sum = make_float4(sum.x + next.x, sum.y + next.y, sum.z + next.z, sum.w + next.w);
  }
  const int64_t block = 4 * i >> 2 * p.block_shift;
  const int mask = (1 << p.block_shift) - 1;
  const int row = static_cast<int>(4 * i >> p.block_shift) & mask;
  const int col = static_cast<int>(4 * i) & mask;
  const LutEntry entry = p.blocks[block];
  const int64_t in_block = static_cast<uint32_t>(entry.index) < p.in_blocks ? entry.index : 0;
  const int64_t out_block = static_cast<uint32_t>(entry.block) < p.out_blocks ? entry.block : 0;
  const uint32_t x_scale = p.x_scales[(in_block << p.block_shift) + row];
  const uint4 dy_scales =
      *reinterpret_cast<const uint4*>(p.dy_scales + (out_block << p.block_shift) + col);
  sum.x = Scaled(sum.x, x_scale, dy_scales.x);
  sum.y = Scaled(sum.y, x_scale, dy_scales.y);
  sum.z = Scaled(sum.z, x_scale, dy_scales.z);
  sum.w = Scaled(sum.w, x_scale, dy_scales.w);
  float* dw = p.dw + 4 * i;
  if (p.is_added) sum = make_float4(sum.x + dw[0], sum.y + dw[1], sum.z + dw[2], sum.w + dw[3]);
  StoreFour(dw, sum, p.is_dw_aligned);
}

}  // namespace

Status SplitFloats(int feature_axis, const SplitParams& params, Stream stream) {
  return WithBool(params.operands[0].low != nullptr, [&](auto is_split) {
    if (feature_axis == 1) {
      const int num_panels = NumPanels(params.operands[0]) + NumPanels(params.operands[1]);
      return LaunchClusters("SplitSamplesKernel", SplitSamplesKernel<is_split()>,
                            {num_panels, ClusterSize(params), kSampleThreads, kKeptBytes}, stream,
                            params);
    }
    const int groups = params.num_slots / kSlotGroup;
    const int threads = std::min((groups + kWarpSize - 1) / kWarpSize * kWarpSize, kRowThreads);
    return Launch("SplitRowsKernel", SplitRowsKernel<is_split()>,
                  params.operands[0].features + params.operands[1].features, threads, 0, stream,
                  params);
  });
}

Status ScaleSums(const ScaledSumParams& params, Stream stream) {
  return Launch("ScaledSumKernel", ScaledSumKernel, (params.size + kSumThreads - 1) / kSumThreads,
                kSumThreads, 0, stream, params);
}

}  // namespace blocksparse

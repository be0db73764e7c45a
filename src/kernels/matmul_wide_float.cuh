// y = x W and dx = dy W^T in float32 for long minibatches on sm_90a: 128 samples x 320 features of
// the result in the registers of one thread block. The ring in shared memory and the warps that
// fill it are those of matmul_wide_ring.cuh.
//
// Two warpgroups multiply, each its own block columns and all samples. x goes through registers,
// where it is rounded or split; W comes packed, with the inner feature contiguous, which wgmma
// needs for TensorFloat-32.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_WIDE_FLOAT_CUH_
#define BLOCKSPARSE_KERNELS_MATMUL_WIDE_FLOAT_CUH_

#include <cuda_fp16.h>

#include "src/kernels/common/cuda_launch.h"
#include "src/kernels/matmul_wide_float.h"
#include "src/kernels/matmul_wide_ring.cuh"

namespace blocksparse {

#ifdef BLOCKSPARSE_HAS_HOPPER

// 64 samples of a slice as a warp of wgmma's A holds them, 16 samples each: lane 4 g + t has
// samples g and g + 8 and 8 features of each, number k of sample g + 8 h in r[k / 2][h + k % 2 * 2]
// (InnerFeature says which feature that is).
struct SampleFragment {
  uint32_t r[4][4];
};

// Two float32 as fp16, `low` in the low half. Beyond fp16's range: its largest numbers.
__device__ __forceinline__ uint32_t SaturatedHalves(float low, float high) {
  uint32_t halves;
  asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(halves) : "f"(high), "f"(low));
  return halves;
}

template <class Policy>
struct WideFloatWorker {
  static constexpr int kColumns = Policy::kColumns;
  static constexpr int kTiles = Policy::kTiles;
  static constexpr bool kIsAxis1 = Policy::kFeatureAxis == 1;
  static constexpr uint32_t kHighW = DescriptorHigh(8 * kWideFloatRowBytes, Swizzle::k128);
  static constexpr uint32_t kStepW = DescriptorUnits(32);  // of wgmma's depth
  static constexpr uint32_t kBlockW = DescriptorUnits(kWideFloatBlockBytes);

  const WideFloatParams& p;
  const WideBlock<Policy>& block;
  int worker;
  float sums[kColumns][kTiles][16];

  struct Visit {
    uint32_t low;
    uint32_t high;
  };

  __device__ __forceinline__ void Zero() {
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
#pragma unroll
        for (float& sum : sums[j][t]) sum = 0.f;
    Fence();
  }
  __device__ __forceinline__ void Fence() {
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
#pragma unroll
      for (int t = 0; t < kTiles; ++t) FenceRegisters(sums[j][t]);
  }

  // 64 samples from `x`, of rows of 128 bytes swizzled by the copy engine: features of a sample, or
  // 32 samples.
  __device__ __forceinline__ void LoadSamples(uint32_t x, SampleFragment& a) const {
    const uint32_t lane = threadIdx.x % kWarpSize;
    const uint32_t warp = threadIdx.x / kWarpSize % 4;
    if constexpr (kIsAxis1) {
      const uint32_t row = 16 * warp + lane % 16;
      const uint32_t from = x + row * 128 + ((lane / 16 ^ lane % 8) << 4);
#pragma unroll
      for (int i = 0; i < 4; ++i) LoadMatrix4<false>(from ^ i << 5, a.r[i]);
    } else {
      const uint32_t g = lane / 4;
      const uint32_t t = lane % 4;
      const uint32_t from = x + warp / 2 * (32 * 128) + 2 * t * 128 +
                            ((4 * (warp % 2) + g / 4 ^ 2 * t) << 4) + g % 4 * 4;
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          a.r[i][j] = LoadShared((from ^ j % 2 << 5 ^ j / 2 << 4) + j / 2 * 128 + i * 8 * 128);
    }
  }

  // ---- TensorFloat-32 ----

  __device__ __forceinline__ void MultiplyRounded(const Visit& visit, uint32_t x, uint32_t w) {
    // Tiles whose samples the registers hold at once.
    constexpr int kHeld = kColumns < 6 ? kTiles : 1;
#pragma unroll
    for (int first = 0; first < kTiles; first += kHeld) {
      if (first > 0) WaitForWgmma<0>();
      SampleFragment a[kHeld];
#pragma unroll
      for (int t = 0; t < kHeld; ++t) LoadSamples(x + (first + t) * 64 * 128, a[t]);
#pragma unroll
      for (int t = 0; t < kHeld; ++t)
#pragma unroll
        for (int i = 0; i < 16; ++i) asm("cvt.rna.tf32.f32 %0, %0;" : "+r"(a[t].r[i / 4][i % 4]));
      FenceWgmma();
      uint32_t from = w;
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        if (visit.low & 1u << (kVisitColumns + j)) {
#pragma unroll
          for (int k = 0; k < 4; ++k)
#pragma unroll
            for (int t = 0; t < kHeld; ++t)
              MultiplyTf32(sums[j][first + t], a[t].r[k], Descriptor(from + k * kStepW, kHighW));
          CommitWgmma();
          from += kBlockW;
        }
      }
    }
  }

  // ---- two numbers of fp16 ----

  // The power of two by which the lane's features of sample g + 8 h are divided, and those of the
  // lanes that share the sample.
  static __device__ __forceinline__ float ScaleOf(const SampleFragment& a, int h) {
    float largest = 0.f;
#pragma unroll
    for (int k = 0; k < 8; ++k)
      largest = fmaxf(largest, fabsf(__uint_as_float(a.r[k / 2][h + k % 2 * 2])));
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
    return __uint_as_float(SplitScale(__float_as_uint(largest)));
  }

  // sums += scales (high + low) W. What is not finite is in `low` alone, which meets only the high
  // part of W: infinity times W's low part would be NaN.
  __device__ __forceinline__ void MultiplySplit(const Visit& visit, uint32_t x, uint32_t w) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      uint32_t high[2][4];
      uint32_t low[2][4];
      float scales[2];
      {
        SampleFragment a;
        LoadSamples(x + t * 64 * 128, a);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          scales[h] = ScaleOf(a, h);
          const float factor = __uint_as_float(SplitReciprocal(__float_as_uint(scales[h])));
#pragma unroll
          for (int k = 0; k < 8; k += 2) {
            const float v = __uint_as_float(a.r[k / 2][h]);
            const float u = __uint_as_float(a.r[k / 2][h + 2]);
            const uint32_t halves = SaturatedHalves(v * factor, u * factor);
            const float2 rounded = __half22float2(*reinterpret_cast<const __half2*>(&halves));
            const int at = h + k / 2 % 2 * 2;
            high[k / 4][at] = halves;
            const __half2 rest =
                __floats2half2_rn(fmaf(v, factor, -rounded.x), fmaf(u, factor, -rounded.y));
            low[k / 4][at] = *reinterpret_cast<const uint32_t*>(&rest);
          }
        }
      }
      uint32_t from = w;
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        if (visit.low & 1u << (kVisitColumns + j)) {
          float products[16];
          FenceWgmma();
          StartProduct(products, low[0], Descriptor(from, kHighW));
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            if (k > 0)
              Wgmma<__half, 32>::Multiply<false>(products, low[k],
                                                 Descriptor(from + k * kStepW, kHighW));
            Wgmma<__half, 32>::Multiply<false>(products, high[k],
                                               Descriptor(from + (2 + k) * kStepW, kHighW));
          }
#pragma unroll
          for (int k = 0; k < 2; ++k)
            Wgmma<__half, 32>::Multiply<false>(products, high[k],
                                               Descriptor(from + k * kStepW, kHighW));
          CommitWgmma();
          const uint32_t exponents = j < 2 ? visit.low >> (16 + 8 * j) : visit.high >> (8 * j - 16);
          const float scale = __uint_as_float((exponents & 0xFF) << 23);
          const float scale_0 = scale * scales[0];
          const float scale_1 = scale * scales[1];
          WaitForWgmma<0>();
          FenceRegisters(products);
#pragma unroll
          for (int i = 0; i < 16; ++i)
            sums[j][t][i] = fmaf(products[i], i & 2 ? scale_1 : scale_0, sums[j][t][i]);
          from += kBlockW;
        }
      }
    }
  }

  __device__ __forceinline__ void Multiply(const Visit& visit) {
    const uint32_t x = block.ring + (visit.low & 63) * kWideFloatBlockBytes;
    const uint32_t skipped = visit.low >> kVisitSkipped & 15;
    const uint32_t w =
        DescriptorUnits(x) + DescriptorUnits(Policy::kSliceBytes) + skipped * kBlockW + (1u << 16);
    if constexpr (Policy::kIsSplit) {
      MultiplySplit(visit, x, w);
    } else {
      MultiplyRounded(visit, x, w);
    }
  }

  // Writes the sums of the tile at `row`; a quad's 8 features, or 8 samples, are 32 bytes.
  __device__ __forceinline__ void Store(int group, int row) const {
    const uint32_t thread = Opaque(threadIdx.x);  // or all this would take registers all the time
    const uint32_t lane = thread % kWarpSize;
    const uint32_t warp = thread / kWarpSize % 4;
    const int end = min(block.EndRow(), row + block.p.tile_rows);
    const int first_sample = row + 16 * warp + lane / 4;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int64_t column =
          block.p.columns[int64_t{group} * kWideFloatGroup + worker * kColumns + j];
      if (column < 0 || column >= block.p.num_outputs) continue;
      const int64_t feature = column * kWideFloatBlock + 2 * (lane % 4);
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int sample = first_sample + 64 * t + 8 * h;
          if (sample >= end) continue;
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const float* d = sums[j][t] + 4 * c + 2 * h;
            if constexpr (kIsAxis1) {
              *reinterpret_cast<float2*>(p.y + sample * p.num_features + feature + 8 * c) =
                  make_float2(d[0], d[1]);
            } else {
              float* y = p.y + (feature + 8 * c) * block.p.batch + sample;
              y[0] = d[0];
              y[block.p.batch] = d[1];
            }
          }
        }
      }
    }
  }

  // The visits of 32 entries, one a lane.
  __device__ __forceinline__ Visit VisitOf(int64_t first_entry, int i, int count) const {
    if (i >= count) return {0, 0};
    const uint64_t visit = p.visits[(first_entry + i) * kWideFloatWorkers + worker];
    return {static_cast<uint32_t>(visit), static_cast<uint32_t>(visit >> 32)};
  }

  __device__ __forceinline__ void Run() {
    constexpr uint32_t kAnyColumn = ((1u << kColumns) - 1) << kVisitColumns;
    const int lane = threadIdx.x % kWarpSize;
    uint32_t first = 0;
    for (int group = block.FirstGroup(); group < block.p.num_groups;
         group += block.p.group_lanes) {
      const auto entries = block.EntriesOf(group);
      const int num_loads = entries.num_loads;
      const int64_t first_entry = entries.data - block.p.entries;
      Visit next = VisitOf(first_entry, lane, num_loads);
      for (int row = block.FirstRow(); row < block.EndRow(); row += block.p.tile_rows) {
        Zero();
        uint32_t held = 0;  // the barrier of the entry that the products under way read
        for (int base = 0; base < num_loads; base += kWarpSize) {
          const Visit mine = next;
          const int next_base = base + kWarpSize < num_loads ? base + kWarpSize : 0;
          next = VisitOf(first_entry, next_base + lane, num_loads);
          uint32_t wanted = __ballot_sync(
              ~0u, (mine.low & kAnyColumn) != 0 || block.IsCheckpoint(base + lane, num_loads));
          while (wanted != 0) {
            const int i = __ffs(wanted) - 1;
            wanted &= wanted - 1;
            const Visit visit = {__shfl_sync(~0u, mine.low, i), __shfl_sync(~0u, mine.high, i)};
            const uint32_t number = first + base + i;
            const uint32_t full = block.Full(number);
            const bool is_here = __all_sync(~0u, TestBarrier(full, block.Parity(number)));
            WaitForWgmma<0>();
            if (held != 0 && lane == 0) Arrive(held);
            if (!is_here) WaitBarrier(full, block.Parity(number));
            if (visit.low & kAnyColumn) Multiply(visit);
            held = full + block.kFullToEmpty;
          }
        }
        WaitForWgmma<0>();
        if (held != 0 && lane == 0) Arrive(held);
        Fence();
        Store(group, row);
        first += entries.count;
      }
    }
  }
};

#endif  // BLOCKSPARSE_HAS_HOPPER

template <class Policy>
__global__ void __launch_bounds__(Policy::kThreads, 1)
    MatmulWideFloatKernel(const __grid_constant__ WideFloatParams p) {
#ifdef BLOCKSPARSE_HAS_HOPPER
  extern __shared__ __align__(1024) unsigned char smem[];
  const WideBlock<Policy> block = {p.wide, Opaque(SharedAddress(smem))};
  const int warp = __shfl_sync(~0u, threadIdx.x / kWarpSize, 0);
  if (threadIdx.x == 0) {
#pragma unroll 1
    for (int i = 0; i < kWideBarriers; ++i) {
      InitBarrier(block.Full(i), 1);
      InitBarrier(block.Empty(i), 4 * Policy::kWorkers);
    }
    FenceBarrierInit();
  }
  __syncthreads();
  LetNextKernelStart();
  WaitForPreviousKernel();
  if (warp >= 4 * Policy::kWorkers) {
    GiveRegisters<Policy::kFeederRegisters>();
    Feed(block, warp - 4 * Policy::kWorkers);
  } else {
    TakeRegisters<Policy::kWorkerRegisters>();
    WideFloatWorker<Policy> worker = {p, block, warp / 4, {}};
    worker.Run();
  }
#endif
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_WIDE_FLOAT_CUH_

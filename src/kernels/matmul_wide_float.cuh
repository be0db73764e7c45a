// y = x W and dx = dy W^T in float32 for long minibatches on sm_90a: 128 samples x 352 features of
// the result in the registers of one thread block. The ring in shared memory and the warps that
// fill it are those of matmul_wide_ring.cuh.
//
// Two warpgroups multiply, 64 samples each. x goes through registers, where it is rounded or split;
// W comes packed, with the inner feature contiguous, which wgmma needs for TensorFloat-32.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_WIDE_FLOAT_CUH_
#define BLOCKSPARSE_KERNELS_MATMUL_WIDE_FLOAT_CUH_

#include <cuda_fp16.h>

#include "src/kernels/common/cuda_launch.h"
#include "src/kernels/common/round.cuh"
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

template <class Policy>
struct WideFloatWorker {
  static constexpr bool kIsAxis1 = Policy::kFeatureAxis == 1;
  static constexpr int kGroup = Policy::kGroup;
  static constexpr uint32_t kHighW = DescriptorHigh(8 * kWideFloatRowBytes, Swizzle::k128);
  static constexpr uint32_t kStepW = DescriptorUnits(32);  // of wgmma's depth
  static constexpr uint32_t kBlockW = DescriptorUnits(kWideFloatBlockBytes);

  const WideFloatParams& p;
  const WideBlock<Policy>& block;
  int worker;
  float sums[kGroup][16];

  __device__ __forceinline__ void Zero() {
#pragma unroll
    for (int j = 0; j < kGroup; ++j)
#pragma unroll
      for (float& sum : sums[j]) sum = 0.f;
    Fence();
  }
  __device__ __forceinline__ void Fence() {
#pragma unroll
    for (int j = 0; j < kGroup; ++j) FenceRegisters(sums[j]);
  }

  // What a lane knows of an entry: its place in the ring in granules, and from bit 8 on its
  // columns.
  static __device__ __forceinline__ uint32_t VisitOf(const WideEntry* entries, int i, int count) {
    if (i >= count) return 0;
    const WideParts<Policy> parts({entries[i].low, 0});
    return parts.place / kWideFloatBlockBytes | parts.columns << 8;
  }

  // The worker's samples of a slice, of rows of 128 bytes swizzled by the copy engine: features of
  // a sample, or 32 samples.
  __device__ __forceinline__ void LoadSamples(uint32_t x, SampleFragment& a) const {
    const uint32_t lane = threadIdx.x % kWarpSize;
    const uint32_t warp = threadIdx.x / kWarpSize % 4;
    const uint32_t share = x + worker * (64 * 128);
    if constexpr (kIsAxis1) {
      const uint32_t row = 16 * warp + lane % 16;
      const uint32_t from = share + row * 128 + ((lane / 16 ^ lane % 8) << 4);
#pragma unroll
      for (int i = 0; i < 4; ++i) LoadMatrix4<false>(from ^ i << 5, a.r[i]);
    } else {
      const uint32_t g = lane / 4;
      const uint32_t t = lane % 4;
      const uint32_t from = share + warp / 2 * (32 * 128) + 2 * t * 128 +
                            ((4 * (warp % 2) + g / 4 ^ 2 * t) << 4) + g % 4 * 4;
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          a.r[i][j] = LoadShared((from ^ j % 2 << 5 ^ j / 2 << 4) + j / 2 * 128 + i * 8 * 128);
    }
  }

  // ---- TensorFloat-32 ----

  // The products with a slice's samples stay under way.
  __device__ __forceinline__ void MultiplyRounded(uint32_t columns, SampleFragment& a, uint32_t w) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      uint32_t& v = a.r[i / 4][i % 4];
      v = RoundToTf32(__uint_as_float(v));
    }
    FenceWgmma();
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      if (columns & 1u << j) {
#pragma unroll
        for (int k = 0; k < 4; ++k)
          MultiplyTf32(sums[j], a.r[k], Descriptor(w + k * kStepW, kHighW));
        w += kBlockW;
      }
    }
    CommitWgmma();
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

  // Splits a slice's samples; samples g + 8 h were divided by scales[h]. What is not finite goes
  // into `low` alone, which meets only the high part of W: infinity times W's low part would be
  // NaN.
  static __device__ __forceinline__ void Split(const SampleFragment& a, uint32_t (&high)[2][4],
                                               uint32_t (&low)[2][4], float (&scales)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      scales[h] = ScaleOf(a, h);
      const float factor = __uint_as_float(SplitReciprocal(__float_as_uint(scales[h])));
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float u = __uint_as_float(a.r[k][h]);
        const float v = __uint_as_float(a.r[k][h + 2]);
        const uint32_t halves = SaturatedHalves(u * factor, v * factor);
        const float2 back = __half22float2(*reinterpret_cast<const __half2*>(&halves));
        const __half2 rest = __floats2half2_rn(fmaf(u, factor, -back.x), fmaf(v, factor, -back.y));
        high[k / 2][h + k % 2 * 2] = halves;
        low[k / 2][h + k % 2 * 2] = *reinterpret_cast<const uint32_t*>(&rest);
      }
    }
  }

  // Waits for the products, and adds them, times the scales of samples g and g + 8, to the sums of
  // column `column`, which is one of kBegin to kEnd - 1. Each has code of its own, which is as
  // short as can be: most of it is skipped, and instructions have to be fetched.
  template <int kBegin, int kEnd>
  __device__ __forceinline__ void AddProducts(int column, float (&products)[16], float scale_0,
                                              float scale_1) {
    if constexpr (kEnd - kBegin == 1) {
      WaitForWgmma<0>();
      FenceRegisters(products);
#pragma unroll
      for (int i = 0; i < 16; ++i)
        sums[kBegin][i] = fmaf(products[i], i & 2 ? scale_1 : scale_0, sums[kBegin][i]);
    } else {
      constexpr int kMiddle = (kBegin + kEnd) / 2;
      if (column < kMiddle) {
        AddProducts<kBegin, kMiddle>(column, products, scale_0, scale_1);
      } else {
        AddProducts<kMiddle, kEnd>(column, products, scale_0, scale_1);
      }
    }
  }

  // sums += scales (high + low) W, one block of W after the other.
  __device__ __forceinline__ void MultiplySplit(uint32_t columns, const SampleFragment& a,
                                                uint32_t w, const uint4& exponents) {
    uint32_t high[2][4];
    uint32_t low[2][4];
    float scales[2];
    Split(a, high, low, scales);
#pragma unroll 1
    for (; columns != 0; columns &= columns - 1) {
      const int column = __ffs(columns) - 1;
      float products[16];
      FenceWgmma();
      // The small products first, so that the large ones are added up last.
      StartProduct(products, low[0], Descriptor(w, kHighW));
      Wgmma<__half, 32>::Multiply<false>(products, low[1], Descriptor(w + kStepW, kHighW));
#pragma unroll
      for (int k = 0; k < 2; ++k)
        Wgmma<__half, 32>::Multiply<false>(products, high[k],
                                           Descriptor(w + (2 + k) * kStepW, kHighW));
#pragma unroll
      for (int k = 0; k < 2; ++k)
        Wgmma<__half, 32>::Multiply<false>(products, high[k], Descriptor(w + k * kStepW, kHighW));
      CommitWgmma();
      w += kBlockW;
      const uint32_t word = column < 4 ? exponents.x : column < 8 ? exponents.y : exponents.z;
      const float scale = __uint_as_float((word >> 8 * (column % 4) & 0xFF) << 23);
      AddProducts<0, kGroup>(column, products, scale * scales[0], scale * scales[1]);
    }
  }

  // Writes the sums of the tile at `row`.
  // Lane j has the group's column j, or -1.
  __device__ __forceinline__ void Store(int columns, int row) const {
    const uint32_t thread = Opaque(threadIdx.x);  // or all this would take registers all the time
    const uint32_t lane = thread % kWarpSize;
    const uint32_t warp = thread / kWarpSize % 4;
    const int end = min(block.EndRow(), row + block.p.tile_rows);
    const int first_sample = row + 64 * worker + 16 * warp + lane / 4;
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      const int64_t column = __shfl_sync(~0u, columns, j);
      if (column < 0) continue;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int sample = first_sample + 8 * h;
        if constexpr (kIsAxis1) {
          // Lanes exchange pairs, so that each has four features and a quad's are 64 bytes.
          const bool is_odd = lane % 2;
          float* y = p.y + sample * p.num_features + column * kWideFloatBlock + 4 * (lane % 4 / 2) +
                     8 * is_odd;
#pragma unroll
          for (int c = 0; c < 4; c += 2) {
            const float* even = sums[j] + 4 * c + 2 * h;
            const float* odd = even + 4;
            const float other_0 = __shfl_xor_sync(~0u, is_odd ? even[0] : odd[0], 1);
            const float other_1 = __shfl_xor_sync(~0u, is_odd ? even[1] : odd[1], 1);
            const float4 four = is_odd ? make_float4(other_0, other_1, odd[0], odd[1])
                                       : make_float4(even[0], even[1], other_0, other_1);
            if (sample < end) *reinterpret_cast<float4*>(y + 8 * c) = four;
          }
        } else if (sample < end) {
          float* y = p.y + (column * kWideFloatBlock + 2 * (lane % 4)) * block.p.batch + sample;
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const float* d = sums[j] + 4 * c + 2 * h;
            y[8 * c * block.p.batch] = d[0];
            y[(8 * c + 1) * block.p.batch] = d[1];
          }
        }
      }
    }
  }

  __device__ __forceinline__ int ColumnOf(int group, int j) const {
    if (j >= kGroup) return -1;
    const int64_t column = block.p.columns[int64_t{group} * kGroup + j];
    return column < block.p.num_outputs ? static_cast<int>(max(column, int64_t{-1})) : -1;
  }

  // The warp has read what the barrier of an entry, 0 for none, speaks of.
  static __device__ __forceinline__ void Release(uint32_t barrier) {
    __syncwarp();
    if (barrier != 0) ArriveAsWarp(barrier, threadIdx.x % kWarpSize);
  }

  __device__ __forceinline__ void Run() {
    const int lane = threadIdx.x % kWarpSize;
    uint32_t first = 0;
    for (int group = block.FirstGroup(); group < block.p.num_groups; group += block.p.group_lanes) {
      const auto entries = block.EntriesOf(group);
      const int num_loads = entries.num_loads;
      const uint4* all_exponents =
          reinterpret_cast<const uint4*>(p.exponents) + (entries.data - block.p.entries);
      const int columns_of_group = ColumnOf(group, lane);
      uint32_t next = VisitOf(entries.data, lane, num_loads);
      for (int row = block.FirstRow(); row < block.EndRow(); row += block.p.tile_rows) {
        Zero();
        uint32_t held = 0;  // the barrier of the entry that the products under way read
        for (int base = 0; base < num_loads; base += kWarpSize) {
          const uint32_t mine = next;
          const int next_base = base + kWarpSize < num_loads ? base + kWarpSize : 0;
          next = VisitOf(entries.data, next_base + lane, num_loads);
          uint32_t wanted =
              __ballot_sync(~0u, mine >> 8 != 0 || block.IsCheckpoint(base + lane, num_loads));
          while (wanted != 0) {
            const int i = __ffs(wanted) - 1;
            wanted &= wanted - 1;
            const uint32_t visit = __shfl_sync(~0u, mine, i);
            const uint32_t number = first + base + i;
            const uint32_t full = block.Full(number);
            uint4 exponents;
            if constexpr (Policy::kIsSplit) exponents = __ldg(all_exponents + base + i);
            // Nothing is held while waiting: what fills the ring may wait for it.
            if (!__all_sync(~0u, TestBarrier(full, block.Parity(number)))) {
              WaitForWgmma<0>();
              Release(held);
              held = 0;
              WaitBarrier(full, block.Parity(number));
            }
            const uint32_t columns = visit >> 8;
            const uint32_t x = block.ring + (visit & 0xFF) * kWideFloatBlockBytes;
            const uint32_t w = DescriptorUnits(x + Policy::kSliceBytes) + (1u << 16);
            SampleFragment a;
            if (columns != 0) LoadSamples(x, a);
            WaitForWgmma<0>();
            Release(held);
            held = full + block.kFullToEmpty;
            if (columns == 0) continue;
            if constexpr (Policy::kIsSplit) {
              MultiplySplit(columns, a, w, exponents);
              Release(held);
              held = 0;
            } else {
              MultiplyRounded(columns, a, w);
            }
          }
        }
        WaitForWgmma<0>();
        Release(held);
        Fence();
        Store(columns_of_group, row);
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
  if (threadIdx.x < kWideBarriers) {
    const int i = threadIdx.x;
    InitBarrier(block.Full(i), 1);
    InitBarrier(block.Empty(i), WideBlock<Policy>::kReleases * Policy::kWorkers);
    FenceBarrierInit();
  } else if (threadIdx.x == kWideBarriers) {
    PrefetchTensorMap(&p.wide.x);
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

// y = x W and dx = dy W^T for long minibatches on sm_90a: 128 samples x 384 features of the result
// in the registers of one thread block.
//
// Three (or two) warpgroups multiply, each its own block columns and all samples; one warpgroup
// serves them: three warps load entries of the group's list (matmul_wide_policy.h) into a ring in
// shared memory, one stores results. Each entry has a barrier `full` and a barrier `empty`. What an
// entry holds, who needs it and who releases it follows from its words alone, which all read: a
// damaged table gives wrong numbers, but nobody waits for what does not come.
//
// A worker's results go through the ring as well: the list ends with room for them, so the next
// tile's loads and products go on while the copy engine writes y.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_WIDE_CUH_
#define BLOCKSPARSE_KERNELS_MATMUL_WIDE_CUH_

#include "src/kernels/common/cuda_launch.h"
#include "src/kernels/common/round.cuh"
#include "src/kernels/matmul_wide_ring.cuh"

namespace blocksparse {

#ifdef BLOCKSPARSE_HAS_HOPPER

template <class Policy>
struct WideWorker {
  using T = typename Policy::T;
  using Parts = WideParts<Policy>;
  static constexpr int kBlockSize = Policy::kBlockSize;
  static constexpr int kColumns = Policy::kColumns;
  static constexpr int kTiles = Policy::kTiles;
  static constexpr int kSteps = kBlockSize / 16;
  static constexpr bool kIsAxis1 = Policy::kFeatureAxis == 1;
  // Rows of W's blocks in shared memory are their rows in memory, those of x's tiles the features
  // of a sample, or 64 samples. 16 values of the depth further:
  static constexpr uint32_t kStepW = DescriptorUnits(Policy::kIsDx ? 32 : 16 * kBlockSize * 2);
  static constexpr uint32_t kStepX = DescriptorUnits(kIsAxis1 ? 32 : 16 * 128);
  static constexpr uint32_t kHighW =
      DescriptorHigh(8 * kBlockSize * 2, kBlockSize == 32 ? Swizzle::k64 : Swizzle::k128);
  // x, rows of 64 bytes and of 128.
  static constexpr uint32_t kHighNarrow = DescriptorHigh(8 * 64, Swizzle::k64);
  static constexpr uint32_t kHighWide = DescriptorHigh(8 * 128, Swizzle::k128);
  // From 64 samples to the next 64, where those are not rows of the same tile.
  static constexpr uint32_t kLeadingX = Policy::kAreSamplesColumns ? 64 * 128 : 16;

  const WideBlock<Policy>& block;
  int worker;
  float sums[kColumns][kTiles][Policy::kN / 2];

  // What a lane knows of one entry: where in the ring x and the worker's first block lie, as
  // descriptors count (14 bits each, and from bit 28 on whether it is a pair), and the columns that
  // need the slice: 8 bits; the second one: 8; blocks from the first slice's to the second's: 8.
  struct Visit {
    uint32_t where;
    uint32_t what;
  };
  __device__ __forceinline__ Visit VisitOf(const WideEntry& entry) const {
    const Parts parts(entry);
    const uint32_t before = (1u << worker * kColumns) - 1;
    const int skipped = __popc(parts.columns & before);
    const int pair_skipped = __popc(parts.columns) + __popc(parts.pair_columns & before);
    const uint32_t w = parts.place + parts.x_bytes + skipped * Policy::kBlockBytes;
    return {DescriptorUnits(parts.place) | DescriptorUnits(w) << 14 |
                static_cast<uint32_t>(parts.is_pair) << 28,
            Parts::Share(parts.columns, worker) | Parts::Share(parts.pair_columns, worker) << 8 |
                static_cast<uint32_t>(pair_skipped - skipped) << 16};
  }

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

  // The products of one slice, both operands in shared memory. x, w: low words of descriptors;
  // tile_x: from 64 samples to the next.
  __device__ __forceinline__ void MultiplySlice(uint32_t columns, uint32_t x, uint32_t high_x,
                                                uint32_t tile_x, uint32_t w) {
    using Product = Wgmma<T, Policy::kN>;
    FenceWgmma();
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      if (columns & 1u << j) {
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
#pragma unroll
          for (int t = 0; t < kTiles; ++t) {
            const uint64_t from_x = Descriptor(x + t * tile_x + k * kStepX, high_x);
            const uint64_t from_w = Descriptor(w + k * kStepW, kHighW);
            if constexpr (Policy::kAreSamplesColumns) {
              Product::template Multiply<!Policy::kIsDx, !kIsAxis1>(sums[j][t], from_w, from_x);
            } else {
              Product::template Multiply<!kIsAxis1, !Policy::kIsDx>(sums[j][t], from_x, from_w);
            }
          }
        }
        CommitWgmma();
        w += DescriptorUnits(Policy::kBlockBytes);
      }
    }
  }

  // The same with x in registers. x: the address of the lane's row of ldmatrix; rows are swizzled,
  // so that 16 further of the depth is an exclusive or where samples are rows.
  __device__ __forceinline__ void MultiplyRegisters(uint32_t columns, uint32_t x,
                                                    uint32_t tile_bytes, uint32_t w) {
    uint32_t a[kTiles][2][4];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const uint32_t tile = x + t * tile_bytes;
      LoadMatrix4<!kIsAxis1>(tile, a[t][0]);
      LoadMatrix4<!kIsAxis1>(kIsAxis1 ? tile ^ 32 : tile + 16 * 128, a[t][1]);
    }
    FenceWgmma();
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      if (columns & 1u << j) {
#pragma unroll
        for (int k = 0; k < 2; ++k)
#pragma unroll
          for (int t = 0; t < kTiles; ++t)
            Wgmma<T, Policy::kN>::template Multiply<!Policy::kIsDx>(
                sums[j][t], a[t][k], Descriptor(w + k * kStepW, kHighW));
        CommitWgmma();
        w += DescriptorUnits(Policy::kBlockBytes);
      }
    }
  }
  // Where the lane's row of ldmatrix lies in a tile.
  static __device__ __forceinline__ uint32_t LaneOffset(bool is_narrow) {
    const uint32_t lane = threadIdx.x % kWarpSize;
    const uint32_t warp = threadIdx.x / kWarpSize % 4;
    const uint32_t low = lane / 8 % 2;  // which of the four 8 x 8 matrices the lane addresses
    const uint32_t high = lane / 16;
    const uint32_t row = kIsAxis1 ? 16 * warp + 8 * low + lane % 8 : 8 * high + lane % 8;
    const uint32_t chunk = kIsAxis1 ? high : 2 * warp + low;
    return is_narrow ? row * 64 + ((chunk ^ lane / 2 % 4) << 4)
                     : row * 128 + ((chunk ^ lane % 8) << 4);
  }

  __device__ __forceinline__ void Multiply(const Visit& visit) {
    const bool is_pair = Policy::kHasPairs && visit.where >> 28;
    const bool is_narrow = kIsAxis1 && Policy::kHasPairs && !is_pair;
    const uint32_t base = DescriptorUnits(block.ring);
    const uint32_t w = base + (visit.where >> 14 & 0x3FFF) + (1u << 16);
    const uint32_t pair_w = w + (visit.what >> 16) * DescriptorUnits(Policy::kBlockBytes);
    // 64 samples of the slice, or of both.
    const uint32_t tile_bytes = 64 * kBlockSize * 2 * (is_pair ? 2 : 1);
    if constexpr (Policy::kIsXRegister) {
      uint32_t columns = visit.what & 0xFF;
      uint32_t from_x = block.ring + ((visit.where & 0x3FFF) << 4) + LaneOffset(is_narrow);
      uint32_t from_w = w;
#pragma unroll 1
      for (int i = 0; i < 2; ++i) {
        if (columns != 0) MultiplyRegisters(columns, from_x, tile_bytes, from_w);
        columns = visit.what >> 8 & 0xFF;
        if (!is_pair || columns == 0) break;
        from_x = kIsAxis1 ? from_x ^ 64 : from_x + 32 * 128;
        from_w = pair_w;
        WaitForWgmma<0>();
      }
    } else {
      const uint32_t x = base + (visit.where & 0x3FFF) + (DescriptorUnits(kLeadingX) << 16);
      const uint32_t high_x = is_narrow ? kHighNarrow : kHighWide;
      const uint32_t tile_x = DescriptorUnits(tile_bytes);
      MultiplySlice(visit.what & 0xFF, x, high_x, tile_x, w);
      const uint32_t columns = Policy::kHasPairs ? visit.what >> 8 & 0xFF : 0;
      if (columns != 0)
        MultiplySlice(columns, x + DescriptorUnits(kIsAxis1 ? 64 : 32 * 128), high_x, tile_x,
                      pair_w);
    }
  }

  // The warp has read what the barrier of an entry, 0 for none, speaks of.
  static __device__ __forceinline__ void Release(uint32_t barrier, int lane) {
    if constexpr (Policy::kIsXRegister) __syncwarp();
    if (barrier != 0) ArriveAsWarp(barrier, lane);
  }

  // Writes the sums, rounded, into the worker's room: for each column 128 samples x B, or, where
  // samples are contiguous, twice B x 64; rows swizzled as the copy engine expects.
  __device__ __forceinline__ void Stage(uint32_t room) const {
    // Whether rows of wgmma's results become rows in memory.
    constexpr bool kAreRowsKept = Policy::kAreSamplesColumns != kIsAxis1;
    constexpr int kRowBytes = kIsAxis1 ? kBlockSize * 2 : 128;
    constexpr int kColumnBytes = kWideRows * kBlockSize * 2;
    // The next 64 rows of wgmma's results (samples), or the next 64 columns, where these are
    // samples and not rows.
    constexpr int kTileBytes = 64 * kBlockSize * 2;
    const uint32_t thread = Opaque(threadIdx.x);  // or all this would take registers all the time
    const uint32_t lane = thread % kWarpSize;
    const uint32_t warp = thread / kWarpSize % 4;
    const uint32_t low = lane / 8 % 2;  // which of the four 8 x 8 matrices the lane addresses
    const uint32_t high = lane / 16;
    const uint32_t row = kAreRowsKept ? 16 * warp + 8 * low + lane % 8 : 8 * high + lane % 8;
    const uint32_t chunk = kAreRowsKept ? high : 2 * warp + low;
    const uint32_t swizzle = kRowBytes == 64 ? lane / 2 % 4 : lane % 8;
    const uint32_t at = room + row * kRowBytes + ((chunk ^ swizzle) << 4);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int c = 0; c < Policy::kN / 16; ++c) {
          const float* d = sums[j][t] + 8 * c;
          const uint32_t tile = at + j * kColumnBytes + t * kTileBytes;
          const uint32_t address =
              kAreRowsKept ? tile + c / 4 * kTileBytes ^ c % 4 * 32 : tile + c * 16 * kRowBytes;
          StoreMatrix4<!kAreRowsKept>(address, PackPair<T>(d[0], d[1]), PackPair<T>(d[2], d[3]),
                                      PackPair<T>(d[4], d[5]), PackPair<T>(d[6], d[7]));
        }
      }
    }
  }

  __device__ __forceinline__ void Run() {
    const WideParams& p = block.p;
    const int lane = threadIdx.x % kWarpSize;
    uint32_t first = 0;
    for (int group = block.FirstGroup(); group < p.num_groups; group += p.group_lanes) {
      const auto entries = block.EntriesOf(group);
      if (entries.count == 0) continue;
      const int num_loads = entries.num_loads;
      const uint32_t room =
          block.ring + block.Place(entries.data[num_loads + worker], Policy::kRoomBytes);
      EntryStream stream(entries.data, num_loads);
      for (int row = block.FirstRow(); row < block.EndRow(); row += p.tile_rows) {
        Zero();
        uint32_t held = 0;  // the barrier of the entry that the products under way read
        for (int base = 0; base < num_loads; base += kWarpSize) {
          const Visit mine = VisitOf(stream.Take(base));
          uint32_t wanted = __ballot_sync(
              ~0u, (mine.what & 0xFFFF) != 0 || block.IsCheckpoint(base + lane, num_loads));
          while (wanted != 0) {
            const int i = __ffs(wanted) - 1;
            wanted &= wanted - 1;
            const Visit visit = {__shfl_sync(~0u, mine.where, i), __shfl_sync(~0u, mine.what, i)};
            const uint32_t number = first + base + i;
            const uint32_t full = block.Full(number);
            const bool is_here = __all_sync(~0u, TestBarrier(full, block.Parity(number)));
            WaitForWgmma<0>();
            Release(held, lane);
            if (!is_here) WaitBarrier(full, block.Parity(number));
            Multiply(visit);
            held = full + block.kFullToEmpty;
          }
        }
        WaitForWgmma<0>();
        Release(held, lane);
        Fence();
        const uint32_t number = first + num_loads + worker;
        WaitBarrier(block.Full(number), block.Parity(number));
        Stage(room);
        FenceAsyncProxy();
        __syncwarp();
        if (lane == 0) Arrive(block.Staged(worker));
        first += entries.count;
      }
    }
  }
};

#endif  // BLOCKSPARSE_HAS_HOPPER

template <class Policy>
__global__ void __launch_bounds__(Policy::kThreads, 1)
    MatmulWideKernel(const __grid_constant__ WideParams p) {
#ifdef BLOCKSPARSE_HAS_HOPPER
  extern __shared__ __align__(1024) unsigned char smem[];
  const WideBlock<Policy> block = {p, Opaque(SharedAddress(smem))};
  const int warp = __shfl_sync(~0u, threadIdx.x / kWarpSize, 0);
  if (threadIdx.x < kWideBarriers) {
    const int i = threadIdx.x;
    InitBarrier(block.Full(i), 1);
    InitBarrier(block.Empty(i), WideBlock<Policy>::kReleases * Policy::kWorkers);
    if (i < Policy::kWorkers) InitBarrier(block.Staged(i), 4);
    FenceBarrierInit();
  } else if (threadIdx.x == kWideBarriers) {
    for (const CUtensorMap* map : {&p.x, &p.x_pair, &p.w, &p.y}) PrefetchTensorMap(map);
  }
  __syncthreads();
  LetNextKernelStart();
  WaitForPreviousKernel();
  if (warp >= 4 * Policy::kWorkers) {
    GiveRegisters<Policy::kFeederRegisters>();
    const int role = warp - 4 * Policy::kWorkers;
    if (role < Policy::kFeeders) {
      Feed(block, role);
    } else {
      StoreResults(block);
    }
  } else {
    TakeRegisters<Policy::kWorkerRegisters>();
    WideWorker<Policy> worker = {block, warp / 4, {}};
    worker.Run();
  }
#endif
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_WIDE_CUH_

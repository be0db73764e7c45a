// dw by regions of large blocks: see matmul_region_dw_large.h.
//
// One warp copies pieces, 64 features of 64 samples, to a ring in shared memory; two warpgroups
// multiply units of 64 x B: blocks of 64, or the upper and the lower halves of blocks of 128.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_REGION_DW_LARGE_CUH_
#define BLOCKSPARSE_KERNELS_MATMUL_REGION_DW_LARGE_CUH_

#include "src/kernels/common/cuda_cluster.h"
#include "src/kernels/common/dispatch.h"
#include "src/kernels/common/hopper.cuh"
#include "src/kernels/common/load_store.cuh"
#include "src/kernels/common/mma.cuh"
#include "src/kernels/common/named_barrier.cuh"
#include "src/kernels/common/tensor_map.h"
#include "src/kernels/common/tensor_map_replace.cuh"
#include "src/kernels/matmul_region_dw_large.h"

namespace blocksparse {

template <typename T_, int kBlockSize_, bool kAddsApart_, bool kIsAxis1_>
struct LargeDwPolicy {
  using T = T_;
  static constexpr int kBlockSize = kBlockSize_;
  static constexpr bool kAddsApart = kAddsApart_;
  static constexpr bool kIsAxis1 = kIsAxis1_;
  static constexpr int kMaxBlocks = LargeDwBlocks(kBlockSize);
  static constexpr int kMaxChunks = LargeDwChunks(kBlockSize);
  static constexpr int kRows = 64;  // of a unit
  static constexpr int kUnitsPerBlock = kBlockSize / kRows;
  static constexpr int kWarpgroups = 2;  // that multiply
  // Thread blocks (or clusters) that share a region's blocks: sums apart take registers.
  static constexpr int kShares = kAddsApart ? 2 : 1;
  static constexpr int kMaxShare = (kMaxBlocks + kShares - 1) / kShares;
  static constexpr int kSlots = kMaxShare * kUnitsPerBlock / kWarpgroups;  // units of one
  static constexpr int kComputeThreads = kWarpgroups * kWarpgroupSize;
  static constexpr int kThreads = kComputeThreads + kWarpgroupSize;
  static constexpr int kRegisters = 232;
  static constexpr int kCopyRegisters = 40;

  static constexpr int kPiecesPerChunk = kBlockSize / 64;
  static constexpr int kPieceBytes = 64 * kLargeDwStep * 2;
  static constexpr int kRingPieces = 28;
  static_assert(2 * kMaxChunks * kPiecesPerChunk <= kRingPieces, "two steps must fit");
  static constexpr int kRingBytes = kRingPieces * kPieceBytes;
  static constexpr int kBarriers = 16;  // full and empty, more than steps in the ring
  static_assert(2 * kBarriers > kRingPieces, "a step is two pieces at least");

  // A unit's sums in shared memory at last, rows padded to spread over the banks.
  static constexpr int kTilePitch = kBlockSize + 8;
  static constexpr int kTileSize = kRows * kTilePitch;
  static_assert(kWarpgroups * kSlots * kTileSize * 4 <= kRingBytes, "all units must fit the ring");

  static constexpr int kSmemBytes = kRingBytes + 16 * kBarriers;
  static_assert(kSmemBytes <= kHopperSmemBytes, "the ring must fit");
};

#ifdef BLOCKSPARSE_HAS_HOPPER

// A region of the table, by a whole warp: lane i has block i. No chunks where it is damaged.
template <class Policy>
struct LargeDwRegion {
  const int32_t* words;
  int num_x;
  int num_pieces;
  int num_blocks;
  int64_t block;    // -1 where there is none to write, or it is another's
  uint32_t wanted;  // lanes whose blocks are to be multiplied
  uint32_t place;   // first pieces of x and dy: x's + 256 dy's

  __device__ __forceinline__ LargeDwRegion(const LargeDwParams& p, int share)
      : words(p.regions + int64_t{share / Policy::kShares} * kLargeDwWords) {
    const int lane = Lane();
    num_x = words[0];
    const int num_dy = words[1];
    num_blocks = words[2];
    bool is_sound = num_x > 0 && num_dy > 0 && num_x < Policy::kMaxChunks &&
                    num_dy <= Policy::kMaxChunks - num_x && num_blocks > 0 &&
                    num_blocks <= Policy::kMaxBlocks;
    const int share_blocks = (num_blocks + Policy::kShares - 1) / Policy::kShares;
    const int first_block = share % Policy::kShares * share_blocks;
    is_sound = is_sound && first_block < num_blocks;
    if (!is_sound) num_x = num_blocks = 0;
    num_pieces = is_sound ? (num_x + num_dy) * Policy::kPiecesPerChunk : 0;
    block = -1;
    place = 0;
    if (lane < num_blocks) {
      block = words[kLargeDwFirstBlock + lane];
      if (block >= p.num_blocks || lane < first_block || lane >= first_block + share_blocks ||
          block < 0)
        block = -1;
      const uint32_t chunks = static_cast<uint32_t>(words[kLargeDwFirstPlace + lane]);
      const uint32_t x = min(chunks & 255, static_cast<uint32_t>(num_x) - 1);
      const uint32_t dy = num_x + min(chunks >> 8, static_cast<uint32_t>(num_dy) - 1);
      place = (x | dy << 8) * Policy::kPiecesPerChunk;
    }
    wanted = __ballot_sync(~0u, block >= 0 && (p.gate == nullptr || p.gate[block] != 0.f));
  }
};

// A thread block's part of the batch.
struct LargeDwSplit {
  int first_step;
  int num_steps;

  explicit __device__ __forceinline__ LargeDwSplit(const LargeDwParams& p)
      : first_step(blockIdx.x % p.num_splits * p.steps_per_split) {
    num_steps = max(min(p.steps_per_split, p.num_steps - first_step), 0);
  }
};

// Pieces of one step after those of the step before, round and round; barriers go round as well.
template <class Policy>
struct LargeDwRing {
  uint32_t pieces;

  __device__ __forceinline__ uint32_t Full(int step) const {
    return pieces + Policy::kRingBytes + 16 * (step % Policy::kBarriers);
  }
  __device__ __forceinline__ uint32_t Empty(int step) const { return Full(step) + 8; }
  static __device__ __forceinline__ uint32_t Parity(int step) {
    return step / Policy::kBarriers % 2;
  }
  // Bytes from the ring's start to a piece of a step that begins at `first`.
  static __device__ __forceinline__ uint32_t Offset(int first, int piece) {
    const int at = first + piece;
    return (at < Policy::kRingPieces ? at : at - Policy::kRingPieces) * Policy::kPieceBytes;
  }
  static __device__ __forceinline__ int Next(int first, int num_pieces) {
    const int next = first + num_pieces;
    return next < Policy::kRingPieces ? next : next - Policy::kRingPieces;
  }
};

// The copying warp: each lane brings one piece of every step.
template <class Policy>
__device__ __forceinline__ void CopyPieces(const LargeDwParams& p,
                                           const LargeDwRegion<Policy>& region,
                                           const LargeDwRing<Policy>& ring,
                                           const LargeDwSplit& split) {
  const int lane = Lane();
  const int num_pieces = region.num_pieces;
  const int chunk = lane / Policy::kPiecesPerChunk;
  int feature = 0;
  if (lane < num_pieces)
    feature = static_cast<int>(static_cast<uint32_t>(region.words[kLargeDwFirstChunk + chunk]) *
                                   Policy::kBlockSize +
                               lane % Policy::kPiecesPerChunk * 64);
  const CUtensorMap* maps =
      (p.more_maps == nullptr ? p.maps : p.more_maps) + (chunk >= region.num_x);
  // Whole steps that the ring holds, and pieces of one more.
  const int held = Policy::kRingPieces / num_pieces;
  const int part = Policy::kRingPieces % num_pieces;
  int pair = 0;
  int step = split.first_step;
  while (pair < p.num_pairs - 1 && step >= p.pair_steps[pair]) step -= p.pair_steps[pair++];
  for (int i = 0, first = 0; i < split.num_steps; ++i) {
    const uint32_t full = ring.Full(i);
    if (lane == 0) ArriveExpecting(full, num_pieces * Policy::kPieceBytes);
    __syncwarp();
    const int sample = step * kLargeDwStep;
    // The first pieces take the place of the step before the one that the others replace.
#pragma unroll
    for (int old = 1; old >= 0; --old) {
      const int released = i - held - old;
      if (released >= 0) WaitBarrier(ring.Empty(released), ring.Parity(released));
      if (lane < num_pieces && (lane < part) == (old == 1))
        LoadTile(ring.pieces + ring.Offset(first, lane), maps + 2 * pair,
                 Policy::kIsAxis1 ? feature : sample, Policy::kIsAxis1 ? sample : feature, full);
      __syncwarp();
    }
    first = ring.Next(first, num_pieces);
    if (++step == p.pair_steps[pair]) {
      step = 0;
      if (pair < p.num_pairs - 1) ++pair;
    }
  }
}

// The sums of a warpgroup's units, kCount of them, into `tiles` when all warpgroups have left the
// ring. places: first pieces of x and dy.
template <class Policy, int kCount>
__device__ __forceinline__ void MultiplyUnits(const uint32_t (&places)[Policy::kSlots],
                                              int warpgroup, int num_pieces,
                                              const LargeDwRing<Policy>& ring, int num_steps,
                                              float* tiles) {
  using Product = Wgmma<typename Policy::T, Policy::kBlockSize>;
  // Rows of 128 bytes: 64 samples of a feature, or 64 features of a sample.
  constexpr bool kIsAxis1 = Policy::kIsAxis1;
  constexpr uint32_t kHigh = DescriptorHigh(8 * 128, Swizzle::k128);
  constexpr uint32_t kDepth = DescriptorUnits(kIsAxis1 ? 16 * 128 : 32);  // 16 samples further
  constexpr int kSums = Policy::kBlockSize / 2;
  float sums[kCount > 0 ? kCount : 1][kSums];
#pragma unroll
  for (auto& unit : sums)
#pragma unroll
    for (float& sum : unit) sum = 0.f;
#pragma unroll
  for (auto& unit : sums) FenceRegisters(unit);

  const uint32_t base = DescriptorLow(ring.pieces, Policy::kPieceBytes);
  for (int i = 0, first = 0; i < num_steps; ++i) {
    uint32_t x[kCount > 0 ? kCount : 1];
    uint32_t dy[kCount > 0 ? kCount : 1];
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      x[u] = base + DescriptorUnits(ring.Offset(first, places[u] & 255));
      dy[u] = base + DescriptorUnits(ring.Offset(first, places[u] >> 8));
    }
    // Where this step is late, the one before makes room as soon as it is multiplied.
    // All four warps take the same branches, as wgmma wants.
    const bool is_late =
        Policy::kAddsApart ||
        AnyThread<kWarpgroupSize>(1 + warpgroup, !TestBarrier(ring.Full(i), ring.Parity(i)));
    if (is_late) {
      WaitForWgmma<0>();
      if (!Policy::kAddsApart && i > 0 && Lane() == 0) Arrive(ring.Empty(i - 1));
      WaitBarrier(ring.Full(i), ring.Parity(i));
    }
    if constexpr (Policy::kAddsApart) {
#pragma unroll
      for (int u = 0; u < kCount; ++u) {
        float apart[kSums] = {};
        FenceRegisters(apart);
        FenceWgmma();
#pragma unroll
        for (int k = 0; k < kLargeDwStep / 16; ++k)
          Product::template Multiply<kIsAxis1, kIsAxis1>(
              apart, Descriptor(x[u] + k * kDepth, kHigh), Descriptor(dy[u] + k * kDepth, kHigh));
        CommitWgmma();
        WaitForWgmma<0>();
        FenceRegisters(apart);
#pragma unroll
        for (int j = 0; j < kSums; ++j) sums[u][j] += apart[j];
        FenceRegisters(sums[u]);
      }
      if (Lane() == 0) Arrive(ring.Empty(i));
      first = ring.Next(first, num_pieces);
      continue;
    }
    FenceWgmma();
#pragma unroll
    for (int k = 0; k < kLargeDwStep / 16; ++k)
#pragma unroll
      for (int u = 0; u < kCount; ++u)
        Product::template Multiply<kIsAxis1, kIsAxis1>(
            sums[u], Descriptor(x[u] + k * kDepth, kHigh), Descriptor(dy[u] + k * kDepth, kHigh));
    CommitWgmma();
    if (!is_late) {
      WaitForWgmma<1>();
      if (i > 0 && Lane() == 0) Arrive(ring.Empty(i - 1));
    }
    first = ring.Next(first, num_pieces);
  }
  WaitForWgmma<0>();
#pragma unroll
  for (auto& unit : sums) FenceRegisters(unit);

  SyncInstances<Policy::kComputeThreads>(1 + Policy::kWarpgroups);
  const int row = threadIdx.x / kWarpSize % 4 * 16 + Lane() / 4;
#pragma unroll
  for (int u = 0; u < kCount; ++u)
#pragma unroll
    for (int j = 0; j < kSums / 2; ++j) {
      float* to = tiles + u * Policy::kTileSize + (row + j % 2 * 8) * Policy::kTilePitch +
                  j / 2 * 8 + Lane() % 4 * 2;
      *reinterpret_cast<float2*>(to) = make_float2(sums[u][2 * j], sums[u][2 * j + 1]);
    }
}

// The same for a count known at run time.
template <class Policy, int kCount = Policy::kSlots>
__device__ __forceinline__ void MultiplyUnits(int count, const uint32_t (&places)[Policy::kSlots],
                                              int warpgroup, int num_pieces,
                                              const LargeDwRing<Policy>& ring, int num_steps,
                                              float* tiles) {
  if constexpr (kCount > 0) {
    if (count < kCount)
      return MultiplyUnits<Policy, kCount - 1>(count, places, warpgroup, num_pieces, ring,
                                               num_steps, tiles);
  }
  MultiplyUnits<Policy, kCount>(places, warpgroup, num_pieces, ring, num_steps, tiles);
}

// Writes this thread block's share of the region, summed over the cluster in the order of its
// thread blocks; zeros for what is gated off.
template <class Policy>
__device__ __forceinline__ void StoreBlocks(const LargeDwParams& p,
                                            const LargeDwRegion<Policy>& region, uint32_t tiles) {
  constexpr int kFoursPerRow = Policy::kBlockSize / 4;
  constexpr int kFours = Policy::kBlockSize * kFoursPerRow;
  const int rank = blockIdx.x % p.num_splits;
#pragma unroll 1
  for (int b = 0; b < region.num_blocks; ++b) {
    const int64_t block = __shfl_sync(~0u, region.block, b);
    if (block < 0) continue;
    const bool is_wanted = region.wanted >> b & 1;
    const int order = __popc(region.wanted & ((1u << b) - 1));
    // All loads of a thread are under way together.
    constexpr int kBatch = 4;
    const int stride = p.num_splits * Policy::kComputeThreads;
    for (int i = rank * Policy::kComputeThreads + threadIdx.x; i < kFours; i += kBatch * stride) {
      float4 sums[kBatch];
#pragma unroll
      for (float4& sum : sums) sum = make_float4(0.f, 0.f, 0.f, 0.f);
      for (int s = 0; is_wanted && s < p.num_splits; ++s) {
        float4 parts[kBatch];
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          const int at = min(i + j * stride, kFours - 1);
          const int row = at / kFoursPerRow;
          const int unit = order * Policy::kUnitsPerBlock + row / Policy::kRows;
          const int tile = unit % Policy::kWarpgroups * Policy::kSlots + unit / Policy::kWarpgroups;
          const int from = tile * Policy::kTileSize + row % Policy::kRows * Policy::kTilePitch +
                           at % kFoursPerRow * 4;
          parts[j] = LoadClusterFour(tiles + 4 * from, s);
        }
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          sums[j].x += parts[j].x;
          sums[j].y += parts[j].y;
          sums[j].z += parts[j].z;
          sums[j].w += parts[j].w;
        }
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        if (i + j * stride >= kFours) break;
        const int64_t offset = block * (4 * kFours) + 4 * (i + j * stride);
        if (p.is_dw_float) {
          StoreFour(static_cast<float*>(p.dw) + offset, sums[j], p.is_dw_aligned);
        } else {
          StoreFour(static_cast<typename Policy::T*>(p.dw) + offset, sums[j], p.is_dw_aligned);
        }
      }
    }
  }
}

// What a warpgroup does: units by turns, each block's first half the even ones where it has two.
template <class Policy>
__device__ __forceinline__ void ComputeBlocks(const LargeDwParams& p,
                                              const LargeDwRegion<Policy>& region,
                                              const LargeDwRing<Policy>& ring, float* tiles,
                                              const LargeDwSplit& split) {
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / kWarpgroupSize, 0);
  const int num_units = __popc(region.wanted) * Policy::kUnitsPerBlock;
  const int count = (num_units + Policy::kWarpgroups - 1 - warpgroup) / Policy::kWarpgroups;
  const int order = __popc(region.wanted & ((1u << Lane()) - 1));
  const bool is_wanted = region.wanted >> Lane() & 1;
  uint32_t places[Policy::kSlots];
#pragma unroll
  for (int u = 0; u < Policy::kSlots; ++u) {
    const int unit = u * Policy::kWarpgroups + warpgroup;
    const uint32_t found = __ballot_sync(~0u, is_wanted && order == unit / Policy::kUnitsPerBlock);
    places[u] = __shfl_sync(~0u, region.place, found == 0 ? 0 : __ffs(found) - 1) +
                unit % Policy::kUnitsPerBlock;
  }
  MultiplyUnits<Policy>(count, places, warpgroup, region.num_pieces, ring, split.num_steps,
                        tiles + warpgroup * Policy::kSlots * Policy::kTileSize);
  if (p.num_splits > 1) {
    SyncCluster();
  } else {
    SyncThreads<Policy::kComputeThreads>(1 + Policy::kWarpgroups);
  }
  // Found once more, or it would take registers all the time.
  const LargeDwRegion<Policy> stored(p, Opaque(blockIdx.x) / p.num_splits);
  StoreBlocks(p, stored, ring.pieces);
  // Others may still read this thread block's sums.
  if (p.num_splits > 1) SyncCluster();
}

#endif  // BLOCKSPARSE_HAS_HOPPER

template <class Policy>
__global__ void __launch_bounds__(Policy::kThreads, 1)
    LargeDwKernel(const __grid_constant__ LargeDwParams p) {
#ifdef BLOCKSPARSE_HAS_HOPPER
  extern __shared__ __align__(1024) unsigned char smem[];
  const LargeDwRing<Policy> ring = {SharedAddress(smem)};
  const LargeDwRegion<Policy> region(p, blockIdx.x / p.num_splits);
  if (region.num_pieces == 0) return;  // a damaged table, the same to all of a cluster
  if (threadIdx.x == 0) {
    for (int i = 0; i < Policy::kBarriers; ++i) {
      InitBarrier(ring.Full(i), 1);
      InitBarrier(ring.Empty(i), Policy::kComputeThreads / kWarpSize);
    }
    FenceBarrierInit();
  }
  if (p.more_maps != nullptr)
    for (int i = threadIdx.x; i < 2 * p.num_pairs; i += Policy::kThreads)
      AcquireTensorMap(p.more_maps + i);
  __syncthreads();

  if (threadIdx.x >= Policy::kComputeThreads) {
    GiveRegisters<Policy::kCopyRegisters>();
    if (threadIdx.x < Policy::kComputeThreads + kWarpSize)
      CopyPieces(p, region, ring, LargeDwSplit(p));
    // With the others.
    if (p.num_splits > 1) {
      SyncCluster();
      SyncCluster();
    }
  } else {
    TakeRegisters<Policy::kRegisters>();
    ComputeBlocks(p, region, ring, reinterpret_cast<float*>(smem), LargeDwSplit(p));
  }
#endif
}

template <class Policy>
ClusterLaunch LargeDwLaunch(int num_regions, int num_splits) {
  return {num_regions * Policy::kShares, num_splits, Policy::kThreads, Policy::kSmemBytes};
}

template <typename T, int kBlockSize, bool kAddsApart>
bool LargeDwKernels<T, kBlockSize, kAddsApart>::AreCompiled() {
  return HasHopperCode(LargeDwKernel<LargeDwPolicy<T, kBlockSize, kAddsApart, true>>);
}

template <typename T, int kBlockSize, bool kAddsApart>
Status LargeDwKernels<T, kBlockSize, kAddsApart>::CountClusters(int feature_axis, int size,
                                                                int* count) {
  return WithBool(feature_axis == 1, [&](auto is_axis_1) {
    using Policy = LargeDwPolicy<T, kBlockSize, kAddsApart, is_axis_1()>;
    return CountActiveClusters("LargeDwKernel", LargeDwKernel<Policy>,
                               LargeDwLaunch<Policy>(1, size), count);
  });
}

template <typename T, int kBlockSize, bool kAddsApart>
Status LargeDwKernels<T, kBlockSize, kAddsApart>::Run(int feature_axis, const LargeDwParams& params,
                                                      Stream stream) {
  return WithBool(feature_axis == 1, [&](auto is_axis_1) {
    using Policy = LargeDwPolicy<T, kBlockSize, kAddsApart, is_axis_1()>;
    return LaunchClusters("LargeDwKernel", LargeDwKernel<Policy>,
                          LargeDwLaunch<Policy>(params.num_regions, params.num_splits), stream,
                          params);
  });
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_REGION_DW_LARGE_CUH_

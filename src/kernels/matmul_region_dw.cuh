// dw by regions: a thread block computes one region of the table (matmul_region_dw.h) over one part
// of the batch.
//
// One warp copies each step's chunks to a ring in shared memory; the others have a share of the
// region's units each, whose sums stay in their registers (matmul_region_dw_walks.cuh).
#ifndef BLOCKSPARSE_KERNELS_MATMUL_REGION_DW_CUH_
#define BLOCKSPARSE_KERNELS_MATMUL_REGION_DW_CUH_

#include "src/kernels/common/cuda_launch.h"
#include "src/kernels/common/dispatch.h"
#include "src/kernels/common/load_store.cuh"
#include "src/kernels/common/tensor_map.h"
#include "src/kernels/common/tensor_map_replace.cuh"
#include "src/kernels/matmul_region_dw_walks.cuh"

namespace blocksparse {

// The copying warp: each lane brings one chunk of every step.
template <class Policy>
__device__ __forceinline__ void CopySteps(const RegionDwParams& p, const DwRegion& region,
                                          const RegionRing& ring, const RegionSplit& split) {
  const int lane = Lane();
  const bool has_chunk = lane < region.num_chunks();
  const bool is_dy = lane >= region.num_x;
  const int feature =
      has_chunk ? static_cast<int>(static_cast<uint32_t>(region.chunks[lane]) * Policy::kChunk) : 0;
  const CUtensorMap* maps = (p.more_maps == nullptr ? p.maps : p.more_maps) + is_dy;
  int pair = 0;
  int step = split.first_step;
  while (pair < p.num_pairs - 1 && step >= p.pair_steps[pair]) step -= p.pair_steps[pair++];
  RegionPosition position;
  for (int i = 0; i < split.num_steps; ++i) {
    const uint32_t full = ring.Full(position.stage);
    WaitBarrier(ring.Empty(position.stage), position.parity ^ 1);
    if (lane == 0) ArriveExpecting(full, region.num_chunks() * Policy::kChunkBytes);
    __syncwarp();
    if (has_chunk) {
      const int sample = step * Policy::kStep;
      LoadTile(ring.Stage(position.stage) + lane * Policy::kChunkBytes, maps + 2 * pair,
               Policy::kIsAxis1 ? feature : sample, Policy::kIsAxis1 ? sample : feature, full);
    }
    position.Advance(ring.num_stages);
    if (++step == p.pair_steps[pair]) {
      step = 0;
      ++pair;
    }
  }
}

// Writes a unit's blocks, those gated off as zeros: all of them where there is no tile. Lane i
// brings block i of the unit, by rows, -1 where there is none to write, and whether it is wanted.
template <class Policy>
__device__ __forceinline__ void StoreUnit(const RegionDwParams& p, int unit_block, bool is_wanted,
                                          int64_t first_block, const float* tile,
                                          bool is_transposed) {
  constexpr int kFoursPerRow = Policy::kUnit / 4;
  constexpr int kLd = UnitTile<Policy>::kLd;
  const int shift = p.block_shift;
  const int mask = (1 << shift) - 1;
  const uint32_t wanted = tile == nullptr ? 0 : __ballot_sync(~0u, is_wanted);
#pragma unroll 4
  for (int i = Lane(); i < Policy::kUnit * kFoursPerRow; i += kWarpSize) {
    const int row = i / kFoursPerRow;
    const int col = i % kFoursPerRow * 4;
    const int idx = (row >> shift) * (Policy::kUnit >> shift) + (col >> shift);
    const int64_t block = __shfl_sync(~0u, unit_block, idx);
    if (block < 0) continue;
    float4 values = make_float4(0.f, 0.f, 0.f, 0.f);
    if (wanted >> idx & 1) {
      if (is_transposed) {
        const float* from = tile + col * kLd + row;
        values = make_float4(from[0], from[kLd], from[2 * kLd], from[3 * kLd]);
      } else {
        values = *reinterpret_cast<const float4*>(tile + row * kLd + col);
      }
    }
    const int64_t offset =
        ((((first_block + block) << shift) + (row & mask)) << shift) + (col & mask);
    if (p.is_dw_float) {
      StoreFour(static_cast<float*>(p.dw) + offset, values, p.is_dw_aligned);
    } else {
      StoreFour(static_cast<typename Policy::T*>(p.dw) + offset, values, p.is_dw_aligned);
    }
  }
}

// A warp's entries of the table: vertices, and the blocks of the units that end there.
struct WarpEntries {
  const int32_t* words;
  int entry_words;
  int blocks_per_unit;
  int count;  // 0 where the table is damaged
  int64_t num_blocks;

  __device__ __forceinline__ int Vertex(int entry) const { return words[entry * entry_words]; }
  // Block i of an entry's unit, by rows; -1 where there is none.
  __device__ __forceinline__ int Block(int entry, int i) const {
    if (entry >= count || i >= blocks_per_unit) return -1;
    const int block = words[entry * entry_words + 1 + i];
    return block >= 0 && block < num_blocks ? block : -1;
  }
};

// Whether a block is there, and not gated off.
__device__ __forceinline__ bool IsOn(const RegionDwParams& p, int block) {
  return block >= 0 && (p.gate == nullptr || p.gate[block] != 0.f);
}

// What a warp has to do, of which each lane knows the vertex of one entry.
template <class Policy>
struct WarpShare {
  static constexpr int kRunEntries = Policy::kRun + 1;
  WarpEntries entries;
  int vertex;
  // Walks that are gated off are left out at both ends, and units at the last.
  int first;
  int count;       // units
  uint32_t is_dy;  // lanes

  // Waits for the previous kernel; before that, it reads only the tables.
  __device__ __forceinline__ WarpShare(const RegionDwParams& p, const DwRegion& region,
                                       uint32_t thread) {
    const uint32_t warp = thread / kWarpSize;
    const int lane = static_cast<int>(thread % kWarpSize);
    const int64_t* ends = p.walks + (int64_t{region.index} * Policy::kWarps + warp);
    const int64_t begin = ends[0];
    const int64_t end = ends[1];
    const bool is_valid =
        begin >= 0 && begin < end && end <= p.num_entries && end - begin <= Policy::kMaxEntries;
    const int blocks_per_unit = 1 << 2 * (Policy::kUnitShift - p.block_shift);
    const int entry_words = RegionEntryWords(blocks_per_unit);
    entries = {p.entries + (is_valid ? begin : 0) * entry_words, entry_words, blocks_per_unit,
               is_valid ? static_cast<int>(end - begin) : 0, p.num_blocks};

    vertex = lane < entries.count ? entries.Vertex(lane) : 0;
    if (vertex < 0 || vertex >= region.num_chunks() * Policy::kUnitsPerChunk) vertex = 0;
    WaitForPreviousKernel();
    bool is_wanted = false;
    for (int i = 0; i < blocks_per_unit; ++i)
      is_wanted |= lane % kRunEntries > 0 && IsOn(p, entries.Block(lane, i));
    const uint32_t wanted = __ballot_sync(~0u, is_wanted);
    first = wanted == 0 ? 0 : (__ffs(wanted) - 1) / kRunEntries * kRunEntries;
    const int used = wanted == 0 ? 0 : kWarpSize - __clz(wanted) - first;
    count = used - (used + kRunEntries - 1) / kRunEntries;
    is_dy = __ballot_sync(~0u, vertex >= region.num_x * Policy::kUnitsPerChunk);
  }
};

// Reads a warp's entries, multiplies, stores.
template <class Policy>
__device__ __forceinline__ void ComputeWalks(const RegionDwParams& p, const DwRegion& region,
                                             const RegionRing& ring, float* stages,
                                             const RegionSplit& split) {
  using Share = WarpShare<Policy>;
  {
    const Share share(p, region, threadIdx.x);
    MultiplySteps<Policy>(share.count, WarpWalks<Policy>(share.vertex, share.first), ring, split,
                          stages);
    __syncwarp();
  }

  // Found once more, or all this would take registers all the time.
  const uint32_t thread_block = Opaque(blockIdx.x);
  const uint32_t thread = Opaque(threadIdx.x);
  const Share share(p, DwRegion(p, thread_block / p.num_splits), thread);
  const float* tiles = stages + thread / kWarpSize * (Policy::kSlots * UnitTile<Policy>::kSize);
  const int64_t first_block = thread_block % p.num_splits * p.num_blocks;
  int next = share.entries.Block(1, Lane());
#pragma unroll 1
  for (int i = 0, slot = -share.first / Share::kRunEntries * Policy::kRun; i < share.entries.count;
       ++i) {
    const int start = i / Share::kRunEntries * Share::kRunEntries;
    if (i == start) continue;
    const int block = next;
    const int after = i + 1 - start == Share::kRunEntries ? i + 2 : i + 1;
    next = share.entries.Block(after, Lane());
    const float* tile =
        slot >= 0 && slot < share.count ? tiles + slot * UnitTile<Policy>::kSize : nullptr;
    StoreUnit<Policy>(p, block, IsOn(p, block), first_block, tile, (share.is_dy >> start & 1) != 0);
    ++slot;
  }
}

template <class Policy>
__global__ void __launch_bounds__(Policy::kThreads, 1)
    RegionDwKernel(const __grid_constant__ RegionDwParams p) {
#ifdef BLOCKSPARSE_HAS_HOPPER
  extern __shared__ unsigned char smem[];
  const DwRegion region(p, blockIdx.x / p.num_splits);

  RegionRing ring;
  const uint32_t padding = -SharedAddress(smem) % Policy::kAlignment;
  ring.stages = SharedAddress(smem) + padding;
  ring.barriers = ring.stages + Policy::kRingBytes;
  ring.stage_bytes = region.num_chunks() * Policy::kChunkBytes;
  ring.num_stages = min(Policy::kMaxStages, Policy::kRingBytes / max(ring.stage_bytes, 1));
  if (region.num_chunks() == 0) return;  // a damaged table
  if (threadIdx.x == 0) {
    for (int s = 0; s < ring.num_stages; ++s) {
      InitBarrier(ring.Full(s), 1);
      InitBarrier(ring.Empty(s), Policy::kWarps);
    }
    FenceBarrierInit();
  }
  LetNextKernelStart();
  if (p.more_maps != nullptr) {
    WaitForPreviousKernel();
    for (int i = threadIdx.x; i < 2 * p.num_pairs; i += Policy::kThreads)
      AcquireTensorMap(p.more_maps + i);
  }
  __syncthreads();

  if (threadIdx.x >= Policy::kWarps * kWarpSize) {
    GiveRegisters<Policy::kCopyRegisters>();
    WaitForPreviousKernel();
    if (threadIdx.x < (Policy::kWarps + 1) * kWarpSize)
      CopySteps<Policy>(p, region, ring, RegionSplit(p));
  } else {
    TakeRegisters<Policy::kRegisters>();
    ComputeWalks<Policy>(p, region, ring, reinterpret_cast<float*>(smem + padding), RegionSplit(p));
  }
#endif
}

template <class Policy>
Status LaunchRegionDw(const RegionDwParams& params, Stream stream) {
  return LaunchEarly("RegionDwKernel", RegionDwKernel<Policy>,
                     int64_t{params.num_regions} * params.num_splits, Policy::kThreads,
                     Policy::kSmemBytes, stream, params);
}

template <typename T, int kUnit, bool kAddsApart>
bool RegionDwKernels<T, kUnit, kAddsApart>::AreCompiled() {
  return HasHopperCode(RegionDwKernel<RegionDwPolicy<T, kUnit, kAddsApart, true>>);
}

template <typename T, int kUnit, bool kAddsApart>
Status RegionDwKernels<T, kUnit, kAddsApart>::Run(int feature_axis, const RegionDwParams& params,
                                                  Stream stream) {
  return WithBool(feature_axis == 1, [&](auto is_axis_1) {
    return LaunchRegionDw<RegionDwPolicy<T, kUnit, kAddsApart, is_axis_1()>>(params, stream);
  });
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_REGION_DW_CUH_

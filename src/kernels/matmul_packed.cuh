// The kernel of matmul_packed.h. A thread block computes some samples by one group of block
// columns, tile after tile.
//
// A few warps load: for each stage the boxes of x, 64 features wide, by the copy engine, and the
// units by one bulk copy, into a ring of shared memory. The other warpgroups multiply, each its
// columns of the group. Which columns have a unit in a row is a mask, and the units lie in the
// order of its bits, so that the loops only count an address up.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_PACKED_CUH_
#define BLOCKSPARSE_KERNELS_MATMUL_PACKED_CUH_

#include "src/kernels/common/cuda_launch.h"
#include "src/kernels/matmul_packed_narrow.cuh"
#include "src/kernels/matmul_packed_ring.cuh"
#include "src/kernels/matmul_packed_wide.cuh"

namespace blocksparse {

#ifdef BLOCKSPARSE_HAS_HOPPER

// Whether a span of x starts at a feature; other places a box may not have.
__device__ __forceinline__ bool IsSpan(const PackedParams& p, int feature) {
  return feature >= 0 && feature < p.num_inputs && feature % (kPackedRows * kPackedDepth) == 0;
}

// Loads one stage; by a whole warp, each lane with its word of the table.
template <class Policy>
__device__ __forceinline__ void LoadPackedStage(const PackedParams& p, const PackedSlot& slot,
                                                int64_t word, int row) {
  const int lane = Lane();
  const PackedTable& table = p.table;
  const int64_t spans = __shfl_sync(~0u, word, Policy::kMaskWords);
  const int64_t units = __shfl_sync(~0u, word, Policy::kMaskWords + 1);
  // The masks of share `lane`, and its first unit.
  constexpr int kBits = Policy::kMaskBits * kPackedSpans * kPackedRows;
  constexpr int kSharesOfWord = 64 / kBits;
  uint64_t masks = static_cast<uint64_t>(word);
  if constexpr (kSharesOfWord > 1) {
    masks = __shfl_sync(~0u, masks, lane / kSharesOfWord % Policy::kMaskWords);
    masks = masks >> lane % kSharesOfWord * kBits & ((uint64_t{1} << kBits) - 1);
  }
  if (lane >= Policy::kShares) masks = 0;
  int count = __popcll(masks);
  // The products must not run past the units: a damaged stage is empty.
  int total = __reduce_add_sync(~0u, count);
  const int first_unit = static_cast<int>(units);
  if (units >> 32 != total || total > table.max_units || first_unit < 0 ||
      int64_t{first_unit} + total > table.num_units)
    masks = count = total = 0;
  int first = 0;
#pragma unroll
  for (int i = 0; i + 1 < Policy::kShares; ++i) {
    const int before = __shfl_sync(~0u, count, i);
    if (lane > i) first += before;
  }
  const uint32_t unit_bytes = total * Policy::kUnitBytes;

  WaitBarrier(slot.Empty(), slot.phase ^ 1);
  if (lane < Policy::kShares) {
    StoreShared(slot.Header() + lane * 16, static_cast<int64_t>(masks));
    StoreShared(slot.Header() + lane * 16 + 8, int64_t{first});
  }
  __syncwarp();

  bool has_box;
  int feature;
  if constexpr (Policy::kBoxIsSpan) {
    feature = static_cast<int>(spans >> lane % 2 * 32);
    has_box = lane < table.num_spans && IsSpan(p, feature);
  } else {
    // A row of units with no unit needs no x.
    constexpr int kRowsOfWord = 32 / Policy::kMaskBits;
    uint32_t any = __reduce_or_sync(~0u, static_cast<uint32_t>(masks));
    if (kRowsOfWord < kPackedSpans * kPackedRows) {
      const uint32_t high = __reduce_or_sync(~0u, static_cast<uint32_t>(masks >> 32));
      if (lane >= kRowsOfWord) any = high;
    }
    any = any >> lane % kRowsOfWord * Policy::kMaskBits & ((1u << Policy::kMaskBits) - 1);
    feature = static_cast<int>(spans >> lane / kPackedRows % 2 * 32);
    has_box = lane < table.num_spans * kPackedRows && IsSpan(p, feature) && any != 0;
    feature += lane % kPackedRows * kPackedDepth;
  }
  const uint32_t x_bytes = __popc(__ballot_sync(~0u, has_box)) * Policy::kBoxBytes;
  if (lane == 0) {
    ArriveExpecting(slot.Full(), x_bytes + unit_bytes);
  } else if (kWarpArrivals > 1) {
    Arrive(slot.Full());
  }
  __syncwarp();
  const uint32_t data = slot.Data();
  if (has_box) {
    const uint32_t box = data + lane * Policy::kBoxBytes;
    if constexpr (Policy::kIsAxis1) {
      LoadTile(box, &p.x, feature, row, slot.Full());
    } else if constexpr (Policy::kBoxIsSpan) {
      LoadTile(box, &p.x, row, feature, slot.Full());
    } else if (row < p.first_tail_row) {
      LoadTile(box, &p.x, 0, feature, row / 64, slot.Full());
    } else {
      LoadTile(box, &p.x_tail, row, feature, slot.Full());
      LoadTile(box + Policy::kBoxBytes / 2, &p.x_tail, row + 64, feature, slot.Full());
    }
  }
  if (lane == 0 && unit_bytes != 0)
    LoadBytes(data + slot.ring.x_bytes, p.w + int64_t{first_unit} * Policy::kUnitBytes, unit_bytes,
              slot.Full());
}

// A tile: a group's columns for kTileRows samples.
struct PackedTileIndex {
  int group;
  int row;

  // Groups differ in size: a thread block's tiles go round them even where their number divides the
  // grid's.
  __device__ __forceinline__ PackedTileIndex(const PackedTable& table, int tile, int tile_rows)
      : group((tile + tile / table.num_groups) % table.num_groups),
        row(tile / table.num_groups * tile_rows) {}
};

// The work of one of the loading warps.
template <class Policy>
__device__ __forceinline__ void LoadPackedTiles(const PackedParams& p, PackedSlot slot,
                                                int loader) {
  const int lane = Lane();
  int ahead = loader;  // stages until the next one of this warp's
  for (int i = blockIdx.x; i < p.num_tiles; i += gridDim.x) {
    const PackedTileIndex tile(p.table, i, Policy::kTileRows);
    const PackedRange range = StagesOf(p.table, tile.group);
    const auto word_of = [&](int stage) {
      constexpr int kWords = Policy::kMaskWords + 2;
      return lane < kWords && stage < range.end ? p.table.stages[int64_t{stage} * kWords + lane]
                                                : 0;
    };
    int64_t word = word_of(range.begin + ahead);
    for (int stage = range.begin; stage < range.end; ++stage) {
      if (--ahead < 0) {
        const int64_t next = word_of(stage + kPackedLoaders);
        LoadPackedStage<Policy>(p, slot, word, tile.row);
        word = next;
        ahead = kPackedLoaders - 1;
      }
      slot.Advance();
    }
  }
}

template <class Policy>
__device__ __forceinline__ void MultiplyPackedTiles(const PackedParams& p, PackedSlot slot,
                                                    int warp) {
  const int places = Policy::kFeatures / Policy::kShares / p.block_size;
  const int share = warp / Policy::kWarpsOfShare;
  for (int i = blockIdx.x; i < p.num_tiles; i += gridDim.x) {
    const PackedTileIndex index(p.table, i, Policy::kTileRows);
    const PackedRange range = StagesOf(p.table, index.group);
    const int num_stages = range.end - range.begin;
    std::conditional_t<Policy::kIsWide, PackedWideTile<Policy>, PackedNarrowTile<Policy>> tile;
    tile.Clear();
    tile.Multiply(slot, num_stages, p.table.num_spans, share);
    int column = -1;  // of y's blocks, in the share's place Lane()
    if (Lane() < places)
      column = p.table.columns[(int64_t{index.group} * Policy::kShares + share) * places + Lane()];
    tile.Store(p, index.row, column);
  }
}

#endif  // BLOCKSPARSE_HAS_HOPPER

template <class Policy>
__global__ void __launch_bounds__(Policy::kThreads, 1)
    MatmulPackedKernel(const __grid_constant__ PackedParams p) {
#ifdef BLOCKSPARSE_HAS_HOPPER
  extern __shared__ __align__(kPackedAlignment) unsigned char smem[];
  const PackedRing ring(p.table.num_spans, Policy::kSpanBytes, Policy::kUnitBytes,
                        p.table.max_units, p.ring_stages);
  PackedSlot slot = {ring, (SharedAddress(smem) + kPackedAlignment - 1) & ~(kPackedAlignment - 1u)};
  if (threadIdx.x == 0) {
    for (int i = 0; i < ring.num_stages; ++i) {
      slot.index = i;
      InitBarrier(slot.Full(), kWarpArrivals);
      InitBarrier(slot.Empty(), Policy::kWarpgroups * 4 * kWarpArrivals);
    }
    FenceBarrierInit();
  }
  slot.index = 0;
  LetNextKernelStart();
  WaitForPreviousKernel();  // which packs W
  __syncthreads();
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / kWarpSize, 0);
  if (warp >= Policy::kWarpgroups * 4) {
    GiveRegisters<Policy::kProducerRegisters>();
    const int loader = warp - Policy::kWarpgroups * 4;
    if (loader < kPackedLoaders) LoadPackedTiles<Policy>(p, slot, loader);
  } else {
    TakeRegisters<Policy::kConsumerRegisters>();
    MultiplyPackedTiles<Policy>(p, slot, warp);
  }
#endif
}

template <class Policy>
Status LaunchMatmulPacked(PackedParams params, int num_sms, Stream stream) {
  const PackedTable& table = params.table;
  PackedRing ring(table.num_spans, Policy::kSpanBytes, Policy::kUnitBytes, table.max_units, 1);
  const int one_stage = ring.SmemBytes();
  ring.num_stages = 2;
  const int per_stage = ring.SmemBytes() - one_stage;
  ring.num_stages = 1 + (kHopperSmemBytes - one_stage) / per_stage;
  params.ring_stages = ring.num_stages;
  const int64_t num_blocks = params.num_tiles < num_sms ? params.num_tiles : num_sms;
  return LaunchEarly("MatmulPackedKernel", MatmulPackedKernel<Policy>, num_blocks, Policy::kThreads,
                     ring.SmemBytes(), stream, params);
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_PACKED_CUH_

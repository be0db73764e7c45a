// What the warps of dw by regions share: tiles as a type, the region, and the ring of steps in
// shared memory that one warp fills and the others read.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_REGION_DW_RING_CUH_
#define BLOCKSPARSE_KERNELS_MATMUL_REGION_DW_RING_CUH_

#include <type_traits>

#include "src/kernels/common/hopper.cuh"
#include "src/kernels/common/mma.cuh"
#include "src/kernels/matmul_region_dw.h"

namespace blocksparse {

template <typename T_, int kUnit_, bool kAddsApart_, bool kIsAxis1_>
struct RegionDwPolicy {
  using T = T_;
  using Math = std::conditional_t<std::is_same_v<T, __half>, Fp16Math, Bf16Math>;
  static constexpr int kUnit = kUnit_;
  static constexpr bool kAddsApart = kAddsApart_;
  static constexpr bool kIsAxis1 = kIsAxis1_;
  static constexpr int kUnitShift = kUnit == 16 ? 4 : 5;
  static constexpr int kTiles = kUnit / 16;  // of 16 x 16 along an edge of a unit
  static constexpr int kChunk = RegionChunk(kIsAxis1);
  static constexpr int kStep = RegionStep(kIsAxis1);
  static constexpr int kUnitsPerChunk = kChunk / kUnit;

  // Warps that multiply, and units whose sums fit the registers of one.
  static constexpr int kWarps = RegionWarps(kUnit);
  static constexpr int kSlots = kUnit == 16 ? 14 : 6;
  // Units of a walk, after which another starts, and entries of both.
  static constexpr int kRun = RegionRun(kUnit);
  static constexpr int kMaxEntries = kSlots + kSlots / kRun;
  // Loops are compiled for multiples of this many units.
  static constexpr int kSlotStep = 2;
  static constexpr int kRegisters = kUnit == 16 ? 160 : 240;
  static constexpr int kCopyRegisters = kUnit == 16 ? 32 : 24;
  static constexpr int kThreads = kWarps * kWarpSize + kWarpgroupSize;

  // A chunk in shared memory: swizzled rows of samples (feature_axis 1) or of features.
  static constexpr int kRowBytes = 128;
  static constexpr int kChunkBytes = kChunk * kStep * 2;
  static constexpr int kTileBytes = 16 * (kIsAxis1 ? 2 : kRowBytes);   // to the next 16 features
  static constexpr int kDepthBytes = 16 * (kIsAxis1 ? kRowBytes : 2);  // to the next 16 samples
  static_assert(2 * (kIsAxis1 ? kChunk : kStep) == kRowBytes, "rows are as wide as the swizzle");

  // Fragments that fit the registers beside the sums of so many units, and beside sums apart.
  BLOCKSPARSE_HOST_DEVICE static constexpr int NumFragments(int count, bool is_apart) {
    return kUnit == 16 ? 4 - 2 * (is_apart && count > 10)
                       : 4 - (count > 4) - (is_apart && count > 2);
  }

  static constexpr int kMaxStages = 8;
  static constexpr int kRingBytes = 224 * 1024;
  static constexpr int kBarrierBytes = 16 * kMaxStages;
  static constexpr int kAlignment = 1024;
  static constexpr int kSmemBytes = kRingBytes + kBarrierBytes + kAlignment;
  static_assert(kSmemBytes <= kHopperSmemBytes, "the ring must fit");
};

// The chunks of one region of the table; none where that is damaged.
struct DwRegion {
  int index;
  const int32_t* chunks;
  int num_x;
  int num_dy;

  __device__ __forceinline__ int num_chunks() const { return num_x + num_dy; }

  __device__ __forceinline__ DwRegion(const RegionDwParams& p, int region)
      : index(region), chunks(p.chunks + int64_t{region} * kRegionChunkWords + 2) {
    num_x = chunks[-2];
    num_dy = chunks[-1];
    if (num_x < 1 || num_dy < 1 || num_x > kMaxRegionChunks || num_dy > kMaxRegionChunks - num_x)
      num_x = num_dy = 0;
  }
};

// A thread block's part of the batch.
struct RegionSplit {
  int index;
  int first_step;
  int num_steps;
  int num_apart;  // the last of them: sums are made apart

  explicit __device__ __forceinline__ RegionSplit(const RegionDwParams& p)
      : index(blockIdx.x % p.num_splits), first_step(index * p.steps_per_split) {
    num_steps = max(min(p.steps_per_split, p.num_steps - first_step), 0);
    num_apart = min(max(first_step + num_steps - p.first_apart, 0), num_steps);
  }
};

// Steps in shared memory, and for each two barriers: full, and empty again.
struct RegionRing {
  uint32_t stages;
  uint32_t barriers;
  int num_stages;
  int stage_bytes;

  __device__ __forceinline__ uint32_t Full(int stage) const { return barriers + 16 * stage; }
  __device__ __forceinline__ uint32_t Empty(int stage) const { return Full(stage) + 8; }
  __device__ __forceinline__ uint32_t Stage(int stage) const {
    return stages + stage * stage_bytes;
  }
};

// A place in the ring that goes round.
struct RegionPosition {
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void Advance(int num_stages) {
    if (++stage < num_stages) return;
    stage = 0;
    parity ^= 1;
  }
};

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_REGION_DW_RING_CUH_

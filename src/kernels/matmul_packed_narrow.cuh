// The packed products' multiplication with narrow units: a warp holds 64 samples by 64 output
// features and multiplies by mma.sync.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_PACKED_NARROW_CUH_
#define BLOCKSPARSE_KERNELS_MATMUL_PACKED_NARROW_CUH_

#include "src/kernels/common/mma.cuh"
#include "src/kernels/matmul_packed_ring.cuh"
#include "src/kernels/matmul_packed_store.cuh"

namespace blocksparse {

#ifdef BLOCKSPARSE_HAS_HOPPER

template <class Policy>
struct PackedNarrowTile {
  using T = typename Policy::T;
  using Math = Math16<T>;
  static constexpr int kRowTiles = 4;  // of 16 samples
  static constexpr int kRuns = 2;      // of 8 output features in a unit

  float sums[kRowTiles][Policy::kUnits][kRuns][4];

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int j = 0; j < Policy::kUnits; ++j) {
#pragma unroll
        for (int run = 0; run < kRuns; ++run) {
#pragma unroll
          for (float& sum : sums[m][j][run]) sum = 0.f;
        }
      }
    }
  }

  // Where this lane's row of an 8 x 8 matrix of x lies in a span (axis 1) or a row of units (axis
  // 0); both are swizzled rows of 128 bytes.
  static __device__ __forceinline__ uint32_t LaneOffset() {
    const int half = Half();
    const int low = Lane() % 8;
    const int is_second = Lane() / 8 % 2;  // samples 8 to 15
    const int is_deep = Lane() / 16;       // features 8 to 15
    if (Policy::kIsAxis1) return (half * 64 + is_second * 8 + low) * 128 + ((is_deep ^ low) << 4);
    return half * (16 * 128) + (is_deep * 8 + low) * 128 + ((is_second ^ low) << 4);
  }
  // Which 64 of the tile's samples are this warp's.
  static __device__ __forceinline__ int Half() {
    return threadIdx.x / kWarpSize % Policy::kWarpsOfShare;
  }
  // The first row of units that `masks` has, as the place of its bits.
  static __device__ __forceinline__ uint32_t FirstRow(uint32_t masks) {
    return (__ffs(masks) - 1) & (32 - Policy::kMaskBits);
  }
  // The lane's address in that row, from its address in the stage.
  static __device__ __forceinline__ uint32_t RowOfX(uint32_t x, uint32_t place) {
    const uint32_t row = place / Policy::kMaskBits;
    if (!Policy::kIsAxis1) return x + row * Policy::kRowBytes;
    return (x ^ row % kPackedRows << 5) + row / kPackedRows * Policy::kSpanBytes;
  }

  // W of the next unit, loaded ahead: units follow each other whichever columns they belong to.
  uint32_t w[4];

  __device__ __forceinline__ void LoadUnit(uint32_t& unit) {
    LoadMatrix4<!Policy::kIsDx>(unit, w);
    unit += Policy::kUnitBytes;
  }

  template <int kUnit>
  __device__ __forceinline__ void MultiplyUnit(const typename Math::FragmentA (&a)[kRowTiles],
                                               uint32_t& unit) {
#pragma unroll
    for (int run = 0; run < kRuns; ++run) {
      const typename Math::FragmentB b = {{w[2 * run], w[2 * run + 1]}};
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) Math::Multiply(sums[m][kUnit][run], a[m], b);
    }
    LoadUnit(unit);
  }

  // All stages of the tile.
  __device__ __forceinline__ void Multiply(PackedSlot& slot, int num_stages, int num_spans,
                                           int share) {
    const uint32_t lane_offset = LaneOffset();
    for (int stage = 0; stage < num_stages; ++stage) {
      WaitBarrier(slot.Full(), slot.phase);
      uint32_t masks = LoadShared(slot.Header() + share * 16);  // of the rows, 4 bits each
      const uint32_t first_unit = LoadShared(slot.Header() + share * 16 + 8);
      uint32_t unit =
          slot.Data() + slot.ring.x_bytes + first_unit * Policy::kUnitBytes + Lane() * 16;
      const uint32_t x = slot.Data() + lane_offset;
      LoadUnit(unit);
      // A loop over the rows in which the share has units: tests of all rows, unrolled, are slower.
#pragma unroll 1
      for (uint32_t place = FirstRow(masks); masks != 0; place = FirstRow(masks)) {
        static_assert(Policy::kUnits == 4 && Policy::kMaskBits == 4, "four tests");
        const uint32_t row_x = RowOfX(x, place);
        typename Math::FragmentA a[kRowTiles];
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m)
          LoadMatrix4<!Policy::kIsAxis1>(Policy::kIsAxis1 ? row_x + m * 16 * 128 : row_x ^ m << 5,
                                         a[m].r);
        const uint32_t mask = masks >> place;
        masks &= ~(0xfu << place);
        if (mask & 1) MultiplyUnit<0>(a, unit);
        if (mask & 2) MultiplyUnit<1>(a, unit);
        if (mask & 4) MultiplyUnit<2>(a, unit);
        if (mask & 8) MultiplyUnit<3>(a, unit);
      }
      Release(slot.Empty());
      slot.Advance();
    }
  }

  // `column`: the block column of y in the share's place Lane().
  __device__ __forceinline__ void Store(const PackedParams& p, int64_t row, int column) const {
    const int64_t n = row + Half() * 64;
#pragma unroll
    for (int j = 0; j < Policy::kUnits; ++j) {
      const PackedFeatures features(p, column, j * 16);
      if constexpr (Policy::kIsAxis1) {
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m)
          StorePackedSums<Policy>(p, sums[m][j][0], sums[m][j][1], n + m * 16, features);
      } else {
#pragma unroll
        for (int run = 0; run < kRuns; ++run) {
#pragma unroll
          for (int m = 0; m < kRowTiles; m += 2)
            StoreRows(p, sums[m][j][run], sums[m + 1][j][run], n + m * 16, features.first[run]);
        }
      }
    }
  }

 private:
  // Axis 0: 32 samples from n on by 8 features from `feature` on.
  static __device__ __forceinline__ void StoreRows(const PackedParams& p, const float (&low)[4],
                                                   const float (&high)[4], int64_t n,
                                                   int64_t feature) {
    const uint32_t pairs[4] = {TransposeMatrix(PackPair<T>(low[0], low[1])),
                               TransposeMatrix(PackPair<T>(low[2], low[3])),
                               TransposeMatrix(PackPair<T>(high[0], high[1])),
                               TransposeMatrix(PackPair<T>(high[2], high[3]))};
    const uint4 eight = GatherEight(pairs);
    const int64_t sample = n + Lane() % 4 * 8;
    if (feature >= 0 && sample < p.batch)
      *reinterpret_cast<uint4*>(static_cast<T*>(p.y) + (feature + Lane() / 4) * p.batch + sample) =
          eight;
  }
};

#endif  // BLOCKSPARSE_HAS_HOPPER

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_PACKED_NARROW_CUH_

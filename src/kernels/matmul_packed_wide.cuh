// The packed products' multiplication with wide units: a warpgroup holds 128 samples by 192 output
// features and multiplies by wgmma, x from registers, where it serves all units of a row, W from
// shared memory.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_PACKED_WIDE_CUH_
#define BLOCKSPARSE_KERNELS_MATMUL_PACKED_WIDE_CUH_

#include "src/kernels/common/mma.cuh"
#include "src/kernels/matmul_packed_ring.cuh"
#include "src/kernels/matmul_packed_store.cuh"

namespace blocksparse {

#ifdef BLOCKSPARSE_HAS_HOPPER

template <class Policy>
struct PackedWideTile {
  using T = typename Policy::T;
  static constexpr int kRowTiles = 2;  // of 64 samples

  float sums[kRowTiles][Policy::kUnits][Policy::kWidth / 2];
  uint32_t a[2][kRowTiles][4];  // x of two rows of units

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int j = 0; j < Policy::kUnits; ++j) {
#pragma unroll
        for (float& sum : sums[m][j]) sum = 0.f;
        FenceRegisters(sums[m][j]);
      }
    }
  }
  __device__ __forceinline__ void Fence() {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int j = 0; j < Policy::kUnits; ++j) FenceRegisters(sums[m][j]);
    }
  }

  // Where this lane's row of an 8 x 8 matrix of x lies in a span (axis 1) or a row of units (axis
  // 0); both are swizzled rows of 128 bytes.
  static __device__ __forceinline__ uint32_t LaneOffset() {
    const int warp = threadIdx.x / kWarpSize % 4;
    const int low = Lane() % 8;
    const int is_second = Lane() / 8 % 2;  // samples 8 to 15
    const int is_deep = Lane() / 16;       // features 8 to 15
    const int row = Policy::kIsAxis1 ? warp * 16 + is_second * 8 + low : is_deep * 8 + low;
    const int chunk = Policy::kIsAxis1 ? is_deep : warp * 2 + is_second;
    return row * 128 + ((chunk ^ low) << 4);
  }

  // x of row kRow of units, of the two that `x` points at.
  template <int kRow>
  __device__ __forceinline__ void LoadX(uint32_t x) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      const uint32_t address = Policy::kIsAxis1
                                   ? (x ^ kRow << 5) + m * (Policy::kSpanBytes / kRowTiles)
                                   : x + kRow * Policy::kRowBytes + m * (Policy::kRowBytes / 2);
      LoadMatrix4<!Policy::kIsAxis1>(address, a[kRow][m]);
    }
  }

  template <int kRow>
  __device__ __forceinline__ void MultiplyRow(const bool (&has)[Policy::kUnits], uint32_t& w) {
    constexpr uint32_t kHigh = DescriptorHigh(2 * Policy::kMatrixBytes, Swizzle::kNone);
    FenceWgmma();
#pragma unroll
    for (int j = 0; j < Policy::kUnits; ++j) {
      if (has[j]) {
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m)
          Wgmma<T, Policy::kWidth>::template Multiply<!Policy::kIsDx>(sums[m][j], a[kRow][m],
                                                                      Descriptor(w, kHigh));
        CommitWgmma();
        w += DescriptorUnits(Policy::kUnitBytes);
      }
    }
  }

  // All stages of the tile.
  __device__ __forceinline__ void Multiply(PackedSlot& slot, int num_stages, int num_spans,
                                           int share) {
    const uint32_t lane_offset = LaneOffset();
    uint32_t empty = 0;  // the barrier of the last stage, whose products may still run
    for (int stage = 0; stage < num_stages; ++stage) {
      WaitBarrier(slot.Full(), slot.phase);
      uint32_t header[4];
      LoadShared(slot.Header() + share * 16, header);
      uint32_t w = DescriptorLow(slot.Data() + slot.ring.x_bytes, Policy::kMatrixBytes) +
                   header[2] * DescriptorUnits(Policy::kUnitBytes);
      const uint32_t x = slot.Data() + lane_offset;
#pragma unroll 1
      for (int pair = 0; pair < num_spans * (kPackedRows / 2); ++pair) {
        const uint32_t x_pair = Policy::kIsAxis1
                                    ? (x + pair / 2 * Policy::kSpanBytes) ^ (pair & 1) << 6
                                    : x + pair * 2 * Policy::kRowBytes;
        const uint32_t masks = (pair < 2 ? header[0] : header[1]) >> (pair & 1) * 16;
        bool has_0[Policy::kUnits], has_1[Policy::kUnits];
#pragma unroll
        for (int j = 0; j < Policy::kUnits; ++j) {
          has_0[j] = masks >> j & 1;
          has_1[j] = masks >> (8 + j) & 1;
        }
        WaitForWgmma<0>();
        if (empty != 0) Release(empty);
        empty = 0;
        LoadX<0>(x_pair);
        LoadX<1>(x_pair);
        MultiplyRow<0>(has_0, w);
        MultiplyRow<1>(has_1, w);
      }
      empty = slot.Empty();
      slot.Advance();
    }
    WaitForWgmma<0>();
    Fence();
    if (empty != 0) Release(empty);
  }

  // `column`: the block column of y in the share's place Lane().
  __device__ __forceinline__ void Store(const PackedParams& p, int64_t row, int column) const {
    const int64_t n = row + threadIdx.x / kWarpSize % 4 * 16;
#pragma unroll
    for (int j = 0; j < Policy::kUnits; ++j) {
#pragma unroll
      for (int i = 0; i < Policy::kWidth; i += 16) {
        const PackedFeatures features(p, column, j * Policy::kWidth + i);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m)
          StorePackedSums<Policy>(p, sums[m][j] + i / 2, sums[m][j] + i / 2 + 4, n + m * 64,
                                  features);
      }
    }
  }
};

#endif  // BLOCKSPARSE_HAS_HOPPER

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_PACKED_WIDE_CUH_

// Writing sums of the packed products from registers: full sectors of 32 bytes, no shared memory.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_PACKED_STORE_CUH_
#define BLOCKSPARSE_KERNELS_MATMUL_PACKED_STORE_CUH_

#include "src/kernels/common/hopper.cuh"
#include "src/kernels/common/mma.cuh"
#include "src/kernels/common/round.cuh"
#include "src/kernels/matmul_packed_policy.h"

namespace blocksparse {

// Lane t of each four holds `even` for elements 2t and 2t + 1 of one run of 8 and `odd` for those
// of another; returns 4 elements in a row: of the first run in even lanes, of the second in odd.
__device__ __forceinline__ uint2 GatherFour(uint32_t even, uint32_t odd) {
  const bool is_odd = Lane() % 2 != 0;
  const uint32_t other = __shfl_xor_sync(~0u, is_odd ? even : odd, 1);
  return is_odd ? make_uint2(other, odd) : make_uint2(even, other);
}

// Lane t of each four holds elements 2t and 2t + 1 of four runs of 8; returns run t.
__device__ __forceinline__ uint4 GatherEight(const uint32_t (&pairs)[4]) {
  const uint2 low = GatherFour(pairs[0], pairs[1]);
  const uint2 high = GatherFour(pairs[2], pairs[3]);
  // Lanes 0 and 1 now hold the first halves of runs 0 and 1, and of 2 and 3; lanes 2 and 3 the
  // others.
  const bool is_high = Lane() % 4 >= 2;
  const uint32_t x = __shfl_xor_sync(~0u, is_high ? low.x : high.x, 2);
  const uint32_t y = __shfl_xor_sync(~0u, is_high ? low.y : high.y, 2);
  return is_high ? make_uint4(x, y, high.x, high.y) : make_uint4(low.x, low.y, x, y);
}

// Where 16 output features lie, as two runs of 8.
struct PackedFeatures {
  int64_t first[2];  // -1 for none

  // `column`: the block column of y in place Lane() of the warpgroup; `offset`: the first of the
  // 16 features among the warpgroup's.
  __device__ __forceinline__ PackedFeatures(const PackedParams& p, int column, int offset) {
#pragma unroll
    for (int run = 0; run < 2; ++run) {
      const int place = (offset + run * 8) / p.block_size;
      const int block = __shfl_sync(~0u, column, place);
      first[run] = block >= 0 && block < p.num_columns
                       ? int64_t{block} * p.block_size + (offset + run * 8) % p.block_size
                       : -1;
    }
  }
};

// 16 samples from n on by 16 features, in mma.sync's layout of sums: `low` of the first 8 features,
// `high` of the others. By a whole warp.
template <class Policy>
__device__ __forceinline__ void StorePackedSums(const PackedParams& p, const float* low,
                                                const float* high, int64_t n,
                                                const PackedFeatures& features) {
  using T = typename Policy::T;
  T* y = static_cast<T*>(p.y);
  const bool is_odd = Lane() % 2 != 0;
  const int group_row = Lane() / 4;
  const int lane_col = Lane() % 4 / 2 * 4;  // of 8
  uint32_t pairs[2][2];                     // [run of features][samples 0 to 7, 8 to 15]
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    pairs[0][h] = PackPair<T>(low[2 * h], low[2 * h + 1]);
    pairs[1][h] = PackPair<T>(high[2 * h], high[2 * h + 1]);
  }
  if constexpr (Policy::kIsAxis1) {
    const int64_t feature = is_odd ? features.first[1] : features.first[0];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint2 four = GatherFour(pairs[0][h], pairs[1][h]);
      const int64_t sample = n + h * 8 + group_row;
      if (feature >= 0 && sample < p.batch)
        *reinterpret_cast<uint2*>(y + sample * p.num_columns * p.block_size + feature + lane_col) =
            four;
    }
  } else {
    const int64_t sample = n + (is_odd ? 8 : 0) + lane_col;
#pragma unroll
    for (int run = 0; run < 2; ++run) {
      const uint2 four = GatherFour(TransposeMatrix(pairs[run][0]), TransposeMatrix(pairs[run][1]));
      if (features.first[run] >= 0 && sample < p.batch)
        *reinterpret_cast<uint2*>(y + (features.first[run] + group_row) * p.batch + sample) = four;
    }
  }
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_PACKED_STORE_CUH_

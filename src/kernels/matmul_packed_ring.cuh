// The ring of shared memory through which the packed products' loading warps hand stages to the
// multiplying ones.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_PACKED_RING_CUH_
#define BLOCKSPARSE_KERNELS_MATMUL_PACKED_RING_CUH_

#include "src/kernels/common/hopper.cuh"
#include "src/kernels/common/mma.cuh"
#include "src/kernels/matmul_packed_policy.h"

namespace blocksparse {

// Shared memory: ring_stages times {spans of x, units, one more unit that may be read but is not
// used}, then headers, then barriers.
constexpr int kPackedAlignment = 1024;  // of the swizzle
// Warps that load, a stage each in turn. No more than stages in the ring, of which there are at
// least two: otherwise one could come to a stage before another has waited for the stage's last
// phase but one, and take that for the last.
constexpr int kPackedLoaders = 2;
constexpr int kPackedHeaderBytes = 16 * 12;  // of each share: masks, first unit

struct PackedRing {
  int x_bytes;
  int stage_bytes;
  int num_stages;

  __host__ __device__ PackedRing(int num_spans, int span_bytes, int unit_bytes, int max_units,
                                 int ring_stages)
      : x_bytes(num_spans * span_bytes),
        stage_bytes(x_bytes + ((max_units + 1) * unit_bytes + kPackedAlignment - 1) /
                                  kPackedAlignment * kPackedAlignment),
        num_stages(ring_stages) {}

  // With what it takes to align the ring.
  __host__ __device__ int SmemBytes() const {
    return kPackedAlignment + num_stages * (stage_bytes + kPackedHeaderBytes + 16);
  }
};

#ifdef BLOCKSPARSE_HAS_HOPPER

// A position in the ring.
struct PackedSlot {
  const PackedRing& ring;
  uint32_t base;
  int index = 0;
  uint32_t phase = 0;

  __device__ __forceinline__ uint32_t Data() const { return base + index * ring.stage_bytes; }
  __device__ __forceinline__ uint32_t Header() const {
    return base + ring.num_stages * ring.stage_bytes + index * kPackedHeaderBytes;
  }
  __device__ __forceinline__ uint32_t Full() const {
    return base + ring.num_stages * (ring.stage_bytes + kPackedHeaderBytes) + index * 16;
  }
  __device__ __forceinline__ uint32_t Empty() const { return Full() + 8; }
  __device__ __forceinline__ void Advance() {
    if (++index == ring.num_stages) {
      index = 0;
      phase ^= 1;
    }
  }
};

// Lets the loading warp overwrite a stage that this warp has read.
__device__ __forceinline__ void Release(uint32_t empty) {
  __syncwarp();
  ArriveAsWarp(empty, Lane());
}

struct PackedRange {
  int begin;
  int end;
};

// Stages [begin, end) of a group; none where the table is damaged.
__device__ __forceinline__ PackedRange StagesOf(const PackedTable& table, int group) {
  const int64_t begin = table.stage_ptr[group];
  const int64_t end = table.stage_ptr[group + 1];
  return begin >= 0 && begin <= end && end <= table.num_stages
             ? PackedRange{static_cast<int>(begin), static_cast<int>(end)}
             : PackedRange{0, 0};
}

#endif  // BLOCKSPARSE_HAS_HOPPER

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_PACKED_RING_CUH_

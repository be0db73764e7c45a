// The products of one warp of dw by regions, along its walks. A unit begins at the vertex where the
// last one ended, so that fragments are loaded about once for a unit, and not twice; they are
// loaded ahead of the products that need them.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_REGION_DW_WALKS_CUH_
#define BLOCKSPARSE_KERNELS_MATMUL_REGION_DW_WALKS_CUH_

#include "src/kernels/common/named_barrier.cuh"
#include "src/kernels/matmul_region_dw_ring.cuh"

namespace blocksparse {

// Bytes from a stage's start to a vertex, which is a unit of features.
template <class Policy>
__device__ __forceinline__ uint32_t VertexBytes(int vertex) {
  return vertex / Policy::kUnitsPerChunk * Policy::kChunkBytes +
         vertex % Policy::kUnitsPerChunk * (Policy::kTiles * Policy::kTileBytes);
}

// What this lane adds: ldmatrix takes the address of one row of 8 elements from each. The matrices
// of a fragment are numbered along the features first for rows of a product, along the depth first
// for columns.
template <class Policy>
__device__ __forceinline__ uint32_t LaneBytes(bool is_rows) {
  const int lane = Lane();
  const int first = lane / 8 % 2;
  const int second = lane / 16;
  const int feature = is_rows ? first : second;  // which 8 of the 16 features
  const int depth = is_rows ? second : first;    // and of the 16 samples
  const int row = lane % 8 + 8 * (Policy::kIsAxis1 ? depth : feature);
  const int half = Policy::kIsAxis1 ? feature : depth;
  return row * Policy::kRowBytes + (half ^ row % 8) * 16;
}

// The entries of a warp's walks. Every other vertex of a walk gives the rows of products, the rest
// the columns.
template <class Policy>
struct WarpWalks {
  static constexpr int kMaxEntries = Policy::kMaxEntries;
  // Where the vertices lie in a stage, in units of 16 bytes, two in a word.
  uint32_t words[(kMaxEntries + 1) / 2];
  uint32_t rows_lane;
  uint32_t cols_lane;

  // Each lane brings one vertex; the first is that of lane `first`.
  __device__ __forceinline__ WarpWalks(int vertex, int first)
      : rows_lane(LaneBytes<Policy>(true)), cols_lane(LaneBytes<Policy>(false)) {
    const uint32_t place = VertexBytes<Policy>(vertex) >> 4;
#pragma unroll
    for (int i = 0; i < (kMaxEntries + 1) / 2; ++i)
      words[i] = VertexOf(place, first + 2 * i) | VertexOf(place, first + 2 * i + 1) << 16;
  }

  // The address of entry i's vertex in a stage, for this lane.
  __device__ __forceinline__ uint32_t Address(uint32_t stage, int i) const {
    const uint32_t word = Opaque(words[i / 2]);
    const uint32_t bytes = (i % 2 == 0 ? word & 0xFFFF : word >> 16) * 16;
    return stage + (bytes ^ (IsRows(i) ? rows_lane : cols_lane));
  }

  static __device__ __forceinline__ constexpr bool IsRows(int i) {
    return i % (Policy::kRun + 1) % 2 == 0;
  }

 private:
  static __device__ __forceinline__ uint32_t VertexOf(uint32_t place, int lane) {
    return __shfl_sync(~0u, place, min(lane, kWarpSize - 1));
  }
};

template <class Policy>
using UnitSums = float[Policy::kTiles][2 * Policy::kTiles][4];

// 16 of a vertex's features at one depth, as mma.sync takes them.
template <class Policy>
__device__ __forceinline__ void LoadTile(uint32_t vertex, int tile, int depth, uint32_t (&r)[4]) {
  // Rows of features hold the depth, swizzled; rows of samples the features.
  constexpr int kDepthBytes = Policy::kDepthBytes;
  constexpr int kTileBytes = Policy::kTileBytes;
  LoadMatrix4<Policy::kIsAxis1>(Policy::kIsAxis1
                                    ? (vertex ^ tile * kTileBytes) + depth * kDepthBytes
                                    : (vertex ^ depth * kDepthBytes) + tile * kTileBytes,
                                r);
}

// A vertex's features.
template <class Policy>
struct VertexFragment {
  uint32_t r[Policy::kTiles][4];

  __device__ __forceinline__ void Load(uint32_t vertex, int depth) {
#pragma unroll
    for (int i = 0; i < Policy::kTiles; ++i) LoadTile<Policy>(vertex, i, depth, r[i]);
  }
};

// Adds the products of 16 rows. kIsApart: tensor cores truncate what they add, to the precision of
// the largest; so they add the products of one depth alone, and that sum is rounded into the rest.
template <class Policy, bool kIsApart>
__device__ __forceinline__ void AddRows(float (&sums)[2 * Policy::kTiles][4],
                                        const uint32_t (&r)[4],
                                        const VertexFragment<Policy>& cols) {
  using Math = typename Policy::Math;
  const typename Math::FragmentA a = {r[0], r[1], r[2], r[3]};
#pragma unroll
  for (int j = 0; j < 2 * Policy::kTiles; ++j) {
    const auto& c = cols.r[j / 2];
    const typename Math::FragmentB b = {c[j % 2 * 2], c[j % 2 * 2 + 1]};
    if constexpr (kIsApart) {
      float apart[4] = {};
      Math::Multiply(apart, a, b);
#pragma unroll
      for (int k = 0; k < 4; ++k) sums[j][k] += apart[k];
    } else {
      Math::Multiply(sums[j], a, b);
    }
  }
}

// A unit's sums in shared memory: rows of kLd floats, which spread them over the banks.
template <class Policy>
struct UnitTile {
  static constexpr int kLd = Policy::kUnit + 4;
  static constexpr int kSize = Policy::kUnit * kLd;
  static_assert(Policy::kWarps * Policy::kSlots * kSize * 4 <= Policy::kRingBytes,
                "all units must fit the ring");

  static __device__ __forceinline__ void Put(float* tile, const UnitSums<Policy>& sums) {
#pragma unroll
    for (int i = 0; i < Policy::kTiles; ++i)
#pragma unroll
      for (int j = 0; j < 2 * Policy::kTiles; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float* to = tile + (i * kMmaRows + h * 8 + MmaRow()) * kLd + j * kMmaCols + MmaCol();
          *reinterpret_cast<float2*>(to) = make_float2(sums[i][j][2 * h], sums[i][j][2 * h + 1]);
        }
  }
};

// Adds the products of kDepths depths in shared memory, from `depth` on, to the sums of the walks'
// first kCount units.
template <class Policy, int kCount, int kDepths, bool kIsApart>
__device__ __forceinline__ void MultiplyDepths(const WarpWalks<Policy>& walks, uint32_t stage,
                                               int depth, UnitSums<Policy>* sums) {
  constexpr int kRun = Policy::kRun;
  constexpr int kEntries = kCount > 0 ? kCount + (kCount + kRun - 1) / kRun : 1;
  constexpr int kLoads = kCount > 0 ? kDepths * kEntries : 0;
  // Fragments in registers: the two that are multiplied, and those under way.
  constexpr int kFragments = Policy::NumFragments(kCount, kIsApart);
  constexpr int kAhead = kFragments - 2;
  VertexFragment<Policy> fragments[kFragments];
#pragma unroll
  for (int i = kLoads > 0 ? -kAhead : 0; i < kLoads; ++i) {
    const int next = i + kAhead;
    if (next < kLoads)
      fragments[next % kFragments].Load(walks.Address(stage, next % kEntries),
                                        depth + next / kEntries);
    const int entry = i < 0 ? 0 : i % kEntries;
    if (entry % (kRun + 1) == 0) continue;  // a walk starts
    const VertexFragment<Policy>& from = fragments[(i - 1) % kFragments];
    const VertexFragment<Policy>& to = fragments[i % kFragments];
    const bool is_rows = WarpWalks<Policy>::IsRows(entry);
#pragma unroll
    for (int tile = 0; tile < Policy::kTiles; ++tile)
      AddRows<Policy, kIsApart>(sums[entry - entry / (kRun + 1) - 1][tile],
                                (is_rows ? to : from).r[tile], is_rows ? from : to);
  }
}

// The sums of the walks' first kCount units over a thread block's steps, into the ring when all
// warps have left it: tiles from `stages` on, those of all warps.
template <class Policy, int kCount>
__device__ __forceinline__ void MultiplySteps(const WarpWalks<Policy>& walks,
                                              const RegionRing& ring, const RegionSplit& split,
                                              float* stages) {
  constexpr int kDepths = Policy::kStep / 16;
  UnitSums<Policy> sums[kCount > 0 ? kCount : 1];
#pragma unroll
  for (auto& unit : sums)
#pragma unroll
    for (auto& row : unit)
#pragma unroll
      for (auto& tile : row)
#pragma unroll
        for (float& sum : tile) sum = 0.f;

  const int num_apart = Policy::kAddsApart ? split.num_apart : 0;
  const int num_plain = split.num_steps - num_apart;
  RegionPosition position;
  const auto leave_stage = [&] {
    __syncwarp();
    if (Lane() == 0) Arrive(ring.Empty(position.stage));
    position.Advance(ring.num_stages);
  };
#pragma unroll 1
  for (int step = 0; step < num_plain; ++step) {
    WaitBarrier(ring.Full(position.stage), position.parity);
    MultiplyDepths<Policy, kCount, kDepths, false>(walks, ring.Stage(position.stage), 0, sums);
    leave_stage();
  }
  // Depths one by one: sums apart take registers.
#pragma unroll 1
  for (int i = 0; i < num_apart * kDepths; ++i) {
    const int depth = i % kDepths;
    if (depth == 0) WaitBarrier(ring.Full(position.stage), position.parity);
    MultiplyDepths<Policy, kCount, 1, true>(walks, ring.Stage(position.stage), depth, sums);
    if (depth == kDepths - 1) leave_stage();
  }

  SyncInstances<Policy::kWarps * kWarpSize>(1);
  const uint32_t thread = Policy::kAddsApart ? Opaque(threadIdx.x) : threadIdx.x;
  float* tiles = stages + thread / kWarpSize * (Policy::kSlots * UnitTile<Policy>::kSize);
#pragma unroll
  for (int slot = 0; slot < kCount; ++slot)
    UnitTile<Policy>::Put(tiles + slot * UnitTile<Policy>::kSize, sums[slot]);
}

// The same for a count known at run time.
template <class Policy, int kCount = 0>
__device__ __forceinline__ void MultiplySteps(int count, const WarpWalks<Policy>& walks,
                                              const RegionRing& ring, const RegionSplit& split,
                                              float* stages) {
  if constexpr (kCount < Policy::kSlots) {
    if (count > kCount)
      return MultiplySteps<Policy, kCount + Policy::kSlotStep>(count, walks, ring, split, stages);
  }
  MultiplySteps<Policy, kCount>(walks, ring, split, stages);
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_REGION_DW_WALKS_CUH_

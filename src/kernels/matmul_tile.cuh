// What the matrix-product kernels share: the pipelined multiplication of one tile, and its store.
//
// A thread block computes C[128, B]. It walks the depth in chunks; a ring of kStages chunks in
// shared memory is filled by asynchronous copies while the warps multiply the oldest one. What to
// copy is the kernels' business: they pass a Loader with   Load(chunk, StageOf<Policy>, float*
// gates) that fills one stage, called for chunk = 0, 1, 2, ... in turn.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_TILE_CUH_
#define BLOCKSPARSE_KERNELS_MATMUL_TILE_CUH_

#include "src/kernels/common/load_store.cuh"
#include "src/kernels/common/mma.cuh"
#include "src/kernels/matmul_policy.h"

namespace blocksparse {

// The two tiles of a stage.
template <class Policy>
struct StageOf {
  PaddedTile<typename Policy::T, Policy::kColsA> a;
  PaddedTile<typename Policy::T, Policy::kColsB> b;

  explicit __device__ __forceinline__ StageOf(typename Policy::T* smem)
      : a{smem}, b{smem + Policy::kSizeA} {}
};

// A warp's share of the tile: its corner, and one sum in each register.
template <class Policy>
struct WarpTile {
  static constexpr int kRowTiles = Policy::kWarpRows / kMmaRows;
  static constexpr int kColTiles = Policy::kWarpCols / kMmaCols;

  int row;
  int col;
  float sums[kRowTiles][kColTiles][4];

  __device__ __forceinline__ WarpTile() {
    const int warp = threadIdx.x / kWarpSize;
    row = warp % Policy::kWarpsAlongRows * Policy::kWarpRows;
    col = warp / Policy::kWarpsAlongRows * Policy::kWarpCols;
#pragma unroll
    for (auto& tiles : sums)
#pragma unroll
      for (auto& tile : tiles)
#pragma unroll
        for (float& sum : tile) sum = 0.f;
  }

  // Adds the product of one stage. gates: one factor for each piece of the depth, or null.
  __device__ __forceinline__ void MultiplyChunk(StageOf<Policy> stage, const float* gates) {
    using Math = typename Policy::Math;
    constexpr bool kIsDepthMajorA = Policy::kMajorA == Major::kDepth;
    constexpr bool kIsDepthMajorB = Policy::kMajorB == Major::kDepth;
    // Steps of depth 1 would unroll to thousands of instructions, past the instruction cache.
    constexpr int kUnroll = Math::kDepth == 1 ? 4 : Policy::kChunk / Math::kDepth;
#pragma unroll kUnroll
    for (int depth = 0; depth < Policy::kChunk; depth += Math::kDepth) {
      typename Math::FragmentA fragments_a[kRowTiles];
      typename Math::FragmentB fragments_b[kColTiles];
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i)
        Math::template LoadA<kIsDepthMajorA>(fragments_a[i], stage.a, row + i * kMmaRows, depth);
      Math::template LoadB<kIsDepthMajorB>(fragments_b, stage.b, depth, col);
      if (gates != nullptr) {
        constexpr int kHalf = Math::kDepth / 2;
        const float g[2] = {gates[depth / Policy::kPieceDepth],
                            gates[(depth + kHalf) / Policy::kPieceDepth]};
#pragma unroll
        for (auto& fragment : fragments_b) Math::ScaleB(fragment, g);
      }
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i)
#pragma unroll
        for (int j = 0; j < kColTiles; ++j)
          Math::Multiply(sums[i][j], fragments_a[i], fragments_b[j]);
    }
  }
};

// Multiplies num_chunks chunks. `gates` is room for kStages * kPiecesPerChunk factors in shared
// memory, or null. Ends with all of `smem` free for other use.
template <class Policy, class Loader>
__device__ __forceinline__ void MultiplyTile(WarpTile<Policy>& tile, Loader& loader,
                                             int64_t num_chunks, typename Policy::T* smem,
                                             float* gates) {
  const auto load = [&](int64_t chunk, int stage) {
    if (chunk < num_chunks)
      loader.Load(chunk, StageOf<Policy>(smem + stage * Policy::kStageElements),
                  gates + stage * Policy::kPiecesPerChunk);
    CommitCopies();  // also when there was nothing to copy, so that counting groups counts chunks
  };
#pragma unroll
  for (int stage = 0; stage < Policy::kStages - 1; ++stage) load(stage, stage);

  int stage = 0;
  for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
    WaitForCopies<Policy::kStages - 2>();
    __syncthreads();  // this chunk has arrived for every thread, and every warp has left the stage
                      // that is filled next
    const int free_stage = stage == 0 ? Policy::kStages - 1 : stage - 1;
    load(chunk + Policy::kStages - 1, free_stage);
    tile.MultiplyChunk(StageOf<Policy>(smem + stage * Policy::kStageElements),
                       gates == nullptr ? nullptr : gates + stage * Policy::kPiecesPerChunk);
    stage = stage + 1 == Policy::kStages ? 0 : stage + 1;
  }
  WaitForCopies<0>();
  __syncthreads();  // the stages become the result's buffer
}

// Where one row of a stored tile goes: `num_valid` elements exist from `pointer` on.
template <typename Out>
struct Destination {
  Out* pointer;
  int64_t num_valid;
};

// Stores a tile through shared memory, so that global memory sees whole vectors in either
// orientation. destination(row) gives the place of a row of the tile, or of a column if
// kIsTransposed. is_aligned: every destination is 16-byte aligned and holds whole vectors.
template <class Policy, typename Out, bool kIsTransposed, class F>
__device__ __forceinline__ void StoreTile(const WarpTile<Policy>& tile, void* smem, bool is_aligned,
                                          F destination) {
  constexpr int kRows = kIsTransposed ? Policy::kBlockSize : Policy::kTileRows;
  constexpr int kCols = kIsTransposed ? Policy::kTileRows : Policy::kBlockSize;
  constexpr int kLd = kIsTransposed ? Policy::kLdResultT : Policy::kLdResult;
  constexpr int kVector = kVectorBytes / sizeof(Out);
  Out* buffer = static_cast<Out*>(smem);
#pragma unroll
  for (int i = 0; i < tile.kRowTiles; ++i)
#pragma unroll
    for (int j = 0; j < tile.kColTiles; ++j)
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        const int row = tile.row + i * kMmaRows + MmaRow() + s / 2 * 8;
        const int col = tile.col + j * kMmaCols + MmaCol() + s % 2;
        buffer[kIsTransposed ? col * kLd + row : row * kLd + col] = Out(tile.sums[i][j][s]);
      }
  __syncthreads();
  for (int v = threadIdx.x; v < kRows * kCols / kVector; v += Policy::kThreads) {
    const int row = v / (kCols / kVector);
    const int col = v % (kCols / kVector) * kVector;
    const Destination<Out> to = destination(row);
    StoreVector(to.pointer + col, buffer + row * kLd + col, to.num_valid - col, is_aligned);
  }
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_TILE_CUH_

// y = x W and dx = dy W^T for a small minibatch: one thread block computes up to 64 samples by up
// to 32 columns of one block column, and its warps divide the column's blocks.
//
// Each warp has a ring of chunks of its own (a piece of W and the x that meets it), so that nothing
// but the end of the column needs a barrier: many small reads are under way at any time, which is
// what reading W at the memory's speed takes. The warps' sums are added in their order. A step of a
// recurrent network is a chain of such kernels, each of a few microseconds: they are launched
// early, so that one finds its blocks in the tables while the one before it ends.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_STREAM_CUH_
#define BLOCKSPARSE_KERNELS_MATMUL_STREAM_CUH_

#include <algorithm>
#include <cmath>

#include "src/kernels/common/cuda_launch.h"
#include "src/kernels/common/dispatch.h"
#include "src/kernels/common/mma.cuh"
#include "src/kernels/matmul_policy.h"
#include "src/kernels/matmul_stream.h"

namespace blocksparse {

// kBatchTile samples, kWidth columns: min(B, 32), wider blocks are shared by several thread blocks.
// kMajorY: of the tensor that is written; kMajorX is the same, or that of a transposed copy.
template <class Math_, int kBatchTile_, int kWidth_, Major kMajorX_, Major kMajorW_, Major kMajorY_>
struct StreamPolicy {
  using Math = Math_;
  using T = typename Math::T;
  static constexpr int kBatchTile = kBatchTile_;
  static constexpr int kWidth = kWidth_;
  static constexpr Major kMajorX = kMajorX_;
  static constexpr Major kMajorW = kMajorW_;
  static constexpr bool kIsAxis1 = kMajorX == Major::kDepth;  // of x
  static constexpr bool kIsAxis1Y = kMajorY_ == Major::kDepth;
  static constexpr bool kIsDx = kMajorW == Major::kDepth;

  static constexpr int kVector = kVectorBytes / sizeof(T);
  // 64 bytes of depth: of one block, or of several small ones.
  static constexpr int kChunk = 4 * kVector;
  static constexpr int kPieceDepth = kWidth < kChunk ? kWidth : kChunk;
  static constexpr int kPieces = kChunk / kPieceDepth;
  // As many as leave room for three thread blocks of four warps on a Hopper SM.
  static constexpr int kStages = kBatchTile <= 32 ? 4 : 3;

  static constexpr int kRowTiles = kBatchTile / kMmaRows;
  static constexpr int kColTiles = kWidth / kMmaCols;

  using TileX = SwizzledTile<T, kIsAxis1 ? kChunk : kBatchTile>;
  using TileW = SwizzledTile<T, kIsDx ? kChunk : kWidth>;
  static constexpr int kSizeX = kChunk * kBatchTile;
  static constexpr int kSizeW = kChunk * kWidth;
  static constexpr int kStageElements = kSizeX + kSizeW;
  static constexpr int kRingBytes = kStages * kStageElements * static_cast<int>(sizeof(T));
  static constexpr int kGates = kStages * kPieces;

  static constexpr int kSums = kBatchTile * kWidth;
  // A warp's room: its ring, later its sums.
  static constexpr int kWarpBytes = std::max(kRingBytes, kSums* static_cast<int>(sizeof(float)));
  static_assert(kWarpBytes % kVectorBytes == 0, "every warp's ring starts on a vector");

  static constexpr int SmemBytes(int num_warps) {
    return num_warps * (kWarpBytes + kGates * static_cast<int>(sizeof(float)));
  }
};

template <typename T>
struct StreamParams {
  Direction direction;
  int64_t num_blocks;
  int64_t batch;
  int block_size;
  int batch_tiles;
  int log_slices;    // log2 of the tiles of a block's columns
  bool is_one_wave;  // all tiles run at once, so that their order does not matter
  bool prefetches;   // the first blocks of W to the L2 cache while the previous kernel ends
  const T* x;
  int64_t x_stride;  // from one row of x to the next
  const T* w;
  const float* gate;
  T* y;
};

template <typename T>
struct alignas(2 * sizeof(T)) Neighbours {
  T low;
  T high;
};

// Thread blocks that run at once on a Hopper SM, and the warps of each where they are one, two...
constexpr int kWaveTiles = 3;
constexpr int kWaveWarps[kWaveTiles] = {8, 6, 4};

// How thread blocks share an SM.
struct StreamLaunch {
  int num_warps;
  int smem_bytes;
  bool is_one_wave;

  // As many warps as have room, and serve tiles of num_chunks, the mean, best. In one wave, each
  // thread block asks for so much shared memory that no SM takes more than its share: thread blocks
  // that come while the previous kernel ends would crowd where it ends first.
  template <class Policy>
  Status Choose(int64_t num_tiles, double num_chunks, int num_sms) {
    int sm_bytes = 0;
    BLOCKSPARSE_RETURN_IF_ERROR(
        FindAttribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, &sm_bytes));
    int max_bytes = 0;
    BLOCKSPARSE_RETURN_IF_ERROR(FindMaxSmem(&max_bytes));
    is_one_wave = num_tiles <= int64_t{kWaveTiles} * num_sms;
    const int tiles_per_sm =
        is_one_wave ? static_cast<int>((num_tiles + num_sms - 1) / num_sms) : kWaveTiles;
    const auto share = [&](int count) { return sm_bytes / count - kReservedSmemBytes; };
    num_warps = is_one_wave ? kWaveWarps[tiles_per_sm - 1]
                            : ChooseWarps<Policy>(num_tiles, num_chunks, num_sms, sm_bytes);
    while (num_warps > 1 && Policy::SmemBytes(num_warps) > std::min(share(tiles_per_sm), max_bytes))
      --num_warps;
    smem_bytes = Policy::SmemBytes(num_warps);
    if (is_one_wave)
      smem_bytes = std::max(smem_bytes, std::min(share(tiles_per_sm + 1) + 1, max_bytes));
    return Status();
  }

 private:
  // In several waves. Warps divide a tile's chunks, which takes less time, but more of it is spent
  // before the first chunk has come and after the last: about as much as seven chunks take. The
  // number with which waves end soonest; one where they are many. Measured on an H200.
  template <class Policy>
  static int ChooseWarps(int64_t num_tiles, double num_chunks, int num_sms, int sm_bytes) {
    const auto waves = [&](int num_warps) {
      const int per_sm = sm_bytes / (Policy::SmemBytes(num_warps) + kReservedSmemBytes);
      return static_cast<double>(num_tiles) / (num_sms * std::max(per_sm, 1));
    };
    if (waves(4) >= 6.5) return 1;
    int best = 4;
    double least = 0;
    for (int num_warps = 4; num_warps >= (waves(4) < 2 ? 3 : 2); --num_warps) {
      const double cost = std::ceil(waves(num_warps) - 0.05) * (7 + num_chunks / num_warps);
      if (num_warps < 4 && cost >= least) continue;
      least = cost;
      best = num_warps;
    }
    return best;
  }
};

// Copies kRows rows of kCols elements, `stride` apart in global memory, by one warp.
template <typename T, int kRows, int kCols>
struct WarpCopy {
  static constexpr int kVector = kVectorBytes / sizeof(T);
  static constexpr int kVectorsPerRow = kCols / kVector;
  static constexpr int kRowsPerPass = kWarpSize / kVectorsPerRow;
  static_assert(kWarpSize % kVectorsPerRow == 0, "a pass copies whole rows");

  static __device__ __forceinline__ int Row() { return Lane() / kVectorsPerRow; }
  static __device__ __forceinline__ int Col() { return Lane() % kVectorsPerRow * kVector; }

  // Fills the tile from (first_row, first_col) on. is_wanted(row, col): whether the vector there
  // exists; zeros otherwise.
  template <class SharedTile, class F>
  static __device__ __forceinline__ void Load(SharedTile tile, int first_row, int first_col,
                                              const T* global, int64_t stride, F is_wanted) {
    const T* from = global + Row() * stride + Col();
#pragma unroll
    for (int row = 0; row < kRows; row += kRowsPerPass) {
      if (kRows % kRowsPerPass == 0 || row + Row() < kRows)
        CopyVectorAsync(tile.At(first_row + row + Row(), first_col + Col()), from + row * stride,
                        is_wanted(row + Row(), Col()));
    }
  }
};

// What one warp of a thread block does: the chunks [begin, end) of its column.
template <class Policy>
struct StreamWarp {
  using T = typename Policy::T;
  using Math = typename Policy::Math;
  static constexpr int kStages = Policy::kStages;
  static constexpr int kPieces = Policy::kPieces;
  static constexpr int kPieceDepth = Policy::kPieceDepth;
  static constexpr int kWindow = kWarpSize / kPieces;

  const StreamParams<T>& p;
  T* ring;
  float* gates;  // of the pieces of each stage
  const T* x;    // the first sample of the tile
  int num_valid;
  int first_col;           // of the block, where this thread block's columns start
  int64_t first_entry;     // of the column
  int num_entries;         // of the column
  int log_chunks;          // log2 of the chunks in a block, 0 where a chunk holds several blocks
  int first_chunk;         // of this warp
  int step;                // from one of its chunks to the next: the number of warps
  int window = -1;         // its steps window * kWindow to window * kWindow + kWindow - 1,
  LutEntry entry = {};     // kPieces lanes to each: the entry of one piece
  float entry_gate = 0.f;  // and its gate
  float sums[Policy::kRowTiles][Policy::kColTiles][4] = {};

  // A window of the table; entries to blocks that there are not become -1.
  __device__ __forceinline__ void ReadEntries(int next) {
    window = next;
    const int chunk = Chunk(window * kWindow + Lane() / kPieces);
    const int idx = kPieces > 1 ? chunk * kPieces + Lane() % kPieces : chunk >> log_chunks;
    entry = {-1, -1};
    if (idx < num_entries) entry = p.direction.entries[first_entry + idx];
    if (!IsValid(entry, p.direction.num_inputs, p.num_blocks)) entry = {-1, -1};
  }

  // And those to blocks whose gate is 0. Another kernel may have made the gates.
  __device__ __forceinline__ void ReadGates() {
    if (p.gate == nullptr) return;
    entry_gate = entry.index >= 0 ? p.gate[entry.block] : 0.f;
    if (entry_gate == 0.f) entry = {-1, -1};
  }

  // What the ring takes first, of blocks that are one piece.
  __device__ __forceinline__ void PrefetchBlocks() const {
    if (Lane() < kStages * kPieces && entry.index >= 0)
      PrefetchBytes(p.w + entry.block * int64_t{kPieceDepth * Policy::kWidth},
                    kPieceDepth * Policy::kWidth * sizeof(T));
  }

  // Starts copying the i-th chunk of this warp.
  __device__ __forceinline__ void LoadChunk(int i, int stage) {
    const typename Policy::TileX to_x = {ring + stage * Policy::kStageElements};
    const typename Policy::TileW to_w = {to_x.data + Policy::kSizeX};
    if (i / kWindow != window) {
      ReadEntries(i / kWindow);
      ReadGates();
    }
    const int depth = (Chunk(i) & ((1 << log_chunks) - 1)) * kPieceDepth;
#pragma unroll
    for (int j = 0; j < kPieces; ++j) {
      const int lane = i % kWindow * kPieces + j;
      const LutEntry piece = {__shfl_sync(~0u, entry.index, lane),
                              __shfl_sync(~0u, entry.block, lane)};
      if (p.gate != nullptr) {
        const float gate = __shfl_sync(~0u, entry_gate, lane);
        if (Lane() == 0) gates[stage * kPieces + j] = gate;
      }
      const bool is_wanted = piece.index >= 0;
      const int64_t feature = is_wanted ? piece.index * int64_t{p.block_size} + depth : 0;
      if constexpr (Policy::kIsAxis1) {
        WarpCopy<T, Policy::kBatchTile, kPieceDepth>::Load(
            to_x, 0, j * kPieceDepth, x + feature, p.x_stride,
            [&](int row, int) { return is_wanted && row < num_valid; });
      } else {
        WarpCopy<T, kPieceDepth, Policy::kBatchTile>::Load(
            to_x, j * kPieceDepth, 0, x + feature * p.x_stride, p.x_stride,
            [&](int, int col) { return is_wanted && col < num_valid; });
      }
      const T* block = p.w + (is_wanted ? piece.block : 0) * int64_t{p.block_size} * p.block_size;
      const auto is_wanted_w = [&](int, int) { return is_wanted; };
      if constexpr (Policy::kIsDx) {
        WarpCopy<T, Policy::kWidth, kPieceDepth>::Load(to_w, 0, j * kPieceDepth,
                                                       block + first_col * p.block_size + depth,
                                                       p.block_size, is_wanted_w);
      } else {
        WarpCopy<T, kPieceDepth, Policy::kWidth>::Load(to_w, j * kPieceDepth, 0,
                                                       block + depth * p.block_size + first_col,
                                                       p.block_size, is_wanted_w);
      }
    }
  }

  __device__ __forceinline__ void MultiplyStage(int stage) {
    const typename Policy::TileX tile_x = {ring + stage * Policy::kStageElements};
    const typename Policy::TileW tile_w = {tile_x.data + Policy::kSizeX};
    constexpr int kUnroll = Math::kDepth == 1 ? 4 : Policy::kChunk / Math::kDepth;
#pragma unroll kUnroll
    for (int depth = 0; depth < Policy::kChunk; depth += Math::kDepth) {
      typename Math::FragmentB w_fragments[Policy::kColTiles];
      Math::template LoadB<Policy::kIsDx>(w_fragments, tile_w, depth, 0);
      if (p.gate != nullptr) {
        const float* gate = gates + stage * kPieces;
        const float g[2] = {gate[depth / kPieceDepth],
                            gate[(depth + Math::kDepth / 2) / kPieceDepth]};
#pragma unroll
        for (auto& fragment : w_fragments) Math::ScaleB(fragment, g);
      }
#pragma unroll
      for (int i = 0; i < Policy::kRowTiles; ++i) {
        typename Math::FragmentA x_fragment;
        Math::template LoadA<Policy::kIsAxis1>(x_fragment, tile_x, i * kMmaRows, depth);
#pragma unroll
        for (int j = 0; j < Policy::kColTiles; ++j)
          Math::Multiply(sums[i][j], x_fragment, w_fragments[j]);
      }
    }
  }

  __device__ __forceinline__ void Run(int num_steps) {
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) {
      if (i < num_steps) LoadChunk(i, i);
      CommitCopies();
    }
    int stage = 0;
    for (int i = 0; i < num_steps; ++i) {
      WaitForCopies<kStages - 2>();
      __syncwarp();  // the chunk is there for every lane, and all have left the stage filled next
      if (i + kStages - 1 < num_steps)
        LoadChunk(i + kStages - 1, stage == 0 ? kStages - 1 : stage - 1);
      CommitCopies();
      MultiplyStage(stage);
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    WaitForCopies<0>();
    __syncwarp();  // the ring becomes room for the sums
  }

  // The sums, each lane's four of a fragment together.
  __device__ __forceinline__ void StoreSums() const {
    float4* to = reinterpret_cast<float4*>(ring) + Lane();
#pragma unroll
    for (int i = 0; i < Policy::kRowTiles; ++i)
#pragma unroll
      for (int j = 0; j < Policy::kColTiles; ++j)
        to[(i * Policy::kColTiles + j) * kWarpSize] =
            make_float4(sums[i][j][0], sums[i][j][1], sums[i][j][2], sums[i][j][3]);
  }

 private:
  __device__ __forceinline__ int Chunk(int i) const { return first_chunk + i * step; }
};

template <class Policy>
__global__ void MatmulStreamKernel(const __grid_constant__ StreamParams<typename Policy::T> p) {
  using T = typename Policy::T;
  extern __shared__ __align__(kVectorBytes) unsigned char smem[];
  const int warp = threadIdx.x / kWarpSize;
  const int num_warps = blockDim.x / kWarpSize;

  LetNextKernelStart();
  const uint32_t tile = blockIdx.x / static_cast<uint32_t>(p.batch_tiles);
  const int64_t n = (blockIdx.x - tile * p.batch_tiles) * int64_t{Policy::kBatchTile};
  const uint32_t place = tile >> p.log_slices;
  const int64_t column = p.is_one_wave ? place : p.direction.order[place];
  const bool is_valid = column >= 0 && column < p.direction.num_outputs;
  const EntryRange range =
      is_valid ? ColumnEntries(p.direction, p.num_blocks, column) : EntryRange{0, 0};
  const int num_valid = static_cast<int>(min(p.batch - n, int64_t{Policy::kBatchTile}));
  const int first_col = static_cast<int>(tile - (place << p.log_slices)) * Policy::kWidth;
  const int num_entries = static_cast<int>(range.end - range.begin);
  const int log_chunks = max(0, __ffs(p.block_size / Policy::kChunk) - 1);

  unsigned char* room = smem + warp * Policy::kWarpBytes;
  float* gates =
      reinterpret_cast<float*>(smem + num_warps * Policy::kWarpBytes) + warp * Policy::kGates;
  const int64_t sample_stride = Policy::kIsAxis1 ? p.x_stride : 1;
  StreamWarp<Policy> work = {p,           reinterpret_cast<T*>(room),
                             gates,       p.x + n * sample_stride,
                             num_valid,   first_col,
                             range.begin, num_entries,
                             log_chunks,  warp,
                             num_warps};
  work.ReadEntries(0);
  if (p.prefetches) work.PrefetchBlocks();
  WaitForPreviousKernel();  // before this, only the tables have been read
  if (!is_valid) return;    // a damaged table
  work.ReadGates();
  const int num_chunks = ((num_entries << log_chunks) + Policy::kPieces - 1) / Policy::kPieces;
  work.Run(num_chunks > warp ? (num_chunks - warp + num_warps - 1) / num_warps : 0);
  work.StoreSums();
  __syncthreads();

  // Adds the warps' sums in their order. A lane has two rows of a fragment, two neighbours in each:
  // y is a small part of what moves, and takes no way through shared memory.
  const int64_t feature = column * p.block_size + first_col;
  const int64_t pitch = Policy::kIsAxis1Y ? p.direction.num_outputs * p.block_size : p.batch;
  for (int v = threadIdx.x; v < Policy::kSums / 4; v += blockDim.x) {
    float sum[4] = {};
    for (int i = 0; i < num_warps; ++i) {
      const float4 part = reinterpret_cast<const float4*>(smem + i * Policy::kWarpBytes)[v];
      sum[0] += part.x;
      sum[1] += part.y;
      sum[2] += part.z;
      sum[3] += part.w;
    }
    const int fragment = v / kWarpSize;
    const int col = fragment % Policy::kColTiles * kMmaCols + MmaCol();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = fragment / Policy::kColTiles * kMmaRows + MmaRow() + half * 8;
      if (row >= num_valid) continue;
      const Neighbours<T> pair = {T(sum[half * 2]), T(sum[half * 2 + 1])};
      if constexpr (Policy::kIsAxis1Y) {
        *reinterpret_cast<Neighbours<T>*>(p.y + (n + row) * pitch + feature + col) = pair;
      } else {
        T* to = p.y + (feature + col) * pitch + n + row;
        to[0] = pair.low;
        to[pitch] = pair.high;
      }
    }
  }
}

template <class Policy>
Status LaunchMatmulStream(const MatmulArgs& args, Stream stream) {
  using T = typename Policy::T;
  const Direction& direction = args.is_dx ? args.layout.dx : args.layout.fprop;
  const int64_t batch_tiles = (args.batch + Policy::kBatchTile - 1) / Policy::kBatchTile;
  int log_slices = 0;
  while (Policy::kWidth << log_slices < args.layout.block_size) ++log_slices;
  const int64_t num_tiles = (direction.num_outputs << log_slices) * batch_tiles;
  if (num_tiles == 0) return Status();
  int num_sms = 0;
  BLOCKSPARSE_RETURN_IF_ERROR(CountSms(&num_sms));
  StreamLaunch launch = {};
  const double num_chunks = static_cast<double>(args.layout.num_blocks) * args.layout.block_size /
                            (Policy::kChunk * static_cast<double>(direction.num_outputs));
  BLOCKSPARSE_RETURN_IF_ERROR(launch.Choose<Policy>(num_tiles, num_chunks, num_sms));
  const bool is_copy = Policy::kIsAxis1Y && !Policy::kIsAxis1;
  if (is_copy) BLOCKSPARSE_RETURN_IF_ERROR(TransposeForStream(args, stream));
  const int64_t x_stride = is_copy            ? StreamPitch(args.batch)
                           : Policy::kIsAxis1 ? direction.num_inputs * args.layout.block_size
                                              : args.batch;
  // Where one thread block fills an SM, it starts too late for that to pay.
  const bool prefetches = num_tiles > num_sms && launch.is_one_wave && args.gate == nullptr &&
                          args.layout.block_size == Policy::kPieceDepth;
  const StreamParams<T> params = {direction,
                                  args.layout.num_blocks,
                                  args.batch,
                                  args.layout.block_size,
                                  static_cast<int>(batch_tiles),
                                  log_slices,
                                  launch.is_one_wave,
                                  prefetches,
                                  static_cast<const T*>(is_copy ? args.workspace : args.x),
                                  x_stride,
                                  static_cast<const T*>(args.w),
                                  args.gate,
                                  static_cast<T*>(args.y)};
  return LaunchEarly("MatmulStreamKernel", MatmulStreamKernel<Policy>, num_tiles,
                     launch.num_warps * kWarpSize, launch.smem_bytes, stream, params);
}

template <class Math>
Status MatmulStreamFor(const MatmulArgs& args, Stream stream) {
  const bool is_copied = StreamWorkspaceBytes(args) > 0;
  return WithBool(args.batch > 32, [&](auto is_wide) {
    return WithBool(args.is_dx, [&](auto is_dx) {
      const auto launch = [&](auto width, auto is_x_axis_1, auto is_y_axis_1) {
        constexpr Major kMajorX = is_x_axis_1() ? Major::kDepth : Major::kOther;
        constexpr Major kMajorY = is_y_axis_1() ? Major::kDepth : Major::kOther;
        constexpr Major kMajorW = is_dx() ? Major::kDepth : Major::kOther;
        using Policy = StreamPolicy<Math, is_wide() ? 64 : 32, width(), kMajorX, kMajorW, kMajorY>;
        return LaunchMatmulStream<Policy>(args, stream);
      };
      const auto launch_width = [&](auto width) {
        if constexpr (width() < 32) {
          if (is_copied) return launch(width, std::false_type{}, std::true_type{});
        }
        return args.feature_axis == 1 ? launch(width, std::true_type{}, std::true_type{})
                                      : launch(width, std::false_type{}, std::false_type{});
      };
      if (args.layout.block_size == 8) return launch_width(Int<8>{});
      if (args.layout.block_size == 16) return launch_width(Int<16>{});
      return launch_width(Int<32>{});
    });
  });
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_STREAM_CUH_

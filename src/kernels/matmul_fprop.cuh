// y = x W and dx = dy W^T: one thread block computes 128 rows of the batch by one block column of
// the result.
//
// It walks the column's entries in table order. Each brings a 128 x B tile of x and its block of W;
// W^T is the same block read in the other orientation, so nothing is stored or transposed twice.
// The longest columns come first, and all columns of one batch tile run side by side, so that x is
// read from device memory about once.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_FPROP_CUH_
#define BLOCKSPARSE_KERNELS_MATMUL_FPROP_CUH_

#include "src/kernels/common/cuda_launch.h"
#include "src/kernels/matmul.h"
#include "src/kernels/matmul_tile.cuh"

namespace blocksparse {

template <typename T>
struct FpropParams {
  Direction direction;
  int64_t num_blocks;
  int64_t batch;
  const T* x;
  const T* w;
  const float* gate;
  T* y;
  bool is_x_aligned;  // rows of x start on 16 bytes and hold whole vectors
  bool is_w_aligned;
  bool is_y_aligned;
};

// Copies the pieces of x and W that make one chunk.
template <class Policy>
struct FpropLoader {
  using T = typename Policy::T;
  static constexpr int kBlockSize = Policy::kBlockSize;
  static constexpr int kVector = Policy::kVector;
  static constexpr int kDepth = Policy::kPieceDepth;
  static constexpr bool kIsAxis1 = Policy::kMajorA == Major::kDepth;
  static constexpr bool kIsDx = Policy::kMajorB == Major::kDepth;

  // x[N, C]: rows are samples; x[C, N]: rows are features. W: rows of the block as stored.
  using CopyX = TileCopy<T, kIsAxis1 ? Policy::kTileRows : kDepth,
                         kIsAxis1 ? kDepth : Policy::kTileRows, Policy::kThreads>;
  using CopyW =
      TileCopy<T, kIsDx ? kBlockSize : kDepth, kIsDx ? kDepth : kBlockSize, Policy::kThreads>;

  const FpropParams<T>& p;
  EntryRange range;
  const T* x;     // the first sample of the tile
  int num_valid;  // samples of the tile that exist
  CopyX copy_x;
  CopyW copy_w;

  __device__ __forceinline__ FpropLoader(const FpropParams<T>& params, int64_t batch_begin,
                                         EntryRange entries)
      : p(params),
        range(entries),
        x(params.x + batch_begin * SampleStride()),
        num_valid(static_cast<int>(min(params.batch - batch_begin, int64_t{Policy::kTileRows}))),
        copy_x([&](int row, int col) {
          return kIsAxis1 ? row * SampleStride() + col : row * params.batch + col;
        }),
        copy_w([](int row, int col) { return row * kBlockSize + col; }) {}

  __device__ __forceinline__ void Load(int64_t chunk, StageOf<Policy> stage, float* gates) const {
#pragma unroll
    for (int i = 0; i < Policy::kPiecesPerChunk; ++i) {
      const int64_t piece = chunk * Policy::kPiecesPerChunk + i;
      const int64_t entry_idx = range.begin + piece / Policy::kPiecesPerBlock;
      const int block_depth = static_cast<int>(piece % Policy::kPiecesPerBlock) * kDepth;
      LutEntry entry = {-1, -1};
      if (entry_idx < range.end) entry = p.direction.entries[entry_idx];
      bool is_wanted = IsValid(entry, p.direction.num_inputs, p.num_blocks);
      if (p.gate != nullptr) {
        const float gate = is_wanted ? p.gate[entry.block] : 0.f;
        if (threadIdx.x == 0) gates[i] = gate;
        is_wanted = gate != 0.f;
      }
      if (!is_wanted) entry = {0, 0};
      const int limit = is_wanted ? num_valid : 0;
      const int64_t feature = entry.index * int64_t{kBlockSize} + block_depth;
      copy_x.Load(stage.a, kIsAxis1 ? 0 : i * kDepth, kIsAxis1 ? i * kDepth : 0,
                  x + feature * FeatureStride(), p.is_x_aligned, [&](int row, int col) {
                    return kIsAxis1 ? (row < limit ? kVector : 0) : limit - col;
                  });
      const T* block = p.w + entry.block * int64_t{kBlockSize * kBlockSize};
      copy_w.Load(stage.b, kIsDx ? 0 : i * kDepth, kIsDx ? i * kDepth : 0,
                  block + block_depth * (kIsDx ? 1 : kBlockSize), p.is_w_aligned,
                  [&](int, int) { return is_wanted ? kVector : 0; });
    }
  }

 private:
  __device__ __forceinline__ int64_t SampleStride() const {
    return kIsAxis1 ? p.direction.num_inputs * kBlockSize : 1;
  }
  __device__ __forceinline__ int64_t FeatureStride() const { return kIsAxis1 ? 1 : p.batch; }
};

template <class Policy>
__global__ void __launch_bounds__(Policy::kThreads)
    MatmulFpropKernel(const __grid_constant__ FpropParams<typename Policy::T> p) {
  using T = typename Policy::T;
  constexpr int kBlockSize = Policy::kBlockSize;
  extern __shared__ __align__(kVectorBytes) unsigned char smem[];
  __shared__ float gates[Policy::kStages * Policy::kPiecesPerChunk];

  const int64_t column = p.direction.order[blockIdx.x % p.direction.num_outputs];
  if (column < 0 || column >= p.direction.num_outputs) return;  // a damaged table
  const int64_t batch_begin = blockIdx.x / p.direction.num_outputs * Policy::kTileRows;
  const EntryRange range = ColumnEntries(p.direction, p.num_blocks, column);

  FpropLoader<Policy> loader(p, batch_begin, range);
  const int64_t num_pieces = (range.end - range.begin) * Policy::kPiecesPerBlock;
  const int64_t num_chunks = (num_pieces + Policy::kPiecesPerChunk - 1) / Policy::kPiecesPerChunk;
  WarpTile<Policy> tile;
  MultiplyTile(tile, loader, num_chunks, reinterpret_cast<T*>(smem),
               p.gate == nullptr ? nullptr : gates);

  if constexpr (Policy::kMajorA == Major::kDepth) {
    StoreTile<Policy, T, false>(tile, smem, p.is_y_aligned, [&](int row) {
      const int64_t n = batch_begin + row;
      return Destination<T>{p.y + (n * p.direction.num_outputs + column) * kBlockSize,
                            n < p.batch ? kBlockSize : 0};
    });
  } else {
    StoreTile<Policy, T, true>(tile, smem, p.is_y_aligned, [&](int row) {
      return Destination<T>{p.y + (column * kBlockSize + row) * p.batch + batch_begin,
                            p.batch - batch_begin};
    });
  }
}

template <class Policy>
Status LaunchMatmulFprop(const MatmulArgs& args, Stream stream) {
  using T = typename Policy::T;
  const Direction& direction = args.is_dx ? args.layout.dx : args.layout.fprop;
  const int64_t batch_tiles = (args.batch + Policy::kTileRows - 1) / Policy::kTileRows;
  const bool are_rows_whole = args.feature_axis == 1 || args.batch % Policy::kVector == 0;
  const FpropParams<T> params = {direction,
                                 args.layout.num_blocks,
                                 args.batch,
                                 static_cast<const T*>(args.x),
                                 static_cast<const T*>(args.w),
                                 args.gate,
                                 static_cast<T*>(args.y),
                                 are_rows_whole && IsVectorAligned(args.x),
                                 IsVectorAligned(args.w),
                                 are_rows_whole && IsVectorAligned(args.y)};
  return Launch("MatmulFpropKernel", MatmulFpropKernel<Policy>, batch_tiles * direction.num_outputs,
                Policy::kThreads, Policy::kSmemBytes, stream, params);
}

// fprop or dx for one arithmetic and block size.
template <class Math, int kBlockSize>
Status MatmulFpropFor(const MatmulArgs& args, Stream stream) {
  return WithBool(args.feature_axis == 1, [&](auto is_axis_1) {
    return WithBool(args.is_dx, [&](auto is_dx) {
      constexpr Major kMajorX = is_axis_1() ? Major::kDepth : Major::kOther;
      constexpr Major kMajorW = is_dx() ? Major::kDepth : Major::kOther;
      return LaunchMatmulFprop<MatmulPolicy<Math, kBlockSize, kMajorX, kMajorW>>(args, stream);
    });
  });
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_FPROP_CUH_

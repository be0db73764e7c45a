// dw[b] = sum over pairs and batch of x^T dy: one thread block computes one item of the layout's
// table, up to 128 / B blocks of one block column, stacked. They share the column's tile of dy, and
// B = 8 too fills the tensor cores.
//
// The depth is the batch of all pairs, one after the other, each padded with zeros to whole chunks.
// Where few items meet a long batch, it is split over several thread blocks; their float32 partial
// sums go to a workspace and are added in a fixed order.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_DW_CUH_
#define BLOCKSPARSE_KERNELS_MATMUL_DW_CUH_

#include "src/kernels/common/cuda_launch.h"
#include "src/kernels/matmul_instances.h"
#include "src/kernels/matmul_tile.cuh"

namespace blocksparse {

struct DwParams {
  Layout layout;
  const float* gate;
  void* dw;          // T or float, or the workspace: num_splits copies of float
  bool is_dw_float;  // also when T is float
  bool is_dw_aligned;
  bool are_pairs_aligned;
  int num_pairs;
  int num_splits;
  int64_t chunks_per_split;
  MatmulPair pairs[kMaxMatmulPairs];
};

// Chunks of one pair's batch.
template <class Policy>
BLOCKSPARSE_HOST_DEVICE int64_t NumChunks(int64_t batch) {
  return (batch + Policy::kChunk - 1) / Policy::kChunk;
}

// Copies the next chunk of the batch: x for each stacked block, dy for their column.
template <class Policy>
struct DwLoader {
  using T = typename Policy::T;
  static constexpr int kBlockSize = Policy::kBlockSize;
  static constexpr int kVector = Policy::kVector;
  static constexpr int kChunk = Policy::kChunk;
  static constexpr bool kIsAxis1 = Policy::kMajorA == Major::kOther;

  // [N, features]: rows are samples; [features, N]: rows are features.
  template <int kFeatures>
  using Copy =
      TileCopy<T, kIsAxis1 ? kChunk : kFeatures, kIsAxis1 ? kFeatures : kChunk, Policy::kThreads>;

  const DwParams& p;
  const int* in_blocks;  // shared memory: the input block of each stacked block, -1 for none
  int out_block;
  Copy<Policy::kTileRows> copy_x;
  Copy<kBlockSize> copy_dy;
  int pair_idx = 0;
  int64_t n = 0;  // the next chunk's first sample

  // Starts at a chunk of the concatenated batches.
  __device__ __forceinline__ DwLoader(const DwParams& params, const int* blocks, int column,
                                      int64_t chunk)
      : p(params), in_blocks(blocks), out_block(column) {
    while (pair_idx < p.num_pairs && chunk >= NumChunks<Policy>(p.pairs[pair_idx].batch)) {
      chunk -= NumChunks<Policy>(p.pairs[pair_idx].batch);
      ++pair_idx;
    }
    n = chunk * kChunk;
    if (pair_idx < p.num_pairs) FindOffsets();
  }

  __device__ __forceinline__ void Load(int64_t, StageOf<Policy> stage, float*) {
    const MatmulPair& pair = p.pairs[pair_idx];
    const int limit = static_cast<int>(min(pair.batch - n, int64_t{kChunk}));
    const auto num_valid = [&](int row, int col) {
      return kIsAxis1 ? (row < limit ? kVector : 0) : limit - col;
    };
    copy_x.Load(stage.a, 0, 0, static_cast<const T*>(pair.x) + n * SampleStride(p.layout.in_blocks),
                p.are_pairs_aligned, [&](int row, int col) {
                  return InBlock(kIsAxis1 ? col : row) < 0 ? 0 : num_valid(row, col);
                });
    copy_dy.Load(stage.b, 0, 0,
                 static_cast<const T*>(pair.dy) + n * SampleStride(p.layout.out_blocks),
                 p.are_pairs_aligned, num_valid);
    n += kChunk;
    if (n >= pair.batch) StartNextPair();
  }

 private:
  __device__ __forceinline__ int InBlock(int feature) const {
    return in_blocks[feature / kBlockSize];
  }

  __device__ __forceinline__ int64_t SampleStride(int64_t num_blocks) const {
    return kIsAxis1 ? num_blocks * kBlockSize : 1;
  }

  __device__ __forceinline__ void StartNextPair() {
    do {
      ++pair_idx;
    } while (pair_idx < p.num_pairs && p.pairs[pair_idx].batch == 0);
    n = 0;
    if (pair_idx < p.num_pairs) FindOffsets();
  }

  // Where this thread's vectors lie; for features first that depends on the pair's batch.
  __device__ __forceinline__ void FindOffsets() {
    const int64_t batch = p.pairs[pair_idx].batch;
    const auto offset = [&](int64_t num_blocks, int64_t block, int row, int col) {
      return kIsAxis1 ? (row * num_blocks + block) * kBlockSize + col % kBlockSize
                      : (block * kBlockSize + row % kBlockSize) * batch + col;
    };
    copy_x = decltype(copy_x)([&](int row, int col) {
      return offset(p.layout.in_blocks, max(InBlock(kIsAxis1 ? col : row), 0), row, col);
    });
    copy_dy = decltype(copy_dy)(
        [&](int row, int col) { return offset(p.layout.out_blocks, out_block, row, col); });
  }
};

template <class Policy>
__global__ void __launch_bounds__(Policy::kThreads)
    MatmulDwKernel(const __grid_constant__ DwParams p) {
  using T = typename Policy::T;
  constexpr int kBlockSize = Policy::kBlockSize;
  constexpr int kMaxStack = Policy::kTileRows / kBlockSize;
  extern __shared__ __align__(kVectorBytes) unsigned char smem[];
  __shared__ int in_blocks[kMaxStack];  // -1: nothing to compute
  __shared__ int block_ids[kMaxStack];  // -1: nothing to store
  __shared__ int out_block;

  const int64_t num_items = p.layout.num_dw_items;
  const LutEntry item = p.layout.dw_items[blockIdx.x % num_items];  // {first entry, count}
  const int split = static_cast<int>(blockIdx.x / num_items);
  if (threadIdx.x == 0) out_block = -1;
  __syncthreads();
  if (threadIdx.x < kMaxStack) {
    const int i = threadIdx.x;
    const int64_t entry_idx = int64_t{item.index} + i;
    LutEntry entry = {-1, -1};
    if (i < item.block && entry_idx >= 0 && entry_idx < p.layout.num_blocks)
      entry = p.layout.fprop.entries[entry_idx];
    const bool is_valid = IsValid(entry, p.layout.in_blocks, p.layout.num_blocks);
    block_ids[i] = is_valid ? entry.block : -1;
    in_blocks[i] = is_valid && (p.gate == nullptr || p.gate[entry.block] != 0.f) ? entry.index : -1;
    if (i == 0 && is_valid) {
      const LutEntry coordinates = p.layout.blocks[entry.block];
      if (coordinates.block >= 0 && coordinates.block < p.layout.out_blocks)
        out_block = coordinates.block;
    }
  }
  __syncthreads();
  if (out_block < 0) return;  // a damaged table

  int64_t num_chunks = 0;
  for (int i = 0; i < p.num_pairs; ++i) num_chunks += NumChunks<Policy>(p.pairs[i].batch);
  const int64_t first_chunk = split * p.chunks_per_split;
  const int64_t last_chunk = min(first_chunk + p.chunks_per_split, num_chunks);

  DwLoader<Policy> loader(p, in_blocks, out_block, first_chunk);
  WarpTile<Policy> tile;
  MultiplyTile(tile, loader, max(last_chunk - first_chunk, int64_t{0}), reinterpret_cast<T*>(smem),
               nullptr);

  const auto store = [&](auto* dw) {
    using Out = std::remove_pointer_t<decltype(dw)>;
    StoreTile<Policy, Out, false>(tile, smem, p.is_dw_aligned, [&](int row) {
      const int block = block_ids[row / kBlockSize];
      const int64_t copy = split * p.layout.num_blocks;
      Out* pointer = dw + ((copy + max(block, 0)) * kBlockSize + row % kBlockSize) * kBlockSize;
      return Destination<Out>{pointer, block >= 0 ? kBlockSize : 0};
    });
  };
  if (p.is_dw_float) {
    store(static_cast<float*>(p.dw));
  } else {
    store(static_cast<T*>(p.dw));
  }
}

template <class Policy>
DwSplit ChooseDwSplit(const MatmulDwArgs& args, int num_sms) {
  int64_t num_chunks = 0;
  for (int i = 0; i < args.num_pairs; ++i) num_chunks += NumChunks<Policy>(args.pairs[i].batch);
  // Two waves of items fill the device well enough; fewer are split until they make about two
  // waves.
  int64_t num_splits = 2 * num_sms / args.layout.num_dw_items;
  if (num_splits > num_chunks / kMinDwChunksPerSplit)
    num_splits = num_chunks / kMinDwChunksPerSplit;
  if (num_splits > kMaxDwSplits) num_splits = kMaxDwSplits;
  if (num_splits < 1) num_splits = 1;
  return {static_cast<int>(num_splits), (num_chunks + num_splits - 1) / num_splits};
}

template <class Policy>
Status LaunchMatmulDw(const MatmulDwArgs& args, const DwSplit& split, Stream stream) {
  DwParams params = {};
  params.layout = args.layout;
  params.gate = args.gate;
  params.is_dw_float = split.num_splits > 1 || args.dw_dtype == DType::kFloat32;
  params.dw = split.num_splits > 1 ? args.workspace : args.dw;
  params.is_dw_aligned = IsVectorAligned(params.dw);
  params.are_pairs_aligned = true;
  params.num_pairs = args.num_pairs;
  params.num_splits = split.num_splits;
  params.chunks_per_split = split.chunks_per_split;
  for (int i = 0; i < args.num_pairs; ++i) {
    const MatmulPair& pair = args.pairs[i];
    params.pairs[i] = pair;
    params.are_pairs_aligned &= IsVectorAligned(pair.x) && IsVectorAligned(pair.dy) &&
                                (args.feature_axis == 1 || pair.batch % Policy::kVector == 0);
  }
  return Launch("MatmulDwKernel", MatmulDwKernel<Policy>,
                args.layout.num_dw_items * split.num_splits, Policy::kThreads, Policy::kSmemBytes,
                stream, params);
}

// Calls f(Policy) with the dw policy of one arithmetic and block size.
template <class Math, int kBlockSize, class F>
Status WithDwPolicy(int feature_axis, F f) {
  return WithBool(feature_axis == 1, [&](auto is_axis_1) {
    constexpr Major kMajor = is_axis_1() ? Major::kOther : Major::kDepth;
    return f(MatmulPolicy<Math, kBlockSize, kMajor, kMajor>{});
  });
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_DW_CUH_

// The copy of x that the streaming products read where blocks are small: see matmul_stream.h.
#include "src/kernels/common/cuda_launch.h"
#include "src/kernels/matmul_stream.h"

namespace blocksparse {
namespace {

constexpr int kSamples = 64;  // of a tile
constexpr int kBytes = 64;    // of features of a tile
constexpr int kThreads = 256;
// Stored blocks of a block column, on average, from which on the copy pays. Measured on an H200.
constexpr int64_t kMinBlocks = 16;

struct TransposeParams {
  const void* x;
  void* copy;
  int64_t batch;
  int64_t features;
  int64_t pitch;
  int64_t sample_tiles;
};

// One tile a thread block. Word: an integer of an element's size.
template <typename Word>
__global__ void __launch_bounds__(kThreads)
    StreamTransposeKernel(const __grid_constant__ TransposeParams p) {
  constexpr int kFeatures = kBytes / sizeof(Word);
  constexpr int kVector = kVectorBytes / sizeof(Word);
  constexpr int kPitch = kSamples + kVector;
  __shared__ __align__(kVectorBytes) Word tile[kFeatures * kPitch];
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int64_t first_sample = blockIdx.x % p.sample_tiles * kSamples;
  const int64_t first_feature = blockIdx.x / p.sample_tiles * kFeatures;
  for (int v = threadIdx.x; v < kSamples * kBytes / kVectorBytes; v += kThreads) {
    const int sample = v / (kBytes / kVectorBytes);
    const int feature = v % (kBytes / kVectorBytes) * kVector;
    alignas(kVectorBytes) Word values[kVector] = {};
    if (first_sample + sample < p.batch && first_feature + feature < p.features)
      *reinterpret_cast<uint4*>(values) = *reinterpret_cast<const uint4*>(
          static_cast<const Word*>(p.x) + (first_sample + sample) * p.features + first_feature +
          feature);
#pragma unroll
    for (int i = 0; i < kVector; ++i) tile[(feature + i) * kPitch + sample] = values[i];
  }
  __syncthreads();
  for (int v = threadIdx.x; v < kSamples * kFeatures / kVector; v += kThreads) {
    const int feature = v / (kSamples / kVector);
    const int sample = v % (kSamples / kVector) * kVector;
    if (first_feature + feature < p.features)
      *reinterpret_cast<uint4*>(static_cast<Word*>(p.copy) + (first_feature + feature) * p.pitch +
                                first_sample + sample) =
          *reinterpret_cast<const uint4*>(tile + feature * kPitch + sample);
  }
}

int64_t NumFeatures(const MatmulArgs& args) {
  const Direction& direction = args.is_dx ? args.layout.dx : args.layout.fprop;
  return direction.num_inputs * args.layout.block_size;
}

}  // namespace

int64_t StreamWorkspaceBytes(const MatmulArgs& args) {
  const Direction& direction = args.is_dx ? args.layout.dx : args.layout.fprop;
  const bool is_wanted = args.feature_axis == 1 && args.layout.block_size < 32 &&
                         args.layout.num_blocks >= kMinBlocks * direction.num_outputs;
  return is_wanted ? NumFeatures(args) * StreamPitch(args.batch) * SizeOf(args.dtype) : 0;
}

Status TransposeForStream(const MatmulArgs& args, Stream stream) {
  const int64_t features = NumFeatures(args);
  const int64_t pitch = StreamPitch(args.batch);
  const TransposeParams params = {args.x,   args.workspace, args.batch,
                                  features, pitch,          pitch / kSamples};
  const int64_t tile_features = kBytes / SizeOf(args.dtype);
  const int64_t num_tiles = params.sample_tiles * ((features + tile_features - 1) / tile_features);
  return LaunchEarly(
      "StreamTransposeKernel",
      SizeOf(args.dtype) == 4 ? StreamTransposeKernel<uint32_t> : StreamTransposeKernel<uint16_t>,
      num_tiles, kThreads, 0, stream, params);
}

}  // namespace blocksparse

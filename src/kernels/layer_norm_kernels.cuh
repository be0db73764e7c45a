// What the kernels of the layer_norm room share: vectors in registers, sums over the threads of a
// row, and the two expressions that must be the same in both directions.
#ifndef BLOCKSPARSE_KERNELS_LAYER_NORM_KERNELS_CUH_
#define BLOCKSPARSE_KERNELS_LAYER_NORM_KERNELS_CUH_

#include "src/kernels/common/cuda_launch.h"
#include "src/kernels/common/dispatch.h"
#include "src/kernels/common/load_store.cuh"
#include "src/kernels/common/reduce.cuh"
#include "src/kernels/layer_norm.h"
#include "src/kernels/layer_norm_policy.h"

namespace blocksparse {

// Args with how many blocks share the samples of a segment: block s * num_splits + i is the i-th of
// segment s.
template <class Args>
struct SplitArgs {
  Args args;
  int64_t num_splits;
  // Where gradients go: the partial sum `split` of dg for all features; that of db follows.
  __device__ float* Partial(int64_t split) const {
    return args.workspace + split * 2 * args.features;
  }
};

// The two families of kernels. A gradient's splits are its partial sums.
Status LayerNormRowsGpu(const LayerNormArgs& args, Stream stream);
Status LayerNormRowsSplits(const LayerNormGradArgs& args, int64_t* num_splits);
Status LayerNormRowsGradGpu(const LayerNormGradArgs& args, int64_t num_splits, Stream stream);
Status LayerNormColumnsGpu(const LayerNormArgs& args, Stream stream);
Status LayerNormColumnsSplits(const LayerNormGradArgs& args, int64_t* num_splits);
Status LayerNormColumnsGradGpu(const LayerNormGradArgs& args, int64_t num_splits, Stream stream);
// Workspace of the parts of columns, where there are few.
int64_t LayerNormPartFloats(int64_t features, int64_t segments, int64_t batch);

// Neighbouring values that one instruction moves, if the pointer is aligned to their size.
template <typename T, int kVector>
struct alignas(sizeof(T) * kVector) Pack {
  T values[kVector];
};

template <int kVector, typename T>
__device__ __forceinline__ Pack<T, kVector> LoadPack(const T* from, bool is_wanted) {
  Pack<T, kVector> pack;
  if (is_wanted) {
    pack = *reinterpret_cast<const Pack<T, kVector>*>(from);
  } else {
#pragma unroll
    for (int j = 0; j < kVector; ++j) pack.values[j] = T(0.f);
  }
  return pack;
}

template <int kVector, typename T>
__device__ __forceinline__ void StorePack(const Pack<T, kVector>& pack, T* to) {
  *reinterpret_cast<Pack<T, kVector>*>(to) = pack;
}

// Whether vectors of 16 bytes fit: every row starts at a multiple of them.
template <typename T, class... Pointers>
bool FitsVectors(int64_t row_size, Pointers... pointers) {
  return row_size % (kVectorBytes / static_cast<int64_t>(sizeof(T))) == 0 &&
         (... && IsVectorAligned(pointers));
}

// g xhat + b. No compiler may contract it otherwise, so both directions agree on where relu is 0.
__device__ __forceinline__ float Affine(float xhat, float g, float b) { return fmaf(xhat, g, b); }

// NaN stays NaN.
__device__ __forceinline__ float Relu(float y, bool relu) { return relu && y <= 0.f ? 0.f : y; }

// dy where y depends on x, else 0.
__device__ __forceinline__ float Masked(float dy, float xhat, float g, float b, bool relu) {
  return relu && !(Affine(xhat, g, b) > 0.f) ? 0.f : dy;
}

// Replaces each value by its sum over lanes that differ in the bits of lane / kFrom below kTo /
// kFrom: each of them gets the same bits.
template <int kFrom, int kTo, class... Floats>
__device__ __forceinline__ void SumOverLanes(Floats&... values) {
#pragma unroll
  for (int offset = kFrom; offset < kTo; offset *= 2)
    ((values += __shfl_xor_sync(~0u, values, offset)), ...);
}

// Sums over the kThreads threads that share a row, for each of them; called by all threads of the
// block. Rows of several warps meet in shared memory, in two buffers by turns: when a thread writes
// to one for the second time, all have passed the barrier of the other, and so have read it.
template <int kThreads>
class RowSum {
 public:
  template <class... Floats>
  __device__ __forceinline__ void operator()(Floats&... values) {
    SumOverLanes<1, (kThreads < kWarpSize ? kThreads : kWarpSize)>(values...);
    if constexpr (kThreads > kWarpSize) {
      constexpr int kWarps = kThreads / kWarpSize;
      constexpr int kMaxValues = 2;
      static_assert(sizeof...(values) <= kMaxValues, "the buffers hold two values a warp");
      __shared__ float sums[2][kMaxValues][kWarps];
      float (&buffer)[kMaxValues][kWarps] = sums[turn_];
      turn_ ^= 1;
      int i = 0;
      if (threadIdx.x % kWarpSize == 0) ((buffer[i++][threadIdx.x / kWarpSize] = values), ...);
      __syncthreads();
      i = 0;
      ((values = SumOf(buffer[i++])), ...);
    }
  }

 private:
  template <int kSize>
  __device__ __forceinline__ static float SumOf(const float (&terms)[kSize]) {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < kSize; ++i) sum += terms[i];
    return sum;
  }

  int turn_ = 0;
};

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_LAYER_NORM_KERNELS_CUH_

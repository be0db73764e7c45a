// What the kernels of layer_norm.h for features last share: where a thread stands, and its part of
// a row.
#ifndef BLOCKSPARSE_KERNELS_LAYER_NORM_ROWS_CUH_
#define BLOCKSPARSE_KERNELS_LAYER_NORM_ROWS_CUH_

#include "src/kernels/layer_norm_kernels.cuh"

namespace blocksparse {

Status LayerNormLongRowsGpu(const LayerNormArgs& args, Stream stream);
Status LayerNormLongRowsGradGpu(const LayerNormGradArgs& args, int64_t num_splits, Stream stream);

// One thread's part of a row of `size` <= kCapacity values: kPacks vectors, kRowThreads vectors
// apart. Beyond the row's end it holds zeros.
template <typename T, class Tile>
struct RowPart {
  Pack<T, Tile::kVector> packs[Tile::kPacks];

  __device__ __forceinline__ static int Column(int i) {
    const int thread = threadIdx.x % Tile::kRowThreads;
    return (i / Tile::kVector * Tile::kRowThreads + thread) * Tile::kVector + i % Tile::kVector;
  }
  // f(i) for every value that lies in the row.
  template <class F>
  __device__ __forceinline__ static void ForEach(int size, F f) {
#pragma unroll
    for (int i = 0; i < Tile::kElements; ++i) {
      if (Column(i) < size) f(i);
    }
  }
  __device__ __forceinline__ void Load(const T* row, int size, bool is_wanted = true) {
#pragma unroll
    for (int i = 0; i < Tile::kPacks; ++i) {
      const int column = Column(i * Tile::kVector);
      packs[i] = LoadPack<Tile::kVector>(row + column, is_wanted && column < size);
    }
  }
  __device__ __forceinline__ void Store(T* row, int size) const {
#pragma unroll
    for (int i = 0; i < Tile::kPacks; ++i) {
      const int column = Column(i * Tile::kVector);
      if (column < size) StorePack(packs[i], row + column);
    }
  }
  __device__ __forceinline__ float Get(int i) const {
    return static_cast<float>(packs[i / Tile::kVector].values[i % Tile::kVector]);
  }
  __device__ __forceinline__ void Set(int i, float value) {
    packs[i / Tile::kVector].values[i % Tile::kVector] = T(value);
  }
};

// A thread's part of g or b.
template <class Tile>
struct FeaturePart {
  float values[Tile::kElements];

  __device__ __forceinline__ void Load(const float* from, int size) {
    // Four floats fill a vector of 16 bytes.
    constexpr int kFloats = Tile::kVector < 4 ? Tile::kVector : 4;
#pragma unroll
    for (int i = 0; i < Tile::kElements; i += kFloats) {
      const int column = RowPart<float, Tile>::Column(i);
      const auto pack = LoadPack<kFloats>(from + column, column < size);
#pragma unroll
      for (int j = 0; j < kFloats; ++j) values[i + j] = pack.values[j];
    }
  }
};

// Where a block and a thread stand.
template <class Tile>
struct Place {
  int64_t size;  // L
  int64_t segment;
  int64_t split;
  int64_t first;  // the segment's first feature
  int64_t begin;  // the block's first sample; it takes kRows at a time, and comes back `step` later
  int64_t step;
  int row;  // which of the kRows is this thread's

  template <class Args>
  __device__ __forceinline__ explicit Place(const SplitArgs<Args>& p)
      : size(p.args.features / p.args.segments),
        segment(blockIdx.x / p.num_splits),
        split(blockIdx.x % p.num_splits),
        first(segment * size),
        begin(split * Tile::kRows),
        step(p.num_splits * Tile::kRows),
        row(threadIdx.x / Tile::kRowThreads) {}

  __device__ __forceinline__ bool IsRowStart() const {
    return threadIdx.x % Tile::kRowThreads == 0;
  }
};

// The mean and 1 / sqrt(variance + epsilon) of a row. for_each(f) calls f(value) for each of this
// thread's values.
template <class Sum, class ForEachValue>
__device__ __forceinline__ void Moments(int64_t size, float epsilon, Sum& row_sum,
                                        ForEachValue for_each, float* mean, float* rstd) {
  float sum = 0.f;
  for_each([&](float value) { sum += value; });
  row_sum(sum);
  const float rough_mean = sum / size;
  // The deviations' own mean is what rounding has left of the first sum.
  float shift = 0.f;
  float square = 0.f;
  for_each([&](float value) {
    const float deviation = value - rough_mean;
    shift += deviation;
    square = fmaf(deviation, deviation, square);
  });
  row_sum(shift, square);
  shift /= size;
  *mean = rough_mean + shift;
  *rstd = rsqrtf(fmaxf(square / size - shift * shift, 0.f) + epsilon);
}

// Calls f(value of T, Int<values in a load>).
template <class F, class... Pointers>
Status WithVector(DType dtype, int64_t row_size, F f, Pointers... pointers) {
  return WithGpuType(dtype, [&](auto t) {
    using T = decltype(t);
    if (FitsVectors<T>(row_size, pointers...))
      return f(t, Int<kVectorBytes / static_cast<int>(sizeof(T))>{});
    return f(t, Int<1>{});
  });
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_LAYER_NORM_ROWS_CUH_

// What the kernels of layer_norm.h for features first share: the moments of columns, in one pass.
#ifndef BLOCKSPARSE_KERNELS_LAYER_NORM_COLUMNS_CUH_
#define BLOCKSPARSE_KERNELS_LAYER_NORM_COLUMNS_CUH_

#include "src/kernels/layer_norm_kernels.cuh"

namespace blocksparse {

// Where there are few samples, several blocks share each column.
Status LayerNormFewColumnsGpu(const LayerNormArgs& args, Stream stream);
Status LayerNormFewColumnsSplits(const LayerNormGradArgs& args, int64_t* num_splits);
Status LayerNormFewColumnsGradGpu(const LayerNormGradArgs& args, int64_t num_splits, Stream stream);

// Count, mean and sum of squared deviations of values, for each column of a thread; the count is
// the same for all of them.
template <int kVector>
struct Moments {
  float count = 0.f;
  float mean[kVector] = {};
  float square[kVector] = {};

  __device__ __forceinline__ void Merge(float other_count, const float (&other_mean)[kVector],
                                        const float (&other_square)[kVector]) {
    const float total = count + other_count;
    const float share = total > 0.f ? other_count / total : 0.f;
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      const float delta = other_mean[j] - mean[j];
      square[j] += other_square[j] + delta * delta * count * share;
      mean[j] = fmaf(delta, share, mean[j]);
    }
    count = total;
  }

  // Merges with the lanes above that hold the same columns; the first row of the warp has the
  // result.
  template <int kLanes>
  __device__ __forceinline__ void MergeRowsOfWarp() {
#pragma unroll
    for (int offset = kLanes; offset < kWarpSize; offset *= 2) {
      float other_mean[kVector];
      float other_square[kVector];
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        other_mean[j] = __shfl_down_sync(~0u, mean[j], offset);
        other_square[j] = __shfl_down_sync(~0u, square[j], offset);
      }
      Merge(__shfl_down_sync(~0u, count, offset), other_mean, other_square);
    }
  }
};

// The values of kUnroll features kRows apart, from feature k on, of a thread's columns.
template <typename T, class Tile>
struct Chunk {
  Pack<T, Tile::kVector> packs[Tile::kUnroll];

  __device__ __forceinline__ void Load(const T* column, int64_t k, int64_t size, int64_t batch,
                                       bool is_wanted) {
#pragma unroll
    for (int u = 0; u < Tile::kUnroll; ++u) {
      const int64_t feature = k + u * Tile::kRows;
      packs[u] = LoadPack<Tile::kVector>(column + feature * batch, is_wanted && feature < size);
    }
  }
  __device__ __forceinline__ float Get(int u, int j) const {
    return static_cast<float>(packs[u].values[j]);
  }
};

// The moments of x - pivot, of a thread's columns over its features. The pivot, the column's first
// value, keeps the means that are merged as small as the deviations, so that their rounding is too.
template <typename T, class Tile>
__device__ __forceinline__ Moments<Tile::kVector> MomentsOfThread(
    const T* column, const Pack<T, Tile::kVector>& pivot, int row, int64_t size, int64_t batch,
    bool is_wanted) {
  constexpr int kVector = Tile::kVector;
  Moments<kVector> moments;
  for (int64_t k = row; k < size; k += Tile::kRows * Tile::kUnroll) {
    Chunk<T, Tile> chunk;
    chunk.Load(column, k, size, batch, is_wanted);
    int count = 0;
#pragma unroll
    for (int u = 0; u < Tile::kUnroll; ++u) count += k + u * Tile::kRows < size;
    float mean[kVector];
    float square[kVector];
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      float values[Tile::kUnroll];
      mean[j] = 0.f;
      square[j] = 0.f;
#pragma unroll
      for (int u = 0; u < Tile::kUnroll; ++u) {
        values[u] = chunk.Get(u, j) - static_cast<float>(pivot.values[j]);
        if (u < count) mean[j] += values[u];
      }
      mean[j] /= count;
#pragma unroll
      for (int u = 0; u < Tile::kUnroll; ++u) {
        const float deviation = u < count ? values[u] - mean[j] : 0.f;
        square[j] = fmaf(deviation, deviation, square[j]);
      }
    }
    moments.Merge(count, mean, square);
  }
  return moments;
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_LAYER_NORM_COLUMNS_CUH_

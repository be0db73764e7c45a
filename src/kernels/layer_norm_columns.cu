// layer_norm.h with the features first: strips of columns.
//
// A thread block owns a strip of neighbouring samples and walks down the features of a segment,
// many at a time; a load covers a whole row of the strip. A column does not fit into registers, so
// the strip is read twice: for the moments, or the two sums of the gradient, and for the result.
// The moments take one pass: each thread computes those of a few features in registers, from
// deviations, and merges them (Chan, Golub and LeVeque), as do the threads in the end.
//
// dg and db of a feature are sums along a row of the strip, over a few lanes of a warp; a block
// adds those of all its strips in the workspace. Each of these sums has one thread that ever
// touches it.
#include "src/kernels/layer_norm_columns.cuh"

namespace blocksparse {
namespace {

// Where a block and a thread stand.
template <class Tile>
struct Place {
  int64_t size;  // L
  int64_t segment;
  int64_t split;
  int64_t num_strips;
  int lane;  // across the strip
  int row;   // down the features

  template <class Args>
  __device__ __forceinline__ explicit Place(const SplitArgs<Args>& p)
      : size(p.args.features / p.args.segments),
        segment(blockIdx.x / p.num_splits),
        split(blockIdx.x % p.num_splits),
        num_strips((p.args.batch + Tile::kColumns - 1) / Tile::kColumns),
        lane(threadIdx.x % Tile::kLanes),
        row(threadIdx.x / Tile::kLanes) {}

  // This thread's first column of a strip.
  __device__ __forceinline__ int64_t Column(int64_t strip) const {
    return (strip * Tile::kLanes + lane) * Tile::kVector;
  }
};

template <typename T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kMinBlocks)
    LayerNormColumnsKernel(const __grid_constant__ SplitArgs<LayerNormArgs> p) {
  constexpr int kVector = Tile::kVector;
  constexpr int kWarps = Tile::kThreads / kWarpSize;
  __shared__ float counts[kWarps];
  __shared__ float means[kWarps][Tile::kColumns];
  __shared__ float squares[kWarps][Tile::kColumns];
  __shared__ float mean_of[Tile::kColumns];
  __shared__ float rstd_of[Tile::kColumns];
  const LayerNormArgs& args = p.args;
  const Place<Tile> place(p);
  const int64_t first = place.segment * place.size;  // feature
  const int warp = threadIdx.x / kWarpSize;

  for (int64_t strip = place.split; strip < place.num_strips; strip += p.num_splits) {
    const int64_t n = place.Column(strip);
    const bool is_wanted = n < args.batch;
    const T* x = static_cast<const T*>(args.x) + first * args.batch + n;
    T* y = static_cast<T*>(args.y) + first * args.batch + n;
    const auto pivot = LoadPack<kVector>(x, is_wanted);
    auto moments = MomentsOfThread<T, Tile>(x, pivot, place.row, place.size, args.batch, is_wanted);
    moments.template MergeRowsOfWarp<Tile::kLanes>();
    if (threadIdx.x % kWarpSize < Tile::kLanes) {
      counts[warp] = moments.count;
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        means[warp][place.lane * kVector + j] = moments.mean[j];
        squares[warp][place.lane * kVector + j] = moments.square[j];
      }
    }
    __syncthreads();
    if (threadIdx.x < Tile::kColumns) {
      Moments<1> total;
      for (int w = 0; w < kWarps; ++w) {
        const float mean[1] = {means[w][threadIdx.x]};
        const float square[1] = {squares[w][threadIdx.x]};
        total.Merge(counts[w], mean, square);
      }
      const int64_t column = strip * Tile::kColumns + threadIdx.x;
      if (column < args.batch) {
        const T* pivot = static_cast<const T*>(args.x) + first * args.batch + column;
        const float mean = static_cast<float>(*pivot) + total.mean[0];
        const float rstd = rsqrtf(total.square[0] / place.size + args.epsilon);
        mean_of[threadIdx.x] = mean;
        rstd_of[threadIdx.x] = rstd;
        args.mean[place.segment * args.batch + column] = mean;
        args.rstd[place.segment * args.batch + column] = rstd;
      }
    }
    // The next strip may write to the first three arrays now, and only after its first barrier to
    // the others.
    __syncthreads();
    float mean[kVector];
    float rstd[kVector];
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      mean[j] = mean_of[place.lane * kVector + j];
      rstd[j] = rstd_of[place.lane * kVector + j];
    }
    for (int64_t k = place.row; k < place.size; k += Tile::kRows * Tile::kUnroll) {
      Chunk<T, Tile> chunk;
      chunk.Load(x, k, place.size, args.batch, is_wanted);
#pragma unroll
      for (int u = 0; u < Tile::kUnroll; ++u) {
        const int64_t feature = k + u * Tile::kRows;
        if (!is_wanted || feature >= place.size) continue;
        const float g = args.g[first + feature];
        const float b = args.b[first + feature];
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
          const float xhat = (chunk.Get(u, j) - mean[j]) * rstd[j];
          chunk.packs[u].values[j] = T(Relu(Affine(xhat, g, b), args.relu));
        }
        StorePack(chunk.packs[u], y + feature * args.batch);
      }
    }
  }
}

// Replaces the values by their sums over the rows of the block, for each of a thread's columns.
template <class Tile>
__device__ __forceinline__ void SumOverRows(float (&dots)[Tile::kVector],
                                            float (&sums)[Tile::kVector], int lane) {
  constexpr int kWarps = Tile::kThreads / kWarpSize;
  __shared__ float terms[kWarps][2][Tile::kColumns];
  __shared__ float totals[2][Tile::kColumns];
#pragma unroll
  for (int j = 0; j < Tile::kVector; ++j) {
    SumOverLanes<Tile::kLanes, kWarpSize>(dots[j], sums[j]);
    if (threadIdx.x % kWarpSize < Tile::kLanes) {
      terms[threadIdx.x / kWarpSize][0][lane * Tile::kVector + j] = dots[j];
      terms[threadIdx.x / kWarpSize][1][lane * Tile::kVector + j] = sums[j];
    }
  }
  __syncthreads();
  if (threadIdx.x < 2 * Tile::kColumns) {
    const int which = threadIdx.x / Tile::kColumns;
    const int column = threadIdx.x % Tile::kColumns;
    float total = 0.f;
    for (int w = 0; w < kWarps; ++w) total += terms[w][which][column];
    totals[which][column] = total;
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < Tile::kVector; ++j) {
    dots[j] = totals[0][lane * Tile::kVector + j];
    sums[j] = totals[1][lane * Tile::kVector + j];
  }
}

template <typename T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kMinBlocks)
    LayerNormColumnsGradKernel(const __grid_constant__ SplitArgs<LayerNormGradArgs> p) {
  constexpr int kVector = Tile::kVector;
  const LayerNormGradArgs& args = p.args;
  const Place<Tile> place(p);
  const int64_t first = place.segment * place.size;  // feature
  float* dg = p.Partial(place.split) + first;
  float* db = dg + args.features;

  for (int64_t strip = place.split; strip < place.num_strips; strip += p.num_splits) {
    const int64_t n = place.Column(strip);
    const bool is_wanted = n < args.batch;
    const int64_t corner = first * args.batch + n;
    T* dx = static_cast<T*>(args.dx) + corner;
    // Where there is no column, dy is 0 and adds nothing.
    float mean[kVector] = {};
    float rstd[kVector] = {};
    if (is_wanted) {
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        mean[j] = args.mean[place.segment * args.batch + n + j];
        rstd[j] = args.rstd[place.segment * args.batch + n + j];
      }
    }
    // f(feature, pack of x, xhat, d, g) for the features of this thread; also, with zeros, for
    // those past the end that other threads of the warp have.
    const auto for_each = [&](auto f) {
      for (int64_t base = 0; base < place.size; base += Tile::kRows * Tile::kUnroll) {
        Chunk<T, Tile> values;
        Chunk<T, Tile> gradients;
        const int64_t k = base + place.row;
        values.Load(static_cast<const T*>(args.x) + corner, k, place.size, args.batch, is_wanted);
        gradients.Load(static_cast<const T*>(args.dy) + corner, k, place.size, args.batch,
                       is_wanted);
#pragma unroll
        for (int u = 0; u < Tile::kUnroll; ++u) {
          const int64_t feature = k + u * Tile::kRows;
          const bool exists = feature < place.size;
          const float g = exists ? args.g[first + feature] : 0.f;
          const float b = exists && args.relu ? args.b[first + feature] : 0.f;
          float xhat[kVector];
          float d[kVector];
#pragma unroll
          for (int j = 0; j < kVector; ++j) {
            xhat[j] = (values.Get(u, j) - mean[j]) * rstd[j];
            d[j] = Masked(gradients.Get(u, j), xhat[j], g, b, args.relu);
          }
          f(feature, values.packs[u], xhat, d, g);
        }
      }
    };

    float dots[kVector] = {};
    float sums[kVector] = {};
    for_each([&](int64_t, auto&, const auto& xhat, const auto& d, float g) {
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        dots[j] = fmaf(g * d[j], xhat[j], dots[j]);
        sums[j] = fmaf(g, d[j], sums[j]);
      }
    });
    SumOverRows<Tile>(dots, sums, place.lane);
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      dots[j] /= place.size;
      sums[j] /= place.size;
    }
    for_each([&](int64_t feature, auto& pack, const auto& xhat, const auto& d, float g) {
      float dg_sum = 0.f;
      float db_sum = 0.f;
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        dg_sum = fmaf(d[j], xhat[j], dg_sum);
        db_sum += d[j];
        pack.values[j] = T((g * d[j] - fmaf(xhat[j], dots[j], sums[j])) * rstd[j]);
      }
      SumOverLanes<1, Tile::kLanes>(dg_sum, db_sum);
      if (feature >= place.size) return;
      if (is_wanted) StorePack(pack, dx + feature * args.batch);
      if (place.lane == 0) {
        const bool is_first = strip == place.split;
        dg[feature] = is_first ? dg_sum : dg[feature] + dg_sum;
        db[feature] = is_first ? db_sum : db[feature] + db_sum;
      }
    });
  }
}

// ---- launches -----------------------------------------------------------------------------------

// Calls f(value of T, tile).
template <class F, class... Pointers>
Status WithTile(DType dtype, int64_t batch, int64_t segments, F f, Pointers... pointers) {
  return WithGpuType(dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int kBytes = sizeof(T);
    const auto with_tile = [&](auto tile) { return f(t, tile); };
    if (FitsVectors<T>(batch, pointers...))
      return WithColumnTile<kVectorBytes / kBytes, kBytes>(batch, segments, with_tile);
    return WithColumnTile<1, kBytes>(batch, segments, with_tile);
  });
}

}  // namespace

Status LayerNormColumnsGpu(const LayerNormArgs& args, Stream stream) {
  if (HasFewColumns(args)) return LayerNormFewColumnsGpu(args, stream);
  return WithTile(
      args.dtype, args.batch, args.segments,
      [&](auto t, auto tile) {
        using Tile = decltype(tile);
        const int64_t num_splits = NumSplits(args.batch, args.segments, Tile::kColumns);
        return Launch("LayerNormColumnsKernel", LayerNormColumnsKernel<decltype(t), Tile>,
                      args.segments * num_splits, Tile::kThreads, 0, stream,
                      SplitArgs<LayerNormArgs>{args, num_splits});
      },
      args.x, args.y);
}

Status LayerNormColumnsSplits(const LayerNormGradArgs& args, int64_t* num_splits) {
  if (HasFewColumns(args)) return LayerNormFewColumnsSplits(args, num_splits);
  return WithTile(
      args.dtype, args.batch, args.segments,
      [&](auto, auto tile) {
        const int64_t samples = std::max<int64_t>(decltype(tile)::kColumns, kMinSamplesOfPartial);
        *num_splits = NumSplits(args.batch, args.segments, samples);
        return Status();
      },
      args.dy, args.x, args.dx);
}

Status LayerNormColumnsGradGpu(const LayerNormGradArgs& args, int64_t num_splits, Stream stream) {
  if (HasFewColumns(args)) return LayerNormFewColumnsGradGpu(args, num_splits, stream);
  return WithTile(
      args.dtype, args.batch, args.segments,
      [&](auto t, auto tile) {
        return Launch("LayerNormColumnsGradKernel",
                      LayerNormColumnsGradKernel<decltype(t), decltype(tile)>,
                      args.segments * num_splits, decltype(tile)::kThreads, 0, stream,
                      SplitArgs<LayerNormGradArgs>{args, num_splits});
      },
      args.dy, args.x, args.dx);
}

}  // namespace blocksparse

// layer_norm.h with the features first and few samples: a step of a recurrent network.
//
// One block for each strip of columns would leave most of the GPU idle. So the columns are cut into
// parts: a first kernel finds the moments of each part, or its share of the gradient's two sums,
// and a second one, over other tiles, adds the parts up, in order, and computes the result. It is
// launched early, and has loaded its tile by the time the first one ends.
#include "src/kernels/layer_norm_columns.cuh"

namespace blocksparse {
namespace {

template <class Args>
struct FewColumnsArgs {
  Args args;
  int64_t num_parts;   // of a column, PartTile::kFeatures each
  int64_t num_strips;  // of FewColumnsTile; if there are several, dg and db go to the workspace
  float2* parts;       // [segments, num_parts, batch]: {mean - pivot, squares} or {dots, sums}
};

// Where a block and a thread stand: in one strip of columns and kFeatures features of a segment.
template <class Tile>
struct TilePlace {
  int64_t size;  // L
  int64_t segment;
  int64_t index;  // which kFeatures features of the segment
  int64_t strip;
  int64_t first;  // its first feature, of the segment
  int64_t count;  // its features
  int lane;
  int row;
  int64_t n;  // this thread's first column
  bool is_wanted;
  int64_t column;  // offset of that column's first feature of the segment

  template <class Args>
  __device__ __forceinline__ explicit TilePlace(const Args& args)
      : size(args.features / args.segments),
        lane(threadIdx.x % Tile::kLanes),
        row(threadIdx.x / Tile::kLanes) {
    const int64_t num_strips = (args.batch + Tile::kColumns - 1) / Tile::kColumns;
    const int64_t num_indices = (size + Tile::kFeatures - 1) / Tile::kFeatures;
    strip = blockIdx.x % num_strips;
    index = blockIdx.x / num_strips % num_indices;
    segment = blockIdx.x / num_strips / num_indices;
    first = index * Tile::kFeatures;
    count = min(int64_t{Tile::kFeatures}, size - first);
    n = (strip * Tile::kLanes + lane) * Tile::kVector;
    is_wanted = n < args.batch;
    column = segment * size * args.batch + n;
  }
};

template <class Tile, class Args>
int64_t NumBlocks(const Args& args) {
  const int64_t size = args.features / args.segments;
  return args.segments * CeilDiv(size, Tile::kFeatures) * CeilDiv(args.batch, Tile::kColumns);
}

template <typename T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    LayerNormPartMomentsKernel(const __grid_constant__ FewColumnsArgs<LayerNormArgs> p) {
  constexpr int kWarps = Tile::kThreads / kWarpSize;
  __shared__ float counts[kWarps];
  __shared__ float means[kWarps][Tile::kColumns];
  __shared__ float squares[kWarps][Tile::kColumns];
  WaitForPreviousKernel();
  LetNextKernelStart();
  const LayerNormArgs& args = p.args;
  const TilePlace<Tile> place(args);
  const int warp = threadIdx.x / kWarpSize;
  const T* x = static_cast<const T*>(args.x) + place.column;
  const auto pivot = LoadPack<Tile::kVector>(x, place.is_wanted);
  auto moments = MomentsOfThread<T, Tile>(x + place.first * args.batch, pivot, place.row,
                                          place.count, args.batch, place.is_wanted);
  moments.template MergeRowsOfWarp<Tile::kLanes>();
  if (threadIdx.x % kWarpSize < Tile::kLanes) {
    counts[warp] = moments.count;
#pragma unroll
    for (int j = 0; j < Tile::kVector; ++j) {
      means[warp][place.lane * Tile::kVector + j] = moments.mean[j];
      squares[warp][place.lane * Tile::kVector + j] = moments.square[j];
    }
  }
  __syncthreads();
  const int64_t n = place.strip * Tile::kColumns + threadIdx.x;
  if (threadIdx.x >= Tile::kColumns || n >= args.batch) return;
  Moments<1> total;
  for (int w = 0; w < kWarps; ++w) {
    const float mean[1] = {means[w][threadIdx.x]};
    const float square[1] = {squares[w][threadIdx.x]};
    total.Merge(counts[w], mean, square);
  }
  p.parts[(place.segment * p.num_parts + place.index) * args.batch + n] =
      make_float2(total.mean[0], total.square[0]);
}

// Calls f(part, pair) for the parts of a column of the tile that are this thread's: threads that
// share a column take them by turns.
template <class Tile, class Args, class F>
__device__ __forceinline__ void ForEachPart(const FewColumnsArgs<Args>& p,
                                            const TilePlace<Tile>& place, F f) {
  const int64_t n = place.strip * Tile::kColumns + threadIdx.x % Tile::kColumns;
  if (n >= p.args.batch) return;
  const float2* parts = p.parts + place.segment * p.num_parts * p.args.batch + n;
  for (int64_t i = threadIdx.x / Tile::kColumns; i < p.num_parts;
       i += Tile::kThreads / Tile::kColumns)
    f(i, parts[i * p.args.batch]);
}

template <typename T, class Tile, class Part>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    LayerNormFewColumnsKernel(const __grid_constant__ FewColumnsArgs<LayerNormArgs> p) {
  constexpr int kVector = Tile::kVector;
  constexpr int kShares = Tile::kThreads / Tile::kColumns;
  __shared__ Moments<1> shares[kShares][Tile::kColumns];
  __shared__ float mean_of[Tile::kColumns];
  __shared__ float rstd_of[Tile::kColumns];
  const LayerNormArgs& args = p.args;
  const TilePlace<Tile> place(args);
  LetNextKernelStart();
  // x was complete before the first kernel let this one start.
  Chunk<T, Tile> chunk;
  chunk.Load(static_cast<const T*>(args.x) + place.column + place.first * args.batch, place.row,
             place.count, args.batch, place.is_wanted);
  WaitForPreviousKernel();

  Moments<1> moments;
  ForEachPart<Tile>(p, place, [&](int64_t i, float2 part) {
    const float mean[1] = {part.x};
    const float square[1] = {part.y};
    moments.Merge(min(int64_t{Part::kFeatures}, place.size - i * Part::kFeatures), mean, square);
  });
  shares[threadIdx.x / Tile::kColumns][threadIdx.x % Tile::kColumns] = moments;
  __syncthreads();
  const int64_t n = place.strip * Tile::kColumns + threadIdx.x;
  if (threadIdx.x < Tile::kColumns && n < args.batch) {
    for (int share = 1; share < kShares; ++share) {
      const Moments<1>& other = shares[share][threadIdx.x];
      moments.Merge(other.count, other.mean, other.square);
    }
    const T* pivot = static_cast<const T*>(args.x) + place.segment * place.size * args.batch + n;
    const float mean = static_cast<float>(*pivot) + moments.mean[0];
    const float rstd = rsqrtf(moments.square[0] / place.size + args.epsilon);
    mean_of[threadIdx.x] = mean;
    rstd_of[threadIdx.x] = rstd;
    if (place.index == 0) {
      args.mean[place.segment * args.batch + n] = mean;
      args.rstd[place.segment * args.batch + n] = rstd;
    }
  }
  __syncthreads();
  if (!place.is_wanted) return;
#pragma unroll
  for (int u = 0; u < Tile::kUnroll; ++u) {
    const int64_t k = place.row + u * Tile::kRows;
    if (k >= place.count) continue;
    const int64_t feature = place.segment * place.size + place.first + k;
    const float g = args.g[feature];
    const float b = args.b[feature];
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      const int column = place.lane * kVector + j;
      const float xhat = (chunk.Get(u, j) - mean_of[column]) * rstd_of[column];
      chunk.packs[u].values[j] = T(Relu(Affine(xhat, g, b), args.relu));
    }
    StorePack(chunk.packs[u],
              static_cast<T*>(args.y) + place.column + (place.first + k) * args.batch);
  }
}

// A tile of x, as xhat, and of d, with the gains; zeros where there is nothing.
template <typename T, class Tile>
struct GradTile {
  Chunk<T, Tile> values;
  Chunk<T, Tile> gradients;
  float mean[Tile::kVector] = {};
  float rstd[Tile::kVector] = {};

  __device__ __forceinline__ void Load(const LayerNormGradArgs& args,
                                       const TilePlace<Tile>& place) {
    const int64_t corner = place.column + place.first * args.batch;
    values.Load(static_cast<const T*>(args.x) + corner, place.row, place.count, args.batch,
                place.is_wanted);
    gradients.Load(static_cast<const T*>(args.dy) + corner, place.row, place.count, args.batch,
                   place.is_wanted);
    if (!place.is_wanted) return;
#pragma unroll
    for (int j = 0; j < Tile::kVector; ++j) {
      mean[j] = args.mean[place.segment * args.batch + place.n + j];
      rstd[j] = args.rstd[place.segment * args.batch + place.n + j];
    }
  }

  // f(u, feature, g, xhat, d) for each of this thread's features, also those past the end.
  template <class F>
  __device__ __forceinline__ void ForEach(const LayerNormGradArgs& args,
                                          const TilePlace<Tile>& place, F f) const {
#pragma unroll
    for (int u = 0; u < Tile::kUnroll; ++u) {
      const int64_t k = place.row + u * Tile::kRows;
      const int64_t feature = place.segment * place.size + place.first + k;
      const float g = k < place.count ? args.g[feature] : 0.f;
      const float b = k < place.count && args.relu ? args.b[feature] : 0.f;
      float xhat[Tile::kVector];
      float d[Tile::kVector];
#pragma unroll
      for (int j = 0; j < Tile::kVector; ++j) {
        xhat[j] = (values.Get(u, j) - mean[j]) * rstd[j];
        d[j] = Masked(gradients.Get(u, j), xhat[j], g, b, args.relu);
      }
      f(u, k, g, xhat, d);
    }
  }
};

template <typename T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    LayerNormPartSumsKernel(const __grid_constant__ FewColumnsArgs<LayerNormGradArgs> p) {
  constexpr int kWarps = Tile::kThreads / kWarpSize;
  __shared__ float2 terms[kWarps][Tile::kColumns];
  WaitForPreviousKernel();
  LetNextKernelStart();
  const LayerNormGradArgs& args = p.args;
  const TilePlace<Tile> place(args);
  GradTile<T, Tile> tile;
  tile.Load(args, place);
  float dots[Tile::kVector] = {};
  float sums[Tile::kVector] = {};
  tile.ForEach(args, place, [&](int, int64_t, float g, const auto& xhat, const auto& d) {
#pragma unroll
    for (int j = 0; j < Tile::kVector; ++j) {
      dots[j] = fmaf(g * d[j], xhat[j], dots[j]);
      sums[j] = fmaf(g, d[j], sums[j]);
    }
  });
#pragma unroll
  for (int j = 0; j < Tile::kVector; ++j) {
    SumOverLanes<Tile::kLanes, kWarpSize>(dots[j], sums[j]);
    if (threadIdx.x % kWarpSize < Tile::kLanes)
      terms[threadIdx.x / kWarpSize][place.lane * Tile::kVector + j] =
          make_float2(dots[j], sums[j]);
  }
  __syncthreads();
  const int64_t n = place.strip * Tile::kColumns + threadIdx.x;
  if (threadIdx.x >= Tile::kColumns || n >= args.batch) return;
  float2 total = terms[0][threadIdx.x];
  for (int w = 1; w < kWarps; ++w) {
    total.x += terms[w][threadIdx.x].x;
    total.y += terms[w][threadIdx.x].y;
  }
  p.parts[(place.segment * p.num_parts + place.index) * args.batch + n] = total;
}

template <typename T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    LayerNormFewColumnsGradKernel(const __grid_constant__ FewColumnsArgs<LayerNormGradArgs> p) {
  constexpr int kVector = Tile::kVector;
  constexpr int kShares = Tile::kThreads / Tile::kColumns;
  __shared__ float2 shares[kShares][Tile::kColumns];
  const LayerNormGradArgs& args = p.args;
  const TilePlace<Tile> place(args);
  LetNextKernelStart();
  // Everything but the parts was complete before the first kernel let this one start.
  GradTile<T, Tile> tile;
  tile.Load(args, place);
  WaitForPreviousKernel();

  float2 share = make_float2(0.f, 0.f);
  ForEachPart<Tile>(p, place, [&](int64_t, float2 part) {
    share.x += part.x;
    share.y += part.y;
  });
  shares[threadIdx.x / Tile::kColumns][threadIdx.x % Tile::kColumns] = share;
  __syncthreads();
  float dots[kVector] = {};
  float sums[kVector] = {};
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
#pragma unroll
    for (int i = 0; i < kShares; ++i) {
      dots[j] += shares[i][place.lane * kVector + j].x;
      sums[j] += shares[i][place.lane * kVector + j].y;
    }
    dots[j] /= place.size;
    sums[j] /= place.size;
  }
  float* dg = p.num_strips > 1 ? args.workspace + place.strip * 2 * args.features : args.dg;
  float* db = p.num_strips > 1 ? dg + args.features : args.db;
  tile.ForEach(args, place, [&](int u, int64_t k, float g, const auto& xhat, const auto& d) {
    float dg_sum = 0.f;
    float db_sum = 0.f;
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      dg_sum = fmaf(d[j], xhat[j], dg_sum);
      db_sum += d[j];
      tile.values.packs[u].values[j] =
          T((g * d[j] - fmaf(xhat[j], dots[j], sums[j])) * tile.rstd[j]);
    }
    SumOverLanes<1, Tile::kLanes>(dg_sum, db_sum);
    if (k >= place.count) return;
    if (place.is_wanted)
      StorePack(tile.values.packs[u],
                static_cast<T*>(args.dx) + place.column + (place.first + k) * args.batch);
    if (place.lane == 0) {
      const int64_t feature = place.segment * place.size + place.first + k;
      dg[feature] = dg_sum;
      db[feature] = db_sum;
    }
  });
}

// Calls f(value of T, Int<values in a load>).
template <class F, class... Pointers>
Status WithVectors(DType dtype, int64_t batch, F f, Pointers... pointers) {
  return WithGpuType(dtype, [&](auto t) {
    using T = decltype(t);
    if (FitsVectors<T>(batch, pointers...))
      return f(t, Int<kVectorBytes / static_cast<int>(sizeof(T))>{});
    return f(t, Int<1>{});
  });
}

template <class Part, class Args>
FewColumnsArgs<Args> ArgsOf(const Args& args, int64_t num_strips) {
  const int64_t partials = num_strips > 1 ? num_strips * 2 * args.features : 0;
  return {args, CeilDiv(args.features / args.segments, Part::kFeatures), num_strips,
          reinterpret_cast<float2*>(args.workspace + partials)};
}

}  // namespace

int64_t LayerNormPartFloats(int64_t features, int64_t segments, int64_t batch) {
  // The smallest parts, which unaligned pointers get.
  return 2 * segments * CeilDiv(features / segments, PartTile<1>::kFeatures) * batch;
}

Status LayerNormFewColumnsGpu(const LayerNormArgs& args, Stream stream) {
  return WithVectors(
      args.dtype, args.batch,
      [&](auto t, auto vector) {
        using T = decltype(t);
        using Part = PartTile<vector()>;
        using Tile = FewColumnsTile<vector()>;
        const auto p = ArgsOf<Part>(args, 1);
        BLOCKSPARSE_RETURN_IF_ERROR(
            LaunchEarly("LayerNormPartMomentsKernel", LayerNormPartMomentsKernel<T, Part>,
                        NumBlocks<Part>(args), Part::kThreads, 0, stream, p));
        return LaunchEarly("LayerNormFewColumnsKernel", LayerNormFewColumnsKernel<T, Tile, Part>,
                           NumBlocks<Tile>(args), Tile::kThreads, 0, stream, p);
      },
      args.x, args.y);
}

Status LayerNormFewColumnsSplits(const LayerNormGradArgs& args, int64_t* num_splits) {
  return WithVectors(
      args.dtype, args.batch,
      [&](auto, auto vector) {
        *num_splits = CeilDiv(args.batch, FewColumnsTile<vector()>::kColumns);
        return Status();
      },
      args.dy, args.x, args.dx);
}

Status LayerNormFewColumnsGradGpu(const LayerNormGradArgs& args, int64_t num_splits,
                                  Stream stream) {
  return WithVectors(
      args.dtype, args.batch,
      [&](auto t, auto vector) {
        using T = decltype(t);
        using Part = PartTile<vector()>;
        using Tile = FewColumnsTile<vector()>;
        const auto p = ArgsOf<Part>(args, num_splits);
        BLOCKSPARSE_RETURN_IF_ERROR(
            LaunchEarly("LayerNormPartSumsKernel", LayerNormPartSumsKernel<T, Part>,
                        NumBlocks<Part>(args), Part::kThreads, 0, stream, p));
        return LaunchEarly("LayerNormFewColumnsGradKernel", LayerNormFewColumnsGradKernel<T, Tile>,
                           NumBlocks<Tile>(args), Tile::kThreads, 0, stream, p);
      },
      args.dy, args.x, args.dx);
}

}  // namespace blocksparse

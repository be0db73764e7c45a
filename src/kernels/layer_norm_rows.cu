// layer_norm.h with the features last: rows in registers.
//
// A group of threads takes a row, holds it, and goes on to the row below, while the next one is on
// its way. The mean is known before the deviations are squared, at no price: the values are there.
// In the gradient each thread adds dg and db of its own features, in registers, over all rows of
// its block; these sums go to the workspace at the end.
#include "src/kernels/layer_norm_rows.cuh"

namespace blocksparse {
namespace {

template <typename T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kMinBlocks)
    LayerNormRowsKernel(const __grid_constant__ SplitArgs<LayerNormArgs> p) {
  using Part = RowPart<T, Tile>;
  const LayerNormArgs& args = p.args;
  const Place<Tile> place(p);
  const int size = static_cast<int>(place.size);
  const T* x = static_cast<const T*>(args.x) + place.first;
  T* y = static_cast<T*>(args.y) + place.first;
  FeaturePart<Tile> g;
  FeaturePart<Tile> b;
  g.Load(args.g + place.first, size);
  b.Load(args.b + place.first, size);
  RowSum<Tile::kRowThreads> row_sum;

  Part next;
  const auto load = [&](int64_t n) { next.Load(x + n * args.features, size, n < args.batch); };
  if (Tile::kLoadsEarly) load(place.begin + place.row);
  for (int64_t base = place.begin; base < args.batch; base += place.step) {
    const int64_t n = base + place.row;
    const bool is_wanted = n < args.batch;
    if (!Tile::kLoadsEarly) load(n);
    Part values = next;
    if (Tile::kLoadsEarly) load(n + place.step);
    float mean;
    float rstd;
    Moments(
        size, args.epsilon, row_sum,
        [&](auto f) { Part::ForEach(size, [&](int i) { f(values.Get(i)); }); }, &mean, &rstd);
    if (!is_wanted) continue;
#pragma unroll
    for (int i = 0; i < Tile::kElements; ++i) {
      const float xhat = (values.Get(i) - mean) * rstd;
      values.Set(i, Relu(Affine(xhat, g.values[i], b.values[i]), args.relu));
    }
    values.Store(y + n * args.features, size);
    if (place.IsRowStart()) {
      args.mean[place.segment * args.batch + n] = mean;
      args.rstd[place.segment * args.batch + n] = rstd;
    }
  }
}

// The block's partial sums of dg and db, from those of its rows' threads, added in order.
template <class Tile>
__device__ __forceinline__ void StorePartials(const float (&dg)[Tile::kElements],
                                              const float (&db)[Tile::kElements], int size,
                                              float* dg_to, float* db_to) {
  using Part = RowPart<float, Tile>;
  if constexpr (Tile::kRows == 1) {
    Part::ForEach(size, [&](int i) {
      dg_to[Part::Column(i)] = dg[i];
      db_to[Part::Column(i)] = db[i];
    });
  } else {
    __shared__ float sums[2][Tile::kRows][Tile::kCapacity];
    const int row = threadIdx.x / Tile::kRowThreads;
#pragma unroll
    for (int i = 0; i < Tile::kElements; ++i) {
      sums[0][row][Part::Column(i)] = dg[i];
      sums[1][row][Part::Column(i)] = db[i];
    }
    __syncthreads();
    for (int column = threadIdx.x; column < size; column += Tile::kThreads) {
      float dg_sum = 0.f;
      float db_sum = 0.f;
      for (int r = 0; r < Tile::kRows; ++r) {
        dg_sum += sums[0][r][column];
        db_sum += sums[1][r][column];
      }
      dg_to[column] = dg_sum;
      db_to[column] = db_sum;
    }
  }
}

template <typename T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kMinBlocks)
    LayerNormRowsGradKernel(const __grid_constant__ SplitArgs<LayerNormGradArgs> p) {
  using Part = RowPart<T, Tile>;
  const LayerNormGradArgs& args = p.args;
  const Place<Tile> place(p);
  const int size = static_cast<int>(place.size);
  const T* x = static_cast<const T*>(args.x) + place.first;
  const T* dy = static_cast<const T*>(args.dy) + place.first;
  T* dx = static_cast<T*>(args.dx) + place.first;
  const float* b = args.b + place.first;
  FeaturePart<Tile> g;
  g.Load(args.g + place.first, size);
  float dg[Tile::kElements] = {};
  float db[Tile::kElements] = {};
  RowSum<Tile::kRowThreads> row_sum;

  Part next_x;
  Part next_dy;
  const auto load = [&](int64_t n) {
    next_x.Load(x + n * args.features, size, n < args.batch);
    next_dy.Load(dy + n * args.features, size, n < args.batch);
  };
  if (Tile::kLoadsEarly) load(place.begin + place.row);
  for (int64_t base = place.begin; base < args.batch; base += place.step) {
    const int64_t n = base + place.row;
    const bool is_wanted = n < args.batch;
    if (!Tile::kLoadsEarly) load(n);
    Part values = next_x;
    Part gradients = next_dy;
    if (Tile::kLoadsEarly) load(n + place.step);
    const float mean = is_wanted ? args.mean[place.segment * args.batch + n] : 0.f;
    const float rstd = is_wanted ? args.rstd[place.segment * args.batch + n] : 0.f;
    float dot = 0.f;
    float sum = 0.f;
    // Where there is no row, dy and rstd are 0 and add nothing.
    Part::ForEach(size, [&](int i) {
      const float xhat = (values.Get(i) - mean) * rstd;
      const float bias = args.relu ? b[Part::Column(i)] : 0.f;
      const float d = Masked(gradients.Get(i), xhat, g.values[i], bias, args.relu);
      gradients.Set(i, d);
      dg[i] = fmaf(d, xhat, dg[i]);
      db[i] += d;
      dot = fmaf(g.values[i] * d, xhat, dot);
      sum = fmaf(g.values[i], d, sum);
    });
    row_sum(dot, sum);
    if (!is_wanted) continue;
    dot /= size;
    sum /= size;
#pragma unroll
    for (int i = 0; i < Tile::kElements; ++i) {
      const float xhat = (values.Get(i) - mean) * rstd;
      values.Set(i, (g.values[i] * gradients.Get(i) - fmaf(xhat, dot, sum)) * rstd);
    }
    values.Store(dx + n * args.features, size);
  }
  float* partial = p.Partial(place.split) + place.first;
  StorePartials<Tile>(dg, db, size, partial, partial + args.features);
}

// ---- launches -----------------------------------------------------------------------------------

// Samples that a block of the gradient takes at a time.
int64_t SamplesAtATime(int64_t row_size) {
  if (row_size > kMaxRegisterRow) return kLongRowSamples;
  return WithRowTile<1>(row_size, [](auto tile) { return int64_t{decltype(tile)::kRows}; });
}

}  // namespace

Status LayerNormRowsGpu(const LayerNormArgs& args, Stream stream) {
  const int64_t size = args.features / args.segments;
  if (size > kMaxRegisterRow) return LayerNormLongRowsGpu(args, stream);
  return WithVector(
      args.dtype, size,
      [&](auto t, auto vector) {
        return WithRowTile<vector()>(size, [&](auto tile) {
          using Tile = decltype(tile);
          const int64_t num_splits = NumSplits(args.batch, args.segments, Tile::kRows);
          return Launch("LayerNormRowsKernel", LayerNormRowsKernel<decltype(t), Tile>,
                        args.segments * num_splits, Tile::kThreads, 0, stream,
                        SplitArgs<LayerNormArgs>{args, num_splits});
        });
      },
      args.x, args.y, args.g, args.b);
}

Status LayerNormRowsSplits(const LayerNormGradArgs& args, int64_t* num_splits) {
  const int64_t samples = SamplesAtATime(args.features / args.segments);
  const int64_t least = args.batch <= kFewRows ? kMinSamplesOfFewRows : kMinSamplesOfPartial;
  *num_splits = NumSplits(args.batch, args.segments, std::max(least, samples));
  return Status();
}

Status LayerNormRowsGradGpu(const LayerNormGradArgs& args, int64_t num_splits, Stream stream) {
  const int64_t size = args.features / args.segments;
  if (size > kMaxRegisterRow) return LayerNormLongRowsGradGpu(args, num_splits, stream);
  return WithVector(
      args.dtype, size,
      [&](auto t, auto vector) {
        return WithRowTile<vector()>(size, [&](auto tile) {
          using Tile = decltype(tile);
          return Launch("LayerNormRowsGradKernel", LayerNormRowsGradKernel<decltype(t), Tile>,
                        args.segments * num_splits, Tile::kThreads, 0, stream,
                        SplitArgs<LayerNormGradArgs>{args, num_splits});
        });
      },
      args.dy, args.x, args.dx, args.g, args.b);
}

}  // namespace blocksparse

// layer_norm.h with the features last, for rows too long for registers.
//
// A thread block walks each row in steps of LongRowTile, once for each pass, mostly from the cache.
// The partial sums of dg and db lie in the workspace all along; to touch them less often, the
// gradient takes kLongRowSamples rows at a time.
#include "src/kernels/layer_norm_rows.cuh"

namespace blocksparse {
namespace {

// How many of the `left` values of a row the next step takes.
template <class Tile>
__device__ __forceinline__ int StepSize(int64_t left) {
  return static_cast<int>(min(left, int64_t{Tile::kCapacity}));
}

template <typename T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kMinBlocks)
    LayerNormLongRowsKernel(const __grid_constant__ SplitArgs<LayerNormArgs> p) {
  using Part = RowPart<T, Tile>;
  const LayerNormArgs& args = p.args;
  const Place<Tile> place(p);
  RowSum<Tile::kRowThreads> row_sum;
  for (int64_t n = place.begin; n < args.batch; n += place.step) {
    const T* x = static_cast<const T*>(args.x) + n * args.features + place.first;
    T* y = static_cast<T*>(args.y) + n * args.features + place.first;
    const auto for_each = [&](auto f) {
      for (int64_t c = 0; c < place.size; c += Tile::kCapacity) {
        Part values;
        const int size = StepSize<Tile>(place.size - c);
        values.Load(x + c, size);
        Part::ForEach(size, [&](int i) { f(values.Get(i)); });
      }
    };
    float mean;
    float rstd;
    Moments(place.size, args.epsilon, row_sum, for_each, &mean, &rstd);
    for (int64_t c = 0; c < place.size; c += Tile::kCapacity) {
      Part values;
      FeaturePart<Tile> g;
      FeaturePart<Tile> b;
      const int size = StepSize<Tile>(place.size - c);
      values.Load(x + c, size);
      g.Load(args.g + place.first + c, size);
      b.Load(args.b + place.first + c, size);
#pragma unroll
      for (int i = 0; i < Tile::kElements; ++i) {
        const float xhat = (values.Get(i) - mean) * rstd;
        values.Set(i, Relu(Affine(xhat, g.values[i], b.values[i]), args.relu));
      }
      values.Store(y + c, size);
    }
    if (threadIdx.x == 0) {
      args.mean[place.segment * args.batch + n] = mean;
      args.rstd[place.segment * args.batch + n] = rstd;
    }
  }
}

template <typename T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kMinBlocks)
    LayerNormLongRowsGradKernel(const __grid_constant__ SplitArgs<LayerNormGradArgs> p) {
  using Part = RowPart<T, Tile>;
  const LayerNormGradArgs& args = p.args;
  const Place<Tile> place(p);
  const float* mean = args.mean + place.segment * args.batch;
  const float* rstd = args.rstd + place.segment * args.batch;
  float* dg = p.Partial(place.split) + place.first;
  float* db = dg + args.features;
  RowSum<Tile::kRowThreads> row_sum;

  // f(i, xhat, g, d) for this thread's values of sample n from feature c on.
  const auto for_each = [&](int64_t n, int64_t c, auto f) {
    const int64_t offset = n * args.features + place.first + c;
    const int size = StepSize<Tile>(place.size - c);
    Part values;
    Part gradients;
    FeaturePart<Tile> g;
    FeaturePart<Tile> b;
    values.Load(static_cast<const T*>(args.x) + offset, size);
    gradients.Load(static_cast<const T*>(args.dy) + offset, size);
    g.Load(args.g + place.first + c, size);
    b.Load(args.b + place.first + c, size);
    Part::ForEach(size, [&](int i) {
      const float xhat = (values.Get(i) - mean[n]) * rstd[n];
      const float d = Masked(gradients.Get(i), xhat, g.values[i], b.values[i], args.relu);
      f(i, xhat, g.values[i], d);
    });
  };

  // A partial sum has one thread that ever touches it, which adds to what it wrote before.
  bool is_first = true;
  for (int64_t base = place.begin * kLongRowSamples; base < args.batch;
       base += place.step * kLongRowSamples) {
    const int count = static_cast<int>(min(int64_t{kLongRowSamples}, args.batch - base));
    float dots[kLongRowSamples] = {};
    float sums[kLongRowSamples] = {};
#pragma unroll
    for (int r = 0; r < kLongRowSamples; ++r) {
      if (r >= count) break;
      for (int64_t c = 0; c < place.size; c += Tile::kCapacity) {
        for_each(base + r, c, [&](int, float xhat, float g, float d) {
          dots[r] = fmaf(g * d, xhat, dots[r]);
          sums[r] = fmaf(g, d, sums[r]);
        });
      }
      row_sum(dots[r], sums[r]);
      dots[r] /= place.size;
      sums[r] /= place.size;
    }
    for (int64_t c = 0; c < place.size; c += Tile::kCapacity) {
      const int size = StepSize<Tile>(place.size - c);
      float dg_sums[Tile::kElements] = {};
      float db_sums[Tile::kElements] = {};
#pragma unroll
      for (int r = 0; r < kLongRowSamples; ++r) {
        if (r >= count) break;
        Part results;
        for_each(base + r, c, [&](int i, float xhat, float g, float d) {
          dg_sums[i] = fmaf(d, xhat, dg_sums[i]);
          db_sums[i] += d;
          results.Set(i, (g * d - fmaf(xhat, dots[r], sums[r])) * rstd[base + r]);
        });
        const int64_t offset = (base + r) * args.features + place.first + c;
        results.Store(static_cast<T*>(args.dx) + offset, size);
      }
      Part::ForEach(size, [&](int i) {
        const int64_t k = c + Part::Column(i);
        dg[k] = is_first ? dg_sums[i] : dg[k] + dg_sums[i];
        db[k] = is_first ? db_sums[i] : db[k] + db_sums[i];
      });
    }
    is_first = false;
  }
}

}  // namespace

Status LayerNormLongRowsGpu(const LayerNormArgs& args, Stream stream) {
  return WithVector(
      args.dtype, args.features / args.segments,
      [&](auto t, auto vector) {
        using Tile = LongRowTile<vector()>;
        const int64_t num_splits = NumSplits(args.batch, args.segments, Tile::kRows);
        return Launch("LayerNormLongRowsKernel", LayerNormLongRowsKernel<decltype(t), Tile>,
                      args.segments * num_splits, Tile::kThreads, 0, stream,
                      SplitArgs<LayerNormArgs>{args, num_splits});
      },
      args.x, args.y, args.g, args.b);
}

Status LayerNormLongRowsGradGpu(const LayerNormGradArgs& args, int64_t num_splits, Stream stream) {
  return WithVector(
      args.dtype, args.features / args.segments,
      [&](auto t, auto vector) {
        using Tile = LongRowTile<vector()>;
        return Launch("LayerNormLongRowsGradKernel", LayerNormLongRowsGradKernel<decltype(t), Tile>,
                      args.segments * num_splits, Tile::kThreads, 0, stream,
                      SplitArgs<LayerNormGradArgs>{args, num_splits});
      },
      args.dy, args.x, args.dx, args.g, args.b);
}

}  // namespace blocksparse

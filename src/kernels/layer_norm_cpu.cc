// The CPU side of layer_norm.h, and the readable second opinion on the GPU kernels.
//
// Values are converted to float32 buffers that stay in the cache and worked on there. Features
// last: one row at a time, which the vector units split. Features first: kTile columns at a time,
// so that memory is read in order and a vector holds neighbouring columns. The gradients of g and b
// are added up for a fixed range of samples (a "part") by one task, in order, and the parts in
// order after that; so the number of threads does not show.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "src/kernels/common/cpu_clones.h"
#include "src/kernels/layer_norm.h"

namespace blocksparse {
namespace {

constexpr int64_t kTile = 64;          // columns of a tile; a row of it is four cache lines
constexpr int64_t kPartRows = 16;      // a part is a multiple of this, or of whole tiles
constexpr int64_t kMaxParts = 128;     // keeps the workspace small; enough for as many threads
constexpr int64_t kForwardCycles = 4;  // rough costs of one element, for ParallelFor
constexpr int64_t kGradCycles = 8;

int64_t SamplesOfPart(const LayerNormGradArgs& args) {
  const int64_t multiple = args.feature_axis == 1 ? kPartRows : kTile;
  const int64_t samples = (args.batch + kMaxParts - 1) / kMaxParts;
  return std::max<int64_t>(1, (samples + multiple - 1) / multiple) * multiple;
}

// ---- loops over buffers of float32 --------------------------------------------------------------

template <typename T>
BLOCKSPARSE_INLINE void Read(const T* __restrict__ from, int64_t size, float* __restrict__ to) {
  for (int64_t i = 0; i < size; ++i) to[i] = ToFloat(from[i]);
}

template <typename T>
BLOCKSPARSE_INLINE void Write(const float* __restrict__ from, int64_t size, T* __restrict__ to) {
  for (int64_t i = 0; i < size; ++i) to[i] = FromFloat<T>(from[i]);
}

// A compiler does not reorder a sum of floats, so the order that vector units need is spelled out:
// 32 sums side by side, as four vectors of eight.
BLOCKSPARSE_INLINE float SumOf(const float* v, int64_t size) {
  constexpr int kLanes = 8;
  constexpr int kSums = 4;
  typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));
  Lanes sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums * kLanes <= size; i += kSums * kLanes) {
    Lanes terms[kSums];
    std::memcpy(terms, v + i, sizeof terms);
    for (int j = 0; j < kSums; ++j) sums[j] += terms[j];
  }
  const Lanes total = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  float lanes[kLanes];
  std::memcpy(lanes, &total, sizeof lanes);
  float sum = 0.f;
  for (; i < size; ++i) sum += v[i];
  for (const float lane : lanes) sum += lane;
  return sum;
}

// Both directions use this expression, so that they agree on where relu is 0.
BLOCKSPARSE_INLINE float Affine(float xhat, float g, float b) { return xhat * g + b; }

// NaN stays NaN.
BLOCKSPARSE_INLINE float Relu(float y, bool relu) { return relu && y <= 0.f ? 0.f : y; }

// ---- features last: x[n, k] ---------------------------------------------------------------------

// Row `row` is segment row % S of sample row / S: rows are contiguous and in order.
template <typename T>
BLOCKSPARSE_INLINE void NormalizeRows(const LayerNormArgs& args, int64_t begin, int64_t end) {
  const int64_t size = args.features / args.segments;
  std::vector<float> x(size), work(size);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t segment = row % args.segments;
    Read(static_cast<const T*>(args.x) + row * size, size, x.data());
    const float rough_mean = SumOf(x.data(), size) / size;
    // The deviations' own mean is what rounding has left of the first sum.
    for (int64_t i = 0; i < size; ++i) work[i] = x[i] - rough_mean;
    const float shift = SumOf(work.data(), size) / size;
    for (int64_t i = 0; i < size; ++i) work[i] *= work[i];
    const float square = SumOf(work.data(), size) / size;
    const float mean = rough_mean + shift;
    const float rstd = 1.f / std::sqrt(std::max(square - shift * shift, 0.f) + args.epsilon);

    const float* g = args.g + segment * size;
    const float* b = args.b + segment * size;
    for (int64_t i = 0; i < size; ++i)
      work[i] = Relu(Affine((x[i] - mean) * rstd, g[i], b[i]), args.relu);
    Write(work.data(), size, static_cast<T*>(args.y) + row * size);
    args.mean[segment * args.batch + row / args.segments] = mean;
    args.rstd[segment * args.batch + row / args.segments] = rstd;
  }
}

// dx of samples [begin, end) of a segment; adds their share to dg and db, which start at the
// segment.
template <typename T>
BLOCKSPARSE_INLINE void RowGradients(const LayerNormGradArgs& args, int64_t segment, int64_t begin,
                                     int64_t end, float* __restrict__ dg, float* __restrict__ db) {
  const int64_t size = args.features / args.segments;
  const float* g = args.g + segment * size;
  const float* b = args.b + segment * size;
  std::vector<float> xhat_of(size), t_of(size), work_of(size);
  float* __restrict__ xhat = xhat_of.data();
  float* __restrict__ t = t_of.data();
  float* __restrict__ work = work_of.data();
  for (int64_t n = begin; n < end; ++n) {
    const int64_t offset = n * args.features + segment * size;
    const float mean = args.mean[segment * args.batch + n];
    const float rstd = args.rstd[segment * args.batch + n];
    Read(static_cast<const T*>(args.x) + offset, size, xhat);
    Read(static_cast<const T*>(args.dy) + offset, size, t);
    for (int64_t i = 0; i < size; ++i) {
      xhat[i] = (xhat[i] - mean) * rstd;
      const float d = args.relu && !(Affine(xhat[i], g[i], b[i]) > 0.f) ? 0.f : t[i];
      dg[i] += d * xhat[i];
      db[i] += d;
      t[i] = g[i] * d;
      work[i] = t[i] * xhat[i];
    }
    const float dot = SumOf(work, size) / size;
    const float sum = SumOf(t, size) / size;
    for (int64_t i = 0; i < size; ++i) work[i] = (t[i] - (xhat[i] * dot + sum)) * rstd;
    Write(work, size, static_cast<T*>(args.dx) + offset);
  }
}

// ---- features first: x[k, n] --------------------------------------------------------------------

// `index` is a tile of columns and a segment of it.
template <typename T>
BLOCKSPARSE_INLINE void NormalizeTile(const LayerNormArgs& args, int64_t index) {
  const int64_t size = args.features / args.segments;
  const int64_t segment = index % args.segments;
  const int64_t first = index / args.segments * kTile;
  const int64_t width = std::min(kTile, args.batch - first);
  const int64_t corner = segment * size * args.batch + first;
  const T* x = static_cast<const T*>(args.x) + corner;
  T* y = static_cast<T*>(args.y) + corner;
  float row[kTile];
  float mean[kTile] = {};
  float shift[kTile] = {};
  float square[kTile] = {};
  float rstd[kTile];
  for (int64_t k = 0; k < size; ++k) {
    Read(x + k * args.batch, width, row);
    for (int64_t j = 0; j < width; ++j) mean[j] += row[j];
  }
  for (int64_t j = 0; j < width; ++j) mean[j] /= size;
  // As above: the deviations' own mean is what rounding has left of the first sum.
  for (int64_t k = 0; k < size; ++k) {
    Read(x + k * args.batch, width, row);
    for (int64_t j = 0; j < width; ++j) {
      const float deviation = row[j] - mean[j];
      shift[j] += deviation;
      square[j] += deviation * deviation;
    }
  }
  for (int64_t j = 0; j < width; ++j) {
    shift[j] /= size;
    const float variance = std::max(square[j] / size - shift[j] * shift[j], 0.f);
    mean[j] += shift[j];
    rstd[j] = 1.f / std::sqrt(variance + args.epsilon);
    args.mean[segment * args.batch + first + j] = mean[j];
    args.rstd[segment * args.batch + first + j] = rstd[j];
  }
  for (int64_t k = 0; k < size; ++k) {
    const float g = args.g[segment * size + k];
    const float b = args.b[segment * size + k];
    Read(x + k * args.batch, width, row);
    for (int64_t j = 0; j < width; ++j)
      row[j] = Relu(Affine((row[j] - mean[j]) * rstd[j], g, b), args.relu);
    Write(row, width, y + k * args.batch);
  }
}

// As RowGradients, of samples [begin, begin + width).
template <typename T>
BLOCKSPARSE_INLINE void TileGradients(const LayerNormGradArgs& args, int64_t segment, int64_t begin,
                                      int64_t width, float* dg, float* db) {
  const int64_t size = args.features / args.segments;
  const int64_t corner = segment * size * args.batch + begin;
  const T* x = static_cast<const T*>(args.x) + corner;
  const T* dy = static_cast<const T*>(args.dy) + corner;
  T* dx = static_cast<T*>(args.dx) + corner;
  const float* mean = args.mean + segment * args.batch + begin;
  const float* rstd = args.rstd + segment * args.batch + begin;
  float xhat[kTile];
  float d[kTile];
  float dot[kTile] = {};
  float sum[kTile] = {};
  const auto read_row = [&](int64_t k, float g, float b) __attribute__((always_inline)) {
    Read(x + k * args.batch, width, xhat);
    Read(dy + k * args.batch, width, d);
    for (int64_t j = 0; j < width; ++j) {
      xhat[j] = (xhat[j] - mean[j]) * rstd[j];
      if (args.relu && !(Affine(xhat[j], g, b) > 0.f)) d[j] = 0.f;
    }
  };
  for (int64_t k = 0; k < size; ++k) {
    const float g = args.g[segment * size + k];
    read_row(k, g, args.b[segment * size + k]);
    db[k] += SumOf(d, width);
    for (int64_t j = 0; j < width; ++j) {
      sum[j] += g * d[j];
      d[j] *= xhat[j];
      dot[j] += g * d[j];
    }
    dg[k] += SumOf(d, width);
  }
  for (int64_t j = 0; j < width; ++j) {
    dot[j] /= size;
    sum[j] /= size;
  }
  for (int64_t k = 0; k < size; ++k) {
    const float g = args.g[segment * size + k];
    read_row(k, g, args.b[segment * size + k]);
    for (int64_t j = 0; j < width; ++j) d[j] = (g * d[j] - (xhat[j] * dot[j] + sum[j])) * rstd[j];
    Write(d, width, dx + k * args.batch);
  }
}

// ---- tasks --------------------------------------------------------------------------------------

template <typename T>
BLOCKSPARSE_INLINE void Normalize(const LayerNormArgs& args, int64_t begin, int64_t end) {
  if (args.feature_axis == 1) return NormalizeRows<T>(args, begin, end);
  for (int64_t index = begin; index < end; ++index) NormalizeTile<T>(args, index);
}

// `index` is a part of the samples and a segment of it.
template <typename T>
BLOCKSPARSE_INLINE void Gradients(const LayerNormGradArgs& args, int64_t index) {
  const int64_t size = args.features / args.segments;
  const int64_t segment = index % args.segments;
  const int64_t part = index / args.segments;
  const int64_t begin = part * SamplesOfPart(args);
  const int64_t end = std::min(begin + SamplesOfPart(args), args.batch);
  float* dg = args.workspace + part * 2 * args.features + segment * size;
  float* db = dg + args.features;
  std::fill(dg, dg + size, 0.f);
  std::fill(db, db + size, 0.f);
  if (args.feature_axis == 1) return RowGradients<T>(args, segment, begin, end, dg, db);
  for (int64_t n = begin; n < end; n += kTile)
    TileGradients<T>(args, segment, n, std::min(kTile, end - n), dg, db);
}

BLOCKSPARSE_FOR_EACH_CPU
void NormalizeRange(const LayerNormArgs& args, int64_t begin, int64_t end) {
  switch (args.dtype) {
    case DType::kFloat32:
      return Normalize<float>(args, begin, end);
    case DType::kFloat16:
      return Normalize<Half>(args, begin, end);
    case DType::kBFloat16:
      return Normalize<BFloat16>(args, begin, end);
  }
}

BLOCKSPARSE_FOR_EACH_CPU
void GradientsOfPart(const LayerNormGradArgs& args, int64_t index) {
  switch (args.dtype) {
    case DType::kFloat32:
      return Gradients<float>(args, index);
    case DType::kFloat16:
      return Gradients<Half>(args, index);
    case DType::kBFloat16:
      return Gradients<BFloat16>(args, index);
  }
}

}  // namespace

int64_t LayerNormGradCpuPartials(const LayerNormGradArgs& args) {
  return (args.batch + SamplesOfPart(args) - 1) / SamplesOfPart(args);
}

Status LayerNormCpu(const LayerNormArgs& args, const ParallelFor& parallel_for) {
  const int64_t size = args.features / args.segments;
  const int64_t samples = args.feature_axis == 1 ? 1 : kTile;  // of one index
  const int64_t total = (args.batch + samples - 1) / samples * args.segments;
  parallel_for(total, samples * size * kForwardCycles,
               [&](int64_t begin, int64_t end) { NormalizeRange(args, begin, end); });
  return Status();
}

Status LayerNormGradCpu(const LayerNormGradArgs& args, const ParallelFor& parallel_for) {
  const int64_t num_parts = LayerNormGradCpuPartials(args);
  const int64_t size = args.features / args.segments;
  parallel_for(num_parts * args.segments, SamplesOfPart(args) * size * kGradCycles,
               [&](int64_t begin, int64_t end) {
                 for (int64_t index = begin; index < end; ++index) GradientsOfPart(args, index);
               });
  parallel_for(args.features, 1 + num_parts, [&](int64_t begin, int64_t end) {
    std::fill(args.dg + begin, args.dg + end, 0.f);
    std::fill(args.db + begin, args.db + end, 0.f);
    for (int64_t part = 0; part < num_parts; ++part) {
      const float* dg = args.workspace + part * 2 * args.features;
      const float* db = dg + args.features;
      for (int64_t k = begin; k < end; ++k) {
        args.dg[k] += dg[k];
        args.db[k] += db[k];
      }
    }
  });
  return Status();
}

}  // namespace blocksparse

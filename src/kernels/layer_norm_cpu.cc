// The CPU side of layer_norm.h, and the readable second opinion on the GPU kernels.
//
// Loops go from what is read to what is written, in vectors (common/cpu_lanes.h). Features last:
// one row at a time, which stays in the first-level cache. Features first: a group of columns at a
// time. Their rows lie as far apart as the minibatch is long, often a power of two, so that few of
// them would stay in a cache; hence a copy, which the second-level cache holds. The gradients of g
// and b are added up for a fixed range of samples (a "part") by one task, in order, and the parts
// in order after that; so the number of threads does not show.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "src/kernels/common/cpu_lanes.h"
#include "src/kernels/common/scratch.h"
#include "src/kernels/layer_norm.h"

namespace blocksparse {
namespace {

constexpr int64_t kMaxColumns = 256;       // of a group
constexpr int64_t kCopyBytes = 512 << 10;  // that a second-level cache holds
constexpr int64_t kRowsAhead = 8;          // of a group, that are prefetched
constexpr int64_t kLeastBytes = 256;       // of a row of a group, as DRAM is slow with less
constexpr int64_t kLeastGroups = 16;       // so that threads have equal shares
constexpr int64_t kPartRows = 16;          // a part is a multiple of this, or of whole groups
constexpr int64_t kMaxParts = 64;          // keeps the workspace small; enough for as many threads
constexpr int64_t kForwardCycles = 1;      // rough costs of one element, for ParallelFor
constexpr int64_t kGradCycles = 2;

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Columns of a group, each of which has `size` elements in each of `num_copies` copies.
int64_t ColumnsOfGroup(int64_t num_copies, int64_t size, DType dtype, int64_t batch) {
  const int64_t fitting = kCopyBytes / (num_copies * size * SizeOf(dtype)) / kLanes * kLanes;
  const int64_t shared = RoundUp(batch / kLeastGroups, kLanes);
  return std::max(kLeastBytes / SizeOf(dtype), std::min({kMaxColumns, fitting, shared}));
}
int64_t ColumnsOfGroup(const LayerNormArgs& args) {
  return ColumnsOfGroup(1, args.features / args.segments, args.dtype, args.batch);
}
int64_t ColumnsOfGroup(const LayerNormGradArgs& args) {
  return ColumnsOfGroup(2, args.features / args.segments, args.dtype, args.batch);
}

int64_t SamplesOfPart(const LayerNormGradArgs& args) {
  const int64_t multiple = args.feature_axis == 1 ? kPartRows : ColumnsOfGroup(args);
  const int64_t samples = (args.batch + kMaxParts - 1) / kMaxParts;
  return std::max<int64_t>(1, RoundUp(samples, multiple) / multiple) * multiple;
}

// ---- arithmetic ---------------------------------------------------------------------------------

// Both directions use this expression, so that they agree on where relu is 0.
BLOCKSPARSE_INLINE float Affine(float xhat, float g, float b) { return xhat * g + b; }

// y, or 0 where a relu closes; NaN stays NaN.
template <bool kRelu>
BLOCKSPARSE_INLINE float Relu(float y) {
  return kRelu && y <= 0.f ? 0.f : y;
}

// dy as it passes the relu.
template <bool kRelu>
BLOCKSPARSE_INLINE float PassedBy(float dy, float xhat, float g, float b) {
  return kRelu && !(Affine(xhat, g, b) > 0.f) ? 0.f : dy;
}

// 1 / sqrt(variance + epsilon). `shift`, the deviations' own mean, is what rounding has left of the
// first sum.
BLOCKSPARSE_INLINE float Rstd(float square, float shift, float epsilon) {
  return 1.f / std::sqrt(std::max(square - shift * shift, 0.f) + epsilon);
}

// ---- features last: x[n, k] ---------------------------------------------------------------------

// Row `row` is segment row % S of sample row / S: rows are contiguous and in order.
template <typename T, bool kRelu>
BLOCKSPARSE_INLINE void NormalizeRow(const LayerNormArgs& args, int64_t row) {
  const int64_t size = args.features / args.segments;
  const int64_t segment = row % args.segments;
  const T* x = static_cast<const T*>(args.x) + row * size;
  T* y = static_cast<T*>(args.y) + row * size;
  const float* g = args.g + segment * size;
  const float* b = args.b + segment * size;

  float sums[kLanes] = {};
  ForEachInLanes(0, size, [&](int64_t i, int64_t lane) __attribute__((always_inline)) {
    sums[lane] += ToFloat(x[i]);
  });
  const float rough_mean = SumOf(sums) / size;
  float shifts[kLanes] = {};
  float squares[kLanes] = {};
  ForEachInLanes(0, size, [&](int64_t i, int64_t lane) __attribute__((always_inline)) {
    const float deviation = ToFloat(x[i]) - rough_mean;
    shifts[lane] += deviation;
    squares[lane] += deviation * deviation;
  });
  const float shift = SumOf(shifts) / size;
  const float mean = rough_mean + shift;
  const float rstd = Rstd(SumOf(squares) / size, shift, args.epsilon);
  BLOCKSPARSE_INDEPENDENT
  for (int64_t i = 0; i < size; ++i) {
    const float xhat = (ToFloat(x[i]) - mean) * rstd;
    y[i] = FromFloat<T>(Relu<kRelu>(Affine(xhat, g[i], b[i])));
  }
  args.mean[segment * args.batch + row / args.segments] = mean;
  args.rstd[segment * args.batch + row / args.segments] = rstd;
}

// dx of one segment of a sample; adds its share to dg and db, which start at the segment.
template <typename T, bool kRelu>
BLOCKSPARSE_INLINE void RowGradients(const LayerNormGradArgs& args, int64_t segment, int64_t n,
                                     float* dg, float* db) {
  const int64_t size = args.features / args.segments;
  const int64_t offset = n * args.features + segment * size;
  const T* x = static_cast<const T*>(args.x) + offset;
  const T* dy = static_cast<const T*>(args.dy) + offset;
  T* dx = static_cast<T*>(args.dx) + offset;
  const float* g = args.g + segment * size;
  const float* b = args.b + segment * size;
  const float mean = args.mean[segment * args.batch + n];
  const float rstd = args.rstd[segment * args.batch + n];

  float dots[kLanes] = {};
  float sums[kLanes] = {};
  ForEachInLanes(0, size, [&](int64_t i, int64_t lane) __attribute__((always_inline)) {
    const float xhat = (ToFloat(x[i]) - mean) * rstd;
    const float d = PassedBy<kRelu>(ToFloat(dy[i]), xhat, g[i], b[i]);
    dg[i] += d * xhat;
    db[i] += d;
    sums[lane] += g[i] * d;
    dots[lane] += g[i] * d * xhat;
  });
  const float dot = SumOf(dots) / size;
  const float sum = SumOf(sums) / size;
  BLOCKSPARSE_INDEPENDENT
  for (int64_t i = 0; i < size; ++i) {
    const float xhat = (ToFloat(x[i]) - mean) * rstd;
    const float d = PassedBy<kRelu>(ToFloat(dy[i]), xhat, g[i], b[i]);
    dx[i] = FromFloat<T>((g[i] * d - (xhat * dot + sum)) * rstd);
  }
}

// ---- features first: x[k, n] --------------------------------------------------------------------

// Columns [first, first + width) of a segment; `columns` is width, rounded up to lanes.
struct Group {
  int64_t segment;
  int64_t first;
  int64_t width;
  int64_t columns;
};

// Asks for `width` values from `row` on: where rows are far apart the hardware does not foresee
// them.
template <typename T>
BLOCKSPARSE_INLINE void Prefetch(const T* row, int64_t width) {
  constexpr int64_t kLineBytes = 64;
  for (int64_t j = 0; j < width; j += kLineBytes / int64_t{sizeof(T)}) __builtin_prefetch(row + j);
}

// The group's rows one after another, with zeros in places beyond its width. They lie like that if
// the group is the whole minibatch.
template <typename T>
BLOCKSPARSE_INLINE const T* CopyOf(const void* from, int64_t size, int64_t batch,
                                   const Group& group, T* to) {
  const T* rows = static_cast<const T*>(from) + group.segment * size * batch + group.first;
  if (group.columns == batch) return rows;
  for (int64_t k = 0; k < size; ++k) {
    const T* row = rows + k * batch;
    T* copy = to + k * group.columns;
    if (k + kRowsAhead < size) Prefetch(row + kRowsAhead * batch, group.width);
    int64_t j = 0;
    for (; j + kLanes <= group.width; j += kLanes)
      std::memcpy(copy + j, row + j, kLanes * sizeof(T));
    if (j == group.columns) continue;
    std::memset(copy + j, 0, kLanes * sizeof(T));
    std::memcpy(copy + j, row + j, (group.width - j) * sizeof(T));
  }
  return to;
}

template <typename T, bool kRelu>
BLOCKSPARSE_INLINE void NormalizeGroup(const LayerNormArgs& args, const Group& group) {
  const int64_t size = args.features / args.segments;
  const int64_t columns = group.columns;
  const Scratch copy(size * columns);
  const T* x = CopyOf(args.x, size, args.batch, group, reinterpret_cast<T*>(copy.data()));
  T* y = static_cast<T*>(args.y) + group.segment * size * args.batch + group.first;
  float mean[kMaxColumns];
  float rstd[kMaxColumns];
  for (int64_t first = 0; first < columns; first += kLanes) {
    float sums[kLanes] = {};
    for (int64_t k = 0; k < size; ++k)
      for (int64_t j = 0; j < kLanes; ++j) sums[j] += ToFloat(x[k * columns + first + j]);
    for (int64_t j = 0; j < kLanes; ++j) sums[j] /= size;
    float shifts[kLanes] = {};
    float squares[kLanes] = {};
    for (int64_t k = 0; k < size; ++k) {
      for (int64_t j = 0; j < kLanes; ++j) {
        const float deviation = ToFloat(x[k * columns + first + j]) - sums[j];
        shifts[j] += deviation;
        squares[j] += deviation * deviation;
      }
    }
    for (int64_t j = 0; j < kLanes; ++j) {
      const float shift = shifts[j] / size;
      mean[first + j] = sums[j] + shift;
      rstd[first + j] = Rstd(squares[j] / size, shift, args.epsilon);
    }
  }
  for (int64_t k = 0; k < size; ++k) {
    const float g = args.g[group.segment * size + k];
    const float b = args.b[group.segment * size + k];
    const T* x_row = x + k * columns;
    T* y_row = y + k * args.batch;
    if (k + kRowsAhead < size) Prefetch(y_row + kRowsAhead * args.batch, group.width);
    BLOCKSPARSE_INDEPENDENT
    for (int64_t j = 0; j < group.width; ++j) {
      const float xhat = (ToFloat(x_row[j]) - mean[j]) * rstd[j];
      y_row[j] = FromFloat<T>(Relu<kRelu>(Affine(xhat, g, b)));
    }
  }
  const int64_t moments = group.segment * args.batch + group.first;
  std::copy(mean, mean + group.width, args.mean + moments);
  std::copy(rstd, rstd + group.width, args.rstd + moments);
}

// As RowGradients, of a group.
template <typename T, bool kRelu>
BLOCKSPARSE_INLINE void GroupGradients(const LayerNormGradArgs& args, const Group& group, float* dg,
                                       float* db) {
  const int64_t size = args.features / args.segments;
  const int64_t columns = group.columns;
  const float* g_of = args.g + group.segment * size;
  const float* b_of = args.b + group.segment * size;
  const Scratch copy(2 * size * columns);
  T* copies = reinterpret_cast<T*>(copy.data());
  const T* x = CopyOf(args.x, size, args.batch, group, copies);
  const T* dy = CopyOf(args.dy, size, args.batch, group, copies + size * columns);
  T* dx = static_cast<T*>(args.dx) + group.segment * size * args.batch + group.first;

  // Beyond the width dy is 0.
  float mean[kMaxColumns] = {};
  float rstd[kMaxColumns] = {};
  const int64_t moments = group.segment * args.batch + group.first;
  std::copy_n(args.mean + moments, group.width, mean);
  std::copy_n(args.rstd + moments, group.width, rstd);
  float dot[kMaxColumns] = {};
  float sum[kMaxColumns] = {};
  for (int64_t k = 0; k < size; ++k) {
    const float g = g_of[k];
    const float b = b_of[k];
    float dg_lanes[kLanes] = {};
    float db_lanes[kLanes] = {};
    for (int64_t first = 0; first < columns; first += kLanes) {
      const T* x_row = x + k * columns + first;
      const T* dy_row = dy + k * columns + first;
      BLOCKSPARSE_INDEPENDENT
      for (int64_t j = 0; j < kLanes; ++j) {
        const float xhat = (ToFloat(x_row[j]) - mean[first + j]) * rstd[first + j];
        const float d = PassedBy<kRelu>(ToFloat(dy_row[j]), xhat, g, b);
        dg_lanes[j] += d * xhat;
        db_lanes[j] += d;
        sum[first + j] += g * d;
        dot[first + j] += g * d * xhat;
      }
    }
    dg[k] += SumOf(dg_lanes);
    db[k] += SumOf(db_lanes);
  }
  for (int64_t j = 0; j < columns; ++j) {
    dot[j] /= size;
    sum[j] /= size;
  }
  for (int64_t k = 0; k < size; ++k) {
    const float g = g_of[k];
    const float b = b_of[k];
    const T* x_row = x + k * columns;
    const T* dy_row = dy + k * columns;
    T* dx_row = dx + k * args.batch;
    if (k + kRowsAhead < size) Prefetch(dx_row + kRowsAhead * args.batch, group.width);
    BLOCKSPARSE_INDEPENDENT
    for (int64_t j = 0; j < group.width; ++j) {
      const float xhat = (ToFloat(x_row[j]) - mean[j]) * rstd[j];
      const float d = PassedBy<kRelu>(ToFloat(dy_row[j]), xhat, g, b);
      dx_row[j] = FromFloat<T>((g * d - (xhat * dot[j] + sum[j])) * rstd[j]);
    }
  }
}

// ---- tasks --------------------------------------------------------------------------------------

// `index` is a row, or a group of columns and a segment of it.
template <typename T, bool kRelu>
BLOCKSPARSE_INLINE void WorkOn(const LayerNormArgs& args, int64_t index) {
  if (args.feature_axis == 1) return NormalizeRow<T, kRelu>(args, index);
  const int64_t columns = ColumnsOfGroup(args);
  const int64_t first = index / args.segments * columns;
  const int64_t width = std::min(columns, args.batch - first);
  NormalizeGroup<T, kRelu>(args,
                           Group{index % args.segments, first, width, RoundUp(width, kLanes)});
}

// `index` is a part of the samples and a segment of it.
template <typename T, bool kRelu>
BLOCKSPARSE_INLINE void WorkOn(const LayerNormGradArgs& args, int64_t index) {
  const int64_t size = args.features / args.segments;
  const int64_t segment = index % args.segments;
  const int64_t part = index / args.segments;
  const int64_t begin = part * SamplesOfPart(args);
  const int64_t end = std::min(begin + SamplesOfPart(args), args.batch);
  float* dg = args.workspace + part * 2 * args.features + segment * size;
  float* db = dg + args.features;
  std::fill(dg, dg + size, 0.f);
  std::fill(db, db + size, 0.f);
  if (args.feature_axis == 1) {
    for (int64_t n = begin; n < end; ++n) RowGradients<T, kRelu>(args, segment, n, dg, db);
    return;
  }
  const int64_t columns = ColumnsOfGroup(args);
  for (int64_t n = begin; n < end; n += columns) {
    const int64_t width = std::min(columns, end - n);
    GroupGradients<T, kRelu>(args, Group{segment, n, width, RoundUp(width, kLanes)}, dg, db);
  }
}

template <typename T, class Args>
BLOCKSPARSE_INLINE void WithRelu(const Args& args, int64_t index) {
  if (args.relu) return WorkOn<T, true>(args, index);
  WorkOn<T, false>(args, index);
}

template <class Args>
BLOCKSPARSE_INLINE void WithType(const Args& args, int64_t index) {
  switch (args.dtype) {
    case DType::kFloat32:
      return WithRelu<float>(args, index);
    case DType::kFloat16:
      return WithRelu<Half>(args, index);
    case DType::kBFloat16:
      return WithRelu<BFloat16>(args, index);
  }
}

BLOCKSPARSE_FOR_EACH_CPU
void Normalize(const LayerNormArgs& args, int64_t index) { WithType(args, index); }

BLOCKSPARSE_FOR_EACH_CPU
void GradientsOfPart(const LayerNormGradArgs& args, int64_t index) { WithType(args, index); }

}  // namespace

int64_t LayerNormGradCpuPartials(const LayerNormGradArgs& args) {
  return (args.batch + SamplesOfPart(args) - 1) / SamplesOfPart(args);
}

Status LayerNormCpu(const LayerNormArgs& args, const ParallelFor& parallel_for) {
  const int64_t size = args.features / args.segments;
  const int64_t samples = args.feature_axis == 1 ? 1 : ColumnsOfGroup(args);  // of one index
  const int64_t total = (args.batch + samples - 1) / samples * args.segments;
  parallel_for(total, std::min(samples, args.batch) * size * kForwardCycles,
               [&](int64_t begin, int64_t end) {
                 for (int64_t index = begin; index < end; ++index) Normalize(args, index);
               });
  return Status();
}

Status LayerNormGradCpu(const LayerNormGradArgs& args, const ParallelFor& parallel_for) {
  const int64_t num_parts = LayerNormGradCpuPartials(args);
  const int64_t size = args.features / args.segments;
  parallel_for(num_parts * args.segments,
               std::min(SamplesOfPart(args), args.batch) * size * kGradCycles,
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

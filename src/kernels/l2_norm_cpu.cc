// The CPU side of l2_norm.h: one block column at a time, two passes over its blocks. Vector
// instructions take a row of a block, or as many small ones as have 64 elements.
#include <algorithm>
#include <cmath>

#include "src/kernels/common/cpu_clones.h"
#include "src/kernels/l2_norm.h"

namespace blocksparse {
namespace {

constexpr int64_t kLeastSpan = 64;     // divides every block
constexpr int64_t kLargestSpan = 128;  // the largest block size

// The elements that are next to each other in a block, several rows of it if it is small.
int64_t SpanOf(const Layout& layout) { return std::max<int64_t>(layout.block_size, kLeastSpan); }

// Calls f(offset) for every span of the weights of a block column.
template <class F>
BLOCKSPARSE_INLINE void ForEachSpan(const Layout& layout, int64_t column, F f) {
  const int64_t size = int64_t{layout.block_size} * layout.block_size;
  const int64_t span = SpanOf(layout);
  const EntryRange range = ColumnEntries(layout.fprop, layout.num_blocks, column);
  for (int64_t e = range.begin; e < range.end; ++e) {
    const LutEntry entry = layout.fprop.entries[e];
    if (!IsValid(entry, layout.in_blocks, layout.num_blocks)) continue;
    for (int64_t i = 0; i < size; i += span) f(entry.block * size + i);
  }
}

// The sum of the places of a span that belong to column j of the block.
BLOCKSPARSE_INLINE float SumOfColumn(const float* sums, const Layout& layout, int64_t j) {
  float sum = 0.f;
  for (int64_t i = j; i < SpanOf(layout); i += layout.block_size) sum += sums[i];
  return sum;
}

template <typename TX, typename TY>
BLOCKSPARSE_INLINE void NormalizeColumn(const L2NormArgs& args, int64_t column) {
  const Layout& layout = args.layout;
  const int64_t size = layout.block_size;
  const int64_t span = SpanOf(layout);
  const TX* x = static_cast<const TX*>(args.x);
  TY* y = static_cast<TY*>(args.y);
  float squares[kLargestSpan] = {};
  ForEachSpan(layout, column, [&](int64_t offset) __attribute__((always_inline)) {
    for (int64_t j = 0; j < span; ++j) {
      const float value = ToFloat(x[offset + j]);
      squares[j] += value * value;
    }
  });
  float* sums = args.sum_sqr + column * size;
  float factor[kLargestSpan];
  for (int64_t j = 0; j < size; ++j) {
    const float gain = args.gain == nullptr ? 1.f : args.gain[column * size + j];
    sums[j] = SumOfColumn(squares, layout, j);
    factor[j] = gain / std::sqrt(std::max(sums[j], args.epsilon));
  }
  for (int64_t j = size; j < span; ++j) factor[j] = factor[j - size];
  ForEachSpan(layout, column, [&](int64_t offset) __attribute__((always_inline)) {
    for (int64_t j = 0; j < span; ++j)
      y[offset + j] = FromFloat<TY>(ToFloat(x[offset + j]) * factor[j]);
  });
}

template <typename TX, typename TY>
BLOCKSPARSE_INLINE void GradientOfColumn(const L2NormGradArgs& args, int64_t column) {
  const Layout& layout = args.layout;
  const int64_t size = layout.block_size;
  const int64_t span = SpanOf(layout);
  const TX* x = static_cast<const TX*>(args.x);
  const TY* dy = static_cast<const TY*>(args.dy);
  TX* dx = static_cast<TX*>(args.dx);
  float products[kLargestSpan] = {};
  ForEachSpan(layout, column, [&](int64_t offset) __attribute__((always_inline)) {
    for (int64_t j = 0; j < span; ++j)
      products[j] += ToFloat(dy[offset + j]) * ToFloat(x[offset + j]);
  });
  float dy_factor[kLargestSpan];
  float x_factor[kLargestSpan];
  for (int64_t j = 0; j < size; ++j) {
    const int64_t k = column * size + j;
    const float gain = args.gain == nullptr ? 1.f : args.gain[k];
    const float bounded = std::max(args.sum_sqr[k], args.epsilon);
    const float r = 1.f / std::sqrt(bounded);
    const float dot = SumOfColumn(products, layout, j);
    dy_factor[j] = gain * r;
    x_factor[j] = args.sum_sqr[k] >= args.epsilon ? gain * r * dot / bounded : 0.f;
    if (args.dgain != nullptr) args.dgain[k] = r * dot;
  }
  for (int64_t j = size; j < span; ++j) {
    dy_factor[j] = dy_factor[j - size];
    x_factor[j] = x_factor[j - size];
  }
  ForEachSpan(layout, column, [&](int64_t offset) __attribute__((always_inline)) {
    for (int64_t j = 0; j < span; ++j)
      dx[offset + j] = FromFloat<TX>(dy_factor[j] * ToFloat(dy[offset + j]) -
                                     x_factor[j] * ToFloat(x[offset + j]));
  });
}

// Normalises, or finds the gradient, by the type of Args.
template <typename TX, typename TY>
BLOCKSPARSE_INLINE void WorkOn(const L2NormArgs& args, int64_t column) {
  NormalizeColumn<TX, TY>(args, column);
}
template <typename TX, typename TY>
BLOCKSPARSE_INLINE void WorkOn(const L2NormGradArgs& args, int64_t column) {
  GradientOfColumn<TX, TY>(args, column);
}

template <typename TX, class Args>
BLOCKSPARSE_INLINE void WithOutputType(const Args& args, int64_t column) {
  switch (args.y_dtype) {
    case DType::kFloat32:
      return WorkOn<TX, float>(args, column);
    case DType::kFloat16:
      return WorkOn<TX, Half>(args, column);
    case DType::kBFloat16:
      return WorkOn<TX, BFloat16>(args, column);
  }
}

template <class Args>
BLOCKSPARSE_INLINE void WithTypes(const Args& args, int64_t column) {
  switch (args.x_dtype) {
    case DType::kFloat32:
      return WithOutputType<float>(args, column);
    case DType::kFloat16:
      return WithOutputType<Half>(args, column);
    case DType::kBFloat16:
      return WithOutputType<BFloat16>(args, column);
  }
}

BLOCKSPARSE_FOR_EACH_CPU
void Normalize(const L2NormArgs& args, int64_t column) { WithTypes(args, column); }

BLOCKSPARSE_FOR_EACH_CPU
void Gradient(const L2NormGradArgs& args, int64_t column) { WithTypes(args, column); }

int64_t CostOfColumn(const Layout& layout) {
  return (1 + layout.num_blocks / layout.out_blocks) * layout.block_size * layout.block_size;
}

}  // namespace

Status L2NormCpu(const L2NormArgs& args, const ParallelFor& parallel_for) {
  parallel_for(args.layout.out_blocks, CostOfColumn(args.layout), [&](int64_t begin, int64_t end) {
    for (int64_t column = begin; column < end; ++column) Normalize(args, column);
  });
  return Status();
}

Status L2NormGradCpu(const L2NormGradArgs& args, const ParallelFor& parallel_for) {
  parallel_for(args.layout.out_blocks, CostOfColumn(args.layout), [&](int64_t begin, int64_t end) {
    for (int64_t column = begin; column < end; ++column) Gradient(args, column);
  });
  return Status();
}

}  // namespace blocksparse

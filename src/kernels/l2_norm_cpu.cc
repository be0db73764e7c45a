// The CPU side of l2_norm.h: one block column at a time, two passes over its blocks. Vector
// instructions take a row of a block, or as many small ones as have 64 elements.
#include <algorithm>
#include <cmath>

#include "src/kernels/common/cpu_clones.h"
#include "src/kernels/l2_norm.h"

namespace blocksparse {
namespace {

// The elements that are next to each other in a block, several rows of it if it is small.
constexpr int64_t kLeastSpan = 64;     // divides every block
constexpr int64_t kLargestSpan = 128;  // the largest block size
constexpr int64_t kAhead = 2;          // blocks before its use that one is prefetched

// Blocks of a column lie anywhere, and so the next one is prefetched.
BLOCKSPARSE_INLINE void Prefetch(const void* from, int64_t bytes) {
  constexpr int64_t kLineBytes = 64;
  constexpr int64_t kMaxBytes = 1024;  // the hardware sees to the rest
  for (int64_t i = 0; i < std::min(bytes, kMaxBytes); i += kLineBytes)
    __builtin_prefetch(static_cast<const char*>(from) + i);
}

// Calls f(offset) for every span of the weights of a block column. `weights` are those that f will
// touch for the first time.
template <int64_t kSpan, class F, typename... T>
BLOCKSPARSE_INLINE void ForEachSpan(const Layout& layout, int64_t column, F f,
                                    const T*... weights) {
  const int64_t size = int64_t{layout.block_size} * layout.block_size;
  const EntryRange range = ColumnEntries(layout.fprop, layout.num_blocks, column);
  for (int64_t e = range.begin; e < range.end; ++e) {
    const LutEntry entry = layout.fprop.entries[e];
    const LutEntry next = layout.fprop.entries[std::min(e + kAhead, range.end - 1)];
    if (IsValid(next, layout.in_blocks, layout.num_blocks))
      (Prefetch(weights + next.block * size, size * sizeof(T)), ...);
    if (!IsValid(entry, layout.in_blocks, layout.num_blocks)) continue;
    for (int64_t i = 0; i < size; i += kSpan) f(entry.block * size + i);
  }
}

// The sum of the places of a span that belong to column j of the block.
template <int64_t kSpan>
BLOCKSPARSE_INLINE float SumOfColumn(const float* sums, const Layout& layout, int64_t j) {
  float sum = 0.f;
  for (int64_t i = j; i < kSpan; i += layout.block_size) sum += sums[i];
  return sum;
}

template <typename TX, typename TY, int64_t kSpan>
BLOCKSPARSE_INLINE void NormalizeColumn(const L2NormArgs& args, int64_t column) {
  const Layout& layout = args.layout;
  const int64_t size = layout.block_size;
  const TX* x = static_cast<const TX*>(args.x);
  TY* y = static_cast<TY*>(args.y);
  float squares[kSpan] = {};
  ForEachSpan<kSpan>(
      layout, column,
      [&](int64_t offset) __attribute__((always_inline)) {
        BLOCKSPARSE_INDEPENDENT
        for (int64_t j = 0; j < kSpan; ++j) {
          const float value = ToFloat(x[offset + j]);
          squares[j] += value * value;
        }
      },
      x);
  float* sums = args.sum_sqr + column * size;
  float factor[kSpan];
  for (int64_t j = 0; j < size; ++j) {
    const float gain = args.gain == nullptr ? 1.f : args.gain[column * size + j];
    sums[j] = SumOfColumn<kSpan>(squares, layout, j);
    factor[j] = gain / std::sqrt(std::max(sums[j], args.epsilon));
  }
  for (int64_t j = size; j < kSpan; ++j) factor[j] = factor[j - size];
  ForEachSpan<kSpan>(
      layout, column,
      [&](int64_t offset) __attribute__((always_inline)) {
        BLOCKSPARSE_INDEPENDENT
        for (int64_t j = 0; j < kSpan; ++j)
          y[offset + j] = FromFloat<TY>(ToFloat(x[offset + j]) * factor[j]);
      },
      y);
}

template <typename TX, typename TY, int64_t kSpan>
BLOCKSPARSE_INLINE void GradientOfColumn(const L2NormGradArgs& args, int64_t column) {
  const Layout& layout = args.layout;
  const int64_t size = layout.block_size;
  const TX* x = static_cast<const TX*>(args.x);
  const TY* dy = static_cast<const TY*>(args.dy);
  TX* dx = static_cast<TX*>(args.dx);
  float products[kSpan] = {};
  ForEachSpan<kSpan>(
      layout, column,
      [&](int64_t offset) __attribute__((always_inline)) {
        BLOCKSPARSE_INDEPENDENT
        for (int64_t j = 0; j < kSpan; ++j)
          products[j] += ToFloat(dy[offset + j]) * ToFloat(x[offset + j]);
      },
      dy, x);
  float dy_factor[kSpan];
  float x_factor[kSpan];
  for (int64_t j = 0; j < size; ++j) {
    const int64_t k = column * size + j;
    const float gain = args.gain == nullptr ? 1.f : args.gain[k];
    const float bounded = std::max(args.sum_sqr[k], args.epsilon);
    const float r = 1.f / std::sqrt(bounded);
    const float dot = SumOfColumn<kSpan>(products, layout, j);
    dy_factor[j] = gain * r;
    x_factor[j] = args.sum_sqr[k] >= args.epsilon ? gain * r * dot / bounded : 0.f;
    if (args.dgain != nullptr) args.dgain[k] = r * dot;
  }
  for (int64_t j = size; j < kSpan; ++j) {
    dy_factor[j] = dy_factor[j - size];
    x_factor[j] = x_factor[j - size];
  }
  ForEachSpan<kSpan>(
      layout, column,
      [&](int64_t offset) __attribute__((always_inline)) {
        BLOCKSPARSE_INDEPENDENT
        for (int64_t j = 0; j < kSpan; ++j)
          dx[offset + j] = FromFloat<TX>(dy_factor[j] * ToFloat(dy[offset + j]) -
                                         x_factor[j] * ToFloat(x[offset + j]));
      },
      dx);
}

// Normalises, or finds the gradient, by the type of Args.
template <typename TX, typename TY, int64_t kSpan>
BLOCKSPARSE_INLINE void WorkOn(const L2NormArgs& args, int64_t column) {
  NormalizeColumn<TX, TY, kSpan>(args, column);
}
template <typename TX, typename TY, int64_t kSpan>
BLOCKSPARSE_INLINE void WorkOn(const L2NormGradArgs& args, int64_t column) {
  GradientOfColumn<TX, TY, kSpan>(args, column);
}

template <typename TX, typename TY, class Args>
BLOCKSPARSE_INLINE void WithSpan(const Args& args, int64_t column) {
  if (args.layout.block_size <= kLeastSpan) return WorkOn<TX, TY, kLeastSpan>(args, column);
  WorkOn<TX, TY, kLargestSpan>(args, column);
}

template <typename TX, class Args>
BLOCKSPARSE_INLINE void WithOutputType(const Args& args, int64_t column) {
  switch (args.y_dtype) {
    case DType::kFloat32:
      return WithSpan<TX, float>(args, column);
    case DType::kFloat16:
      return WithSpan<TX, Half>(args, column);
    case DType::kBFloat16:
      return WithSpan<TX, BFloat16>(args, column);
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

// The CPU side of l2_norm.h: one block column at a time, two passes over its blocks.
#include <algorithm>
#include <cmath>
#include <vector>

#include "src/kernels/l2_norm.h"

namespace blocksparse {
namespace {

// Calls f(i, j) with the element's index in w and its column in the block, for every weight of a
// block column.
template <class F>
void ForEachWeight(const Layout& layout, int64_t column, F f) {
  const int64_t size = layout.block_size;
  const EntryRange range = ColumnEntries(layout.fprop, layout.num_blocks, column);
  for (int64_t e = range.begin; e < range.end; ++e) {
    const LutEntry entry = layout.fprop.entries[e];
    if (!IsValid(entry, layout.in_blocks, layout.num_blocks)) continue;
    const int64_t offset = entry.block * size * size;
    for (int64_t i = 0; i < size * size; ++i) f(offset + i, i % size);
  }
}

int64_t CostOfColumn(const Layout& layout) {
  return (1 + layout.num_blocks / layout.out_blocks) * layout.block_size * layout.block_size * 2;
}

}  // namespace

Status L2NormCpu(const L2NormArgs& args, const ParallelFor& parallel_for) {
  const Layout& layout = args.layout;
  const int64_t size = layout.block_size;
  WithCpuType(args.x_dtype, [&](auto tx) {
    WithCpuType(args.y_dtype, [&](auto ty) {
      using TX = decltype(tx);
      using TY = decltype(ty);
      const TX* x = static_cast<const TX*>(args.x);
      TY* y = static_cast<TY*>(args.y);
      parallel_for(layout.out_blocks, CostOfColumn(layout), [&](int64_t begin, int64_t end) {
        std::vector<float> factor(size);
        for (int64_t column = begin; column < end; ++column) {
          float* sums = args.sum_sqr + column * size;
          std::fill(sums, sums + size, 0.f);
          ForEachWeight(layout, column,
                        [&](int64_t i, int64_t j) { sums[j] += ToFloat(x[i]) * ToFloat(x[i]); });
          for (int64_t j = 0; j < size; ++j) {
            const float gain = args.gain == nullptr ? 1.f : args.gain[column * size + j];
            factor[j] = gain / std::sqrt(std::max(sums[j], args.epsilon));
          }
          ForEachWeight(layout, column, [&](int64_t i, int64_t j) {
            y[i] = FromFloat<TY>(ToFloat(x[i]) * factor[j]);
          });
        }
      });
    });
  });
  return Status();
}

Status L2NormGradCpu(const L2NormGradArgs& args, const ParallelFor& parallel_for) {
  const Layout& layout = args.layout;
  const int64_t size = layout.block_size;
  WithCpuType(args.x_dtype, [&](auto tx) {
    WithCpuType(args.y_dtype, [&](auto ty) {
      using TX = decltype(tx);
      using TY = decltype(ty);
      const TX* x = static_cast<const TX*>(args.x);
      const TY* dy = static_cast<const TY*>(args.dy);
      TX* dx = static_cast<TX*>(args.dx);
      parallel_for(layout.out_blocks, CostOfColumn(layout), [&](int64_t begin, int64_t end) {
        std::vector<float> dots(size), dy_factor(size), x_factor(size);
        for (int64_t column = begin; column < end; ++column) {
          std::fill(dots.begin(), dots.end(), 0.f);
          ForEachWeight(layout, column,
                        [&](int64_t i, int64_t j) { dots[j] += ToFloat(dy[i]) * ToFloat(x[i]); });
          for (int64_t j = 0; j < size; ++j) {
            const int64_t k = column * size + j;
            const float gain = args.gain == nullptr ? 1.f : args.gain[k];
            const float bounded = std::max(args.sum_sqr[k], args.epsilon);
            const float r = 1.f / std::sqrt(bounded);
            dy_factor[j] = gain * r;
            x_factor[j] = args.sum_sqr[k] >= args.epsilon ? gain * r * dots[j] / bounded : 0.f;
            if (args.dgain != nullptr) args.dgain[k] = r * dots[j];
          }
          ForEachWeight(layout, column, [&](int64_t i, int64_t j) {
            dx[i] = FromFloat<TX>(dy_factor[j] * ToFloat(dy[i]) - x_factor[j] * ToFloat(x[i]));
          });
        }
      });
    });
  });
  return Status();
}

}  // namespace blocksparse

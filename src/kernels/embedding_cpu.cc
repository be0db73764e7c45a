// The CPU side of embedding.h. The gradient sorts the positions by index, by counting, and then
// adds each row's positions in their order; threads share the table by rows and tiles of columns.
#include <algorithm>
#include <cstring>
#include <vector>

#include "src/kernels/common/cpu_clones.h"
#include "src/kernels/embedding.h"

namespace blocksparse {
namespace {

constexpr int64_t kTile = 256;  // columns that are summed together, so that a large row is shared

// The positions of row c are order[starts[c]] to order[starts[c + 1] - 1], ascending.
struct Positions {
  std::vector<int64_t> starts;
  std::vector<int64_t> order;
};
Positions PositionsByRow(const EmbeddingInputs& in) {
  // Counts are kept two rows further on, so that the second pass can turn them into the starts.
  Positions positions = {std::vector<int64_t>(in.rows + 2, 0), {}};
  std::vector<int64_t>& starts = positions.starts;
  for (int64_t n = 0; n < in.num_indices; ++n) {
    const int64_t row = IndexOf(in, n);
    if (IsRow(in, row)) ++starts[row + 2];
  }
  for (int64_t row = 0; row < in.rows; ++row) starts[row + 2] += starts[row + 1];
  positions.order.resize(starts[in.rows + 1]);
  for (int64_t n = 0; n < in.num_indices; ++n) {
    const int64_t row = IndexOf(in, n);
    if (IsRow(in, row)) positions.order[starts[row + 1]++] = n;
  }
  return positions;
}

// Columns [column, column + size) of one row of demb; size is at most kTile.
template <typename T, typename TGrad>
BLOCKSPARSE_INLINE void SumTile(const EmbeddingGradArgs& args, const Positions& positions,
                                int64_t row, int64_t column, int64_t size) {
  const int64_t width = args.in.width;
  const int64_t* position = positions.order.data() + positions.starts[row];
  const int64_t* end = positions.order.data() + positions.starts[row + 1];
  TGrad* __restrict__ result = static_cast<TGrad*>(args.demb) + row * width + column;
  if (position == end) {
    std::memset(result, 0, size * sizeof(TGrad));
    return;
  }
  float sums[kTile] = {};
  for (; position < end; ++position) {
    const T* __restrict__ values = static_cast<const T*>(args.dy) + *position * width + column;
    for (int64_t j = 0; j < size; ++j) sums[j] += ToFloat(values[j]);
  }
  for (int64_t j = 0; j < size; ++j) result[j] = FromFloat<TGrad>(sums[j]);
}

template <typename T>
BLOCKSPARSE_INLINE void SumTileTo(const EmbeddingGradArgs& args, const Positions& positions,
                                  int64_t row, int64_t column, int64_t size) {
  switch (args.demb_dtype) {
    case DType::kFloat32:
      return SumTile<T, float>(args, positions, row, column, size);
    case DType::kFloat16:
      return SumTile<T, Half>(args, positions, row, column, size);
    case DType::kBFloat16:
      return SumTile<T, BFloat16>(args, positions, row, column, size);
  }
}

BLOCKSPARSE_FOR_EACH_CPU
void SumTileOf(const EmbeddingGradArgs& args, const Positions& positions, int64_t row,
               int64_t column, int64_t size) {
  switch (args.in.dtype) {
    case DType::kFloat32:
      return SumTileTo<float>(args, positions, row, column, size);
    case DType::kFloat16:
      return SumTileTo<Half>(args, positions, row, column, size);
    case DType::kBFloat16:
      return SumTileTo<BFloat16>(args, positions, row, column, size);
  }
}

}  // namespace

int64_t FindBadIndex(const EmbeddingInputs& in) {
  for (int64_t n = 0; n < in.num_indices; ++n) {
    if (!IsRow(in, IndexOf(in, n))) return n;
  }
  return -1;
}

Status EmbeddingCpu(const EmbeddingArgs& args, const ParallelFor& parallel_for) {
  const EmbeddingInputs& in = args.in;
  const int64_t row_bytes = in.width * SizeOf(in.dtype);
  if (row_bytes == 0) return Status();
  parallel_for(in.num_indices, row_bytes, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      char* y = static_cast<char*>(args.y) + n * row_bytes;
      const int64_t row = IndexOf(in, n);
      if (IsRow(in, row)) {
        std::memcpy(y, static_cast<const char*>(args.emb) + row * row_bytes, row_bytes);
      } else {
        std::memset(y, 0, row_bytes);
      }
    }
  });
  return Status();
}

Status EmbeddingGradCpu(const EmbeddingGradArgs& args, const ParallelFor& parallel_for) {
  const EmbeddingInputs& in = args.in;
  const Positions positions = PositionsByRow(in);
  const int64_t num_tiles = (in.width + kTile - 1) / kTile;
  const int64_t cost = kTile * (1 + in.num_indices / std::max<int64_t>(in.rows, 1)) / 2;
  parallel_for(num_tiles * in.rows, cost, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t column = i % num_tiles * kTile;
      SumTileOf(args, positions, i / num_tiles, column, std::min(kTile, in.width - column));
    }
  });
  return Status();
}

}  // namespace blocksparse

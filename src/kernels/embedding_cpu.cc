// The CPU side of embedding.h. The gradient sorts the positions by index, by counting, and then
// adds each row's positions in their order; threads share the table by rows and tiles of columns.
#include <algorithm>
#include <cstring>
#include <vector>

#include "src/kernels/embedding.h"

namespace blocksparse {
namespace {

constexpr int64_t kTile = 64;  // columns that are summed together, so that a large row is shared

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

template <typename T, typename TGrad>
void SumRows(const EmbeddingGradArgs& args, const ParallelFor& parallel_for) {
  const EmbeddingInputs& in = args.in;
  const T* dy = static_cast<const T*>(args.dy);
  TGrad* demb = static_cast<TGrad*>(args.demb);
  const Positions positions = PositionsByRow(in);
  const int64_t num_tiles = (in.width + kTile - 1) / kTile;
  const int64_t cost = kTile * (1 + in.num_indices / std::max<int64_t>(in.rows, 1));
  parallel_for(num_tiles * in.rows, cost, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i % in.rows;
      const int64_t column = i / in.rows * kTile;
      const int64_t size = std::min(kTile, in.width - column);
      float sums[kTile] = {};
      for (int64_t p = positions.starts[row]; p < positions.starts[row + 1]; ++p) {
        const T* values = dy + positions.order[p] * in.width + column;
        for (int64_t j = 0; j < size; ++j) sums[j] += ToFloat(values[j]);
      }
      TGrad* result = demb + row * in.width + column;
      for (int64_t j = 0; j < size; ++j) result[j] = FromFloat<TGrad>(sums[j]);
    }
  });
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
  WithCpuType(args.in.dtype, [&](auto t) {
    WithCpuType(args.demb_dtype,
                [&](auto t_grad) { SumRows<decltype(t), decltype(t_grad)>(args, parallel_for); });
  });
  return Status();
}

}  // namespace blocksparse

// The CPU side of embedding.h. The gradient sorts the positions by index, by counting, and then
// adds each row's positions in their order; threads share the table by tiles of columns and rows.
// Rows are read in no order that the hardware could foresee, and so are prefetched.
#include <algorithm>
#include <cstring>
#include <vector>

#include "src/kernels/common/cpu_clones.h"
#include "src/kernels/embedding.h"

namespace blocksparse {
namespace {

constexpr int64_t kTile = 256;  // columns that are summed together, so that a large row is shared
constexpr int64_t kAtOnce = 4;  // positions that are added to a sum before it is stored
constexpr int64_t kAhead = 4;   // positions before its use that a row is prefetched
constexpr int64_t kMaxBytes = 4096;  // of it; the hardware sees to the rest

BLOCKSPARSE_INLINE void Prefetch(const void* from, int64_t bytes) {
  constexpr int64_t kLineBytes = 64;
  for (int64_t i = 0; i < std::min(bytes, kMaxBytes); i += kLineBytes)
    __builtin_prefetch(static_cast<const char*>(from) + i);
}

// Rows are short: a call of memcpy for each takes up to 1.7 times as long.
void Copy(const char* from, int64_t bytes, char* to) {
  constexpr int64_t kBlockBytes = 128;
  int64_t i = 0;
  for (; i + kBlockBytes <= bytes; i += kBlockBytes) std::memcpy(to + i, from + i, kBlockBytes);
  std::memcpy(to + i, from + i, bytes - i);
}

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

// Columns [column, column + size) of one row of demb, which has positions; size is at most kTile.
template <typename T, typename TGrad>
BLOCKSPARSE_INLINE void SumTile(const EmbeddingGradArgs& args, const Positions& positions,
                                int64_t row, int64_t column, int64_t size) {
  const int64_t width = args.in.width;
  const T* dy = static_cast<const T*>(args.dy) + column;
  TGrad* result = static_cast<TGrad*>(args.demb) + row * width + column;
  const int64_t* order = positions.order.data();
  const int64_t last = static_cast<int64_t>(positions.order.size()) - 1;
  float sums[kTile] = {};
  int64_t i = positions.starts[row];
  const int64_t end = positions.starts[row + 1];
  for (; i + kAtOnce <= end; i += kAtOnce) {
    const T* values[kAtOnce];
    for (int64_t p = 0; p < kAtOnce; ++p) {
      values[p] = dy + order[i + p] * width;
      Prefetch(dy + order[std::min(i + p + kAhead, last)] * width, size * sizeof(T));
    }
    BLOCKSPARSE_INDEPENDENT
    for (int64_t j = 0; j < size; ++j)
      sums[j] = sums[j] + ToFloat(values[0][j]) + ToFloat(values[1][j]) + ToFloat(values[2][j]) +
                ToFloat(values[3][j]);
  }
  for (; i < end; ++i) {
    const T* values = dy + order[i] * width;
    Prefetch(dy + order[std::min(i + kAhead, last)] * width, size * sizeof(T));
    BLOCKSPARSE_INDEPENDENT
    for (int64_t j = 0; j < size; ++j) sums[j] += ToFloat(values[j]);
  }
  BLOCKSPARSE_INDEPENDENT
  for (int64_t j = 0; j < size; ++j) result[j] = FromFloat<TGrad>(sums[j]);
}

// A tile of rows [begin, end). Rows without positions become zeros, all at once where they are next
// to each other.
template <typename T, typename TGrad>
BLOCKSPARSE_INLINE void SumRows(const EmbeddingGradArgs& args, const Positions& positions,
                                int64_t column, int64_t begin, int64_t end) {
  const int64_t width = args.in.width;
  const int64_t size = std::min(kTile, width - column);
  const auto is_empty = [&](int64_t row) {
    return positions.starts[row] == positions.starts[row + 1];
  };
  for (int64_t row = begin; row < end;) {
    if (!is_empty(row)) {
      SumTile<T, TGrad>(args, positions, row++, column, size);
      continue;
    }
    const int64_t first = row++;
    while (row < end && size == width && is_empty(row)) ++row;
    std::memset(static_cast<TGrad*>(args.demb) + first * width + column, 0,
                ((row - first - 1) * width + size) * sizeof(TGrad));
  }
}

template <typename T>
BLOCKSPARSE_INLINE void SumRowsTo(const EmbeddingGradArgs& args, const Positions& positions,
                                  int64_t column, int64_t begin, int64_t end) {
  switch (args.demb_dtype) {
    case DType::kFloat32:
      return SumRows<T, float>(args, positions, column, begin, end);
    case DType::kFloat16:
      return SumRows<T, Half>(args, positions, column, begin, end);
    case DType::kBFloat16:
      return SumRows<T, BFloat16>(args, positions, column, begin, end);
  }
}

BLOCKSPARSE_FOR_EACH_CPU
void SumRowsOf(const EmbeddingGradArgs& args, const Positions& positions, int64_t column,
               int64_t begin, int64_t end) {
  switch (args.in.dtype) {
    case DType::kFloat32:
      return SumRowsTo<float>(args, positions, column, begin, end);
    case DType::kFloat16:
      return SumRowsTo<Half>(args, positions, column, begin, end);
    case DType::kBFloat16:
      return SumRowsTo<BFloat16>(args, positions, column, begin, end);
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
    const char* emb = static_cast<const char*>(args.emb);
    for (int64_t n = begin; n < end; ++n) {
      const int64_t next = IndexOf(in, std::min(n + kAhead, end - 1));
      if (IsRow(in, next)) Prefetch(emb + next * row_bytes, row_bytes);
      char* y = static_cast<char*>(args.y) + n * row_bytes;
      const int64_t row = IndexOf(in, n);
      if (IsRow(in, row)) {
        Copy(emb + row * row_bytes, row_bytes, y);
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
    while (begin < end) {
      const int64_t tile = begin / in.rows;
      const int64_t tile_end = std::min(end, (tile + 1) * in.rows);
      SumRowsOf(args, positions, tile * kTile, begin - tile * in.rows, tile_end - tile * in.rows);
      begin = tile_end;
    }
  });
  return Status();
}

}  // namespace blocksparse

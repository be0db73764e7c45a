// Packing for matmul_cpu.h, included like common/simd_words.h after the vectors of a level.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_CPU_PACK_H_
#define BLOCKSPARSE_KERNELS_MATMUL_CPU_PACK_H_

#include "src/kernels/matmul_cpu.h"

namespace blocksparse {
namespace {

// How the words of a matrix of T are read, eight at a time. `count` < 8 reads as many columns'
// words and fills up with zeros.

template <typename T_>
struct ValueWords {
  using T = T_;
  static constexpr int kRows = 1;
  static constexpr int kColumns = 1;
  static Words Load(const T* from, int64_t, bool) { return Load8(from); }
};

#ifdef BLOCKSPARSE_PAIRS
struct RowPairWords {
  using T = BFloat16;
  static constexpr int kRows = 2;
  static constexpr int kColumns = 1;
  static Words Load(const T* from, int64_t row_stride, bool has_second) {
    const T zeros[kWords] = {};
    return Interleave8(from, has_second ? from + row_stride : zeros);
  }
};

struct ColumnPairWords {
  using T = BFloat16;
  static constexpr int kRows = 1;
  static constexpr int kColumns = 2;
  static Words Load(const T* from, int64_t, bool) { return LoadWords(from); }
};
#endif

// The words of a row that start at `column`, in a matrix of `columns` columns.
template <class Source>
inline Words LoadRow(const typename Source::T* row, int64_t row_stride, bool has_second,
                     int64_t column, int64_t columns) {
  using T = typename Source::T;
  constexpr int kSize = kWords * Source::kColumns;
  if (column + kSize <= columns) return Source::Load(row + column, row_stride, has_second);
  T copy[Source::kRows * kSize] = {};
  for (int64_t i = column; i < columns; ++i) {
    copy[i - column] = row[i];
    if (Source::kRows == 2 && has_second) copy[kSize + i - column] = row[row_stride + i];
  }
  return Source::Load(copy, kSize, has_second);
}

// Rows of a tile that are read side by side: their cache lines share a set where the stride is a
// power of two.
constexpr int64_t kRowsOfTile = 8;

inline float* StripAt(const PackJob& job, int64_t strip) {
  return job.to + strip / job.wide * job.strip_words + strip % job.wide * kWords;
}

template <class Source>
void PackStrips(const PackJob& job) {
  using T = typename Source::T;
  const int64_t row_words = job.wide * kWords;
  const int64_t num_rows = (job.rows + Source::kRows - 1) / Source::kRows;
  for (int64_t first = 0; first < num_rows; first += kRowsOfTile) {
    const int64_t count = num_rows - first < kRowsOfTile ? num_rows - first : kRowsOfTile;
    int64_t strip = 0;
    for (int64_t column = 0; column < job.columns; column += kWords * Source::kColumns) {
      const T* row = static_cast<const T*>(job.from) + first * Source::kRows * job.row_stride;
      float* to = StripAt(job, strip++) + first * row_words;
      for (int64_t i = 0; i < count; ++i, row += Source::kRows * job.row_stride, to += row_words) {
        const bool has_second = (first + i) * Source::kRows + 1 < job.rows;
        StoreWords(to, LoadRow<Source>(row, job.row_stride, has_second, column, job.columns));
      }
    }
  }
}

template <class Source>
void PackTransposedStrips(const PackJob& job) {
  using T = typename Source::T;
  const int64_t row_words = job.wide * kWords;
  const int64_t num_words = (job.columns + Source::kColumns - 1) / Source::kColumns;
  for (int64_t first = 0; first < job.rows; first += kWords) {
    const T* corner = static_cast<const T*>(job.from) + first * job.row_stride;
    const int64_t rows = job.rows - first < kWords ? job.rows - first : kWords;
    float* strip = StripAt(job, first / kWords);
    for (int64_t word = 0; word < num_words; word += kWords) {
      Words tile[kWords];
      for (int64_t i = 0; i < kWords; ++i) {
        tile[i] = i < rows ? LoadRow<Source>(corner + i * job.row_stride, 0, false,
                                             word * Source::kColumns, job.columns)
                           : ZeroWords();
      }
      Transpose8(tile);
      float* to = strip + word * row_words;
      for (int64_t i = 0; i < kWords && word + i < num_words; ++i)
        StoreWords(to + i * row_words, tile[i]);
    }
  }
}

template <class Source>
void PackFrom(const PackJob& job) {
  return job.is_transposed ? PackTransposedStrips<Source>(job) : PackStrips<Source>(job);
}

void Pack(const PackJob& job) {
#ifdef BLOCKSPARSE_PAIRS
  if (job.kind == WordKind::kRowPair) return PackStrips<RowPairWords>(job);
  if (job.kind == WordKind::kColumnPair) return PackFrom<ColumnPairWords>(job);
#endif
  switch (job.dtype) {
    case DType::kFloat32:
      return PackFrom<ValueWords<float>>(job);
    case DType::kFloat16:
      return PackFrom<ValueWords<Half>>(job);
    case DType::kBFloat16:
      return PackFrom<ValueWords<BFloat16>>(job);
  }
}

}  // namespace
}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_CPU_PACK_H_

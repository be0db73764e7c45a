// Packing, included like matmul_cpu_kernels.h.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_CPU_PACK_H_
#define BLOCKSPARSE_KERNELS_MATMUL_CPU_PACK_H_

#include "src/kernels/matmul_cpu_kernels.h"

namespace blocksparse {
namespace {

// How the words of a matrix of T are read: a word takes kRows x kColumns elements. Load makes eight
// from neighbouring columns.

template <typename T_>
struct ValueWords {
  using T = T_;
  static constexpr int kRows = 1;
  static constexpr int kColumns = 1;
  static Words Load(const T* from, int64_t) { return Load8(from); }
};

#ifdef BLOCKSPARSE_PAIRS
struct RowPairWords {
  using T = BFloat16;
  static constexpr int kRows = 2;
  static constexpr int kColumns = 1;
  static Words Load(const T* from, int64_t row_stride) {
    return Interleave8(from, from + row_stride);
  }
};

struct ColumnPairWords {
  using T = BFloat16;
  static constexpr int kRows = 1;
  static constexpr int kColumns = 2;
  static Words Load(const T* from, int64_t) { return LoadWords(from); }
};
#endif

// Load where only rows x columns of the elements exist; the others count as zero.
template <class Source>
Words LoadSome(const typename Source::T* from, int64_t row_stride, int64_t rows, int64_t columns) {
  using T = typename Source::T;
  constexpr int64_t kSize = kWords * Source::kColumns;
  if (rows >= Source::kRows && columns >= kSize) return Source::Load(from, row_stride);
  T copy[Source::kRows * kSize] = {};
  for (int64_t i = 0; i < Min(rows, Source::kRows); ++i)
    for (int64_t j = 0; j < Min(columns, kSize); ++j)
      copy[i * kSize + j] = from[i * row_stride + j];
  return Source::Load(copy, kSize);
}

// Rows of a tile that are read side by side: their cache lines share a set where the stride is a
// power of two.
constexpr int64_t kRowsOfTile = 8;

inline float* StripAt(const PackJob& job, int64_t strip) {
  return job.to + strip / job.wide * job.strip_words + strip % job.wide * kWords;
}

// Asks for a cache line of up to `count` rows, for the second-level cache: in the first one, rows a
// power of two apart would drive each other out.
template <typename T>
void PrefetchRows(const T* from, int64_t row_stride, int64_t count) {
  for (int64_t i = 0; i < count; ++i) __builtin_prefetch(from + i * row_stride, 0, 2);
}

template <class Source>
void PackStrips(const PackJob& job) {
  using T = typename Source::T;
  constexpr int64_t kColumns = kWords * Source::kColumns;  // of a strip, in elements
  constexpr int64_t kLineColumns = kLineBytes / sizeof(T);
  constexpr int kLineStrips = kLineColumns / kColumns;
  const int64_t row_words = job.wide * kWords;
  int64_t tile_rows;
  for (int64_t row = 0; row < job.rows; row += tile_rows) {
    const int64_t whole = Min(kRowsOfTile, (job.rows - row) / Source::kRows);
    tile_rows = whole > 0 ? whole * Source::kRows : 1;
    const int64_t next = row + tile_rows;
    const int64_t next_rows = job.is_far ? Min(tile_rows, job.rows + job.rows_ahead - next) : 0;
    int64_t column = 0;
    int64_t strip = 0;
    // A cache line of each row at once, before the other rows drive it out.
    for (; whole > 0 && column + kLineColumns <= job.columns;
         column += kLineColumns, strip += kLineStrips) {
      const T* from = static_cast<const T*>(job.from) + row * job.row_stride + column;
      PrefetchRows(from + tile_rows * job.row_stride, job.row_stride, next_rows);
      float* to[kLineStrips];
      for (int s = 0; s < kLineStrips; ++s)
        to[s] = StripAt(job, strip + s) + row / Source::kRows * row_words;
      for (int64_t i = 0; i < whole; ++i) {
        BLOCKSPARSE_UNROLL for (int s = 0; s < kLineStrips; ++s)
            StoreWords(to[s] + i * row_words, Source::Load(from + s * kColumns, job.row_stride));
        from += Source::kRows * job.row_stride;
      }
    }
    for (; column < job.columns; column += kColumns) {
      const T* from = static_cast<const T*>(job.from) + row * job.row_stride + column;
      float* to = StripAt(job, strip++) + row / Source::kRows * row_words;
      for (int64_t rows = tile_rows; rows > 0; rows -= Source::kRows) {
        StoreWords(to, LoadSome<Source>(from, job.row_stride, rows, job.columns - column));
        from += Source::kRows * job.row_stride;
        to += row_words;
      }
    }
  }
}

template <class Source>
void PackTransposedStrips(const PackJob& job) {
  using T = typename Source::T;
  constexpr int64_t kColumns = kWords * Source::kColumns;
  const int64_t row_words = job.wide * kWords;
  for (int64_t row = 0; row < job.rows; row += kWords) {
    float* to = StripAt(job, row / kWords);
    for (int64_t column = 0; column < job.columns; column += kColumns) {
      const T* from = static_cast<const T*>(job.from) + row * job.row_stride + column;
      Words tile[kWords];
      if (row + kWords <= job.rows && column + kColumns <= job.columns) {
        BLOCKSPARSE_UNROLL for (int i = 0; i < kWords; ++i) tile[i] =
            Source::Load(from + i * job.row_stride, 0);
        Transpose8(tile);
        BLOCKSPARSE_UNROLL for (int i = 0; i < kWords; ++i) StoreWords(to + i * row_words, tile[i]);
        to += kWords * row_words;
        continue;
      }
      for (int64_t i = 0; i < kWords; ++i) {
        tile[i] = row + i < job.rows
                      ? LoadSome<Source>(from + i * job.row_stride, 0, 1, job.columns - column)
                      : ZeroWords();
      }
      Transpose8(tile);
      for (int64_t i = 0; i < kWords && column + i * Source::kColumns < job.columns; ++i)
        StoreWords(to + i * row_words, tile[i]);
      to += kWords * row_words;
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

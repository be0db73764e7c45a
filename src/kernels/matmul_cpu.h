// How the CPU products are divided: matmul_cpu.cc cuts them into jobs and spreads these over the
// threads; matmul_cpu_product.h and matmul_cpu_dw.h, compiled once for each CpuLevel, do the jobs.
//
// All arithmetic is on 32-bit words: float32 values, or pairs of bfloat16 that are neighbours in
// the sum (kAvx512Bf16 alone; elsewhere 16-bit inputs are converted). Matrices are first packed
// into strips, eight words wide: word[strip][row][8], so that the products read memory in order
// whatever the strides were. Strips may be wide: several side by side, word[strip][row][wide][8].
//
//   features in lanes   y[n, j..] += x[n, c] W[c, j..]    strips of x along c, wide ones of W
//   samples in lanes    y[j, n..] += W[c, j] x[c, n..]    strips of W along j, wide ones of x along
//   n dw                  dw[i, j..] += x[n, i] dy[n, j..]  strips of x along i, wide ones of dy
//   along j
//
// The order in which an element is summed depends on sizes alone: along the entries of its block
// column, or along the minibatch, chunk by chunk.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_CPU_H_
#define BLOCKSPARSE_KERNELS_MATMUL_CPU_H_

#include <cstdint>

#include "src/kernels/common/dtype.h"
#include "src/kernels/common/lut.h"

namespace blocksparse {

constexpr int kStripWords = 8;  // of a strip's row
constexpr int kMaxBlockSize = 128;
constexpr int kSliceWidth = 32;  // outputs that are computed together, at most

// What becomes a word.
enum class WordKind {
  kValue,       // a value, as float32
  kRowPair,     // the bfloat16 of two neighbouring rows
  kColumnPair,  // the bfloat16 of two neighbouring columns
};

// Packs a row-major matrix into strips along its columns, or, if is_transposed, along its rows.
// Where columns (rows, if transposed) do not fill the last strip, or a pair is incomplete, the
// words hold zeros.
struct PackJob {
  DType dtype;
  WordKind kind;  // kRowPair only without is_transposed
  bool is_transposed;
  const void* from;
  int64_t row_stride;  // in elements
  int64_t rows;        // in elements
  bool is_far;         // not in a cache nearby: rows are asked for ahead of time
  int64_t rows_ahead;  // that follow and may be asked for
  int64_t columns;
  float* to;
  int wide;             // strips side by side
  int64_t strip_words;  // from one wide strip to the next
};

// One entry of a block column: its weights, and where its input block starts in a panel of x. The
// inner loops ask for the operands of later steps, so that many steps after the last can be read.
constexpr int kStepsAhead = 2;
struct ProductStep {
  const float* w;
  int64_t x;  // in words
};

// y = x W or dx = dy W^T for one packed chunk of the minibatch. x is packed in panels of samples:
// one wide strip with samples in lanes, else all strips for a few samples.
struct ProductJob {
  DType dtype;
  bool is_dx;
  bool has_sample_lanes;
  bool has_pairs;
  int feature_axis;
  int block_size;
  int64_t num_blocks;
  Direction direction;
  const void* w;
  const float* gate;
  const float* x;
  int64_t panel;  // samples of a panel
  int64_t panel_words;
  void* y;           // at the chunk's first sample
  int64_t y_stride;  // in elements, from one row of y to the next
  bool is_streamed;  // y, where its cache lines are written whole, goes past the caches
};

// Slices [begin, end) of the result, min(block_size, kSliceWidth) outputs each, for samples
// [first_sample, last_sample) of the chunk; first_sample starts a panel.
struct ProductRange {
  int64_t begin;
  int64_t end;
  int64_t first_sample;
  int64_t last_sample;
};

// Buffers of one thread.
struct ProductScratch {
  float* w;  // repacked weights of as many slices as fit, at least of one
  int64_t num_words;
  ProductStep* steps;
  int64_t num_steps;
};

// dw of one packed chunk of the minibatch; with several chunks their sums are added in order.
struct DwJob {
  DType dw_dtype;
  bool is_first;  // chunk
  bool is_last;
  bool has_pairs;
  int block_size;
  int64_t num_blocks;
  Direction dx;           // its columns are the rows of blocks
  const int64_t* starts;  // int64[num_outputs + 1]: entries before each of them
  const float* gate;
  const float* x;         // strips
  int64_t x_strip_words;  // from one to the next
  const float* dy;        // wide strips of `lanes` words, of eight if blocks are smaller
  int64_t dy_strip_words;
  int64_t depth;  // rows of the strips that hold samples
  float* sums;    // float32[num_blocks, B, B]: dw itself, or what is rounded at last; or null
  void* dw;
  bool is_streamed;  // as above
};

// The kernels of one level.
struct MatmulCpuKernels {
  int lanes;  // of a vector
  bool has_pairs;
  // The most samples of a panel, with features in lanes, for slices of this width.
  int (*most_rows)(int width);
  void (*pack)(const PackJob& job);
  void (*product)(const ProductJob& job, const ProductRange& range, const ProductScratch& scratch);
  // Entries [begin, end) of the rows of blocks, as `starts` counts them.
  void (*dw)(const DwJob& job, int64_t begin, int64_t end);
};

extern const MatmulCpuKernels kMatmulPortable;
#ifdef __x86_64__
extern const MatmulCpuKernels kMatmulAvx2;
extern const MatmulCpuKernels kMatmulAvx512;
extern const MatmulCpuKernels kMatmulAvx512Bf16;
#endif

// The words of one slice of `num_steps` blocks.
inline int64_t SliceWords(const ProductJob& job, int64_t num_steps) {
  const int64_t depth = job.has_pairs ? job.block_size / 2 : job.block_size;
  const int64_t width = job.block_size < kSliceWidth ? job.block_size : kSliceWidth;
  return num_steps * depth * width;
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_CPU_H_

// How the GPU kernels of lstm_gates.h divide rows and columns among thread blocks.
#ifndef BLOCKSPARSE_KERNELS_LSTM_GATES_POLICY_H_
#define BLOCKSPARSE_KERNELS_LSTM_GATES_POLICY_H_

#include <algorithm>
#include <cstdint>

#include "src/kernels/common/arch.h"

namespace blocksparse {

struct LstmGatesPolicy {
  static constexpr int kThreads = 128;
  // Thread blocks of the gradient on a multiprocessor, which bounds its registers: the bias and the
  // sums of dbias alone take 64 for a vector of a 16-bit type. With 4 they would spill.
  static constexpr int kMinBlocks = 3;
  // Thread blocks that a call is divided into where its size allows; where it sums dbias, few, for
  // they all write partial sums. Constants, and not the device's numbers, so that dbias is summed
  // in the same order on every GPU. Not tuned by measurement yet: about three thread blocks, or as
  // many as fit, for each multiprocessor of a large GPU.
  static constexpr int64_t kTargetBlocks = 2048;
  static constexpr int64_t kTargetSumBlocks = 384;
  static_assert(kThreads % kWarpSize == 0, "a thread block is a whole number of warps");
};

// A thread block is column_threads x row_threads; a thread keeps to one vector of columns and takes
// every row_threads-th row of its split.
struct LstmGatesGrid {
  int column_threads;  // a power of two
  int row_threads;
  int64_t column_tiles;
  int64_t num_splits;
  int64_t rows_per_split;

  int64_t num_blocks() const { return column_tiles * num_splits; }
};

inline LstmGatesGrid LstmGatesGridOf(int64_t rows, int64_t width, int vector, bool has_sums) {
  using Policy = LstmGatesPolicy;
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t vectors = ceil_div(width, vector);
  // A warp reads along a row; where there are too few rows for the other warps, they do so too.
  const int most = rows * kWarpSize < Policy::kThreads ? Policy::kThreads : kWarpSize;
  LstmGatesGrid grid = {};
  grid.column_threads = 1;
  while (grid.column_threads < most && grid.column_threads < vectors) grid.column_threads *= 2;
  grid.row_threads = Policy::kThreads / grid.column_threads;
  grid.column_tiles = ceil_div(vectors, grid.column_threads);
  const int64_t target = has_sums ? Policy::kTargetSumBlocks : Policy::kTargetBlocks;
  const int64_t wanted = target / std::max<int64_t>(grid.column_tiles, 1);
  const int64_t splits = std::clamp<int64_t>(ceil_div(rows, grid.row_threads), 1, wanted + 1);
  grid.rows_per_split = ceil_div(rows, splits);
  grid.num_splits = rows == 0 ? 1 : ceil_div(rows, grid.rows_per_split);
  return grid;
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_LSTM_GATES_POLICY_H_

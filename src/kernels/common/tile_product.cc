#include "src/kernels/common/tile_product.h"

namespace blocksparse {
namespace {

// One compilation for each level of the x86-64 instruction set, chosen when the library loads. The address sanitizer
// is not ready that early, so it gets the plain one.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define BLOCKSPARSE_FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define BLOCKSPARSE_FOR_EACH_CPU
#endif

constexpr int kRows = 4;  // rows and columns of the sums that stay in registers: 4 x 32 floats are 8 or 16 of them
constexpr int kCols = 32;

}  // namespace

BLOCKSPARSE_FOR_EACH_CPU
void AddTileProduct(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ c, int rows,
                    int depth, int cols) {
  for (int col = 0; col < cols; col += kCols) {
    const int num_cols = cols - col < kCols ? cols - col : kCols;
    for (int row = 0; row < rows; row += kRows) {
      const int num_rows = rows - row < kRows ? rows - row : kRows;
      if (num_rows == kRows && num_cols == kCols) {
        float sums[kRows][kCols];
        for (int r = 0; r < kRows; ++r)
          for (int j = 0; j < kCols; ++j) sums[r][j] = c[(row + r) * cols + col + j];
        for (int d = 0; d < depth; ++d)
          for (int r = 0; r < kRows; ++r)
            for (int j = 0; j < kCols; ++j) sums[r][j] += a[(row + r) * depth + d] * b[d * cols + col + j];
        for (int r = 0; r < kRows; ++r)
          for (int j = 0; j < kCols; ++j) c[(row + r) * cols + col + j] = sums[r][j];
      } else {
        for (int r = row; r < row + num_rows; ++r)
          for (int d = 0; d < depth; ++d)
            for (int j = col; j < col + num_cols; ++j) c[r * cols + j] += a[r * depth + d] * b[d * cols + j];
      }
    }
  }
}

}  // namespace blocksparse

#include "src/kernels/common/tile_product.h"

#include <cstring>

#include "src/kernels/common/cpu_clones.h"

namespace blocksparse {
namespace {

// Eight floats as one value: the compiler's vector extension, which becomes whatever the
// instruction set has.
constexpr int kLanes = 8;
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));

// The tile's sums stay in registers over the whole depth: kRows x (kVectors * 8) floats.
template <int kRows, int kVectors>
BLOCKSPARSE_INLINE void AddProduct(const float* __restrict__ a, const float* __restrict__ b,
                                   float* __restrict__ c, int depth, int cols) {
  Lanes sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) std::memcpy(sums[r], c + r * cols, sizeof sums[r]);
  for (int d = 0; d < depth; ++d) {
    Lanes b_row[kVectors];
    std::memcpy(b_row, b + d * cols, sizeof b_row);
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; ++v) sums[r][v] += a[r * depth + d] * b_row[v];
  }
  for (int r = 0; r < kRows; ++r) std::memcpy(c + r * cols, sums[r], sizeof sums[r]);
}

// All rows of one strip of kVectors * 8 columns.
template <int kRows, int kVectors>
BLOCKSPARSE_INLINE void AddStrip(const float* a, const float* b, float* c, int rows, int depth,
                                 int cols) {
  int row = 0;
  for (; row + kRows <= rows; row += kRows)
    AddProduct<kRows, kVectors>(a + row * depth, b, c + row * cols, depth, cols);
  for (; row < rows; ++row)
    AddProduct<1, kVectors>(a + row * depth, b, c + row * cols, depth, cols);
}

}  // namespace

BLOCKSPARSE_FOR_EACH_CPU
void AddTileProduct(const float* a, const float* b, float* c, int rows, int depth, int cols) {
  int col = 0;
  for (; col + 2 * kLanes <= cols; col += 2 * kLanes)
    AddStrip<4, 2>(a, b + col, c + col, rows, depth, cols);
  for (; col + kLanes <= cols; col += kLanes)
    AddStrip<8, 1>(a, b + col, c + col, rows, depth, cols);
  for (; col < cols; ++col) {
    for (int row = 0; row < rows; ++row) {
      float sum = c[row * cols + col];
      for (int d = 0; d < depth; ++d) sum += a[row * depth + d] * b[d * cols + col];
      c[row * cols + col] = sum;
    }
  }
}

}  // namespace blocksparse

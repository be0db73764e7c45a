// The innermost loop of the CPU products: a small dense product of float32 tiles that stay in the
// first-level cache.
#ifndef BLOCKSPARSE_KERNELS_COMMON_TILE_PRODUCT_H_
#define BLOCKSPARSE_KERNELS_COMMON_TILE_PRODUCT_H_

namespace blocksparse {

// c[r, j] += sum_d a[r, d] b[d, j], for each (r, j) in the order of d.
// a float[rows, depth], b float[depth, cols], c float[rows, cols], all contiguous; none overlap.
// Any sizes; multiples of 8 are fast.
void AddTileProduct(const float* a, const float* b, float* c, int rows, int depth, int cols);

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_COMMON_TILE_PRODUCT_H_

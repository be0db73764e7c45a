// Weight normalisation of block-sparse W: every output feature gets the same length.
//
//   s[k]           = sum over the blocks of k's column and their rows i of x[b, i, j]^2 (k = column
//   B + j) y[b, i, j]     = gain[k] x[b, i, j] / sqrt(max(s[k], epsilon)) dx[b, i, j]    = r (g dy
//   - [s >= epsilon] x t / max(s, epsilon)),   r = 1 / sqrt(max(s, epsilon)),
//                    t[k] = sum g dy x
//   dgain[k]       = r sum dy x
//
// Buffers: x TX[num_blocks, B, B]; y, dy TY of the same shape; s, gain, dgain float[K]; layout as
// in common/lut.h. gain may be null (1). Sums in float32, in a fixed order: results repeat bit for
// bit. A column without blocks has s = 0 and dgain = 0.
#ifndef BLOCKSPARSE_KERNELS_L2_NORM_H_
#define BLOCKSPARSE_KERNELS_L2_NORM_H_

#include "src/kernels/matmul.h"

namespace blocksparse {

struct L2NormArgs {
  DType x_dtype;
  DType y_dtype;
  float epsilon;
  Layout layout;
  const void* x;
  const float* gain;
  void* y;
  float* sum_sqr;
};

struct L2NormGradArgs {
  DType x_dtype;  // of x and dx
  DType y_dtype;  // of dy
  float epsilon;
  Layout layout;
  const void* dy;
  const void* x;
  const float* gain;
  const float* sum_sqr;
  void* dx;
  float* dgain;  // null if gain is
};

Status L2NormCpu(const L2NormArgs& args, const ParallelFor& parallel_for);
Status L2NormGradCpu(const L2NormGradArgs& args, const ParallelFor& parallel_for);
Status L2NormGpu(const L2NormArgs& args, Stream stream);
Status L2NormGradGpu(const L2NormGradArgs& args, Stream stream);

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_L2_NORM_H_

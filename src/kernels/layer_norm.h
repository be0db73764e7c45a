// Layer normalisation of segments of features, with a fused relu.
//
// The K features form S segments of L = K / S. For each sample n and segment s, over its features
// k:
//
//   mean[s, n] = sum_k x[n, k] / L
//   rstd[s, n] = 1 / sqrt(sum_k (x[n, k] - mean)^2 / L + epsilon)
//   xhat       = (x - mean) rstd
//   y[n, k]    = g[k] xhat + b[k], then the greater of that and 0 if relu
//
//   d          = dy, but 0 where relu and g xhat + b <= 0 (computed again: y is not needed)
//   t          = g d
//   dx[n, k]   = (t - (xhat sum_k t xhat + sum_k t) / L) rstd
//   dg[k]      = sum_n d xhat
//   db[k]      = sum_n d
//
// Buffers, all owned by the caller, on the device that runs the kernel; results alias nothing:
//   x, y, dy, dx        T[N, K] if feature_axis is 1, T[K, N] if 0; row-major, any alignment of T
//   g, b, dg, db        float[K]
//   mean, rstd          float[S, N], on either axis
//   workspace           floats, as many as asked for: partial sums
//
// Numerics. Everything is computed in float32. E[x^2] - mean^2 would lose all digits of the
// variance where |mean| is 1000 times the standard deviation, so the variance is a sum of squares
// of deviations from a mean known before: over values that are kept near (registers, first-level
// cache) in two passes, and where a column is too long for that, over chunks of it in two passes
// each, merged by Chan's formula.
//
// Determinism. No atomics. Each sum has a fixed order, which depends on the sizes and on the
// pointers' alignment, but not on the number of threads or multiprocessors.
//
// S divides K; K >= 1; N may be 0, and dg = db = 0 then. All sizes and offsets are 64 bits.
#ifndef BLOCKSPARSE_KERNELS_LAYER_NORM_H_
#define BLOCKSPARSE_KERNELS_LAYER_NORM_H_

#include <cstdint>

#include "src/kernels/common/dtype.h"
#include "src/kernels/common/parallel_for.h"
#include "src/kernels/common/status.h"

struct CUstream_st;

namespace blocksparse {

using Stream = CUstream_st*;

struct LayerNormArgs {
  DType dtype;       // T
  int feature_axis;  // 0 or 1
  bool relu;
  float epsilon;
  int64_t segments;  // S
  int64_t features;  // K
  int64_t batch;     // N
  const void* x;
  const float* g;
  const float* b;
  void* y;
  float* mean;
  float* rstd;
  float* workspace;  // GPU: LayerNormGpuWorkspace, may be null if that is 0. CPU: unused
};

struct LayerNormGradArgs {
  DType dtype;
  int feature_axis;
  bool relu;
  int64_t segments;
  int64_t features;
  int64_t batch;
  const void* dy;
  const void* x;
  const float* g;
  const float* b;
  const float* mean;
  const float* rstd;
  void* dx;
  float* dg;
  float* db;
  float* workspace;
};

Status LayerNormCpu(const LayerNormArgs& args, const ParallelFor& parallel_for);
Status LayerNormGradCpu(const LayerNormGradArgs& args, const ParallelFor& parallel_for);
Status LayerNormGpu(const LayerNormArgs& args, Stream stream);
Status LayerNormGradGpu(const LayerNormGradArgs& args, Stream stream);

// P: the workspace of the CPU's gradient is float[P, 2, K], partial sums of dg and db. Small beside
// N: each is over at least 8 samples, or all.
int64_t LayerNormGradCpuPartials(const LayerNormGradArgs& args);
// Floats of workspace on a GPU; everything else must be set. Small beside x.
Status LayerNormGpuWorkspace(const LayerNormArgs& args, int64_t* floats);
Status LayerNormGradGpuWorkspace(const LayerNormGradArgs& args, int64_t* floats);

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_LAYER_NORM_H_

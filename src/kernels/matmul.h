// Block-sparse matrix products. W is a [C, K] matrix that is zero except in B x B blocks; `w` holds
// the blocks only.
//
//   fprop  y[n, k]     = sum_c g W[c, k] x[n, c]          over the stored blocks of column k
//   dx     dx[n, c]    = sum_k g W[c, k] dy[n, k]         the same product with W transposed
//   dw     dw[b, i, j] = sum_p sum_n x_p[n, c B + i] dy_p[n, k B + j]     where (c, k) = blocks[b],
//   pairs p gate   dg[b] = sum_ij dw[b, i, j] w[b, i, j],  dw_out[b] = g[b] dw[b]
//
// Letters: B block_size, C = in_blocks B, K = out_blocks B, N batch, g gate (1 without one).
// Buffers, all owned by the caller, on the device that runs the kernel; results may alias nothing:
//   x, y, dx, dy  T[N, C or K] if feature_axis is 1, T[C or K, N] if 0; row-major, aligned as T is
//   w             T[num_blocks, B, B]; w[b][i][j] joins input c B + i to output k B + j
//   gate          float[num_blocks] or null. Where it is 0 the block is skipped: neither x nor w is
//                 read. Elsewhere g w is rounded to T, as a dense product of gated weights would
//                 have it.
//   layout        sizes and tables, see common/lut.h
// matmul_packed.h (sm_90, 16-bit types, B = 8 and 16, many samples) does read x there and between
// stored blocks, and multiplies it by 0: an infinity or NaN of x makes a NaN of further outputs.
// Sums are in float32. Results are the same bit for bit from run to run on one device, and on the
// CPU for any number of threads: no atomics, a fixed order in every sum. N may be 0. All sizes and
// offsets are 64 bits.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_H_
#define BLOCKSPARSE_KERNELS_MATMUL_H_

#include <cstdint>

#include "src/kernels/common/dtype.h"
#include "src/kernels/common/lut.h"
#include "src/kernels/common/parallel_for.h"
#include "src/kernels/common/status.h"

struct CUstream_st;

namespace blocksparse {

using Stream = CUstream_st*;

// y = x W, or dx = dy W^T if is_dx (x is then dy, and y is dx).
struct MatmulArgs {
  DType dtype;       // T
  int feature_axis;  // 0 or 1
  bool is_dx;
  // float32 on a GPU: round inputs to TensorFloat-32. Otherwise products are as accurate as those
  // of float32; where tensor cores make them, matmul_wide_float.h says what differs.
  bool allow_tf32;
  int64_t batch;  // N
  Layout layout;
  const void* x;
  const void* w;
  const float* gate;
  void* y;
  void* workspace;  // GPU: MatmulWorkspaceBytes, may be null if that is 0. CPU: unused
};

// One product of the sum that makes dw.
struct MatmulPair {
  const void* x;
  const void* dy;
  int64_t batch;
};
// Pairs in one launch: their pointers travel as kernel parameters, of which 4 KiB are safe on every
// driver.
constexpr int kMaxMatmulPairs = 128;

struct MatmulDwArgs {
  DType dtype;     // T of x and dy
  DType dw_dtype;  // T or float32
  int feature_axis;
  bool allow_tf32;  // as above; see matmul_region_dw_float.h
  int num_pairs;
  Layout layout;
  const float*
      gate;  // null, or blocks with gate 0 are not computed and get zeros; others are not scaled
  void* dw;
  float* workspace;  // GPU: MatmulDwWorkspaceBytes, may be null if that is 0. CPU: unused
  MatmulPair pairs[kMaxMatmulPairs];
};

struct MatmulGateGradArgs {
  DType dtype;     // of w
  DType dw_dtype;  // of dw and dw_out
  int block_size;
  int64_t num_blocks;
  const void* dw;
  const void* w;
  const float* gate;
  void* dw_out;
  float* dg;
};

// Whether kernels for this combination exist; the CPU and the GPU serve the same ones.
bool IsMatmulSupported(DType dtype, int block_size, int feature_axis);

Status MatmulCpu(const MatmulArgs& args, const ParallelFor& parallel_for);
Status MatmulDwCpu(const MatmulDwArgs& args, const ParallelFor& parallel_for);
Status MatmulGateGradCpu(const MatmulGateGradArgs& args, const ParallelFor& parallel_for);

Status MatmulGpu(const MatmulArgs& args, Stream stream);
Status MatmulDwGpu(const MatmulDwArgs& args, Stream stream);
Status MatmulGateGradGpu(const MatmulGateGradArgs& args, Stream stream);

// Scratch of MatmulGpu, aligned like a cudaMalloc: W in the order in which a kernel reads it. 0 for
// kernels that read w as it is. Its contents do not matter.
Status MatmulWorkspaceBytes(const MatmulArgs& args, int64_t* bytes);

// Scratch of MatmulDwGpu: float32 partial sums where few blocks meet a long batch, at most
// kMaxDwSplits copies of a dw that does not fill the device (under 36 MiB on an H200), 0 otherwise;
// on sm_90 as matmul_region_dw.h and matmul_region_dw_float.h say. Its contents do not matter.
Status MatmulDwWorkspaceBytes(const MatmulDwArgs& args, int64_t* bytes);

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_H_

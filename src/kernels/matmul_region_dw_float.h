// dw of float32 on sm_90, for long minibatches: x and dy become numbers of fp16, which dw by
// regions multiplies (matmul_region_dw.h, matmul_region_dw_large.h).
//
// The minibatch is taken kMaxFloatDwBatch samples at a time. A feature's samples are divided by a
// power of two that brings the largest that is finite to [2^14, 2^15); then
//   allow_tf32   each is rounded to fp16, which has as many bits as TensorFloat-32;
//   otherwise    each is the sum of two of fp16, 22 bits, and three products of fp16 make one: low
//                high + high low + high high. Tensor cores truncate their sums; so those of high
//                high are made of 16 samples (B = 64, 128: of 64), and rounded into the rest.
// dw is then as accurate as a float32 product's. What differs:
//   - the error of a single product is up to 2^-21.4 of it, instead of 2^-24;
//   - a number smaller than 2^-18 (allow_tf32: 2^-29) of its feature's largest has an error of
//     2^-40 of that largest, instead of one relative to itself;
//   - an infinity gives NaN instead of infinity where it meets a number below 2^-40 of its
//     feature's largest.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_REGION_DW_FLOAT_H_
#define BLOCKSPARSE_KERNELS_MATMUL_REGION_DW_FLOAT_H_

#include "src/kernels/matmul.h"

namespace blocksparse {

constexpr int kMaxFloatDwBatch = 8192;
constexpr int64_t kMinFloatDwBatch = 512;

// What dw must have for each feature of x and of dy to be worth their conversion, in elements; from
// measurements on an H200, where 4096 x 4096 features of 10 % have 205.
constexpr int64_t MinFloatDwElements(int block_size, bool allow_tf32, int64_t batch) {
  if (block_size > 32) return allow_tf32 ? 128 : 64;
  if (allow_tf32 && batch < 1024) return int64_t{5} * block_size;
  return allow_tf32 && block_size == 32 ? 32 : 16;
}

// Whether the kernels are there for these arguments: sm_90 (Hopper) and no other; float32; at least
// kMinFloatDwBatch samples; MinFloatDwElements; x and dy aligned to 16 bytes, and their rows too
// (feature_axis 0: each N a multiple of 4); and the layout has the table of dw by regions.
bool FloatDwServes(const MatmulDwArgs& args);
// x and dy in fp16: as many bytes as they have (allow_tf32: half of that), of at most
// kMaxFloatDwBatch samples; and dw in float32, up to kMaxRegionSplits copies of it for B up to 32,
// else at most two.
Status FloatDwWorkspaceBytes(const MatmulDwArgs& args, int64_t* bytes);
Status MatmulFloatDw(const MatmulDwArgs& args, Stream stream);

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_REGION_DW_FLOAT_H_

// The products of float32 with blocks of 32, 64 and 128 on sm_90: x W and dy W^T for long
// minibatches, on the tensor cores.
//
// allow_tf32: inputs are rounded to TensorFloat-32. Otherwise the result is as accurate as a
// float32 product: 32 features of a sample, and each 32 x 32 part of W, are divided by a power of
// two, then each number is the sum of two of fp16 (22 bits), and three products of fp16 make one.
// The sums of 32 products are added to y in float32. What differs from a product in float32:
//   - a number smaller than 2^-16 of the largest of its 32 (x) or 32 x 32 (W) has an error of 2^-39
//     of that largest, instead of 2^-22 of itself;
//   - a sum over 32 features whose largest x and w have a product below 2^-121 is lost, and may be
//     NaN or infinite if they have one of 2^156 or more;
//   - an infinity makes the rest of its 32 features or of its part of W count as 0, and gives NaN
//     instead of infinity where it meets a number that is a negligible part of its 32, or another
//     infinity.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_WIDE_FLOAT_H_
#define BLOCKSPARSE_KERNELS_MATMUL_WIDE_FLOAT_H_

#include "src/kernels/matmul_wide.h"
#include "src/kernels/matmul_wide_float_policy.h"

namespace blocksparse {

// One launch: `wide` without pairs, y and ids.
struct WideFloatParams {
  WideParams wide;
  const uint8_t* exponents;  // [entries][kWideFloatExponents]
  float* y;
  int64_t num_features;  // of y
};

// Whether the kernel is there for these arguments, and the minibatch long enough for it: sm_90
// (Hopper) and no other; float32; B = 32, 64 or 128; x, w and y aligned to 16 bytes, and rows of x
// too (feature_axis 0: N a multiple of 4); the layout has the table; and tiles have
// kMinWideFloatRows samples when every multiprocessor has one.
bool WideFloatServes(const MatmulArgs& args);
// W in the order of the table, and the table as gates leave it.
Status WideFloatWorkspaceBytes(const MatmulArgs& args, int64_t* bytes);
Status MatmulWideFloat(const MatmulArgs& args, Stream stream);

constexpr int kMinWideFloatRows = 64;

// The kernel's instances, one .cu file for each arithmetic.
template <bool kIsSplit>
struct WideFloatKernels {
  static bool AreCompiled();
  static Status Run(int feature_axis, int64_t num_thread_blocks, const WideFloatParams& params,
                    Stream stream);
};

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_WIDE_FLOAT_H_

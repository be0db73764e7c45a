// The members of WideFloatKernels, see matmul_wide_float.h.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_WIDE_FLOAT_INSTANCES_CUH_
#define BLOCKSPARSE_KERNELS_MATMUL_WIDE_FLOAT_INSTANCES_CUH_

#include "src/kernels/common/cuda_launch.h"
#include "src/kernels/common/dispatch.h"
#include "src/kernels/common/tensor_map.h"
#include "src/kernels/matmul_wide_float.cuh"

namespace blocksparse {

template <bool kIsSplit>
bool WideFloatKernels<kIsSplit>::AreCompiled() {
  static const bool are = HasHopperCode(MatmulWideFloatKernel<WideFloatPolicy<kIsSplit, 1>>);
  return are;
}

template <bool kIsSplit>
Status WideFloatKernels<kIsSplit>::Run(int feature_axis, int64_t num_thread_blocks,
                                       const WideFloatParams& params, Stream stream) {
  return WithBool(feature_axis == 1, [&](auto is_axis_1) {
    using Policy = WideFloatPolicy<kIsSplit, is_axis_1() ? 1 : 0>;
    return LaunchEarly("MatmulWideFloatKernel", MatmulWideFloatKernel<Policy>, num_thread_blocks,
                       Policy::kThreads, Policy::kSmemBytes, stream, params);
  });
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_WIDE_FLOAT_INSTANCES_CUH_

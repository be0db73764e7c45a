// The members of WideKernels, see matmul_wide.h.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_WIDE_INSTANCES_CUH_
#define BLOCKSPARSE_KERNELS_MATMUL_WIDE_INSTANCES_CUH_

#include "src/kernels/common/cuda_launch.h"
#include "src/kernels/common/dispatch.h"
#include "src/kernels/common/tensor_map.h"
#include "src/kernels/matmul_wide.cuh"

namespace blocksparse {

template <typename T, int kBlockSize>
bool WideKernels<T, kBlockSize>::AreCompiled() {
  static const bool are =
      HasHopperCode(MatmulWideKernel<WidePolicy<T, kBlockSize, false, 1, false>>);
  return are;
}

template <class Policy>
Status LaunchWide(int64_t num_thread_blocks, const WideParams& params, Stream stream) {
  return LaunchEarly("MatmulWideKernel", MatmulWideKernel<Policy>, num_thread_blocks,
                     Policy::kThreads, Policy::kSmemBytes, stream, params);
}

template <typename T, int kBlockSize>
Status WideKernels<T, kBlockSize>::Run(const MatmulArgs& args, int64_t num_thread_blocks,
                                       const WideParams& params, Stream stream) {
  return WithBool(args.is_dx, [&](auto is_dx) {
    return WithBool(args.feature_axis == 1, [&](auto is_axis_1) {
      constexpr bool kIsDx = is_dx();
      constexpr int kAxis = is_axis_1() ? 1 : 0;
      if constexpr (kBlockSize == 32) {
        if (params.num_workers == 2)
          return LaunchWide<WidePolicy<T, kBlockSize, kIsDx, kAxis, true>>(num_thread_blocks,
                                                                           params, stream);
      }
      return LaunchWide<WidePolicy<T, kBlockSize, kIsDx, kAxis, false>>(num_thread_blocks, params,
                                                                        stream);
    });
  });
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_WIDE_INSTANCES_CUH_

// The members of MatmulKernels, see matmul_instances.h.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_INSTANCES_CUH_
#define BLOCKSPARSE_KERNELS_MATMUL_INSTANCES_CUH_

#include "src/kernels/common/dispatch.h"
#include "src/kernels/matmul_dw.cuh"
#include "src/kernels/matmul_fprop.cuh"

namespace blocksparse {

template <class Math>
Status MatmulKernels<Math>::Fprop(const MatmulArgs& args, Stream stream) {
  return WithBlockSize(args.layout.block_size,
                       [&](auto b) { return MatmulFpropFor<Math, b()>(args, stream); });
}

template <class Math>
Status MatmulKernels<Math>::ChooseSplit(const MatmulDwArgs& args, int num_sms, DwSplit* split) {
  return WithBlockSize(args.layout.block_size, [&](auto b) {
    return WithDwPolicy<Math, b()>(args.feature_axis, [&](auto policy) {
      *split = ChooseDwSplit<decltype(policy)>(args, num_sms);
      return Status();
    });
  });
}

template <class Math>
Status MatmulKernels<Math>::Dw(const MatmulDwArgs& args, const DwSplit& split, Stream stream) {
  return WithBlockSize(args.layout.block_size, [&](auto b) {
    return WithDwPolicy<Math, b()>(args.feature_axis, [&](auto policy) {
      return LaunchMatmulDw<decltype(policy)>(args, split, stream);
    });
  });
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_INSTANCES_CUH_

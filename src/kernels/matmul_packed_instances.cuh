// The members of MatmulPackedKernels, see matmul_packed_instances.h.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_PACKED_INSTANCES_CUH_
#define BLOCKSPARSE_KERNELS_MATMUL_PACKED_INSTANCES_CUH_

#include "src/kernels/common/dispatch.h"
#include "src/kernels/matmul_packed.cuh"
#include "src/kernels/matmul_packed_instances.h"

namespace blocksparse {

template <typename T, bool kIsAxis1>
Status MatmulPackedKernels<T, kIsAxis1>::Run(const MatmulArgs& args, const PackedParams& params,
                                             int num_sms, Stream stream) {
  return WithBool(args.is_dx, [&](auto is_dx) {
    return WithBool(params.table.width == 32, [&](auto is_wide) {
      return LaunchMatmulPacked<PackedPolicy<T, kIsAxis1, is_dx(), is_wide() ? 32 : 16>>(
          params, num_sms, stream);
    });
  });
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_PACKED_INSTANCES_CUH_

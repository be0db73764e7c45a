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
    const auto launch = [&](auto shape) {
      using Policy = PackedPolicy<T, kIsAxis1, is_dx(), decltype(shape)::value>;
      return LaunchMatmulPacked<Policy>(params, num_sms, stream);
    };
    switch (params.table.shape) {
      case PackedShape::kNarrow:
        return launch(std::integral_constant<PackedShape, PackedShape::kNarrow>{});
      case PackedShape::kBroad:
        return launch(std::integral_constant<PackedShape, PackedShape::kBroad>{});
      case PackedShape::kWide:
        return launch(std::integral_constant<PackedShape, PackedShape::kWide>{});
    }
    return Unsupported("MatmulPacked: unknown shape");
  });
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_PACKED_INSTANCES_CUH_

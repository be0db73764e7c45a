// The packed products of one storage type. Defined in matmul_packed_instances.cuh and instantiated
// in one matmul_packed_<type>_<axis>.cu each, so that they compile side by side.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_PACKED_INSTANCES_H_
#define BLOCKSPARSE_KERNELS_MATMUL_PACKED_INSTANCES_H_

#include "src/kernels/matmul_packed_policy.h"

namespace blocksparse {

template <typename T, bool kIsAxis1>
struct MatmulPackedKernels {
  static Status Run(const MatmulArgs& args, const PackedParams& params, int num_sms, Stream stream);
};

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_PACKED_INSTANCES_H_

// See matmul_packed_instances.h.
#include "src/kernels/matmul_packed_instances.cuh"

namespace blocksparse {

template struct MatmulPackedKernels<__nv_bfloat16, false>;

}  // namespace blocksparse

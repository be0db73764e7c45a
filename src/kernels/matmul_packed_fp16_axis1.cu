// See matmul_packed_instances.h.
#include "src/kernels/matmul_packed_instances.cuh"

namespace blocksparse {

template struct MatmulPackedKernels<__half, true>;

}  // namespace blocksparse

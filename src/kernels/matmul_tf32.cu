// The matrix-product kernels in Tf32Math.
#include "src/kernels/matmul_instances.cuh"

namespace blocksparse {

template struct MatmulKernels<Tf32Math>;

}  // namespace blocksparse

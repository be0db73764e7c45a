// The matrix-product kernels in Bf16Math.
#include "src/kernels/matmul_instances.cuh"

namespace blocksparse {

template struct MatmulKernels<Bf16Math>;

}  // namespace blocksparse

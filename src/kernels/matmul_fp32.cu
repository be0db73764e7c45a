// The matrix-product kernels in Fp32Math.
#include "src/kernels/matmul_instances.cuh"

namespace blocksparse {

template struct MatmulKernels<Fp32Math>;

}  // namespace blocksparse

// The matrix-product kernels in Fp16Math.
#include "src/kernels/matmul_instances.cuh"

namespace blocksparse {

template struct MatmulKernels<Fp16Math>;

}  // namespace blocksparse

// The wide kernel's instances for fp16, B = 32.
#include "src/kernels/matmul_wide_instances.cuh"

namespace blocksparse {

template struct WideKernels<__half, 32>;

}  // namespace blocksparse

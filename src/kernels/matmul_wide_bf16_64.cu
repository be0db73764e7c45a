// The wide kernel's instances for bf16, B = 64.
#include "src/kernels/matmul_wide_instances.cuh"

namespace blocksparse {

template struct WideKernels<__nv_bfloat16, 64>;

}  // namespace blocksparse

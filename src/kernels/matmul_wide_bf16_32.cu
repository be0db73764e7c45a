// The wide kernel's instances for bf16, B = 32.
#include "src/kernels/matmul_wide_instances.cuh"

namespace blocksparse {

template struct WideKernels<__nv_bfloat16, 32>;

}  // namespace blocksparse

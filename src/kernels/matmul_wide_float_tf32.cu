// The wide float32 kernel's instances for TensorFloat-32.
#include "src/kernels/matmul_wide_float_instances.cuh"

namespace blocksparse {

template struct WideFloatKernels<false>;

}  // namespace blocksparse

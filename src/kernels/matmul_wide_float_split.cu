// The wide float32 kernel's instances for float32's accuracy.
#include "src/kernels/matmul_wide_float_instances.cuh"

namespace blocksparse {

template struct WideFloatKernels<true>;

}  // namespace blocksparse

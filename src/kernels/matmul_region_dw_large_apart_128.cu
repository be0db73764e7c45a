// dw by regions of fp16 that are halves of float32, blocks of 128.
#include "src/kernels/matmul_region_dw_large.cuh"

namespace blocksparse {

template struct LargeDwKernels<__half, 128, true>;

}  // namespace blocksparse

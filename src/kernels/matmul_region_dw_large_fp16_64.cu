// dw by regions in fp16, blocks of 64.
#include "src/kernels/matmul_region_dw_large.cuh"

namespace blocksparse {

template struct LargeDwKernels<__half, 64>;

}  // namespace blocksparse

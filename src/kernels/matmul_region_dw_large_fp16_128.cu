// dw by regions in fp16, blocks of 128.
#include "src/kernels/matmul_region_dw_large.cuh"

namespace blocksparse {

template struct LargeDwKernels<__half, 128>;

}  // namespace blocksparse

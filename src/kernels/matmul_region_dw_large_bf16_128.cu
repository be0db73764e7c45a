// dw by regions in bf16, blocks of 128.
#include "src/kernels/matmul_region_dw_large.cuh"

namespace blocksparse {

template struct LargeDwKernels<__nv_bfloat16, 128>;

}  // namespace blocksparse

// dw by regions in bf16, units of 16.
#include "src/kernels/matmul_region_dw.cuh"

namespace blocksparse {

template struct RegionDwKernels<__nv_bfloat16, 16>;

}  // namespace blocksparse

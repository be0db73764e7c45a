// dw by regions in bf16, units of 32.
#include "src/kernels/matmul_region_dw.cuh"

namespace blocksparse {

template struct RegionDwKernels<__nv_bfloat16, 32>;

}  // namespace blocksparse

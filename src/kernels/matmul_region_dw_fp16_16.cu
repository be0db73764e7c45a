// dw by regions in fp16, units of 16.
#include "src/kernels/matmul_region_dw.cuh"

namespace blocksparse {

template struct RegionDwKernels<__half, 16>;

}  // namespace blocksparse

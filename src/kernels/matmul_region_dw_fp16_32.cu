// dw by regions in fp16, units of 32.
#include "src/kernels/matmul_region_dw.cuh"

namespace blocksparse {

template struct RegionDwKernels<__half, 32>;

}  // namespace blocksparse

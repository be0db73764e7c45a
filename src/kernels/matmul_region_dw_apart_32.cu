// dw by regions of fp16 that are halves of float32, units of 32.
#include "src/kernels/matmul_region_dw.cuh"

namespace blocksparse {

template struct RegionDwKernels<__half, 32, true>;

}  // namespace blocksparse

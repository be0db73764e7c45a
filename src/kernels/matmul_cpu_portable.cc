// The CPU products for CpuLevel::kPortable.
#include "src/kernels/common/simd_portable.h"
#include "src/kernels/matmul_cpu.h"
#include "src/kernels/matmul_cpu_kernels.h"

namespace blocksparse {
const MatmulCpuKernels kMatmulPortable = {kLanes, kOuterLanes, kHasPairs, Pack, RunProduct, RunDw};
}  // namespace blocksparse

// The CPU products for CpuLevel::kPortable.
#include "src/kernels/common/simd_portable.h"
#include "src/kernels/matmul_cpu.h"
#include "src/kernels/matmul_cpu_dw.h"
#include "src/kernels/matmul_cpu_product.h"

namespace blocksparse {
const MatmulCpuKernels kMatmulPortable = {kLanes, kHasPairs, MostRows, Pack, RunProduct, RunDw};
}  // namespace blocksparse

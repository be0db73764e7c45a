// The CPU products for CpuLevel::kAvx2.
#ifdef __x86_64__

#include <immintrin.h>

#include "src/kernels/common/cpu_level.h"
#include "src/kernels/matmul_cpu.h"

BLOCKSPARSE_BEGIN_TARGET(BLOCKSPARSE_AVX2_FEATURES)

#include "src/kernels/common/simd_avx2.h"
#include "src/kernels/matmul_cpu_dw.h"
#include "src/kernels/matmul_cpu_product.h"

BLOCKSPARSE_END_TARGET

namespace blocksparse {
const MatmulCpuKernels kMatmulAvx2 = {kLanes, kHasPairs, MostRows, Pack, RunProduct, RunDw};
}  // namespace blocksparse

#endif  // __x86_64__

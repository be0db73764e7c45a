// The CPU products for CpuLevel::kAvx512.
#ifdef __x86_64__

// GCC 12 warns of its own headers.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "src/kernels/common/cpu_level.h"
#include "src/kernels/matmul_cpu.h"

BLOCKSPARSE_BEGIN_TARGET(BLOCKSPARSE_AVX512_FEATURES)

#include "src/kernels/common/simd_avx512.h"
#include "src/kernels/matmul_cpu_dw.h"
#include "src/kernels/matmul_cpu_product.h"

BLOCKSPARSE_END_TARGET

namespace blocksparse {
const MatmulCpuKernels kMatmulAvx512 = {kLanes, kHasPairs, MostRows, Pack, RunProduct, RunDw};
}  // namespace blocksparse

#endif  // __x86_64__

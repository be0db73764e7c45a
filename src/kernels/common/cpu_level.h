// Which instructions the CPU kernels may use: the best that the machine has, or less on request.
#ifndef BLOCKSPARSE_KERNELS_COMMON_CPU_LEVEL_H_
#define BLOCKSPARSE_KERNELS_COMMON_CPU_LEVEL_H_

#include "src/kernels/common/status.h"

namespace blocksparse {

// Each level includes those before it.
enum class CpuLevel {
  kPortable,    // what every CPU of the architecture has
  kAvx2,        // AVX2, FMA, F16C: x86-64-v3
  kAvx512,      // AVX-512 F, BW, DQ, VL: x86-64-v4
  kAvx512Bf16,  // products of bfloat16 pairs
};
constexpr int kNumCpuLevels = 4;

// "portable", "avx2", "avx512", "avx512bf16": the values of BLOCKSPARSE_CPU_LEVEL.
const char* NameOf(CpuLevel level);

// The level in use. The environment variable BLOCKSPARSE_CPU_LEVEL, read at the first call, lowers
// it; a name that does not exist, or a level that this machine lacks, is an error of every call.
Status FindCpuLevel(CpuLevel* level);

// Changes the level of later calls, for tests.
Status SetCpuLevel(const char* name);

}  // namespace blocksparse

// Between these, every function is compiled for the instructions that `features` lists, in the
// terms of GCC's and Clang's target attribute. Headers with inline functions that others share
// belong before: the linker keeps one copy of such a function, and it must run everywhere.
#define BLOCKSPARSE_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define BLOCKSPARSE_BEGIN_TARGET(features) \
  BLOCKSPARSE_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define BLOCKSPARSE_END_TARGET BLOCKSPARSE_PRAGMA(clang attribute pop)
#else
#define BLOCKSPARSE_BEGIN_TARGET(features) \
  BLOCKSPARSE_PRAGMA(GCC push_options) BLOCKSPARSE_PRAGMA(GCC target(features))
#define BLOCKSPARSE_END_TARGET BLOCKSPARSE_PRAGMA(GCC pop_options)
#endif

#define BLOCKSPARSE_AVX2_FEATURES "avx2,fma,f16c"
#define BLOCKSPARSE_AVX512_FEATURES "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"
#define BLOCKSPARSE_AVX512BF16_FEATURES \
  "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"

#endif  // BLOCKSPARSE_KERNELS_COMMON_CPU_LEVEL_H_

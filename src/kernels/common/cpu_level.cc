#include "src/kernels/common/cpu_level.h"

#include <cstdlib>
#include <cstring>
#include <string>

namespace blocksparse {
namespace {

constexpr const char* kVariable = "BLOCKSPARSE_CPU_LEVEL";
constexpr const char* kNames[kNumCpuLevels] = {"portable", "avx2", "avx512", "avx512bf16"};

CpuLevel BestLevel() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  // These also ask whether the operating system saves the registers.
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
      !__builtin_cpu_supports("f16c"))
    return CpuLevel::kPortable;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return CpuLevel::kAvx2;
  return __builtin_cpu_supports("avx512bf16") ? CpuLevel::kAvx512Bf16 : CpuLevel::kAvx512;
#else
  return CpuLevel::kPortable;
#endif
}

struct Choice {
  CpuLevel level;
  Status status;
};

Choice Choose() {
  const CpuLevel best = BestLevel();
  const char* wanted = std::getenv(kVariable);
  if (wanted == nullptr || *wanted == '\0') return {best, Status()};
  std::string supported;
  for (int i = 0; i <= static_cast<int>(best); ++i) {
    if (std::strcmp(wanted, kNames[i]) == 0) return {static_cast<CpuLevel>(i), Status()};
    supported += (i == 0 ? "" : ", ") + std::string(kNames[i]);
  }
  return {best, Invalid(std::string("the environment variable ") + kVariable +
                        " must name a level of this machine's CPU. Received: " + wanted +
                        ". Supported: " + supported)};
}

}  // namespace

const char* NameOf(CpuLevel level) { return kNames[static_cast<int>(level)]; }

Status FindCpuLevel(CpuLevel* level) {
  static const Choice choice = Choose();
  *level = choice.level;
  return choice.status;
}

}  // namespace blocksparse

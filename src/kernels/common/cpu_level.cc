#include "src/kernels/common/cpu_level.h"

#include <atomic>
#include <cstdlib>
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

Status LevelOf(const std::string& name, const std::string& what, CpuLevel* level) {
  std::string supported;
  for (int i = 0; i <= static_cast<int>(BestLevel()); ++i) {
    if (name == kNames[i]) {
      *level = static_cast<CpuLevel>(i);
      return Status();
    }
    supported += (i == 0 ? "" : ", ") + std::string(kNames[i]);
  }
  return Invalid(what + " must name a level of this machine's CPU. Received: " + name +
                 ". Supported: " + supported);
}

struct Choice {
  Choice() : level(BestLevel()) {
    const char* wanted = std::getenv(kVariable);
    if (wanted == nullptr || *wanted == '\0') return;
    CpuLevel found;
    status = LevelOf(wanted, std::string("the environment variable ") + kVariable, &found);
    if (status.ok()) level = found;
  }

  std::atomic<CpuLevel> level;
  Status status;
};

Choice& TheChoice() {
  static Choice choice;
  return choice;
}

}  // namespace

const char* NameOf(CpuLevel level) { return kNames[static_cast<int>(level)]; }

Status FindCpuLevel(CpuLevel* level) {
  *level = TheChoice().level;
  return TheChoice().status;
}

Status SetCpuLevel(const char* name) {
  CpuLevel level;
  BLOCKSPARSE_RETURN_IF_ERROR(LevelOf(name, "the level", &level));
  TheChoice().level = level;
  return Status();
}

}  // namespace blocksparse

// Hardware constants that kernels and launchers share.
#ifndef BLOCKSPARSE_KERNELS_COMMON_ARCH_H_
#define BLOCKSPARSE_KERNELS_COMMON_ARCH_H_

namespace blocksparse {

constexpr int kWarpSize = 32;
// Bytes of one vector access: the widest that cp.async and a single load instruction take.
constexpr int kVectorBytes = 16;
// Dynamic shared memory that one block may ask for on every supported architecture; sm_86, sm_89
// and sm_120 have the least (99 KiB), sm_80 has 163 KiB, sm_90 227 KiB.
constexpr int kMaxSmemBytes = 99 * 1024;
// Shared memory of a block that the system takes, from sm_80 on.
constexpr int kReservedSmemBytes = 1024;
// Dynamic shared memory that needs no opt-in.
constexpr int kDefaultSmemBytes = 48 * 1024;

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_COMMON_ARCH_H_

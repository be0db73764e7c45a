// Hopper's asynchronous machinery (sm_90a): barriers in shared memory, bulk copies, the products of
// a warpgroup. Call these only where BLOCKSPARSE_HAS_HOPPER is defined: other targets compile an
// empty body.
//
// Shared memory is named by its 32-bit address, SharedAddress(pointer). A "tile" is a box of a
// tensor that a CUtensorMap describes (tensor_map.h).
#ifndef BLOCKSPARSE_KERNELS_COMMON_HOPPER_CUH_
#define BLOCKSPARSE_KERNELS_COMMON_HOPPER_CUH_

#include <cuda.h>

#include <cstdint>
#include <type_traits>

#include "src/kernels/common/load_store.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define BLOCKSPARSE_HAS_HOPPER
#endif

namespace blocksparse {

constexpr int kWarpgroupSize = 128;
// Dynamic shared memory that one thread block may have on sm_90.
constexpr int kHopperSmemBytes = 227 * 1024;

// ---- registers ----

// Every warp of a warpgroup must ask for the same number, a multiple of 8. What all warpgroups hold
// must fit what the kernel was launched with, or the last to ask waits for ever.
template <int kRegisters>
__device__ __forceinline__ void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void GiveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- barriers: 8 bytes of shared memory each ----
// A phase ends when `count` arrivals and all expected bytes have come. Waiting for parity p returns
// once the current phase's parity is not p: 0 waits for the first phase, then 1, 0, ...

__device__ __forceinline__ void InitBarrier(uint32_t barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count));
}
// Once after the initialisations, before a barrier of the thread block.
__device__ __forceinline__ void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void Arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void Arrive(uint32_t barrier, int count) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(count)
               : "memory");
}
// Arrives once and announces bytes that copies will bring in this phase.
__device__ __forceinline__ void ArriveExpecting(uint32_t barrier, uint32_t num_bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
               "r"(num_bytes)
               : "memory");
}
// Whether the phase is over. Never suspends the thread, unlike WaitBarrier, which may for long.
__device__ __forceinline__ bool TestBarrier(uint32_t barrier, uint32_t parity) {
  uint32_t is_over;
  asm volatile(
      "{ .reg .pred p; mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;"
      " selp.u32 %0, 1, 0, p; }"
      : "=r"(is_over)
      : "r"(barrier), "r"(parity)
      : "memory");
  return is_over != 0;
}
__device__ __forceinline__ void WaitBarrier(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{ .reg .pred p;\n"
      "WAIT%=: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@p bra DONE%=; bra WAIT%=;\n"
      "DONE%=: }" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// A warp's arrival after its lanes have read shared memory together. compute-sanitizer's racecheck
// follows lanes and takes no notice of that: for a build that it shall check, BLOCKSPARSE_RACECHECK
// has every lane arrive.
#ifdef BLOCKSPARSE_RACECHECK
constexpr int kWarpArrivals = kWarpSize;
#else
constexpr int kWarpArrivals = 1;
#endif
__device__ __forceinline__ void ArriveAsWarp(uint32_t barrier, int lane) {
  if (kWarpArrivals > 1 || lane == 0) Arrive(barrier);
}

// Barrier `id` (1 to 15) of kThreads threads of the thread block, a whole number of warps.
template <int kThreads>
__device__ __forceinline__ void SyncThreads(int id) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(kThreads) : "memory");
}

// Between ordinary stores to shared memory and an asynchronous copy or wgmma that reads them: in
// every thread that stored, before the barrier.
__device__ __forceinline__ void FenceAsyncProxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- ordinary accesses ----

__device__ __forceinline__ uint32_t LoadShared(uint32_t shared) {
  uint32_t value;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(shared) : "memory");
  return value;
}
__device__ __forceinline__ void LoadShared(uint32_t shared, uint32_t (&values)[4]) {
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(values[0]), "=r"(values[1]), "=r"(values[2]), "=r"(values[3])
               : "r"(shared)
               : "memory");
}
__device__ __forceinline__ void StoreShared(uint32_t shared, int64_t value) {
  asm volatile("st.shared.u64 [%0], %1;" ::"r"(shared), "l"(value) : "memory");
}

// ---- copies by one thread ----

__device__ __forceinline__ void PrefetchTensorMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
// The tile whose first element is (inner, outer). What lies outside the tensor becomes 0. Its bytes
// count towards `barrier`.
__device__ __forceinline__ void LoadTile(uint32_t shared, const CUtensorMap* map, int inner,
                                         int outer, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3}], [%4];" ::"r"(shared),
      "l"(map), "r"(inner), "r"(outer), "r"(barrier)
      : "memory");
}
// The same of a tensor of three dimensions.
__device__ __forceinline__ void LoadTile(uint32_t shared, const CUtensorMap* map, int inner,
                                         int middle, int outer, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3, %4}], [%5];" ::"r"(shared),
      "l"(map), "r"(inner), "r"(middle), "r"(outer), "r"(barrier)
      : "memory");
}
// num_bytes, a multiple of 16, between addresses that are too.
__device__ __forceinline__ void LoadBytes(uint32_t shared, const void* global, uint32_t num_bytes,
                                          uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];" ::"r"(shared),
      "l"(global), "r"(num_bytes), "r"(barrier)
      : "memory");
}
// What lies outside the tensor is not written.
__device__ __forceinline__ void StoreTile(const CUtensorMap* map, int inner, int outer,
                                          uint32_t shared) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map),
      "r"(inner), "r"(outer), "r"(shared)
      : "memory");
}
__device__ __forceinline__ void CommitTileStores() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Waits until at most kPending of this thread's committed groups still read shared memory.
template <int kPending>
__device__ __forceinline__ void WaitForTileReads() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// ---- matrices of a warp ----

// stmatrix: four 8 x 8 matrices of 16-bit elements in mma.sync's layout of sums; lane i gives the
// address of row i % 8 (column, if transposed) of matrix i / 8.
template <bool kIsTransposed>
__device__ __forceinline__ void StoreMatrix4(uint32_t row, uint32_t r0, uint32_t r1, uint32_t r2,
                                             uint32_t r3) {
  if constexpr (kIsTransposed) {
    asm volatile(
        "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
        "r"(r0), "r"(r1), "r"(r2), "r"(r3)
        : "memory");
  } else {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
                 "r"(r0), "r"(r1), "r"(r2), "r"(r3)
                 : "memory");
  }
}

// ---- wgmma: D[64, kN] += A[64, 16] B[16, kN] by a warpgroup ----

__device__ __forceinline__ void FenceWgmma() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void CommitWgmma() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void WaitForWgmma() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving what it computes of `d` across this point; needed after zeroing
// sums and after waiting for them, or ptxas runs the products one by one.
template <int kSize>
__device__ __forceinline__ void FenceRegisters(float (&d)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// How rows of an operand's tile are swizzled, as a descriptor names it; rows are 128, 64 or 32
// bytes, and a tile starts at a multiple of 8 rows.
enum class Swizzle : uint32_t { kNone = 0, k128 = 1, k64 = 2, k32 = 3 };

// A matrix descriptor in two words; the low one holds the address, so that steps are additions to
// it.
//   kOther contiguous (MN-major): `stride` bytes from 8 values of the depth to the next 8,
//   `leading` bytes from one swizzled row's width to the next. kDepth contiguous (K-major):
//   `stride` bytes from 8 rows to the next 8; `leading` unused.
//   Without a swizzle the operand is made of 8 x 8 matrices of 128 contiguous bytes, of either
//   kind: `leading` bytes from one to the next along the depth, `stride` along the other index.
__host__ __device__ constexpr uint32_t DescriptorUnits(uint32_t bytes) { return bytes >> 4; }
__host__ __device__ constexpr uint32_t DescriptorHigh(uint32_t stride, Swizzle swizzle) {
  return DescriptorUnits(stride) | static_cast<uint32_t>(swizzle) << 30;
}
__device__ __forceinline__ uint32_t DescriptorLow(uint32_t shared, uint32_t leading = 16) {
  return DescriptorUnits(shared & 0x3FFFF) | DescriptorUnits(leading) << 16;
}
__device__ __forceinline__ uint64_t Descriptor(uint32_t low, uint32_t high) {
  uint64_t descriptor;
  asm("mov.b64 %0, {%1, %2};" : "=l"(descriptor) : "r"(low), "r"(high));
  return descriptor;
}

// Lane 4 g + t of warp w holds D[16 w + g + 8 h][8 j + 2 t + i] in d[4 j + 2 h + i].
// T: __half or __nv_bfloat16. kIsATransposed, kIsBTransposed: the operand is kOther-contiguous.
template <typename T, int kN>
struct Wgmma;

#define BLOCKSPARSE_SUMS_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define BLOCKSPARSE_SUMS_16(d, i)                                                       \
  BLOCKSPARSE_SUMS_4(d, i), BLOCKSPARSE_SUMS_4(d, i + 4), BLOCKSPARSE_SUMS_4(d, i + 8), \
      BLOCKSPARSE_SUMS_4(d, i + 12)
#define BLOCKSPARSE_SUMS_32(d, i) BLOCKSPARSE_SUMS_16(d, i), BLOCKSPARSE_SUMS_16(d, i + 16)
#define BLOCKSPARSE_SUMS_64(d, i) BLOCKSPARSE_SUMS_32(d, i), BLOCKSPARSE_SUMS_32(d, i + 32)
#define BLOCKSPARSE_NAMES_16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define BLOCKSPARSE_NAMES_32 \
  BLOCKSPARSE_NAMES_16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define BLOCKSPARSE_NAMES_64                                                                  \
  BLOCKSPARSE_NAMES_32                                                                        \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53," \
  "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define BLOCKSPARSE_WGMMA_TEXT(shape, type, names, operands) \
  "{ .reg .pred p; setp.ne.b32 p, 1, 0;\n"                   \
  "wgmma.mma_async.sync.aligned." shape "k16.f32." type "." type " {" names "}, " operands "; }\n"

// a0 to a5: the numbers of the operands after the kN / 2 sums.
#define BLOCKSPARSE_DEFINE_WGMMA(T, type, kN, sums, names, a0, a1, a2, a3, a4, a5)                \
  template <>                                                                                     \
  struct Wgmma<T, kN> {                                                                           \
    template <bool kIsATransposed, bool kIsBTransposed>                                           \
    static __device__ __forceinline__ void Multiply(float (&d)[kN / 2], uint64_t a, uint64_t b) { \
      asm volatile(                                                                               \
          BLOCKSPARSE_WGMMA_TEXT("m64n" #kN, type, names, a0 "," a1 ", p, 1, 1, " a2 "," a3)      \
          : sums                                                                                  \
          : "l"(a), "l"(b), "n"(int{kIsATransposed}), "n"(int{kIsBTransposed}));                  \
    }                                                                                             \
    template <bool kIsBTransposed>                                                                \
    static __device__ __forceinline__ void Multiply(float (&d)[kN / 2], const uint32_t (&a)[4],   \
                                                    uint64_t b) {                                 \
      asm volatile(BLOCKSPARSE_WGMMA_TEXT("m64n" #kN, type, names,                                \
                                          "{" a0 "," a1 "," a2 "," a3 "}, " a4 ", p, 1, 1, " a5)  \
                   : sums                                                                         \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),                          \
                     "n"(int{kIsBTransposed}));                                                   \
    }                                                                                             \
  };
#define BLOCKSPARSE_DEFINE_WGMMAS(T, type)                                                        \
  BLOCKSPARSE_DEFINE_WGMMA(T, type, 8, BLOCKSPARSE_SUMS_4(d, 0), "%0,%1,%2,%3", "%4", "%5", "%6", \
                           "%7", "%8", "%9")                                                      \
  BLOCKSPARSE_DEFINE_WGMMA(T, type, 16,                                                           \
                           BLOCKSPARSE_SUMS_4(d, 0) BLOCKSPARSE_COMMA BLOCKSPARSE_SUMS_4(d, 4),   \
                           "%0,%1,%2,%3,%4,%5,%6,%7", "%8", "%9", "%10", "%11", "%12", "%13")     \
  BLOCKSPARSE_DEFINE_WGMMA(T, type, 32, BLOCKSPARSE_SUMS_16(d, 0), BLOCKSPARSE_NAMES_16, "%16",   \
                           "%17", "%18", "%19", "%20", "%21")                                     \
  BLOCKSPARSE_DEFINE_WGMMA(T, type, 64, BLOCKSPARSE_SUMS_32(d, 0), BLOCKSPARSE_NAMES_32, "%32",   \
                           "%33", "%34", "%35", "%36", "%37")                                     \
  BLOCKSPARSE_DEFINE_WGMMA(T, type, 128, BLOCKSPARSE_SUMS_64(d, 0), BLOCKSPARSE_NAMES_64, "%64",  \
                           "%65", "%66", "%67", "%68", "%69")
#define BLOCKSPARSE_COMMA ,

BLOCKSPARSE_DEFINE_WGMMAS(__half, "f16")
BLOCKSPARSE_DEFINE_WGMMAS(__nv_bfloat16, "bf16")

// The two products of float32 kernels, 32 columns wide, B kDepth-contiguous. D[64, 32] += A[64, 8]
// B[8, 32] of TensorFloat-32, whose low 13 bits are ignored; lane 4 g + t of warp w holds
// A[16 w + g + 8 h][t + 4 i] in a[h + 2 i].
__device__ __forceinline__ void MultiplyTf32(float (&d)[16], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k8.f32.tf32.tf32 {" BLOCKSPARSE_NAMES_16
      "}, {%16,%17,%18,%19}, %20, p, 1, 1; }\n"
      : BLOCKSPARSE_SUMS_16(d, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
// D[64, 32] = A[64, 16] B[16, 32] of fp16.
__device__ __forceinline__ void StartProduct(float (&d)[16], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {" BLOCKSPARSE_NAMES_16
      "}, {%16,%17,%18,%19}, %20, p, 1, 1, 0; }\n"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3]), "=f"(d[4]), "=f"(d[5]), "=f"(d[6]),
        "=f"(d[7]), "=f"(d[8]), "=f"(d[9]), "=f"(d[10]), "=f"(d[11]), "=f"(d[12]), "=f"(d[13]),
        "=f"(d[14]), "=f"(d[15])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef BLOCKSPARSE_COMMA
#undef BLOCKSPARSE_DEFINE_WGMMAS
#undef BLOCKSPARSE_DEFINE_WGMMA
#undef BLOCKSPARSE_WGMMA_TEXT
#undef BLOCKSPARSE_NAMES_64
#undef BLOCKSPARSE_NAMES_32
#undef BLOCKSPARSE_NAMES_16
#undef BLOCKSPARSE_SUMS_64
#undef BLOCKSPARSE_SUMS_32
#undef BLOCKSPARSE_SUMS_16
#undef BLOCKSPARSE_SUMS_4

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_COMMON_HOPPER_CUH_

// Copies W for the wide kernel: see matmul_wide_pack.h.
#include "src/kernels/common/cuda_launch.h"
#include "src/kernels/common/dispatch.h"
#include "src/kernels/common/load_store.cuh"
#include "src/kernels/common/reduce.cuh"
#include "src/kernels/matmul_wide_pack.h"

namespace blocksparse {
namespace {

constexpr int kPackThreads = 256;

struct PackParams {
  const WideEntry* entries;
  const uint64_t* ids;
  const void* w;
  const float* gate;
  uint4* packed;
  WideEntry* live_entries;  // with gates: the entries and ids without blocks whose gate is 0
  uint64_t* live_ids;
  uint64_t num_ids;
  int last_half;
};

template <typename T>
__device__ __forceinline__ uint4 Scale(uint4 vector, float gate) {
  constexpr int kVector = kVectorBytes / sizeof(T);
  alignas(kVectorBytes) T values[kVector];
  *reinterpret_cast<uint4*>(values) = vector;
#pragma unroll
  for (T& value : values) value = T(static_cast<float>(value) * gate);
  return *reinterpret_cast<const uint4*>(values);
}

// One thread block for each entry, a warp at a time for each of its blocks. For B = 32 the copies
// lie in the order of the entries, rows of 64 bytes swizzled as wgmma reads them; larger blocks
// stay where they are stored.
template <typename T, int kBlockSize, bool kIsGated>
__global__ void __launch_bounds__(kPackThreads)
    WidePackKernel(const __grid_constant__ PackParams p) {
  constexpr int kRowVectors = kBlockSize * 2 / kVectorBytes;
  constexpr int kVectors = kBlockSize * kRowVectors;
  constexpr int kUnroll = 4;
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  const WideEntry entry = p.entries[blockIdx.x];
  const uint32_t columns = entry.Columns() | (entry.IsPair() ? entry.PairColumns() << 12 : 0);
  const int num_blocks = __popc(columns);
  const uint64_t first = entry.high <= p.num_ids ? entry.high : 0;

  // Lane i looks after the entry's i-th block.
  const bool is_named = lane < num_blocks && first + lane < p.num_ids;
  uint64_t id = is_named ? p.ids[first + lane] : p.num_ids;
  const bool is_known = id < p.num_ids;
  if (!is_known) id = 0;
  float gate = is_known ? 1.f : 0.f;
  if (kIsGated && is_known) gate = p.gate[id >> 2 * p.last_half];
  uint32_t live = __ballot_sync(~0u, lane < num_blocks && (!kIsGated || gate != 0.f));
  if constexpr (kIsGated) {
    if (warp == 0) {
      const bool is_live = live >> lane & 1;
      const uint32_t column = is_live ? 1u << __fns(columns, 0, lane + 1) : 0;
      const uint64_t all = __reduce_or_sync(~0u, column);
      const int rank = __popc(live & ((1u << lane) - 1));
      if (is_live && first + rank < p.num_ids) p.live_ids[first + rank] = id;
      if (lane == 0) p.live_entries[blockIdx.x] = {(entry.low & 0xFFFFFFFFull) | all << 32, first};
    }
  }
  for (int rank = 0; live != 0; ++rank) {
    const int at = __ffs(live) - 1;
    live &= live - 1;
    if (rank % (kPackThreads / kWarpSize) != warp) continue;
    const uint64_t from = __shfl_sync(~0u, static_cast<unsigned long long>(id), at);
    const float factor = __shfl_sync(~0u, gate, at);
    // A row of W is one block long, or two.
    const uint64_t stride = kRowVectors << p.last_half;
    const uint64_t start =
        (from >> p.last_half) * kBlockSize * stride + (from & p.last_half) * kRowVectors;
    const uint4* source = static_cast<const uint4*>(p.w) + start;
    uint4* target = p.packed + (kBlockSize == 32 ? (first + rank) * kVectors : start);
    for (int base = 0; base < kVectors; base += kUnroll * kWarpSize) {
      uint4 vectors[kUnroll];
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) {
        const int vector = base + k * kWarpSize + lane;
        vectors[k] = source[vector / kRowVectors * stride + vector % kRowVectors];
      }
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) {
        const int vector = base + k * kWarpSize + lane;
        // For B = 32 every second row shifts its four vectors by one.
        const uint64_t to = kBlockSize == 32 ? vector ^ vector / 8 % 4
                                             : vector / kRowVectors * stride + vector % kRowVectors;
        target[to] = kIsGated ? Scale<T>(vectors[k], factor) : vectors[k];
      }
    }
  }
}

template <typename T, int kBlockSize>
Status Pack(const PackParams& params, int64_t num_entries, Stream stream) {
  return WithBool(params.gate != nullptr, [&](auto is_gated) {
    if constexpr (kBlockSize > 32 && !is_gated()) {
      return Status();
    } else {
      return LaunchEarly("WidePackKernel", WidePackKernel<T, kBlockSize, is_gated()>, num_entries,
                         kPackThreads, 0, stream, params);
    }
  });
}

}  // namespace

Status PackWide(const MatmulArgs& args, Stream stream, WideParams* params, const void** w) {
  const WideWorkspace workspace(args, *params);
  if (workspace.bytes == 0) return Status();
  auto* bytes = static_cast<unsigned char*>(args.workspace);
  const PackParams pack = {params->entries,
                           params->ids,
                           args.w,
                           args.gate,
                           reinterpret_cast<uint4*>(bytes),
                           reinterpret_cast<WideEntry*>(bytes + workspace.entries),
                           reinterpret_cast<uint64_t*>(bytes + workspace.ids),
                           params->num_ids,
                           params->last_half};
  const int64_t num_entries = params->num_entries;
  const bool is_small = args.layout.block_size == 32;
  params->packed = bytes;
  if (!is_small) *w = bytes;
  if (args.gate != nullptr) {
    params->entries = pack.live_entries;
    params->ids = pack.live_ids;
  }
  if (args.dtype == DType::kFloat16)
    return is_small ? Pack<__half, 32>(pack, num_entries, stream)
                    : Pack<__half, 64>(pack, num_entries, stream);
  return is_small ? Pack<__nv_bfloat16, 32>(pack, num_entries, stream)
                  : Pack<__nv_bfloat16, 64>(pack, num_entries, stream);
}

}  // namespace blocksparse

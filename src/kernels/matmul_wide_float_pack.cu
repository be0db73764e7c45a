// Copies W for the wide float32 kernel: see matmul_wide_float_pack.h.
#include <cuda_fp16.h>

#include "src/kernels/common/cuda_launch.h"
#include "src/kernels/common/dispatch.h"
#include "src/kernels/common/load_store.cuh"
#include "src/kernels/common/round.cuh"
#include "src/kernels/matmul_wide_float_pack.h"

namespace blocksparse {
namespace {

constexpr int kPackThreads = 128;
constexpr int kPackWarps = kPackThreads / kWarpSize;
constexpr int kEdge = kWideFloatBlock;
constexpr int kRowVectors = kWideFloatRowBytes / kVectorBytes;

struct PackParams {
  const WideEntry* entries;
  const uint64_t* ids;
  const float* w;
  const float* gate;  // may be null
  uint4* packed;
  WideEntry* live_entries;
  uint8_t* exponents;
  uint64_t num_ids;
  int halvings;  // of a block until it is one of 32
  bool is_dx;
};

// The corner of a part of W, and the length of its rows.
struct Part {
  const float* data;
  int stride;
};
__device__ __forceinline__ Part PartOf(const PackParams& p, uint64_t id) {
  int row = 0;
  int col = 0;
  for (int i = 0; i < p.halvings; ++i) {
    row |= static_cast<int>(id >> (2 * i + 1) & 1) << i;
    col |= static_cast<int>(id >> 2 * i & 1) << i;
  }
  const int stride = kEdge << p.halvings;
  const uint64_t block = id >> 2 * p.halvings;
  return {p.w + block * stride * stride + row * kEdge * stride + col * kEdge, stride};
}

// The lane's row of the packed part: all inner features of its feature of the result, which is a
// column of W, or a row (dx). `rows` is the warp's shared memory.
__device__ __forceinline__ void LoadRow(const Part& part, bool is_dx, uint4* rows,
                                        float (&row)[kEdge]) {
  const int lane = threadIdx.x % kWarpSize;
  if (!is_dx) {
#pragma unroll
    for (int i = 0; i < kEdge; ++i) row[i] = part.data[i * part.stride + lane];
    return;
  }
  // Through shared memory, the vectors of row i shifted by i.
#pragma unroll
  for (int i = 0; i < kRowVectors; ++i) {
    const int r = i * 4 + lane / kRowVectors;
    const int vector = lane % kRowVectors;
    rows[r * kRowVectors + (vector ^ r % 8)] =
        *reinterpret_cast<const uint4*>(part.data + r * part.stride + vector * 4);
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kRowVectors; ++i)
    *reinterpret_cast<uint4*>(row + 4 * i) = rows[lane * kRowVectors + (i ^ lane % 8)];
  __syncwarp();
}

// Two numbers as fp16 and what that leaves, to which all of an infinity goes.
__device__ __forceinline__ void Split(float a, float b, uint32_t* high, uint32_t* low) {
  constexpr float kLargest = 65504.f;
  const __half2 rounded =
      __floats2half2_rn(fminf(fmaxf(a, -kLargest), kLargest), fminf(fmaxf(b, -kLargest), kLargest));
  const float2 back = __half22float2(rounded);
  const __half2 rest = __floats2half2_rn(a - back.x, b - back.y);
  *high = *reinterpret_cast<const uint32_t*>(&rounded);
  *low = *reinterpret_cast<const uint32_t*>(&rest);
}

// Packs the lane's row; returns the exponent of the power of two that the part was divided by.
template <bool kIsSplit, int kFeatureAxis>
__device__ __forceinline__ uint32_t PackRow(const float (&row)[kEdge], uint32_t (&words)[kEdge]) {
  if constexpr (!kIsSplit) {
#pragma unroll
    for (int at = 0; at < kEdge; ++at) words[at] = RoundToTf32(row[Tf32Feature(kFeatureAxis, at)]);
    return 0;
  } else {
    constexpr uint32_t kInfinity = 0x7F800000u;
    uint32_t largest = 0;  // of those that are finite
#pragma unroll
    for (const float v : row) {
      const uint32_t bits = __float_as_uint(v) & 0x7FFFFFFFu;
      largest = max(largest, bits < kInfinity ? bits : 0);
    }
    const uint32_t scale = SplitScale(__reduce_max_sync(~0u, largest));
    const float factor = __uint_as_float(SplitReciprocal(scale));
#pragma unroll
    for (int at = 0; at < kEdge; at += 2)
      Split(row[HalfFeature(kFeatureAxis, at)] * factor,
            row[HalfFeature(kFeatureAxis, at + 1)] * factor, &words[at / 2],
            &words[kEdge / 2 + at / 2]);
    return scale >> 23;
  }
}

// One thread block for each entry, a warp at a time for each of its blocks: rows of 128 bytes, one
// for each feature of the result, swizzled as wgmma reads them.
template <bool kIsSplit, int kFeatureAxis>
__global__ void __launch_bounds__(kPackThreads)
    WideFloatPackKernel(const __grid_constant__ PackParams p) {
  __shared__ uint4 shared_rows[kPackWarps][kEdge * kRowVectors];
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  uint4* rows = shared_rows[warp];
  const WideEntry entry = p.entries[blockIdx.x];
  const uint32_t columns = entry.Columns() & ((1u << kWideFloatGroup) - 1);
  const int num_blocks = __popc(columns);
  const uint64_t first = entry.high <= p.num_ids ? entry.high : 0;

  // Lane i looks after the entry's i-th block.
  uint64_t id = lane < num_blocks && first + lane < p.num_ids ? p.ids[first + lane] : p.num_ids;
  const bool is_known = id < p.num_ids;
  if (!is_known) id = 0;
  float gate = is_known ? 1.f : 0.f;
  if (p.gate != nullptr && is_known) gate = p.gate[id >> 2 * p.halvings];
  uint32_t live = __ballot_sync(~0u, lane < num_blocks && (p.gate == nullptr || gate != 0.f));
  const bool is_live = live >> lane & 1;
  const int column = is_live ? __fns(columns, 0, lane + 1) : 0;
  const uint32_t live_columns = __reduce_or_sync(~0u, is_live ? 1u << column : 0);

  if (threadIdx.x == 0)
    p.live_entries[blockIdx.x] = {(entry.low & 0xFFFFFFFFull) | uint64_t{live_columns} << 32,
                                  first};

  for (int rank = 0; live != 0; ++rank) {
    const int at = __ffs(live) - 1;
    live &= live - 1;
    if (rank % kPackWarps != warp) continue;
    const uint64_t from = __shfl_sync(~0u, static_cast<unsigned long long>(id), at);
    const float factor = __shfl_sync(~0u, gate, at);
    const int to = __shfl_sync(~0u, column, at);
    float row[kEdge];
    LoadRow(PartOf(p, from), p.is_dx, rows, row);
    if (factor != 1.f) {
#pragma unroll
      for (float& v : row) v *= factor;
    }
    alignas(kVectorBytes) uint32_t words[kEdge];
    const uint32_t exponent = PackRow<kIsSplit, kFeatureAxis>(row, words);
    if (lane == 0)
      p.exponents[int64_t{blockIdx.x} * kWideFloatExponents + to] = static_cast<uint8_t>(exponent);
#pragma unroll
    for (int i = 0; i < kRowVectors; ++i)
      rows[lane * kRowVectors + (i ^ lane % 8)] = *reinterpret_cast<const uint4*>(words + 4 * i);
    __syncwarp();
    uint4* target = p.packed + (first + rank) * (kEdge * kRowVectors);
#pragma unroll
    for (int i = 0; i < kRowVectors; ++i) target[i * kWarpSize + lane] = rows[i * kWarpSize + lane];
    __syncwarp();
  }
}

}  // namespace

Status PackWideFloat(const MatmulArgs& args, Stream stream, WideFloatParams* params) {
  const WideFloatWorkspace workspace(params->wide);
  auto* bytes = static_cast<unsigned char*>(args.workspace);
  PackParams pack = {params->wide.entries,
                     params->wide.ids,
                     static_cast<const float*>(args.w),
                     args.gate,
                     reinterpret_cast<uint4*>(bytes),
                     reinterpret_cast<WideEntry*>(bytes + workspace.entries),
                     bytes + workspace.exponents,
                     params->wide.num_ids,
                     0,
                     args.is_dx};
  while (kEdge << pack.halvings < args.layout.block_size) ++pack.halvings;
  params->wide.packed = bytes;
  params->wide.entries = pack.live_entries;
  params->exponents = pack.exponents;
  return WithBool(!args.allow_tf32, [&](auto is_split) {
    return WithBool(args.feature_axis == 1, [&](auto is_axis_1) {
      constexpr int kAxis = is_axis_1() ? 1 : 0;
      return LaunchEarly("WideFloatPackKernel", WideFloatPackKernel<is_split(), kAxis>,
                         params->wide.num_entries, kPackThreads, 0, stream, pack);
    });
  });
}

}  // namespace blocksparse

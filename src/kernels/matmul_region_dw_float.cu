// Whether and how dw of float32 runs: what it serves, the parts of the minibatch, the workspace.
#include <algorithm>
#include <limits>

#include "src/kernels/common/load_store.cuh"
#include "src/kernels/matmul_region_dw.h"
#include "src/kernels/matmul_region_dw_float.h"
#include "src/kernels/matmul_region_dw_float_split.h"
#include "src/kernels/matmul_region_dw_large.h"

namespace blocksparse {
namespace {

constexpr int64_t kAlignment = 128;

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

int64_t CountSlots(const MatmulDwArgs& args) {
  int64_t slots = 0;
  for (int i = 0; i < args.num_pairs; ++i) slots += RoundUp(args.pairs[i].batch, kSlotGroup);
  return slots;
}

// How the slots are taken: all turns alike but the last, which may have fewer.
struct FloatDwPlan {
  int64_t slots;
  int turn_slots;
  int num_planes;  // of x, and of dy
  int64_t features[2];
  int64_t plane_bytes[2];
  int64_t scale_bytes[2];

  explicit FloatDwPlan(const MatmulDwArgs& args) : slots(CountSlots(args)) {
    const int64_t num_turns =
        std::max((slots + kMaxFloatDwBatch - 1) / kMaxFloatDwBatch, int64_t{1});
    const int64_t even = (slots + num_turns - 1) / num_turns;
    turn_slots = static_cast<int>(RoundUp(even, 64));
    num_planes = args.allow_tf32 ? 1 : 2;
    features[0] = args.layout.in_blocks * args.layout.block_size;
    features[1] = args.layout.out_blocks * args.layout.block_size;
    for (int i = 0; i < 2; ++i) {
      plane_bytes[i] =
          RoundUp(turn_slots * features[i] * static_cast<int64_t>(sizeof(__half)), kAlignment);
      scale_bytes[i] = RoundUp(features[i] * static_cast<int64_t>(sizeof(uint32_t)), kAlignment);
    }
  }

  int64_t Bytes() const {
    return num_planes * (plane_bytes[0] + plane_bytes[1]) + scale_bytes[0] + scale_bytes[1];
  }
};

// One turn's products, of planes at `planes`: those that are small first.
MatmulDwArgs PlaneArgs(const MatmulDwArgs& args, const FloatDwPlan& plan, char* planes) {
  MatmulDwArgs half = args;
  half.dtype = DType::kFloat16;
  half.dw_dtype = DType::kFloat32;
  char* const x_high = planes;
  char* const x_low = x_high + plan.plane_bytes[0];
  char* const dy_high = x_high + plan.num_planes * plan.plane_bytes[0];
  char* const dy_low = dy_high + plan.plane_bytes[1];
  half.num_pairs = 0;
  if (plan.num_planes == 2) {
    half.pairs[half.num_pairs++] = {x_low, dy_high, plan.turn_slots};
    half.pairs[half.num_pairs++] = {x_high, dy_low, plan.turn_slots};
  }
  half.pairs[half.num_pairs++] = {x_high, dy_high, plan.turn_slots};
  return half;
}

bool IsLarge(const MatmulDwArgs& args) { return args.layout.block_size > 32; }

int64_t DwBytes(const MatmulDwArgs& args) {
  return args.layout.num_blocks * args.layout.block_size * args.layout.block_size *
         static_cast<int64_t>(sizeof(float));
}

// The sums come first in the workspace: whole blocks, so that what follows is aligned.
Status FindSumBytes(const MatmulDwArgs& half, int64_t* bytes) {
  if (!IsLarge(half)) return RegionDwSumsBytes(half, bytes);
  *bytes = (half.num_pairs > 1 ? 2 : 1) * DwBytes(half);
  return Status();
}

Status MakeSums(const MatmulDwArgs& half, Stream stream, int* num_copies) {
  const int num_small = half.num_pairs - 1;
  if (!IsLarge(half)) return RegionDwSums(half, num_small, stream, num_copies);
  MatmulDwArgs part = half;
  part.workspace = nullptr;
  part.dw = half.workspace;
  part.num_pairs = num_small;
  if (num_small > 0) BLOCKSPARSE_RETURN_IF_ERROR(MatmulLargeDw(part, stream));
  *num_copies = num_small > 0 ? 2 : 1;
  part.dw = reinterpret_cast<char*>(half.workspace) + (*num_copies - 1) * DwBytes(half);
  part.pairs[0] = half.pairs[num_small];
  part.num_pairs = 1;
  return MatmulLargeDw(part, stream, num_small > 0);
}

}  // namespace

bool FloatDwServes(const MatmulDwArgs& args) {
  const int64_t kMaxSlots = std::numeric_limits<int32_t>::max() / 2;
  if (args.dtype != DType::kFloat32) return false;
  int64_t batch = 0;
  for (int i = 0; i < args.num_pairs; ++i) {
    const MatmulPair& pair = args.pairs[i];
    if (pair.batch > kMaxSlots || !IsVectorAligned(pair.x) || !IsVectorAligned(pair.dy) ||
        (args.feature_axis == 0 && pair.batch % 4 != 0))
      return false;
    batch += pair.batch;
  }
  const FloatDwPlan plan(args);
  const int64_t elements = DwBytes(args) / static_cast<int64_t>(sizeof(float));
  const int64_t least = MinFloatDwElements(args.layout.block_size, args.allow_tf32, batch);
  if (batch < kMinFloatDwBatch || plan.slots > kMaxSlots ||
      elements < least * (plan.features[0] + plan.features[1]))
    return false;
  const MatmulDwArgs half = PlaneArgs(args, plan, nullptr);
  return IsLarge(args) ? LargeDwServes(half) : CanRegionDw(half);
}

Status FloatDwWorkspaceBytes(const MatmulDwArgs& args, int64_t* bytes) {
  const FloatDwPlan plan(args);
  BLOCKSPARSE_RETURN_IF_ERROR(FindSumBytes(PlaneArgs(args, plan, nullptr), bytes));
  *bytes = RoundUp(*bytes, kAlignment) + plan.Bytes();
  return Status();
}

Status MatmulFloatDw(const MatmulDwArgs& args, Stream stream) {
  const FloatDwPlan plan(args);
  int64_t sum_bytes = 0;
  BLOCKSPARSE_RETURN_IF_ERROR(FindSumBytes(PlaneArgs(args, plan, nullptr), &sum_bytes));
  char* scales = reinterpret_cast<char*>(args.workspace) + RoundUp(sum_bytes, kAlignment);
  char* planes = scales + plan.scale_bytes[0] + plan.scale_bytes[1];

  SplitParams split = {};
  char* plane = planes;
  for (int i = 0; i < 2; ++i) {
    SplitOperand& operand = split.operands[i];
    operand.high = reinterpret_cast<__half*>(plane);
    plane += plan.plane_bytes[i];
    if (plan.num_planes == 2) {
      operand.low = reinterpret_cast<__half*>(plane);
      plane += plan.plane_bytes[i];
    }
    operand.scales = reinterpret_cast<uint32_t*>(scales + i * plan.scale_bytes[0]);
    operand.features = plan.features[i];
  }
  split.num_slots = plan.turn_slots;
  int slot = 0;
  for (int i = 0; i < args.num_pairs; ++i) {
    if (args.pairs[i].batch == 0) continue;
    split.pair_slots[split.num_pairs] = slot;
    split.pairs[split.num_pairs++] = args.pairs[i];
    slot += static_cast<int>(RoundUp(args.pairs[i].batch, kSlotGroup));
  }

  ScaledSumParams sum = {};
  sum.copies = reinterpret_cast<const float4*>(args.workspace);
  sum.x_scales = split.operands[0].scales;
  sum.dy_scales = split.operands[1].scales;
  sum.dw = static_cast<float*>(args.dw);
  sum.blocks = args.layout.blocks;
  sum.in_blocks = args.layout.in_blocks;
  sum.out_blocks = args.layout.out_blocks;
  sum.size = DwBytes(args) / kVectorBytes;
  while (1 << sum.block_shift < args.layout.block_size) ++sum.block_shift;
  sum.is_dw_aligned = IsVectorAligned(args.dw);

  const MatmulDwArgs half = PlaneArgs(args, plan, planes);
  for (int64_t first = 0; first < plan.slots; first += plan.turn_slots) {
    split.first_slot = static_cast<int>(first);
    split.end_slot = static_cast<int>(std::min(first + plan.turn_slots, plan.slots));
    BLOCKSPARSE_RETURN_IF_ERROR(SplitFloats(args.feature_axis, split, stream));
    BLOCKSPARSE_RETURN_IF_ERROR(MakeSums(half, stream, &sum.num_copies));
    sum.is_added = first > 0;
    BLOCKSPARSE_RETURN_IF_ERROR(ScaleSums(sum, stream));
  }
  return Status();
}

}  // namespace blocksparse

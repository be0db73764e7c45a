// What surrounds the products of dw in float32 (matmul_region_dw_float.h): numbers of fp16 before
// them, sums and scales after.
//
// Slots are the samples of all pairs, one pair after the other; each pair starts at a multiple of
// kSlotGroup. What belongs to no sample is 0. A plane has the slots from first_slot on, in a matrix
// like x or dy: [slots, features], or [features, slots] for feature_axis 0.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_REGION_DW_FLOAT_SPLIT_H_
#define BLOCKSPARSE_KERNELS_MATMUL_REGION_DW_FLOAT_SPLIT_H_

#include <cuda_fp16.h>

#include "src/kernels/matmul.h"

namespace blocksparse {

constexpr int kSlotGroup = 8;

// Of x or dy.
struct SplitOperand {
  __half* high;
  __half* low;       // null for TensorFloat-32
  uint32_t* scales;  // [features] the powers of two, as float32's bits
  int64_t features;
};

struct SplitParams {
  SplitOperand operands[2];  // x, dy
  int num_pairs;
  int first_slot;
  int end_slot;                     // the planes have zeros from there on
  int num_slots;                    // of a plane: a multiple of 64, at most kMaxFloatDwBatch
  int pair_slots[kMaxMatmulPairs];  // the first of each pair
  MatmulPair pairs[kMaxMatmulPairs];
};

// Fills the planes and scales. x and dy are aligned to 16 bytes, and their rows too.
Status SplitFloats(int feature_axis, const SplitParams& params, Stream stream);

struct ScaledSumParams {
  const float4* copies;  // [num_copies, size]
  const uint32_t* x_scales;
  const uint32_t* dy_scales;
  float* dw;
  const LutEntry* blocks;
  int64_t in_blocks;
  int64_t out_blocks;
  int64_t size;  // of dw, in fours
  int block_shift;
  int num_copies;
  bool is_dw_aligned;
  bool is_added;  // to what dw holds
};

// dw (+)= the copies' sum, in order, times the scales.
Status ScaleSums(const ScaledSumParams& params, Stream stream);

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_REGION_DW_FLOAT_SPLIT_H_

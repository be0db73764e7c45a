// What the wide kernel for float32 (matmul_wide_float.cuh), its packing and its tables agree on;
// blocksparse/_wide_float_table.py writes the tables and has the same constants. The frame is that
// of matmul_wide_policy.h: a group of block columns of the result, and for each group the list of
// what a thread block loads into its ring. Here all blocks are of 32 x 32 ("parts" of a larger
// block), a group has kWideFloatGroup columns, an entry one slice of x, and there is no room for
// results.
//
//   section wide_float_fprop or wide_float_dx; its parameters are the numbers of groups, entries
//   and columns of a group:
//     ptr      int64[groups + 1]                first entry of each group
//     columns  int64[groups, kWideFloatGroup]   columns of the result, of 32 features, -1 for none
//     entries  WideEntry[entries]               a granule is kWideFloatBlockBytes
//     ids      int64[..]                        parts of W in the order of the entries, those of an
//                                               entry by column: block (B / 32)^2 + part. The
//                                               part's lowest two bits are 2 (lower half) + (right
//                                               half) of 64 x 64, the next two the same of
//                                               128 x 128
#ifndef BLOCKSPARSE_KERNELS_MATMUL_WIDE_FLOAT_POLICY_H_
#define BLOCKSPARSE_KERNELS_MATMUL_WIDE_FLOAT_POLICY_H_

#include <cstdint>

#include "src/kernels/matmul_wide_policy.h"

namespace blocksparse {

constexpr int kWideFloatBlock = 32;
constexpr int kWideFloatGroup = 11;  // block columns
// A part of W, as TensorFloat-32 or as two numbers of fp16: a row for each of its 32 features of
// the result.
constexpr int kWideFloatRowBytes = kWideFloatBlock * 4;
constexpr int kWideFloatBlockBytes = kWideFloatBlock * kWideFloatRowBytes;

// kIsSplit: float32's accuracy, from products of fp16; else TensorFloat-32.
template <bool kIsSplit_, int kFeatureAxis_>
struct WideFloatPolicy {
  static constexpr bool kIsSplit = kIsSplit_;
  static constexpr int kFeatureAxis = kFeatureAxis_;

  static constexpr int kBlockSize = kWideFloatBlock;
  static constexpr int kGroup = kWideFloatGroup;
  static constexpr int kWorkers = 2;  // warpgroups that multiply
  static constexpr bool kDividesSamples = true;
  static constexpr bool kHasPairs = false;
  static constexpr bool kCanPack = true;
  static constexpr bool kMustPack = true;

  static constexpr int kFeeders = 4;
  static constexpr int kRooms = 0;
  static constexpr int kThreads = (kWorkers + 1) * 128;
  static constexpr int kWorkerRegisters = 240;
  static constexpr int kFeederRegisters = 24;

  static constexpr int kElementBytes = 4;
  static constexpr int kBlockBytes = kWideFloatBlockBytes;
  static constexpr int kSliceBytes = kWideRows * kBlockSize * 4;
  static constexpr int kPanelSamples = 32;
  static constexpr int kPanels = kFeatureAxis == 1 ? 1 : kWideRows / kPanelSamples;
  static constexpr int kBarriers = kWideRingBytes;
  static constexpr int kSmemBytes = kBarriers + 8 * 2 * kWideBarriers;

  static_assert(kWideReach + 32 + kWorkers < kWideBarriers, "parities are unambiguous");
};

// For each entry as many bytes: by column the biased exponent of the power of two by which the
// block of W was divided; written when W is packed (kIsSplit).
constexpr int kWideFloatExponents = 16;
static_assert(kWideFloatGroup <= 12 && kWideFloatExponents == 16,
              "an entry has bits for the columns, and one load brings their exponents");

// fp16 holds the numbers of a block, or 32 features of a sample, after a division by a power of two
// that brings the largest to [2^14, 2^15). That power's exponent, biased, as it stands in a
// float32; the smallest is 2^-126, by which the smallest of all numbers become exact.
BLOCKSPARSE_HOST_DEVICE inline uint32_t SplitScale(uint32_t largest) {
  const uint32_t exponent = largest & 0x7F800000u;
  const uint32_t least = 15u << 23;
  return (exponent > least ? exponent : least) - (14u << 23);
}
// The reciprocal of that power of two.
BLOCKSPARSE_HOST_DEVICE inline uint32_t SplitReciprocal(uint32_t scale) {
  return (254u << 23) - scale;
}

// The order of W's 32 inner features in a packed row is that in which a lane holds x: its number k
// of 8 is feature InnerFeature(axis, lane % 4, k) of the slice.
BLOCKSPARSE_HOST_DEVICE constexpr int InnerFeature(int feature_axis, int t, int k) {
  return feature_axis == 1 ? 4 * k + t : 8 * (k / 2) + 2 * t + k % 2;
}
// The feature at position `at` of a row of TensorFloat-32: A's columns t and t + 4 of the step
// at / 8 are a lane's numbers 2 step and 2 step + 1.
BLOCKSPARSE_HOST_DEVICE constexpr int Tf32Feature(int feature_axis, int at) {
  return InnerFeature(feature_axis, at % 4, 2 * (at / 8) + at / 4 % 2);
}
// The same for fp16: A's columns 2 t, 2 t + 1, 2 t + 8 and 2 t + 9 of the step at / 16 are a lane's
// numbers 4 step to 4 step + 3.
BLOCKSPARSE_HOST_DEVICE constexpr int HalfFeature(int feature_axis, int at) {
  return InnerFeature(feature_axis, at / 2 % 4, 4 * (at / 16) + at / 8 % 2 * 2 + at % 2);
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_WIDE_FLOAT_POLICY_H_

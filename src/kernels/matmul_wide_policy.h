// What the wide kernel (matmul_wide.cuh) and its tables agree on; blocksparse/_wide_table.py writes
// the tables and has the same constants.
//
// The kernel knows blocks of 32 and 64; one of 128 is four of 64 to it. The result's block columns
// are put into groups of kWideFeatures features at most, in an order that makes columns of a group
// share inputs. For each group the table lists what a thread block loads into its ring of shared
// memory, one entry after the other: a block of x's features ("slice") that some column of the
// group needs, or two neighbours at once (B = 32), and then the blocks of W that multiply it. The
// last entries are room for the results of each worker. Where in the ring an entry lies is decided
// there.
//
//   section wide_fprop or wide_dx; its parameters are the numbers of groups and of entries,
//   and workers | granules << 8, what a group loads, the mean, or 0 where that is not known:
//     ptr      int64[groups + 1]      first entry of each group
//     columns  int64[groups, kGroup]  block columns of the result, -1 for none; the first
//                                     kGroup / workers belong to the first worker, and so on
//     entries  WideEntry[entries]
//     ids      int64[..]              blocks of W in the order of the entries; in an entry, those
//     of
//                                     the first slice, then of the second, by column. For B = 128:
//                                     4 block + 2 (rows 64 to 127) + (columns 64 to 127)
#ifndef BLOCKSPARSE_KERNELS_MATMUL_WIDE_POLICY_H_
#define BLOCKSPARSE_KERNELS_MATMUL_WIDE_POLICY_H_

#include <cstdint>

#include "src/kernels/common/lut.h"

namespace blocksparse {

constexpr int kWideFeatures = 384;  // of the result, in a group
constexpr int kWideRows = 128;      // samples of a tile
constexpr int kWideRingBytes = 224 * 1024;
// Barriers of the ring; one is known by its phase's parity, so nobody may be a phase ahead or
// behind. An entry waits for one at most kWideReach back, and so for all before that one. And every
// worker looks at each last of 32 loads, needed or not, so that none of its waits is more than
// 32 + kWorkers entries after the one before.
constexpr int kWideBarriers = 64;
constexpr int kWideReach = 24;

// Low word:  slice, or the first of the pair: 16 bits; position in the ring in granules, which are
//            the size of a block: 7; how many entries back the last one lies that shares memory
//            with this: 5, at least 1; whether it is a pair: 1. From bit 32 on the columns that
//            need the first slice: 12; the second: 12.
// High word: where the entry's blocks of W start in `ids`.
struct WideEntry {
  uint64_t low;
  uint64_t high;

  BLOCKSPARSE_HOST_DEVICE int Slice() const { return static_cast<int>(low & 0xFFFF); }
  BLOCKSPARSE_HOST_DEVICE int Position() const { return static_cast<int>(low >> 16 & 0x7F); }
  BLOCKSPARSE_HOST_DEVICE int Distance() const { return static_cast<int>(low >> 23 & 0x1F); }
  BLOCKSPARSE_HOST_DEVICE bool IsPair() const { return low >> 28 & 1; }
  BLOCKSPARSE_HOST_DEVICE uint32_t Columns() const { return low >> 32 & 0xFFF; }
  BLOCKSPARSE_HOST_DEVICE uint32_t PairColumns() const { return low >> 44 & 0xFFF; }
};

// kIsXRegister: wgmma takes x from registers, which spares shared memory where a slice meets many
// small blocks; the registers leave room for two workers.
template <typename T_, int kBlockSize_, bool kIsDx_, int kFeatureAxis_, bool kIsXRegister_>
struct WidePolicy {
  using T = T_;
  static constexpr int kBlockSize = kBlockSize_;  // 32 or 64
  static constexpr bool kIsDx = kIsDx_;
  static constexpr int kFeatureAxis = kFeatureAxis_;
  static constexpr bool kIsXRegister = kIsXRegister_;

  static constexpr int kGroup = kWideFeatures / kBlockSize;
  static constexpr int kWorkers = kIsXRegister ? 2 : 3;  // warpgroups that multiply
  static constexpr bool kDividesSamples = false;         // workers divide columns, not samples
  static constexpr int kColumns = kGroup / kWorkers;     // of a worker
  static constexpr bool kHasPairs = kBlockSize == 32;
  // W may have been copied into the order of the entries first, as its blocks are small for the
  // copy engine; where they are many, it has.
  static constexpr bool kCanPack = kBlockSize == 32;
  static constexpr bool kMustPack = kIsXRegister;
  // wgmma computes 64 x n. Blocks of 64 features are its rows and the 128 samples its columns,
  // since a large n reads least of shared memory; with blocks of 32, samples are the rows, 64 at a
  // time.
  static constexpr bool kAreSamplesColumns = kBlockSize == 64;
  static constexpr int kN = kAreSamplesColumns ? kWideRows : kBlockSize;
  static constexpr int kTiles = kAreSamplesColumns ? 1 : kWideRows / 64;

  static constexpr int kFeeders = 3;       // warps that load, beside one that stores
  static constexpr int kRooms = kWorkers;  // entries of a group that are room for results
  static constexpr int kThreads = (kWorkers + 1) * 128;
  // setmaxnreg: together what the launch gives.
  static constexpr int kWorkerRegisters = kWorkers == 3 ? 160 : 240;
  static constexpr int kFeederRegisters = kWorkers == 3 ? 32 : 24;

  static constexpr int kElementBytes = 2;
  static constexpr int kBlockBytes = kBlockSize * kBlockSize * 2;  // a granule
  static constexpr int kSliceBytes = kWideRows * kBlockSize * 2;
  static constexpr int kRoomBytes = kWideRows * kColumns * kBlockSize * 2;
  // Copies that bring a slice: where samples are contiguous, one brings kPanelSamples.
  static constexpr int kPanelSamples = 64;
  static constexpr int kPanels = kFeatureAxis == 1 ? 1 : kWideRows / kPanelSamples;
  static constexpr int kBarriers = kWideRingBytes;  // they lie behind the ring
  static constexpr int kSmemBytes = kBarriers + 8 * (2 * kWideBarriers + kWorkers);

  static_assert(!kIsXRegister || kBlockSize == 32, "only small blocks need x in registers");
  static_assert(kWideReach + 32 + kWorkers < kWideBarriers, "parities are unambiguous");
  static_assert(kSmemBytes <= 227 * 1024, "the ring and its barriers fit an SM");
};

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_MATMUL_WIDE_POLICY_H_

// The wide kernel's ring in shared memory, and the warps that fill it and empty it: see
// matmul_wide.cuh.
#ifndef BLOCKSPARSE_KERNELS_MATMUL_WIDE_RING_CUH_
#define BLOCKSPARSE_KERNELS_MATMUL_WIDE_RING_CUH_

#include "src/kernels/common/hopper.cuh"
#include "src/kernels/common/mma.cuh"
#include "src/kernels/matmul_wide.h"
#include "src/kernels/matmul_wide_policy.h"

#ifdef BLOCKSPARSE_HAS_HOPPER

namespace blocksparse {

// Shared memory, and the part of the grid that a thread block walks: groups, and tiles of a strip.
// Entries are numbered in the order of that walk.
template <class Policy>
struct WideBlock {
  const WideParams& p;
  uint32_t ring;

  __device__ __forceinline__ uint32_t Full(uint32_t number) const {
    return ring + Policy::kBarriers + 8 * (number % kWideBarriers);
  }
  static constexpr int kReleases = 4 * kWarpArrivals;  // of an entry by a worker
  static constexpr uint32_t kFullToEmpty = 8 * kWideBarriers;
  __device__ __forceinline__ uint32_t Empty(uint32_t number) const {
    return Full(number) + kFullToEmpty;
  }
  static __device__ __forceinline__ uint32_t Parity(uint32_t number) {
    return number / kWideBarriers % 2;
  }
  __device__ __forceinline__ uint32_t Staged(int worker) const {
    return ring + Policy::kBarriers + 8 * (2 * kWideBarriers + worker);
  }

  // A group's entries; none where the table is damaged. Rooms for results, if any, come after the
  // loads.
  struct Entries {
    const WideEntry* data;
    int count;
    int num_loads;
  };
  __device__ __forceinline__ Entries EntriesOf(int group) const {
    const int64_t begin = p.ptr[group];
    const int64_t end = p.ptr[group + 1];
    const bool is_sound =
        begin >= 0 && begin <= end && end <= p.num_entries && end - begin >= Policy::kRooms;
    const int count = is_sound ? static_cast<int>(end - begin) : 0;
    return {p.entries + (is_sound ? begin : 0), count, is_sound ? count - Policy::kRooms : 0};
  }

  __device__ __forceinline__ int FirstGroup() const { return blockIdx.x % p.group_lanes; }
  __device__ __forceinline__ int FirstRow() const {
    return blockIdx.x / p.group_lanes * p.strip_rows;
  }
  __device__ __forceinline__ int EndRow() const {
    return min(FirstRow() + p.strip_rows, static_cast<int>(p.batch));
  }
  // Panels of the tile at `row`. Where samples are contiguous, those beyond the strip are left out;
  // elsewhere strips are whole tiles.
  __device__ __forceinline__ int NumPanels(int row) const {
    constexpr int kSamples = Policy::kPanelSamples;
    return Policy::kFeatureAxis == 1
               ? 1
               : min(Policy::kPanels, (EndRow() - row + kSamples - 1) / kSamples);
  }

  // Where in the ring something of so many bytes lies, in bytes from its start; anywhere that fits
  // if the table is damaged.
  static __device__ __forceinline__ uint32_t Place(const WideEntry& entry, int num_bytes) {
    const int at = entry.Position() * Policy::kBlockBytes;
    return at + num_bytes <= kWideRingBytes ? at : 0;
  }
  // Whether every worker visits load i of num_loads.
  static __device__ __forceinline__ bool IsCheckpoint(int i, int num_loads) {
    return i < num_loads && (i % kWarpSize == kWarpSize - 1 || i == num_loads - 1);
  }
};

// The parts of an entry.
template <class Policy>
struct WideParts {
  uint32_t columns;
  uint32_t pair_columns;
  bool is_pair;
  int num_blocks;
  int x_bytes;
  uint32_t place;  // from the ring's start

  explicit __device__ __forceinline__ WideParts(const WideEntry& entry) {
    constexpr uint32_t kAll = (1u << Policy::kGroup) - 1;
    is_pair = Policy::kHasPairs && entry.IsPair();
    columns = entry.Columns() & kAll;
    pair_columns = is_pair ? entry.PairColumns() & kAll : 0;
    num_blocks = __popc(columns) + __popc(pair_columns);
    x_bytes = Policy::kSliceBytes * (is_pair ? 2 : 1);
    place = WideBlock<Policy>::Place(entry, x_bytes + num_blocks * Policy::kBlockBytes);
  }
  // A worker's columns, as bits 0, ...; workers that divide the samples have all.
  static __device__ __forceinline__ uint32_t Share(uint32_t columns, int worker) {
    if constexpr (Policy::kDividesSamples) {
      return columns;
    } else {
      return columns >> worker * Policy::kColumns & ((1u << Policy::kColumns) - 1);
    }
  }
};

// 32 entries at a time, one a lane, the next 32 under way: round and round a group's list.
struct EntryStream {
  const WideEntry* data;
  int count;
  WideEntry next;

  __device__ __forceinline__ EntryStream(const WideEntry* entries, int num)
      : data(entries), count(num) {
    Load(0);
  }
  __device__ __forceinline__ WideEntry Take(int base) {
    const WideEntry entry = next;
    Load(base + kWarpSize < count ? base + kWarpSize : 0);
    return entry;
  }

 private:
  __device__ __forceinline__ void Load(int base) {
    const int i = base + static_cast<int>(threadIdx.x % kWarpSize);
    next = i < count ? data[i] : WideEntry{0, 0};
  }
};

__device__ __forceinline__ uint64_t Broadcast(uint64_t value, int lane) {
  return __shfl_sync(~0u, static_cast<unsigned long long>(value), lane);
}

// Whether blocks of W come from a copy in the order of the entries.
template <class Policy>
__device__ __forceinline__ bool IsPacked(const WideParams& p) {
  return Policy::kMustPack || (Policy::kCanPack && p.packed != nullptr);
}

// Loads what one entry names; called by a whole warp.
template <class Policy>
__device__ __forceinline__ void LoadEntry(const WideBlock<Policy>& block, const WideEntry& entry,
                                          uint32_t number, bool is_checkpoint, int row) {
  using Parts = WideParts<Policy>;
  const WideParams& p = block.p;
  const int lane = threadIdx.x % kWarpSize;
  const Parts parts(entry);
  const uint32_t full = block.Full(number);
  const uint32_t x = block.ring + parts.place;
  const uint32_t w = x + parts.x_bytes;
  const int num_panels = block.NumPanels(row);
  if (lane == 0) {
    if (parts.num_blocks == 0) {
      Arrive(full);
    } else {
      const int x_bytes = num_panels * p.panel_rows * Policy::kBlockSize * Policy::kElementBytes;
      ArriveExpecting(full,
                      x_bytes * (parts.is_pair ? 2 : 1) + parts.num_blocks * Policy::kBlockBytes);
      const CUtensorMap* map = parts.is_pair ? &p.x_pair : &p.x;
      const int feature = entry.Slice() * Policy::kBlockSize;
      if constexpr (Policy::kFeatureAxis == 1) {
        LoadTile(x, map, feature, row, full);
      } else {
        for (int i = 0; i < num_panels; ++i)
          LoadTile(x + i * (parts.x_bytes / Policy::kPanels), map, row + Policy::kPanelSamples * i,
                   feature, full);
      }
      if (IsPacked<Policy>(p)) {
        const uint64_t first = entry.high <= p.num_ids ? entry.high : 0;
        LoadBytes(w, static_cast<const unsigned char*>(p.packed) + first * Policy::kBlockBytes,
                  parts.num_blocks * Policy::kBlockBytes, full);
      }
    }
    // Those that need nothing of this entry release it here.
    int num_idle = 0;
#pragma unroll
    for (int i = 0; i < Policy::kWorkers; ++i)
      num_idle += Parts::Share(parts.columns | parts.pair_columns, i) == 0;
    if (num_idle > 0 && !is_checkpoint)
      Arrive(block.Empty(number), WideBlock<Policy>::kReleases * num_idle);
  }
  // Nobody else need look at this phase.
  if (parts.num_blocks == 0) WaitBarrier(full, block.Parity(number));
  __syncwarp();
  if (!IsPacked<Policy>(p)) {
    if (lane < parts.num_blocks) {
      const uint64_t i = entry.high + lane;
      const uint64_t id = i < p.num_ids ? p.ids[i] : p.num_ids;
      // An unknown block lies outside the tensor, which gives zeros.
      const int block_idx = static_cast<int>(id < p.num_ids ? id : p.num_ids);
      const int across = block_idx & p.last_half;
      LoadTile(w + lane * Policy::kBlockBytes, &p.w, Policy::kBlockSize * across,
               (block_idx >> p.last_half) * Policy::kBlockSize, full);
    }
    __syncwarp();
  }
}

// Feeder `feeder` takes the entries whose number is `feeder` modulo kFeeders.
template <class Policy>
__device__ __forceinline__ void Feed(const WideBlock<Policy>& block, int feeder) {
  const WideParams& p = block.p;
  uint32_t first = 0;     // number of the tile's first entry
  uint32_t released = 0;  // entries known to be
  for (int group = block.FirstGroup(); group < p.num_groups; group += p.group_lanes) {
    const auto entries = block.EntriesOf(group);
    if (entries.count == 0) continue;
    const uint32_t group_first = first;
    EntryStream stream(entries.data, entries.count);
    for (int row = block.FirstRow(); row < block.EndRow(); row += p.tile_rows) {
      for (int base = 0; base < entries.count; base += kWarpSize) {
        const WideEntry mine = stream.Take(base);
        const int end = min(kWarpSize, entries.count - base);
        const int begin = feeder + Policy::kFeeders - (first + base) % Policy::kFeeders;
        for (int i = begin % Policy::kFeeders; i < end; i += Policy::kFeeders) {
          const WideEntry entry = {Broadcast(mine.low, i), Broadcast(mine.high, i)};
          const uint32_t number = first + base + i;
          // Rooms never wait for each other: they are all given back when the last one is full.
          const bool is_room = base + i >= entries.num_loads;
          const int distance =
              min(max(entry.Distance(), is_room ? Policy::kWorkers : 1), kWideReach);
          // The list was planned for itself repeated; another group's must have left the ring.
          const uint32_t needed =
              number - group_first < distance ? group_first : number - distance + 1;
          for (; static_cast<int>(needed - released) > 0; ++released)
            WaitBarrier(block.Empty(released), block.Parity(released));
          if (!is_room) {
            LoadEntry(block, entry, number, block.IsCheckpoint(base + i, entries.num_loads), row);
          } else if (threadIdx.x % kWarpSize == 0) {
            Arrive(block.Full(number));  // room for results
          }
        }
      }
      first += entries.count;
    }
  }
}

// Writes y from the workers' rooms; called by a whole warp.
template <class Policy>
__device__ __forceinline__ void StoreResults(const WideBlock<Policy>& block) {
  constexpr int kPanelBytes = kWideRows * Policy::kBlockSize * 2 / Policy::kPanels;
  const WideParams& p = block.p;
  const int lane = threadIdx.x % kWarpSize;
  uint32_t first = 0;
  uint32_t parity = 0;
  for (int group = block.FirstGroup(); group < p.num_groups; group += p.group_lanes) {
    const auto entries = block.EntriesOf(group);
    if (entries.count == 0) continue;
    const int64_t column =
        lane < Policy::kGroup ? p.columns[int64_t{group} * Policy::kGroup + lane] : -1;
    const bool has_column = column >= 0 && column < p.num_outputs;
    const int feature = has_column ? static_cast<int>(column) * Policy::kBlockSize : 0;
    const WideEntry room = entries.data[entries.num_loads + min(lane, Policy::kWorkers - 1)];
    const uint32_t place = block.Place(room, Policy::kRoomBytes);
    for (int row = block.FirstRow(); row < block.EndRow(); row += p.tile_rows) {
      const uint32_t rooms = first + entries.num_loads;  // their numbers
      for (int i = 0; i < Policy::kWorkers; ++i) {
        const int j = lane - i * Policy::kColumns;
        const uint32_t tile =
            block.ring + __shfl_sync(~0u, place, i) + j * Policy::kPanels * kPanelBytes;
        WaitBarrier(block.Staged(i), parity);
        if (has_column && j >= 0 && j < Policy::kColumns) {
          if constexpr (Policy::kFeatureAxis == 1) {
            StoreTile(&p.y, feature, row, tile);
          } else {
            for (int panel = 0; panel < block.NumPanels(row); ++panel)
              StoreTile(&p.y, row + 64 * panel, feature, tile + panel * kPanelBytes);
          }
        }
        CommitTileStores();
        // The worker before has been read meanwhile.
        if (i > 0) WaitForTileReads<1>();
        __syncwarp();
        if (i > 0 && lane == 0)
          Arrive(block.Empty(rooms + i - 1), WideBlock<Policy>::kReleases * Policy::kWorkers);
      }
      WaitForTileReads<0>();
      __syncwarp();
      if (lane == 0)
        Arrive(block.Empty(rooms + Policy::kWorkers - 1),
               WideBlock<Policy>::kReleases * Policy::kWorkers);
      first += entries.count;
      parity ^= 1;
    }
  }
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_HAS_HOPPER
#endif  // BLOCKSPARSE_KERNELS_MATMUL_WIDE_RING_CUH_

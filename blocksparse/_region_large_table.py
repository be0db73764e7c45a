"""The table of dw by regions for blocks of 64 and 128. Only numpy here.

The form is described in `src/kernels/matmul_region_dw_large.h`.
"""

import heapq

import numpy as np

from blocksparse._region_division import cut, grow

WORDS = 44
FIRST_CHUNK = 4
FIRST_BLOCK = 20
FIRST_PLACE = 32
# Blocks and chunks that a region may have, by block size.
MAX_BLOCKS = {64: 12, 128: 3}
MAX_CHUNKS = {64: 14, 128: 6}
# (blocks, chunks) of a region that are tried as limits, the first alone where there are regions
# for many waves of thread blocks.
_LIMITS = {64: ((12, 8), (9, 7), (8, 7)), 128: ((3, 4), (2, 3), (1, 2))}
_MANY = 3000
# Vertices of the graphs that regions are grown in, all at the same time: few in a large layout.
_TILES = {64: 64, 128: 32}
# Clusters of a size (from 1 on) that run at a time on an H200.
_CLUSTERS = (132, 66, 39, 30, 22, 17, 15, 15)


def large_dw_sections(layout, is_quick=False):
    """{"dw_regions_0": (int64 vector, (regions, mean clocks of one, most clocks))}."""
    size = layout.block_size
    has_many = layout.num_blocks > _MANY
    tiles, restore = cut(
        layout.mask.astype(np.float32), _TILES[size] if has_many or is_quick else 64
    )
    best = None
    for limit in _LIMITS[size][: 1 if has_many or is_quick else None]:
        owner, costs = grow(tiles, np.inf, _Model(size, *limit))
        time = _time(costs)
        if best is None or time < best[0]:
            best = time, owner, costs
    owner, costs = best[1:]
    rank = np.empty(len(costs), np.int64)
    rank[np.argsort(-costs, kind="stable")] = np.arange(len(costs))
    coordinates = layout.coordinates.astype(np.int64)
    regions = _regions(rank[restore(owner)[tuple(coordinates.T)]], coordinates)
    clocks = int(costs.mean()), int(costs.max())
    return {"dw_regions_0": (regions.ravel().view(np.int64), (len(regions), *clocks))}


class _Model:
    """What regions cost, in clocks of an H200 for each 64 samples."""

    def __init__(self, size, max_units, max_chunks):
        self.size = size
        self.max_units = max_units
        self.max_chunks = self.max_side = max_chunks

    def cost(self, num_chunks, num_units):
        pieces = num_chunks * (self.size / 64)
        arrive = 210 * pieces
        multiply = 128 * (self.size / 64) ** 2 * num_units
        # Shared memory takes what arrives and gives what is multiplied.
        move = 64 * pieces + (multiply if self.size == 64 else 0.75 * multiply)
        return np.maximum(np.maximum(arrive, multiply), move) + 60

    whole_cost = cost


def _time(costs):
    """Microseconds for 8192 samples, in the best number of splits."""
    return min(
        _makespan(costs * (128 / splits) / 1755 + 3 + 1.5 * (splits > 1) * splits, clusters)
        for splits, clusters in enumerate(_CLUSTERS, 1)
    )


def _makespan(times, num_lanes):
    """When the last of the tasks ends that so many lanes take, the longest first."""
    if len(times) > 8 * num_lanes:
        return times.sum() / num_lanes
    ends = [0.0] * num_lanes
    for time in np.sort(times)[::-1].tolist():
        heapq.heapreplace(ends, ends[0] + time)
    return max(ends)


def _regions(region, coordinates):
    """int32[regions, WORDS] of the region of each block."""
    num_regions = region.max() + 1
    words = np.zeros((num_regions, WORDS), np.int32)
    places = np.zeros(len(region), np.int64)
    for side in range(2):
        size = coordinates[:, side].max() + 1
        keys, index = np.unique(region * size + coordinates[:, side], return_inverse=True)
        owner, chunk = np.divmod(keys, size)
        slot = _ordinals(owner, num_regions)
        words[:, side] = np.bincount(owner, minlength=num_regions)
        first = FIRST_CHUNK + (words[owner, 0] if side == 1 else 0)
        words[owner, first + slot] = chunk
        places += slot[index] << 8 * side
    words[:, 2] = np.bincount(region, minlength=num_regions)
    order = np.argsort(region, kind="stable")
    slot = _ordinals(region[order], num_regions)
    words[region[order], FIRST_BLOCK + slot] = order
    words[region[order], FIRST_PLACE + slot] = places[order]
    return words


def _ordinals(sorted_groups, num_groups):
    """The number of each element within its group."""
    counts = np.bincount(sorted_groups, minlength=num_groups)
    return np.arange(len(sorted_groups)) - (np.cumsum(counts) - counts)[sorted_groups]

"""The table of dw by regions for blocks of 64 and 128. Only numpy here.

The form is described in `src/kernels/matmul_region_dw_large.h`.
"""

import numpy as np

from blocksparse._region_division import cut, grow

WORDS = 44
FIRST_CHUNK = 4
FIRST_BLOCK = 20
FIRST_PLACE = 32
# Blocks and chunks that a region may have, by block size.
MAX_BLOCKS = {64: 12, 128: 3}
MAX_CHUNKS = {64: 14, 128: 6}
# Limits of a region's blocks that are tried: where regions are few, smaller ones fill the device.
_LIMITS = {64: (12, 9, 7, 4), 128: (3, 2, 1)}
# Blocks above which only the first two limits are tried: there are regions for many waves.
_MANY = 3000


def large_dw_sections(layout):
    """{"dw_regions_0": (int64 vector, (regions, mean clocks of one, 0))}."""
    size = layout.block_size
    weights = layout.mask.astype(np.float32)
    # Smaller tiles are grown at the same time.
    tiles, restore = cut(weights, 64)
    best = None
    for limit in _LIMITS[size][: None if layout.num_blocks < _MANY else 2]:
        model = _Model(size, limit)
        owner, costs = grow(tiles, np.inf, model)
        time = model.time(costs)
        if best is None or time < best[0]:
            best = time, owner, costs
    owner, costs = best[1:]
    rank = np.empty(len(costs), np.int64)
    rank[np.argsort(-costs, kind="stable")] = np.arange(len(costs))
    coordinates = layout.coordinates.astype(np.int64)
    regions = _regions(rank[restore(owner)[tuple(coordinates.T)]], coordinates)
    return {"dw_regions_0": (regions.ravel().view(np.int64), (len(regions), int(costs.mean()), 0))}


class _Model:
    """What regions cost, in clocks of an H200 for each 64 samples."""

    max_chunks = property(lambda self: MAX_CHUNKS[self.size])
    max_side = max_chunks  # of x or dy

    def __init__(self, size, max_units):
        self.size = size
        self.max_units = max_units

    def cost(self, num_chunks, num_units):
        pieces = num_chunks * (self.size / 64)
        arrive = 210 * pieces
        multiply = 128 * (self.size / 64) ** 2 * num_units
        # Shared memory takes what arrives and gives what is multiplied.
        move = 64 * pieces + (multiply if self.size == 64 else 0.75 * multiply)
        return np.maximum(np.maximum(arrive, multiply), move) + 60

    whole_cost = cost

    def time(self, costs):
        """Microseconds for 8192 samples, in the best number of splits."""
        return min(
            -(-len(costs) // (132 // splits)) * (128 / splits * costs.mean() / 1755 + 4.5)
            for splits in range(1, 9)
        )


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

"""The wide kernel's tables: see `src/kernels/matmul_wide_policy.h`, which documents every word.

Only numpy here.
"""

import numpy as np

from blocksparse._column_groups import balance_workers, column_groups

FEATURES = 384  # of a group
ROWS = 128  # samples of a tile
RING_BYTES = 224 * 1024
REACH = 24  # entries back that one may wait for
LARGEST = 64  # blocks that the kernel knows; larger ones are cut
BLOCK_SIZES = (32, 64, 128)
MAX_SLICES = 1 << 16
# Blocks of a group in an input row above which registers hold x (B = 32).
MANY_BLOCKS = 3.3
# Columns in a group, on average, of those that it has room for: room to make groups even.
FILL = 0.9


def wide_sections(layout):
    """The sections `wide_fprop` and `wide_dx`; {} for a layout that the kernel does not serve."""
    size = min(layout.block_size, LARGEST)
    if not serves_layout(layout, size):
        return {}
    numbers = block_numbers(layout, size)
    return {"wide_fprop": _table(numbers, size), "wide_dx": _table(numbers.T, size)}


def serves_layout(layout, size):
    """Whether a wide kernel that knows blocks of `size` serves the layout."""
    num_slices = max(layout.mask.shape) * layout.block_size // size
    return layout.block_size in BLOCK_SIZES and num_slices <= MAX_SLICES


def block_numbers(layout, size):
    """int64[inputs, outputs], the numbers of blocks of `size`, -1 where none is stored.

    Larger blocks are quartered until they fit: 4 block + 2 (lower half) + (right half).
    """
    numbers = np.full(layout.mask.shape, -1, np.int64)
    numbers[tuple(layout.coordinates.T)] = np.arange(layout.num_blocks)
    for _ in range((layout.block_size // size).bit_length() - 1):
        parts = np.tile(np.arange(4).reshape(2, 2), numbers.shape)
        cut = np.repeat(np.repeat(numbers * 4, 2, axis=0), 2, axis=1) + parts
        numbers = np.where(cut < 0, -1, cut)
    return numbers


def _table(numbers, size):
    """(vector, parameters) for blocks numbered `numbers`[inputs, outputs], -1 where none is."""
    mask = numbers >= 0
    num_columns = FEATURES // size
    num_groups = int(np.ceil(mask.shape[1] / (num_columns * FILL)))
    columns = column_groups(mask, num_columns, ROWS / size, num_groups, power=32)
    num_workers = _num_workers(mask, columns, size)
    columns = balance_workers(columns, mask, num_workers)

    # bits[group, slice]: which of the group's columns need the slice.
    members = np.where(columns[..., None] >= 0, mask.T[columns], False)
    bits = np.einsum("gjr,j->gr", members, 1 << np.arange(num_columns), dtype=np.int64)
    group, slice_, first, second = _pairs(bits) if size == 32 else _singles(bits)

    # In granules, of which a block is one.
    num_blocks = np.bitwise_count(first) + np.bitwise_count(second).astype(np.int64)
    sizes = ROWS // size * (1 + (second != 0)) + num_blocks
    counts = np.bincount(group, minlength=len(columns))
    index = np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)
    grid = np.zeros((len(columns), counts.max() + num_workers), np.int64)
    grid[group, index] = sizes
    rooms = counts[:, None] + np.arange(num_workers)
    grid[np.arange(len(columns))[:, None], rooms] = ROWS // size * num_columns // num_workers
    counts += num_workers
    positions, distances = place(grid, counts, RING_BYTES // (size * size * 2))

    low = np.zeros(grid.shape, np.int64)
    low[group, index] = slice_ | (second != 0) << 28 | first << 32 | second << 44
    low |= positions << 16 | distances << 23
    high = np.zeros(grid.shape, np.int64)
    high[group, index] = np.cumsum(num_blocks) - num_blocks
    is_used = np.arange(grid.shape[1]) < counts[:, None]
    entries = np.stack([low[is_used], high[is_used]], axis=1)

    entry, bit = np.nonzero((first | second << 12)[:, None] >> np.arange(24) & 1)
    ids = numbers[slice_[entry] + bit // 12, columns[group[entry], bit % 12]]
    ptr = np.concatenate([[0], np.cumsum(counts)])
    vector = np.concatenate([ptr, columns.ravel(), entries.ravel(), ids])
    return vector, (len(columns), len(entries), num_workers)


def _num_workers(mask, columns, size):
    """Three warpgroups, or two that hold x in registers, where a slice meets many small blocks."""
    members = np.where(columns[..., None] >= 0, mask.T[columns], False)
    num_rows = np.count_nonzero(members.any(axis=1))
    return 2 if size == 32 and np.count_nonzero(mask) > MANY_BLOCKS * num_rows else 3


def _singles(bits):
    group, slice_ = np.nonzero(bits)
    first = bits[group, slice_]
    return group, slice_, first, np.zeros_like(first)


def _pairs(bits):
    """Neighbouring slices c, c + 1 with c even, where both are needed, are one entry."""
    bits = np.pad(bits, ((0, 0), (0, bits.shape[1] % 2)))
    even, odd = bits[:, 0::2], bits[:, 1::2]
    group, pair = np.nonzero(even | odd)
    even, odd = even[group, pair], odd[group, pair]
    return group, 2 * pair + (even == 0), np.where(even, even, odd), np.where(even, odd, 0)


def place(sizes, counts, capacity):
    """Where in the ring each entry of each group lies, and how far back the last one is that was
    there.

    Args:
      sizes: int64[groups, longest list], granules; counts[group] of them are used.
    Returns:
      (positions, distances): of the shape of sizes. The list repeats, so the distance counts round
      its end; an entry that is alone waits for one REACH before it.
    """
    positions = np.zeros_like(sizes)
    end = np.zeros(len(sizes), np.int64)
    for i in range(sizes.shape[1]):
        start = np.where(end + sizes[:, i] > capacity, 0, end)
        positions[:, i] = start
        end = np.where(i < counts, start + sizes[:, i], end)
    distances = np.full_like(sizes, REACH)
    index = np.arange(sizes.shape[1])
    for distance in range(REACH, 0, -1):
        back = (index - distance) % np.maximum(counts, 1)[:, None]
        start = np.take_along_axis(positions, back, axis=1)
        stop = start + np.take_along_axis(sizes, back, axis=1)
        overlaps = (start < positions + sizes) & (positions < stop)
        distances[overlaps] = distance
    return positions, distances

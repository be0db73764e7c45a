"""The wide kernel's tables: see `src/kernels/matmul_wide_policy.h`, which documents every word.

Only numpy here.
"""

import numpy as np

from blocksparse._column_groups import MAX_MASK, SMS, balance_workers, column_groups, count_groups

FEATURES = 384  # of a group
ROWS = 128  # samples of a tile
RING_BYTES = 224 * 1024
REACH = 24  # entries back that one may wait for
LARGEST = 64  # blocks that the kernel knows; larger ones are cut
BLOCK_SIZES = (32, 64, 128)
MAX_SLICES = 1 << 16
# Blocks of a group in an input row above which registers hold x (B = 32).
MANY_BLOCKS = 3.3
# Of x, that thread blocks should read at a time, as in `matmul_wide.cu`.
MAX_TILE_BYTES = 16 << 20
# Columns in a group, on average, of those that it has room for: room to make groups even.
FILL = 0.9
TILE_BYTES = 200 * 1024  # what a tile costs beside its rows and blocks, as bytes that are loaded


def wide_sections(layout):
    """The sections `wide_fprop` and `wide_dx`; {} for a layout that the kernel does not serve."""
    size = min(layout.block_size, LARGEST)
    if not serves_layout(layout, size):
        return {}
    blocks = Blocks(layout, size)
    return {"wide_fprop": _table(blocks, size), "wide_dx": _table(blocks.transposed(), size)}


def serves_layout(layout, size):
    """Whether a wide kernel that knows blocks of `size` serves the layout."""
    num_slices = max(layout.mask.shape) * layout.block_size // size
    return layout.block_size in BLOCK_SIZES and num_slices <= MAX_SLICES


class Blocks:
    """A layout's blocks, cut into smaller ones of `size` if they are larger.

    Rows of small blocks in the same block need the same columns, so tables are made for one of
    them and repeated.

    Attributes:
      cuts: small blocks along the edge of a block.
      mask: bool[inputs, outputs * cuts]: block rows, and columns of small blocks.
    """

    def __init__(self, layout, size):
        self.cuts = layout.block_size // size
        self._numbers = np.full(layout.mask.shape, -1, np.int32)
        self._numbers[tuple(layout.coordinates.T)] = np.arange(layout.num_blocks)
        # Quartered again and again: 4 block + 2 (lower half) + (right half).
        self._parts = np.zeros((1, 1), np.int64)
        for _ in range(self.cuts.bit_length() - 1):
            quarters = np.tile(np.arange(4).reshape(2, 2), self._parts.shape)
            self._parts = 4 * self._parts.repeat(2, axis=0).repeat(2, axis=1) + quarters
        self.mask = self._numbers.repeat(self.cuts, axis=1) >= 0

    def transposed(self):
        """The same for the other direction."""
        other = object.__new__(Blocks)
        other.cuts = self.cuts
        other._numbers = np.ascontiguousarray(self._numbers.T)
        other._parts = self._parts.T
        other.mask = other._numbers.repeat(self.cuts, axis=1) >= 0
        return other

    def numbers(self, words, rows, columns):
        """Of small blocks, entry by entry; each entry is taken for each row of small blocks.

        Args:
          words: int64[entries], which of 12 columns need block row rows[entry]; 12 bits further,
            the one below (whole blocks only).
          columns: int64[entries, 12], or fewer.
        """
        entry, bit = _set_bits(words)
        column, right = np.divmod(columns[entry, bit % 12], self.cuts)
        found = self._numbers[rows[entry] + bit // 12, column].astype(np.int64)
        if self.cuts == 1:
            return found
        counts = np.bincount(entry, minlength=len(words))
        first = (self.cuts - 1) * (np.cumsum(counts) - counts)[entry] + np.arange(len(entry))
        numbers = np.empty(self.cuts * len(found), np.int64)
        for lower in range(self.cuts):
            at = first + lower * counts[entry]
            numbers[at] = found * self.cuts**2 + self._parts[lower, right]
        return numbers

    def needed(self, columns):
        """int64[groups, block rows]: bit j where columns[group, j], if any, has a block."""
        by_column = np.concatenate([self.mask.T, np.zeros((1, len(self.mask)), bool)])  # column -1
        bits = np.zeros((len(columns), len(self.mask)), np.int64)
        for j in range(columns.shape[1]):
            bits |= by_column[columns[:, j]].astype(np.int64) << j
        return bits

    def cut(self, rows, *vectors):
        """(slices, vectors): of entries with these block rows, for each row of small blocks."""
        slices = rows.repeat(self.cuts) * self.cuts
        slices += np.tile(np.arange(self.cuts), len(rows))
        return slices, *(vector.repeat(self.cuts) for vector in vectors)


def _table(blocks, size):
    """(vector, parameters) for `Blocks` of `size`."""
    mask = blocks.mask
    num_columns = FEATURES // size
    least = int(np.ceil(mask.shape[1] / (num_columns * FILL)))
    tile_cost = TILE_BYTES / (2 * size * size) / blocks.cuts
    tiling = _tiling(2 * len(mask) * blocks.cuts * size)
    num_groups = count_groups(mask, least, tiling, ROWS / size, tile_cost)
    # Tables of blocks that are cut take their time elsewhere.
    max_mask = MAX_MASK // blocks.cuts**2
    columns = column_groups(mask, num_columns, ROWS / size, num_groups, power=32, max_mask=max_mask)
    num_rows = np.count_nonzero(blocks.needed(columns))
    # Registers hold x, and two warpgroups multiply, where a slice meets many small blocks.
    has_many = size == 32 and np.count_nonzero(mask) > MANY_BLOCKS * num_rows
    num_workers = 2 if has_many else 3
    columns = balance_workers(columns, mask, num_workers)

    # Which of the group's columns need the slice, or both.
    bits = blocks.needed(columns)
    group, row, first, second = _pairs(bits) if size == 32 else _singles(bits)
    ids = blocks.numbers(first | second << 12, row, columns[group])
    slice_, group, first, second = blocks.cut(row, group, first, second)

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

    ptr = np.concatenate([[0], np.cumsum(counts)])
    vector = np.concatenate([ptr, columns.ravel(), entries.ravel(), ids])
    num_granules = int(sizes.sum() // len(columns))
    return vector, (len(columns), len(entries), num_workers | num_granules << 8)


def _set_bits(words):
    """(index, bit) of every bit that is set in the low halves of int64 words, in order."""
    low = words.astype("<u4").view(np.uint8).reshape(len(words), 4)
    return np.nonzero(np.unpackbits(low, axis=1, bitorder="little"))


def _tiling(sample_bytes):
    """Tiles of a thread block, as ChooseWideGrid (`matmul_wide.cu`) divides the result."""

    def tiles(num_groups, batch):
        waves = np.arange(1, num_groups.max() // 2 + 2)[:, None]
        lanes = -(-num_groups // waves)
        strips = np.maximum(SMS // lanes, 1)
        tiles = waves * -(-batch // (strips * ROWS))
        tiles[strips * ROWS * sample_bytes > MAX_TILE_BYTES] *= 2
        return np.where(lanes <= SMS, tiles, np.iinfo(np.int64).max).min(axis=0)

    return tiles


def _singles(bits):
    group, row = np.nonzero(bits)
    first = bits[group, row]
    return group, row, first, np.zeros_like(first)


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
    sizes = sizes.astype(np.int32)
    positions = np.zeros_like(sizes)
    end = np.zeros(len(sizes), np.int32)
    for i in range(sizes.shape[1]):
        start = np.where(end + sizes[:, i] > capacity, 0, end)
        positions[:, i] = start
        end = np.where(i < counts, start + sizes[:, i], end)
    # The list with its own end before it.
    before = np.arange(-REACH, 0) % np.maximum(counts, 1)[:, None]
    starts, stops = (
        np.concatenate([np.take_along_axis(ends, before, axis=1), ends], axis=1)
        for ends in (positions, positions + sizes)
    )
    distances = np.full(sizes.shape, REACH, np.int8)
    for distance in range(REACH, 0, -1):
        back = slice(REACH - distance, starts.shape[1] - distance)
        overlaps = (starts[:, back] < stops[:, REACH:]) & (starts[:, REACH:] < stops[:, back])
        np.copyto(distances, distance, where=overlaps)
    return positions.astype(np.int64), distances.astype(np.int64)

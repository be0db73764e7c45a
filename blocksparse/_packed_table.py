"""Tables of the packed products: fprop and dx for block sizes 8 and 16. Only numpy here.

The kernel (`src/kernels/matmul_packed.cuh`) multiplies 64 or 128 samples by a *group* of block
columns of the result. W is packed for it, in every call, into *units*: 16 input features by 16 or
32 output features, each 1 or more stored blocks and zeros for the blocks between them. A *stage* is
what the kernel loads at a time: one or two spans of 64 input features, and the units of a group
that lie in them. The form of the section is documented in `src/kernels/matmul_packed.h`, field for
field.
"""

import dataclasses

import numpy as np

from blocksparse._column_groups import SMS, column_groups, count_groups

DEPTH = 16  # input features of a unit
ROWS = 4  # of units in a span of 64 input features
SPANS = 2  # of a stage, at most
# A stage has two spans if their units take at most this many bytes: three stages fit an SM.
STAGE_BYTES = 42 * 1024
# Units of a stage times their width, at most.
MAX_STAGE = 2048
# Bounds the search for shares, see `_column_groups.py`.
MAX_WORDS = 1 << 23
# Wide units where they are fewer than this share of the narrow ones.
WIDE_SHARE = 0.78
# What a tile costs beside its x and units, as units of 16 x 16 that are loaded.
TILE_COST = 400
# Broad tiles where this share of the narrow units is stored: they load x half as often and W twice.
BROAD_FILL = 0.03, 0.17


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of a tile: `code` in the section's parameters; samples; output features of a unit and, at
    most, of a group; shares of a group; mask bits of a row of a share, and of a stage.
    """

    code: int
    rows: int
    width: int
    features: int
    shares: int
    row_bits: int
    mask_bits: int

    @property
    def mean_features(self):
        """Of groups, at most: 12 groups for 4096 features divide the SMs of an H200."""
        return self.features * 11 // 12


NARROW = Shape(0, 128, 16, 384, 6, 4, 192)
BROAD = Shape(1, 64, 16, 768, 12, 4, 384)
WIDE = Shape(2, 128, 32, 384, 2, 8, 192)


def packed_sections(layout):
    """The sections `packed_fprop` and `packed_dx`; {} for other block sizes than 8 and 16."""
    if layout.block_size not in (8, 16):
        return {}
    return {
        "packed_fprop": packed_table(layout, is_dx=False),
        "packed_dx": packed_table(layout, is_dx=True),
    }


def packed_table(layout, is_dx):
    """The section of one direction.

    Returns:
      (int64 vector, (groups, stages, units of a stage | spans << 16 | shape << 24)).
    """
    blocks = layout.coordinates.astype(np.int64)
    row, column = (blocks[:, 1], blocks[:, 0]) if is_dx else (blocks[:, 0], blocks[:, 1])
    mask = layout.mask.T if is_dx else layout.mask
    # Rows of units.
    per_row = DEPTH // layout.block_size
    row_masks = _padded(mask, per_row).reshape(-1, per_row, mask.shape[1]).any(axis=1)

    def section(shape):
        columns = _columns(row_masks, shape.width // layout.block_size, shape)
        return _Plan(row, column, len(row_masks), columns, layout.block_size, shape).section()

    shape = _shape(row_masks, layout.block_size)
    vector, sizes = section(shape)
    if (sizes[2] & 0xFFFF) * shape.width > MAX_STAGE:  # a broad group that is full somewhere
        return section(NARROW)
    return vector, sizes


def _shape(row_masks, block_size):
    narrow, wide = (_unit_masks(row_masks, width // block_size) for width in (16, 32))
    num_narrow = np.count_nonzero(narrow)
    if np.count_nonzero(wide) < WIDE_SHARE * num_narrow:
        return WIDE
    is_broad = BROAD_FILL[0] <= num_narrow / narrow.size <= BROAD_FILL[1]
    return BROAD if is_broad and narrow.shape[1] * 16 > NARROW.features else NARROW


def _padded(mask, multiple):
    """The mask with empty rows up to a multiple."""
    return np.pad(mask, ((0, -len(mask) % multiple), (0, 0)))


def _unit_masks(row_masks, per_unit):
    """bool[rows, unit columns] of block columns in their natural order."""
    padded = _padded(row_masks.T, per_unit)
    return padded.reshape(-1, per_unit, len(row_masks)).any(axis=1).T


def _columns(row_masks, per_unit, shape):
    """int64[groups, shares, unit columns, block columns of a unit]: the block columns, -1 for none.

    Shares have the units, and groups the shares, that need the same rows. Wide units have the
    blocks of 16 that fill them best. Blocks of 8 keep their neighbours: apart, their rows of y
    would be written by half sectors.
    """

    def masks_of(members):
        empty = np.zeros((len(row_masks), 1), bool)
        return np.concatenate([row_masks, empty], axis=1)[:, members].any(axis=2)

    num_columns = row_masks.shape[1]
    units = np.arange(num_columns + -num_columns % per_unit).reshape(-1, per_unit)
    units[units >= num_columns] = -1
    if shape.width == 16 * per_unit and per_unit > 1:
        units = column_groups(row_masks, per_unit, 8)
    shares = shape.shares
    per_share = shape.features // shares // shape.width
    unit_masks = masks_of(units)
    num_groups = _num_groups(unit_masks, shape)
    units = np.concatenate([units, np.full((1, per_unit), -1)])
    if shape is WIDE:
        groups = column_groups(unit_masks, shares * per_share, 4, num_groups)
        groups = groups.reshape(num_groups, per_share, shares).swapaxes(1, 2)
    else:
        # Where x is the bottleneck, fewer rows are worth more than even shares.
        power = 4 if shape is BROAD else 32
        num_parts = num_groups * shares
        parts = column_groups(unit_masks, per_share, 1.5, num_parts, power, MAX_WORDS)
        part_masks = masks_of(units[parts].reshape(len(parts), -1))
        groups = parts[column_groups(part_masks, shares, 4, num_groups)]
    return units[groups]


def _num_groups(unit_masks, shape):
    """Groups of the unit columns of bool[rows of units, unit columns]."""

    def num_tiles(num_groups, batch):
        return -(-(-(-batch // shape.rows) * num_groups) // SMS)

    # Boxes of x are as wide as a span, most of them.
    spans = _padded(unit_masks, ROWS).reshape(-1, ROWS, unit_masks.shape[1]).any(axis=1)
    least = -(-unit_masks.shape[1] * shape.width // shape.mean_features)
    unit_bytes = DEPTH * shape.width * 2
    span_cost = ROWS * DEPTH * shape.rows * 2 / unit_bytes
    fill = np.count_nonzero(unit_masks) / np.count_nonzero(spans)
    tile_cost = TILE_COST * 16 / shape.width
    return count_groups(spans, least, num_tiles, span_cost / fill, tile_cost / fill)


class _Plan:
    """Units of one shape.

    Args:
      row, column: int64[num_blocks]; where the blocks lie, by input and output of this direction.
      num_rows: rows of units.
      columns: of `_columns`.
      block_size: B.
      shape: Shape.
    """

    def __init__(self, row, column, num_rows, columns, block_size, shape):
        self.shape, self.columns = shape, columns
        self.num_groups, self.shares, per_share, self.per_unit = columns.shape
        position = np.empty(columns.max() + 1, np.int64)
        position[columns[columns >= 0]] = np.flatnonzero(columns >= 0)
        unit_column, right = np.divmod(position[column], self.per_unit)
        unit_row, deep = np.divmod(row, DEPTH // block_size)
        span, unit_row = np.divmod(unit_row, ROWS)
        self.num_spans = -(-num_rows // ROWS)
        # Units in the order of group, span, share, row, column: one integer.
        share, bit = np.divmod(unit_column, per_share)
        group, share = np.divmod(share, self.shares)
        key = (group * self.num_spans + span) * self.shares + share
        key = (key * ROWS + unit_row) * 8 + bit
        self.units, self.unit_of_block = np.unique(key, return_inverse=True)
        self.part = right * (DEPTH // block_size) + deep

    def section(self):
        line, bit = np.divmod(self.units, 8)  # a line: group, span, share, row
        spans, span_of_unit = np.unique(line // (self.shares * ROWS), return_inverse=True)
        group, span = np.divmod(spans, self.num_spans)
        units_of_span = np.bincount(span_of_unit)
        unit_bytes = DEPTH * self.shape.width * 2
        is_second = _is_second(group, units_of_span, STAGE_BYTES // unit_bytes)
        if np.count_nonzero(is_second) < len(spans) / 4:
            is_second[:] = False  # every stage would have room for two spans
        stage = np.cumsum(~is_second) - 1
        stage_ptr = np.searchsorted(group[~is_second], np.arange(self.num_groups + 1))
        units_of_stage = np.bincount(stage, units_of_span).astype(np.int64)
        num_stages = len(units_of_stage)

        # A stage's units lie by share first, so that each reads a run of them.
        row = is_second[span_of_unit] * ROWS + line % ROWS
        mask = (line // ROWS % self.shares * (SPANS * ROWS) + row) * self.shape.row_bits + bit
        mask += stage[span_of_unit] * self.shape.mask_bits
        rank = np.empty(len(mask), np.int64)
        rank[np.argsort(mask)] = np.arange(len(mask))

        masks = np.zeros(num_stages * self.shape.mask_bits, bool)
        masks[mask] = True
        masks = np.packbits(masks, bitorder="little").view(np.int64).reshape(num_stages, -1)
        features = np.full((num_stages, SPANS), -1, np.int32)
        features[stage, is_second.astype(int)] = span * ROWS * DEPTH
        first = np.cumsum(units_of_stage) - units_of_stage
        table = np.column_stack([masks, features.view(np.int64), first | units_of_stage << 32])

        parts = self.per_unit * (DEPTH * self.per_unit // self.shape.width)
        blocks = np.full(-(-len(mask) * parts // 2) * 2, -1, np.int32)
        blocks[rank[self.unit_of_block] * parts + self.part] = np.arange(len(self.part))
        columns = self.columns.astype(np.int32).ravel()
        vector = np.concatenate(
            [stage_ptr, table.ravel(), columns.view(np.int64), blocks.view(np.int64)]
        )
        sizes = int(units_of_stage.max()) | (1 + int(is_second.any())) << 16 | self.shape.code << 24
        return vector, (self.num_groups, num_stages, sizes)


def _is_second(group, units, limit):
    """Which spans join the one before them in a stage: of the same group, with few enough units."""
    fits = np.zeros(len(group), bool)
    fits[1:] = (group[1:] == group[:-1]) & (units[1:] + units[:-1] <= limit)
    index = np.arange(len(group))
    run = index - np.maximum.accumulate(np.where(fits, 0, index))  # of spans that fit, from 1 on
    return run % 2 == 1

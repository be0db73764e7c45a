"""The tables of the packed products, followed as the kernel follows them; numpy, no kernel."""

import numpy as np
import pytest

from blocksparse import SparsityLayout
from blocksparse._packed_table import (
    BROAD,
    DEPTH,
    NARROW,
    ROWS,
    SPANS,
    WIDE,
    packed_sections,
    packed_table,
)
from blocksparse.testing import layouts, reference

RNG = np.random.default_rng(0)
MASKS = {
    **layouts.standard(),
    "few": layouts.random(RNG, 100, 110, 0.035),
    "many": layouts.random(RNG, 70, 90, 0.2),
    "dense": layouts.random(RNG, 60, 50, 0.7),
    "hubs": layouts.power_law(RNG, 80, 64),
}


class Section:
    """A section's parts, as `src/kernels/matmul_packed.h` documents them."""

    def __init__(self, layout, is_dx):
        words, (self.num_groups, num_stages, sizes) = packed_table(layout, is_dx)
        self.block_size = layout.block_size
        self.max_units, self.num_spans = sizes & 0xFFFF, sizes >> 16 & 0xFF
        self.shape = shape = (NARROW, BROAD, WIDE)[sizes >> 24]
        self.stage_ptr, words = np.split(words, [self.num_groups + 1])
        num_words = shape.mask_bits // 64 + 2
        stages, words = np.split(words, [num_words * num_stages])
        stages = stages.reshape(-1, num_words)
        bits = np.unpackbits(stages[:, :-2].copy().view(np.uint8), axis=1, bitorder="little")
        bits = bits[:, : shape.shares * SPANS * ROWS * shape.row_bits]
        bits = bits.reshape(num_stages, shape.shares, SPANS * ROWS, shape.row_bits)
        self.masks = bits.astype(bool)
        self.features = stages[:, -2].copy().view(np.int32).reshape(-1, 2)
        self.first_unit, self.num_units = stages[:, -1].copy().view(np.int32).reshape(-1, 2).T
        columns, blocks = np.split(
            words, [self.num_groups * shape.features // self.block_size // 2]
        )
        per_unit = shape.width // self.block_size
        self.columns = columns.view(np.int32).reshape(self.num_groups, shape.shares, -1, per_unit)
        deep = DEPTH // self.block_size
        self.blocks = blocks.view(np.int32)
        self.blocks = self.blocks[: len(self.blocks) // (per_unit * deep) * per_unit * deep]
        self.blocks = self.blocks.reshape(-1, per_unit, deep)

    def product(self, x, w, num_columns):
        """x W, unit by unit in the kernel's order; w[block] as the direction reads it."""
        size = self.block_size
        y = np.zeros((len(x), num_columns * size))
        x = np.pad(x, ((0, 0), (0, DEPTH * ROWS)))
        for group in range(self.num_groups):
            for stage in range(self.stage_ptr[group], self.stage_ptr[group + 1]):
                # np.argwhere: share, row, column in the order of the units.
                stored = np.argwhere(self.masks[stage])
                assert len(stored) == self.num_units[stage] <= self.max_units
                for unit, (share, row, column) in enumerate(stored, self.first_unit[stage]):
                    feature = self.features[stage, row // ROWS] + row % ROWS * DEPTH
                    assert self.features[stage, row // ROWS] >= 0
                    for k, ids in zip(
                        self.columns[group, share, column], self.blocks[unit], strict=True
                    ):
                        for part, block in enumerate(ids):
                            if block >= 0:
                                c = feature + part * size
                                y[:, k * size : (k + 1) * size] += x[:, c : c + size] @ w[block]
        return y


@pytest.mark.parametrize("is_dx", [False, True], ids=["fprop", "dx"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("size", [8, 16])
def test_the_units_make_the_product(size, mask, is_dx):
    layout = SparsityLayout(MASKS[mask], size)
    section = Section(layout, is_dx)
    rng = np.random.default_rng(1)
    w = rng.integers(-3, 4, layout.w_shape).astype(float)
    features = layout.out_features if is_dx else layout.in_features
    x = rng.integers(-3, 4, (2, features)).astype(float)
    y = section.product(
        x, w.transpose(0, 2, 1) if is_dx else w, layout.in_blocks if is_dx else layout.out_blocks
    )
    expected = (reference.matmul_dx if is_dx else reference.matmul)(x, w, layout, 1)
    assert np.array_equal(y, expected)
    columns = section.columns[section.columns >= 0]
    assert sorted(columns.tolist()) == list(range(y.shape[1] // size))


def test_shapes_by_density():
    def shape(size, density, blocks=128):
        mask = layouts.random(np.random.default_rng(0), blocks, blocks, density)
        return Section(SparsityLayout(mask, size), False).shape

    shapes = {
        (size, density): shape(size, density)
        for size in (8, 16)
        for density in (0.02, 0.07, 0.25, 0.5)
    }
    assert shapes == {
        (8, 0.02): BROAD,
        (8, 0.07): NARROW,
        (8, 0.25): WIDE,
        (8, 0.5): WIDE,
        (16, 0.02): NARROW,
        (16, 0.07): BROAD,
        (16, 0.25): NARROW,
        (16, 0.5): WIDE,
    }
    assert shape(16, 0.07, 24) is NARROW  # one group


def test_broad_stages_are_not_too_large():
    mask = layouts.random(np.random.default_rng(0), 300, 44, 0.05)
    assert Section(SparsityLayout(mask, 16), False).shape is BROAD
    mask[:4] = True  # 176 units in one span
    assert Section(SparsityLayout(mask, 16), False).shape is NARROW


def test_other_block_sizes_have_no_table():
    assert packed_sections(SparsityLayout(np.eye(3), 32)) == {}

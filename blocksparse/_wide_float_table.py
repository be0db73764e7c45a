"""The wide float32 kernel's tables: see `src/kernels/matmul_wide_float_policy.h`, which documents
every word.

Only numpy here.
"""

import numpy as np

from blocksparse._column_groups import column_groups
from blocksparse._wide_table import RING_BYTES, ROWS, Blocks, place, serves_layout

BLOCK = 32  # that the kernel knows; larger ones are cut
GROUP = 11  # block columns
# Larger masks, in elements, keep the natural order: the other tables have taken their time.
MAX_MASK = 1 << 19
GRANULE_BYTES = BLOCK * BLOCK * 4


def wide_float_sections(layout):
    """The sections `wide_float_fprop` and `wide_float_dx`; {} for a layout that the kernel does not
    serve.
    """
    if not serves_layout(layout, BLOCK):
        return {}
    blocks = Blocks(layout, BLOCK)
    return {"wide_float_fprop": _table(blocks), "wide_float_dx": _table(blocks.transposed())}


def _table(blocks):
    """(vector, parameters) for `Blocks` of BLOCK."""
    mask = blocks.mask
    num_groups = -(-mask.shape[1] // GROUP)
    columns = column_groups(mask, GROUP, ROWS / BLOCK, num_groups, power=32, max_mask=MAX_MASK)

    # Which of the group's columns need the slice.
    bits = blocks.needed(columns)
    group, row = np.nonzero(bits)
    needed = bits[group, row]
    ids = blocks.numbers(needed, row, columns[group])
    slice_, group, needed = blocks.cut(row, group, needed)
    num_blocks = np.bitwise_count(needed).astype(np.int64)

    counts = np.bincount(group, minlength=len(columns))
    index = np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)
    sizes = np.zeros((len(columns), counts.max()), np.int64)  # in granules, of which a block is one
    sizes[group, index] = ROWS // BLOCK + num_blocks
    positions, distances = place(sizes, counts, RING_BYTES // GRANULE_BYTES)

    low = slice_ | positions[group, index] << 16 | distances[group, index] << 23 | needed << 32
    entries = np.stack([low, np.cumsum(num_blocks) - num_blocks], axis=1)
    ptr = np.concatenate([[0], np.cumsum(counts)])
    vector = np.concatenate([ptr, columns.ravel(), entries.ravel(), ids])
    return vector, (len(columns), len(entries), GROUP)

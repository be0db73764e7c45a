"""Named masks for tests and benchmarks; numpy only."""

import numpy as np


def random(rng, in_blocks, out_blocks, density):
    """Each block stored with the given probability, and at least one."""
    mask = rng.random((in_blocks, out_blocks)) < density
    mask[rng.integers(in_blocks), rng.integers(out_blocks)] = True
    return mask


def power_law(rng, in_blocks, out_blocks, exponent=1.0):
    """A few full rows and columns and many nearly empty ones, like a graph with hubs."""
    row = 1.0 / (1 + rng.permutation(in_blocks)) ** exponent
    column = 1.0 / (1 + rng.permutation(out_blocks)) ** exponent
    mask = rng.random((in_blocks, out_blocks)) < np.maximum.outer(row, column)
    mask[0, 0] = True
    return mask


def banded(in_blocks, out_blocks, width=1):
    """Blocks at most `width` from the diagonal."""
    row, column = np.ogrid[:in_blocks, :out_blocks]
    return np.abs(row * out_blocks - column * in_blocks) <= width * max(in_blocks, out_blocks)


def corners(in_blocks, out_blocks):
    """The first and the last block only."""
    mask = np.zeros((in_blocks, out_blocks), bool)
    mask[0, 0] = mask[-1, -1] = True
    return mask


def standard(seed=0):
    """The small masks that every product is tested on, by name: {name: bool[in_blocks,
    out_blocks]}.
    """
    rng = np.random.default_rng(seed)
    empty_lines = random(rng, 6, 5, 0.6)
    empty_lines[2, :] = empty_lines[:, 3] = False
    empty_lines[0, 0] = True
    full_column = random(rng, 5, 7, 0.2)
    full_column[:, 4] = True
    full_row = random(rng, 7, 5, 0.2)
    full_row[1, :] = True
    return {
        "one": np.ones((1, 1), bool),
        "full": np.ones((3, 4), bool),
        "diagonal": np.eye(4, dtype=bool),
        "corners": corners(3, 5),
        "empty_lines": empty_lines,
        "full_column": full_column,
        "full_row": full_row,
        "banded": banded(6, 6),
        "power_law": power_law(rng, 9, 8),
        "random": random(rng, 7, 6, 0.3),
    }

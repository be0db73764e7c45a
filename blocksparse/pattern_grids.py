"""Masks of any size, square or not: dense, banded, block-diagonal, and random with an exact count.

`patterns.py` has an overview, and `pattern_graphs.py` the small-world graphs.
"""

import math

import numpy as np

from blocksparse._pattern_checks import check_grid, check_integer, check_rng, check_share

# Each offers every block one exchange. After 10, rows of 64 blocks share as many as random ones.
EXCHANGE_ROUNDS = 15


def dense(in_blocks, out_blocks):
    """Every block: bool[in_blocks, out_blocks].

    Raises:
      TypeError, ValueError: the sizes are not positive integers.
    """
    return np.ones(check_grid("dense", in_blocks, out_blocks), bool)


def banded(in_blocks, out_blocks, width):
    """Blocks at most `width` from the diagonal: |i - j| <= width where the mask is square.

    Otherwise the diagonal is the line from corner to corner: width 0 are the blocks that it
    crosses, and so at least one in every row and column.

    Args:
      in_blocks, out_blocks: size of the mask.
      width: 0 or more, counted along the longer side.
    Returns:
      bool[in_blocks, out_blocks].
    Raises:
      TypeError, ValueError: an argument is not an integer, or too small.
    Example:
      >>> banded(2, 4, 0).astype(int)
      array([[1, 1, 0, 0],
             [0, 0, 1, 1]])
    """
    in_blocks, out_blocks = check_grid("banded", in_blocks, out_blocks)
    return _band_distance(in_blocks, out_blocks) <= check_integer("banded", "width", width, 0)


def block_diagonal(in_blocks, out_blocks, num_groups):
    """Separate groups of input and output blocks, each fully connected in itself.

    Input block i is in group i num_groups // in_blocks, output blocks likewise; sizes of groups
    differ by one at most.

    Args:
      in_blocks, out_blocks: size of the mask.
      num_groups: 1 (dense) to the smaller of the two.
    Returns:
      bool[in_blocks, out_blocks].
    Raises:
      TypeError, ValueError: an argument is not an integer, or out of range.
    Example:
      >>> block_diagonal(2, 4, 2).astype(int)
      array([[1, 1, 0, 0],
             [0, 0, 1, 1]])
    """
    in_blocks, out_blocks = check_grid("block_diagonal", in_blocks, out_blocks)
    most = min(in_blocks, out_blocks)
    num_groups = check_integer("block_diagonal", "num_groups", num_groups, 1, most)
    in_group = np.arange(in_blocks) * num_groups // in_blocks
    out_group = np.arange(out_blocks) * num_groups // out_blocks
    return in_group[:, None] == out_group


def random(in_blocks, out_blocks, density, seed):
    """A number of blocks drawn uniformly from all masks with that many.

    round(density in_blocks out_blocks) blocks, but at least one, or the diagonal of a square mask,
    which is always there. Rows and columns may be empty where the mask is not square.

    Args:
      in_blocks, out_blocks: size of the mask.
      density: share of blocks to store, above 0, at most 1.
      seed: non-negative integer, or a numpy Generator, which is advanced.
    Returns:
      bool[in_blocks, out_blocks].
    Raises:
      TypeError, ValueError: an argument is not as above.
    Example:
      >>> random(8, 8, 0.25, seed=0).sum().item()
      16
    """
    in_blocks, out_blocks = check_grid("random", in_blocks, out_blocks)
    rng = check_rng("random", seed)
    num_blocks = _num_blocks("random", in_blocks, out_blocks, density)
    size = in_blocks * out_blocks
    mask = np.zeros((in_blocks, out_blocks), bool)
    if in_blocks == out_blocks:
        np.fill_diagonal(mask, True)
        chosen = rng.choice(size - in_blocks, num_blocks - in_blocks, replace=False)
        chosen += chosen // in_blocks + 1  # skips the diagonal
    else:
        chosen = rng.choice(size, num_blocks, replace=False)
    mask.flat[chosen] = True
    return mask


def balanced_random(in_blocks, out_blocks, density, seed):
    """A random mask with equally many blocks in all rows, and equally many in all columns.

    As `random`, but rows differ by one block at most, and so do columns. Starts from a regular mask
    and exchanges the columns of random pairs of blocks until little of it is left.

    Args:
      in_blocks, out_blocks: size of the mask.
      density: share of blocks to store, above 0, at most 1.
      seed: non-negative integer, or a numpy Generator, which is advanced.
    Returns:
      bool[in_blocks, out_blocks].
    Raises:
      TypeError, ValueError: an argument is not as above.
    Source: openai/blocksparse `br_M` for the idea; the exchanges are the degree-preserving
      rewiring of Maslov and Sneppen, Science 296 (2002).
    Example:
      >>> balanced_random(8, 8, 0.25, seed=0).sum(axis=0)
      array([2, 2, 2, 2, 2, 2, 2, 2])
    """
    in_blocks, out_blocks = check_grid("balanced_random", in_blocks, out_blocks)
    rng = check_rng("balanced_random", seed)
    num_blocks = _num_blocks("balanced_random", in_blocks, out_blocks, density)
    # Walks diagonals, one after the other, so that any number of steps is balanced.
    step = np.arange(num_blocks)
    rows = step % in_blocks
    cols = (step + step // math.lcm(in_blocks, out_blocks)) % out_blocks
    row_order = rng.permutation(in_blocks)
    is_square = in_blocks == out_blocks
    col_order = row_order if is_square else rng.permutation(out_blocks)
    mask = np.zeros((in_blocks, out_blocks), bool)
    mask[row_order[rows], col_order[cols]] = True
    fixed = np.eye(in_blocks, out_blocks, dtype=bool) & is_square
    # An exchange of blocks is one of empty places too: works on whichever are fewer.
    if 2 * num_blocks > mask.size:
        return ~_exchange(~mask, fixed, rng)
    return _exchange(mask & ~fixed, fixed, rng) | fixed


# ---- for `find_parameter`: what a parameter may be, and how many blocks each value stores ----


def banded_counts(in_blocks, out_blocks):
    """(widths, numbers of blocks), to the first width that stores all."""
    num_blocks = np.cumsum(np.bincount(_band_distance(in_blocks, out_blocks).ravel()))
    return np.arange(len(num_blocks)), num_blocks


def block_diagonal_counts(in_blocks, out_blocks):
    """(numbers of groups, numbers of blocks)."""
    num_groups = np.arange(1, min(in_blocks, out_blocks) + 1)
    sizes = [
        [np.bincount(np.arange(side) * groups // side) for side in (in_blocks, out_blocks)]
        for groups in num_groups
    ]
    return num_groups, np.array([in_sizes @ out_sizes for in_sizes, out_sizes in sizes])


def least_blocks(in_blocks, out_blocks):
    """The fewest blocks of a random mask: its diagonal if it is square, else one."""
    return in_blocks if in_blocks == out_blocks else 1


# ---- helpers ----


def _num_blocks(who, in_blocks, out_blocks, density):
    density = check_share(who, "density", density, may_be_zero=False)
    return max(least_blocks(in_blocks, out_blocks), round(density * in_blocks * out_blocks))


def _band_distance(in_blocks, out_blocks):
    """int[in_blocks, out_blocks]: the least width of a band that has the block."""
    row, column = np.ogrid[:in_blocks, :out_blocks]
    # Block (i, j) covers [i / in, (i + 1) / in] by [j / out, (j + 1) / out] of the unit square. The
    # distance between these intervals, times in * out, is below 0 where the diagonal crosses it.
    apart = np.maximum(
        row * out_blocks - (column + 1) * in_blocks, column * in_blocks - (row + 1) * out_blocks
    )
    return np.maximum(apart // min(in_blocks, out_blocks) + 1, 0)


def _exchange(mask, fixed, rng):
    """Replaces random pairs of blocks (i, j), (k, l) by (i, l), (k, j); keeps all counts.

    Neither takes blocks from the places `fixed` nor puts any there.
    """
    in_blocks, out_blocks = mask.shape
    rows, cols = np.nonzero(mask)
    taken = (mask | fixed).ravel()
    half = len(rows) // 2
    for _ in range(EXCHANGE_ROUNDS):
        order = rng.permutation(len(rows))
        one, other = order[:half], order[half : 2 * half]
        new = np.stack([rows[one] * out_blocks + cols[other], rows[other] * out_blocks + cols[one]])
        is_free = ~taken[new].any(axis=0)
        # Two exchanges of one round must not meet in the same place.
        claims = np.bincount(new[:, is_free].ravel(), minlength=mask.size)
        accepted = is_free & (claims[new] == 1).all(axis=0)
        one, other = one[accepted], other[accepted]
        taken[rows[one] * out_blocks + cols[one]] = False
        taken[rows[other] * out_blocks + cols[other]] = False
        taken[new[:, accepted]] = True
        cols[one], cols[other] = cols[other], cols[one]
    result = np.zeros_like(mask)
    result[rows, cols] = True
    return result

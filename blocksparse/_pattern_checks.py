"""Checks of the arguments that the sparsity patterns share; each returns the checked value."""

import numpy as np


def check_rng(who, seed):
    """A numpy Generator: `seed` itself if it is one, which it then advances."""
    if isinstance(seed, np.random.Generator):
        return seed
    if not _is_integer(seed) or seed < 0:
        raise TypeError(
            f"{who}: seed must be a non-negative integer or a numpy Generator. Received: {seed!r}"
        )
    return np.random.default_rng(seed)


def check_integer(who, name, value, low, high=None):
    """`value` as an int of at least `low` and at most `high`."""
    if not _is_integer(value):
        raise TypeError(f"{who}: {name} must be an integer. Received: {value!r}")
    if value < low or (high is not None and value > high):
        wanted = f"{low} or more" if high is None else f"{low} to {high}"
        raise ValueError(f"{who}: {name} must be {wanted}. Received: {value}")
    return int(value)


def check_grid(who, in_blocks, out_blocks):
    """(in_blocks, out_blocks) as positive integers."""
    return (
        check_integer(who, "in_blocks", in_blocks, 1),
        check_integer(who, "out_blocks", out_blocks, 1),
    )


def check_share(who, name, value, may_be_zero):
    """`value` as a float in [0, 1], or in (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{who}: {name} must be a number. Received: {value!r}")
    if not (0 <= value <= 1) or (value == 0 and not may_be_zero):
        wanted = "in [0, 1]" if may_be_zero else "in (0, 1]"
        raise ValueError(f"{who}: {name} must be {wanted}. Received: {value}")
    return float(value)


def check_mask(who, mask, is_square=False):
    """`mask` as bool[in_blocks, out_blocks]."""
    mask = np.asarray(mask)
    if mask.dtype.kind not in "biuf":
        raise TypeError(f"{who}: the mask must be numeric. Received: dtype {mask.dtype}")
    if mask.ndim != 2 or mask.size == 0:
        raise ValueError(
            f"{who}: the mask must have two dimensions, neither of them 0. "
            f"Received: shape {mask.shape}"
        )
    if is_square and mask.shape[0] != mask.shape[1]:
        raise ValueError(f"{who}: the mask must be square. Received: shape {mask.shape}")
    return mask != 0


def _is_integer(value):
    return isinstance(value, int | np.integer) and not isinstance(value, bool)

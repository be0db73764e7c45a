"""Sparsity patterns: which blocks of a weight matrix to store, before anything is known about it.

A mask is bool[in_blocks, out_blocks], what `BlocksparseMatMul` and `SparsityLayout` take. Every
square mask here has its whole diagonal, so that weights can start as the identity. Random masks
depend on their arguments and the seed alone. No TensorFlow.

  pattern_grids.py   dense, banded, block_diagonal, random, balanced_random
  pattern_graphs.py  barabasi_albert, watts_strogatz, watts_strogatz_2d, add_edges: small worlds
  this file          from_name: the names that OpenAI's LSTM example took, such as ba_5
                     find_parameter: the mask nearest to a wanted density or number of weights
  pattern_report.py  describe, draw, to_text and the measures that `describe` reports
"""

import re

import numpy as np

from blocksparse._pattern_checks import check_grid, check_integer, check_rng, check_share
from blocksparse.pattern_graphs import (
    add_edges,
    barabasi_albert,
    barabasi_albert_counts,
    lattice_counts,
    watts_strogatz,
    watts_strogatz_2d,
)
from blocksparse.pattern_grids import (
    balanced_random,
    banded,
    banded_counts,
    block_diagonal,
    block_diagonal_counts,
    dense,
    least_blocks,
    random,
)
from blocksparse.pattern_report import (
    PatternReport,
    Spread,
    average_path_length,
    describe,
    draw,
    mixing,
    num_steps_to_reach_all,
    to_text,
)

__all__ = [
    "PatternReport",
    "Spread",
    "add_edges",
    "average_path_length",
    "balanced_random",
    "banded",
    "barabasi_albert",
    "block_diagonal",
    "dense",
    "describe",
    "draw",
    "find_parameter",
    "from_name",
    "mixing",
    "num_steps_to_reach_all",
    "random",
    "to_text",
    "watts_strogatz",
    "watts_strogatz_2d",
]


def from_name(name, num_nodes, seed):
    """The square mask that OpenAI's LSTM example makes for a name on its command line.

      dense       every block
      ba_M        barabasi_albert with M edges a node
      bae_M_E     ba_M and E edges by add_edges
      old_ba_M    ba_M and M (M + 1) / 2 edges by add_edges: num_nodes (2M + 1) blocks in all
      rande_M_E   watts_strogatz with M neighbours (even), all rewired, and E edges by add_edges
      ws_M_PCT    watts_strogatz with 2M neighbours, PCT percent (a decimal number) rewired
      br_M        balanced_random with 2M + 1 blocks in each row and column

    Args:
      name: one of the forms, with whole numbers for M and E.
      num_nodes: blocks on a side.
      seed: non-negative integer, or a numpy Generator, which is advanced.
    Returns:
      bool[num_nodes, num_nodes], with the diagonal; symmetric, except for br.
    Raises:
      TypeError: num_nodes or seed is not an integer.
      ValueError: the name has none of the forms, or a number does not fit num_nodes.
    Source: openai/blocksparse `examples/lstm/masks.py`, which had no seed.
    Example:
      >>> from_name("ws_3_60", 64, seed=0).sum().item()
      448
    """
    num_nodes = check_integer("from_name", "num_nodes", num_nodes, 1)
    rng = check_rng("from_name", seed)
    for form, build in _FORMS.items():
        pattern = re.sub("_[ME]", r"_([0-9]+)", form).replace("PCT", r"([0-9]+(?:\.[0-9]+)?)")
        match = re.fullmatch(pattern, str(name))
        if match:
            numbers = [float(text) if "." in text else int(text) for text in match.groups()]
            try:
                return build(num_nodes, rng, *numbers)
            except ValueError as error:
                raise ValueError(f"from_name: mask {name!r} is impossible. {error}") from error
    raise ValueError(f"from_name: the name must be one of {', '.join(_FORMS)}. Received: {name!r}")


def find_parameter(
    pattern,
    in_blocks,
    out_blocks,
    seed,
    *,
    density=None,
    num_weights=None,
    block_size=None,
    rewire_probability=0.6,
):
    """The mask of a pattern that comes nearest to a wanted density or number of weights.

    Compares the numbers of blocks that all values of the parameter store, and builds one mask.

    Args:
      pattern: whose parameter to find. random, balanced_random: density; banded: width;
        block_diagonal: num_groups; barabasi_albert: num_edges; watts_strogatz, watts_strogatz_2d:
        num_neighbors. The last three are square.
      in_blocks, out_blocks: size of the mask.
      seed: as the pattern takes it; unused by banded and block_diagonal.
      density: wanted share of blocks, above 0, at most 1; or
      num_weights: wanted number of weights, 1 or more, together with
      block_size: B, the edge of a block, for B^2 weights in each.
      rewire_probability: of watts_strogatz and watts_strogatz_2d.
    Returns:
      (mask, parameter): bool[in_blocks, out_blocks], and a float for density, else an int. The
      smaller one if two are equally near.
    Raises:
      TypeError, ValueError: an argument is not as above, or the budget exceeds the dense matrix.
    Example:
      >>> mask, num_neighbors = find_parameter("watts_strogatz", 64, 64, seed=0, density=0.1)
      >>> num_neighbors, mask.mean().item()
      (6, 0.109375)
    """
    in_blocks, out_blocks = check_grid("find_parameter", in_blocks, out_blocks)
    wanted = _wanted_blocks(in_blocks, out_blocks, density, num_weights, block_size)
    if pattern in _RANDOM:
        num_blocks = max(least_blocks(in_blocks, out_blocks), round(wanted))
        parameter = num_blocks / (in_blocks * out_blocks)
        return _RANDOM[pattern](in_blocks, out_blocks, parameter, seed), parameter
    if pattern in _REGULAR:
        make, counts = _REGULAR[pattern]
        parameter = _nearest(wanted, *counts(in_blocks, out_blocks))
        return make(in_blocks, out_blocks, parameter), parameter
    _check_graph(pattern, in_blocks, out_blocks)
    if pattern == "barabasi_albert":
        parameter = _nearest(wanted, *barabasi_albert_counts(in_blocks))
        return barabasi_albert(in_blocks, parameter, seed), parameter
    parameter = _nearest(wanted, *lattice_counts(in_blocks))
    return _LATTICES[pattern](in_blocks, parameter, rewire_probability, seed), parameter


# ---- names ----


def _br(n, rng, m):
    per_row = check_integer("br_M", "2M + 1", 2 * m + 1, 1, n)
    return balanced_random(n, n, per_row / n, rng)


_FORMS = {
    "dense": lambda n, rng: dense(n, n),
    "ba_M": lambda n, rng, m: barabasi_albert(n, m, rng),
    "bae_M_E": lambda n, rng, m, e: add_edges(barabasi_albert(n, m, rng), e, rng),
    "old_ba_M": lambda n, rng, m: add_edges(barabasi_albert(n, m, rng), m * (m + 1) // 2, rng),
    "rande_M_E": lambda n, rng, m, e: add_edges(watts_strogatz(n, m, 1.0, rng), e, rng),
    "ws_M_PCT": lambda n, rng, m, pct: watts_strogatz(n, 2 * m, pct / 100, rng),
    "br_M": _br,
}


# ---- search ----


def _wanted_blocks(in_blocks, out_blocks, density, num_weights, block_size):
    who = "find_parameter"
    if (density is None) == (num_weights is None) or (num_weights is None) != (block_size is None):
        raise ValueError(
            f"{who}: either density, or num_weights and block_size are needed. Received: "
            f"density={density}, num_weights={num_weights}, block_size={block_size}"
        )
    size = in_blocks * out_blocks
    if density is not None:
        return check_share(who, "density", density, may_be_zero=False) * size
    per_block = check_integer(who, "block_size", block_size, 1) ** 2
    return check_integer(who, "num_weights", num_weights, 1, size * per_block) / per_block


def _nearest(wanted, values, num_blocks):
    """The first of the values whose number of blocks is nearest to wanted."""
    return values[np.argmin(np.abs(num_blocks - wanted))].item()


def _check_graph(pattern, in_blocks, out_blocks):
    graphs = ("barabasi_albert", *_LATTICES)
    if pattern not in graphs:
        supported = ", ".join((*_RANDOM, *_REGULAR, *graphs))
        raise ValueError(
            f"find_parameter: the pattern must be one of {supported}. Received: {pattern!r}"
        )
    least = 2 if pattern == "barabasi_albert" else 1
    if in_blocks != out_blocks or in_blocks < least:
        raise ValueError(
            f"find_parameter: {pattern} must be square, with {least} or more blocks on a side. "
            f"Received: in_blocks={in_blocks}, out_blocks={out_blocks}"
        )


_RANDOM = {"random": random, "balanced_random": balanced_random}
_REGULAR = {
    "banded": (banded, banded_counts),
    "block_diagonal": (block_diagonal, block_diagonal_counts),
}
_LATTICES = {"watts_strogatz": watts_strogatz, "watts_strogatz_2d": watts_strogatz_2d}

"""What a mask is like: how dense, how far apart its blocks, and what it looks like.

For the questions about paths, the mask is one step of a network: input block i is joined to output
block j where mask[i, j], and the output of a step is the input of the next. numpy and scipy only.
"""

import dataclasses
import math

import numpy as np
from scipy.sparse import csgraph, csr_array

from blocksparse._pattern_checks import check_integer, check_mask, check_rng

NUM_SOURCES = 512  # of paths: exact up to so many blocks, below 1 s for any mask of 1024 x 1024
HALF_BLOCKS = np.array([" ", "▄", "▀", "█"])  # by 2 * upper + lower


@dataclasses.dataclass(frozen=True)
class Spread:
    """The smallest, mean and largest of some counts."""

    min: int
    mean: float
    max: int

    def __str__(self):
        return f"min {self.min}, mean {self.mean:.5g}, max {self.max}"


@dataclasses.dataclass(frozen=True)
class PatternReport:
    """What `describe` says about a mask; prints as a few lines of text.

    Attributes:
      in_blocks, out_blocks, block_size: sizes.
      num_blocks: stored blocks; num_weights: their elements; density: their share of all blocks.
      blocks_in, blocks_out: Spread of stored blocks per output block, and per input block.
      connections_in, connections_out: the same in neurons: inputs of one output feature, and
        outputs of one input feature.
      average_path_length: see `average_path_length`; None where the mask is not square.
      num_steps: see `num_steps_to_reach_all`; None also where the mask is not square.
    """

    in_blocks: int
    out_blocks: int
    block_size: int
    num_blocks: int
    blocks_in: Spread
    blocks_out: Spread
    average_path_length: float | None
    num_steps: int | None

    num_weights = property(lambda self: self.num_blocks * self.block_size**2)
    density = property(lambda self: self.num_blocks / (self.in_blocks * self.out_blocks))
    connections_in = property(lambda self: _scaled(self.blocks_in, self.block_size))
    connections_out = property(lambda self: _scaled(self.blocks_out, self.block_size))

    def __str__(self):
        lines = [
            f"{self.in_blocks} x {self.out_blocks} blocks of {self.block_size}: {self.num_blocks} "
            f"stored, density {self.density:.3g}, {self.num_weights} weights",
            f"blocks into an output block: {self.blocks_in}",
            f"blocks out of an input block: {self.blocks_out}",
            f"inputs of a neuron: {self.connections_in}",
            f"outputs of a neuron: {self.connections_out}",
        ]
        if self.average_path_length is not None:
            lines.append(f"average shortest path: {self.average_path_length:.4g} steps")
            reach = "never" if self.num_steps is None else f"after {self.num_steps} steps"
            lines.append(f"every block reaches every other: {reach}")
        return "\n".join(lines)


def describe(mask, block_size, seed=0):
    """Measures a mask.

    Args:
      mask: numeric [in_blocks, out_blocks], nonzero where a block is stored.
      block_size: B, the edge of a block in features.
      seed: of the blocks from which `average_path_length` measures, if there are more than 512.
    Returns:
      PatternReport; print it, or read its attributes.
    Raises:
      TypeError, ValueError: the mask is not a numeric matrix, or block_size not a positive integer.
    Example:
      >>> print(describe(np.eye(4), block_size=32))
      4 x 4 blocks of 32: 4 stored, density 0.25, 4096 weights
      blocks into an output block: min 1, mean 1, max 1
      blocks out of an input block: min 1, mean 1, max 1
      inputs of a neuron: min 32, mean 32, max 32
      outputs of a neuron: min 32, mean 32, max 32
      average shortest path: inf steps
      every block reaches every other: never
    """
    mask = check_mask("describe", mask)
    is_square = mask.shape[0] == mask.shape[1]
    return PatternReport(
        in_blocks=mask.shape[0],
        out_blocks=mask.shape[1],
        block_size=check_integer("describe", "block_size", block_size, 1),
        num_blocks=int(np.count_nonzero(mask)),
        blocks_in=_spread(mask.sum(axis=0)),
        blocks_out=_spread(mask.sum(axis=1)),
        average_path_length=average_path_length(mask, seed=seed) if is_square else None,
        num_steps=num_steps_to_reach_all(mask) if is_square else None,
    )


def average_path_length(mask, num_sources=NUM_SOURCES, seed=0):
    """The mean number of steps on the shortest path from a block to another, over all pairs.

    Args:
      mask: numeric [n, n].
      num_sources: from how many blocks to measure, drawn at random; all of them if n is no larger.
      seed: non-negative integer, or a numpy Generator, which is advanced.
    Returns:
      float: inf where a pair is not connected, 0 for a single block.
    Raises:
      TypeError, ValueError: an argument is not as above.
    Example:
      >>> average_path_length([[1, 1, 0], [0, 1, 1], [1, 0, 1]])
      1.5
    """
    who = "average_path_length"
    mask = check_mask(who, mask, is_square=True)
    num_sources = check_integer(who, "num_sources", num_sources, 1)
    rng = check_rng(who, seed)
    n = len(mask)
    if n == 1:
        return 0.0
    graph = csr_array(mask)
    if csgraph.connected_components(graph, connection="strong", return_labels=False) > 1:
        return math.inf
    sources = np.arange(n) if n <= num_sources else rng.choice(n, num_sources, replace=False)
    steps = csgraph.shortest_path(graph, method="D", unweighted=True, indices=sources)
    return float(steps.sum() / (len(sources) * (n - 1)))


def num_steps_to_reach_all(mask):
    """The number of steps after which every block has reached every other; None if it never has.

    That is the longest of the shortest paths. Exact: doubles the number of steps by one matrix
    product each, until all is reached or nothing more is, then goes back by halves.

    Args:
      mask: numeric [n, n].
    Returns:
      int, or None; 0 for a single block.
    Raises:
      TypeError, ValueError: the mask is not a numeric square matrix.
    Example:
      >>> num_steps_to_reach_all([[1, 1, 0], [0, 1, 1], [1, 0, 1]])
      2
    """
    mask = check_mask("num_steps_to_reach_all", mask, is_square=True)
    if len(mask) == 1:
        return 0
    # After 1, 2, 4, ... steps or fewer.
    reached = [(mask | np.eye(len(mask), dtype=bool)).astype(np.float32)]
    while not reached[-1].all():
        reached.append(_then(reached[-1], reached[-1]))
        if np.array_equal(reached[-1], reached[-2]):
            return None
    num_steps, known = 0, np.eye(len(mask), dtype=np.float32)
    for power in reversed(range(len(reached) - 1)):
        further = _then(known, reached[power])
        if not further.all():
            num_steps, known = num_steps + 2**power, further
    return num_steps + 1


def mixing(masks):
    """How far a network with these masks, one after the other, has mixed its features after each.

    share[s] = share of pairs (input block of masks[0], output block of masks[s]) joined by a path.

    Args:
      masks: one or more numeric [in_blocks, out_blocks], each with as many rows as the one before
        has columns. For a recurrent network of a single mask: [mask] * num_steps.
    Returns:
      list of floats as long as masks.
    Raises:
      TypeError, ValueError: there is no mask, one is not numeric, or sizes do not fit.
    Source: openai/blocksparse `mix_factor`, in shares and for all blocks.
    Example:
      >>> mixing([[[1, 1, 0], [0, 1, 1], [1, 0, 1]]] * 2)
      [0.6666666666666666, 1.0]
    """
    masks = [check_mask("mixing", mask) for mask in masks]
    sizes = [mask.shape for mask in masks]
    if not masks or any(one[1] != two[0] for one, two in zip(sizes, sizes[1:], strict=False)):
        raise ValueError(
            "mixing: one or more masks are needed, each with as many rows as the one before has "
            f"columns. Received: shapes {sizes}"
        )
    reached = np.eye(sizes[0][0], dtype=np.float32)
    shares = []
    for mask in masks:
        reached = _then(reached, mask.astype(np.float32))
        shares.append(float(reached.mean(dtype=np.float64)))
    return shares


def to_text(mask, width=80):
    """The mask as text, two rows of blocks in a line, at most `width` characters wide.

    A mask too wide is reduced: a place is filled where it is at least as dense as the whole mask.

    Args:
      mask: numeric [in_blocks, out_blocks].
      width: 1 or more characters.
    Returns:
      str of half and full block characters and spaces; lines end in no spaces.
    Raises:
      TypeError, ValueError: the mask is not a numeric matrix, or width not a positive integer.
    Example:
      >>> print(to_text([[1, 0, 1], [1, 1, 0], [0, 1, 0]]))
      █▄▀
       ▀
    """
    mask = check_mask("to_text", mask)
    width = check_integer("to_text", "width", width, 1)
    in_blocks, out_blocks = mask.shape
    columns = min(width, out_blocks)
    rows = max(1, round(in_blocks * columns / out_blocks))
    row_edges = np.arange(rows) * in_blocks // rows
    column_edges = np.arange(columns) * out_blocks // columns
    counts = np.add.reduceat(np.add.reduceat(mask.astype(int), row_edges), column_edges, axis=1)
    areas = np.outer(np.diff(row_edges, append=in_blocks), np.diff(column_edges, append=out_blocks))
    is_filled = (counts > 0) & (counts * mask.size >= areas * np.count_nonzero(mask))
    is_filled = np.pad(is_filled, ((0, rows % 2), (0, 0)))
    lines = HALF_BLOCKS[2 * is_filled[::2] + is_filled[1::2]]
    return "\n".join("".join(line).rstrip() for line in lines)


def draw(mask, path=None, title=None):
    """Draws the mask as a picture, stored blocks dark. Needs matplotlib.

    Args:
      mask: numeric [in_blocks, out_blocks].
      path: file to write as PNG; None writes none.
      title: above the picture; sizes and density by default.
    Returns:
      matplotlib.figure.Figure, which notebooks show.
    Raises:
      ImportError: matplotlib is not installed.
      TypeError, ValueError: the mask is not a numeric matrix.
    """
    mask = check_mask("draw", mask)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "draw: matplotlib is needed, which blocksparse does not install (pip install "
            f"matplotlib); to_text draws without it. Received: {error}"
        ) from error
    in_blocks, out_blocks = mask.shape
    longest = max(mask.shape)
    # One pixel a block at least, so that none gets lost; 6 inches for the longer side.
    dpi = max(100, math.ceil(longest / 6))
    figure = Figure(
        figsize=(6 * out_blocks / longest + 1.5, 6 * in_blocks / longest + 1.5),
        dpi=dpi,
        layout="constrained",
    )
    axes = figure.add_subplot()
    axes.imshow(mask, cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xlabel("output block")
    axes.set_ylabel("input block")
    axes.set_title(title or f"{in_blocks} x {out_blocks} blocks, density {mask.mean():.3g}")
    if path is not None:
        figure.savefig(path, format="png")
    return figure


def _then(reached, step):
    """float32 0 or 1: what is reached with one more step; sums of up to 2^24 ones are exact."""
    return (reached @ step > 0).astype(np.float32)


def _spread(counts):
    return Spread(int(counts.min()), float(counts.mean()), int(counts.max()))


def _scaled(spread, factor):
    return Spread(spread.min * factor, spread.mean * factor, spread.max * factor)

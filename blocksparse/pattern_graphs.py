"""Small-world masks: adjacency matrices of random graphs, with the diagonal.

A node is one block of features on both sides of the matrix, an edge a pair of blocks: the masks are
square and symmetric. `patterns.py` has the other masks, the original's names for all of them, and a
search for the parameter that gives a wanted density.
"""

import math

import numpy as np

from blocksparse._pattern_checks import check_integer, check_mask, check_rng, check_share


def barabasi_albert(num_nodes, num_edges, seed):
    """Grows a graph by preferential attachment: few hubs, and a power law of connections per node.

    The first num_edges nodes are all connected. Each further node is joined to num_edges of the
    earlier ones, drawn in proportion to their connections. That makes
    n + 2 (n - m) m + m (m - 1) stored blocks for n nodes and m edges a node.

    Args:
      num_nodes: blocks on a side, 2 or more.
      num_edges: edges that a new node brings, 1 to num_nodes - 1.
      seed: non-negative integer, or a numpy Generator, which is advanced.
    Returns:
      bool[num_nodes, num_nodes], symmetric, with the diagonal.
    Raises:
      TypeError, ValueError: an argument is not as above.
    Source: Barabasi and Albert, Science 286 (1999); openai/blocksparse `ba_M`, with the starting
      graph that networkx had then: node m is joined to all nodes before it.
    Example:
      >>> barabasi_albert(64, 3, seed=0).sum().item()
      436
    """
    who = "barabasi_albert"
    num_nodes = check_integer(who, "num_nodes", num_nodes, 2)
    num_edges = check_integer(who, "num_edges", num_edges, 1, num_nodes - 1)
    graph_seed = int(check_rng(who, seed).integers(2**32))
    import networkx  # only here: it would add 0.15 s to every import of the package

    start = networkx.star_graph([num_edges, *range(num_edges)])
    graph = networkx.barabasi_albert_graph(num_nodes, num_edges, graph_seed, start)
    mask = np.eye(num_nodes, dtype=bool)
    mask[:num_edges, :num_edges] = True
    one, other = np.array(graph.edges).T
    mask[one, other] = mask[other, one] = True
    return mask


def watts_strogatz(num_nodes, num_neighbors, rewire_probability, seed):
    """A ring of nodes joined to their nearest neighbours, some edges replaced by long-range ones.

    Each edge of the ring keeps its first node and, with the given probability, gets a new second
    one, drawn from all nodes not yet joined to the first. That makes n (num_neighbors + 1) stored
    blocks for n nodes.

    Args:
      num_nodes: blocks on a side.
      num_neighbors: even, 0 to num_nodes; half of them on either side. num_nodes means all.
      rewire_probability: 0 (a band with wrap-around) to 1 (random). OpenAI found 0.5 to 0.7 best.
      seed: non-negative integer, or a numpy Generator, which is advanced.
    Returns:
      bool[num_nodes, num_nodes], symmetric, with the diagonal.
    Raises:
      TypeError, ValueError: an argument is not as above.
    Source: Watts and Strogatz, Nature 393 (1998), in the order of networkx' `watts_strogatz_graph`.
      networkx draws until a free node comes up, which takes minutes where few are left.
    Example:
      >>> watts_strogatz(6, 2, 0.0, seed=0)[0].astype(int)
      array([1, 1, 0, 0, 0, 1])
    """
    who = "watts_strogatz"
    num_nodes, num_neighbors = _check_lattice(who, num_nodes, num_neighbors)
    return _rewired_lattice(who, 1, num_nodes, num_neighbors, rewire_probability, seed)


def watts_strogatz_2d(num_nodes, num_neighbors, rewire_probability, seed, height=None):
    """As `watts_strogatz` on a two-dimensional lattice of nodes that wraps around at its edges.

    Node i is at row i // width, column i % width. Its neighbours are the nearest ones in pairs of
    opposite directions, so that every node has equally many.

    Args:
      num_nodes: blocks on a side, height * width.
      num_neighbors: even, 0 to num_nodes. num_nodes means all.
      rewire_probability: 0 to 1.
      seed: non-negative integer, or a numpy Generator, which is advanced.
      height: rows of the lattice, a divisor of num_nodes; the one nearest to a square by default.
    Returns:
      bool[num_nodes, num_nodes], symmetric, with the diagonal.
    Raises:
      TypeError, ValueError: an argument is not as above.
    Source: after openai/blocksparse `watts_strogatz_2d`, which it never used and which
      was not symmetric.
    Example:
      >>> np.flatnonzero(watts_strogatz_2d(16, 4, 0.0, seed=0)[5]).tolist()
      [1, 4, 5, 6, 9]
    """
    who = "watts_strogatz_2d"
    num_nodes, num_neighbors = _check_lattice(who, num_nodes, num_neighbors)
    if height is None:
        height = max(h for h in range(1, math.isqrt(num_nodes) + 1) if num_nodes % h == 0)
    height = check_integer(who, "height", height, 1, num_nodes)
    if num_nodes % height:
        raise ValueError(
            f"{who}: height must be a divisor of num_nodes={num_nodes}. Received: {height}"
        )
    return _rewired_lattice(who, height, num_nodes, num_neighbors, rewire_probability, seed)


def add_edges(mask, num_extra, seed):
    """Adds edges, each between a node with the fewest connections and a random other one.

    Args:
      mask: bool[num_nodes, num_nodes], symmetric, with the diagonal.
      num_extra: number of edges, 0 to the number of pairs not yet joined.
      seed: non-negative integer, or a numpy Generator, which is advanced.
    Returns:
      bool[num_nodes, num_nodes], 2 num_extra blocks more than mask, which stays as it is.
    Raises:
      TypeError, ValueError: an argument is not as above.
    Source: openai/blocksparse `bae_M_E` and `rande_M_E`.
    Example:
      >>> add_edges(np.eye(4), 2, seed=0).sum(axis=0)
      array([2, 2, 2, 2])
    """
    mask = check_mask("add_edges", mask, is_square=True)
    if not mask.diagonal().all() or not np.array_equal(mask, mask.T):
        raise ValueError(
            "add_edges: the mask must be symmetric and have its whole diagonal. "
            f"Received: symmetric {np.array_equal(mask, mask.T)}, "
            f"{mask.diagonal().sum()} of {len(mask)} diagonal blocks"
        )
    num_free = np.count_nonzero(~mask) // 2
    num_extra = check_integer("add_edges", "num_extra", num_extra, 0, num_free)
    rng = check_rng("add_edges", seed)
    degrees = mask.sum(axis=0)
    for _ in range(num_extra):
        one = rng.choice(np.flatnonzero(degrees == degrees.min()))
        other = rng.choice(np.flatnonzero(~mask[one]))
        mask[one, other] = mask[other, one] = True
        degrees[[one, other]] += 1
    return mask


def lattice_counts(num_nodes):
    """The values that num_neighbors may have, and the stored blocks that each gives."""
    num_neighbors = np.arange(0, num_nodes + 1, 2)
    return num_neighbors, np.minimum(num_nodes * (num_neighbors + 1), num_nodes**2)


def barabasi_albert_counts(num_nodes):
    """The values that num_edges may have, and the stored blocks that each gives."""
    num_edges = np.arange(1, num_nodes)
    links_to_earlier = 2 * (num_nodes - num_edges) * num_edges
    return num_edges, num_nodes + links_to_earlier + num_edges * (num_edges - 1)


def _check_lattice(who, num_nodes, num_neighbors):
    num_nodes = check_integer(who, "num_nodes", num_nodes, 1)
    num_neighbors = check_integer(who, "num_neighbors", num_neighbors, 0, num_nodes)
    if num_neighbors % 2:
        raise ValueError(f"{who}: num_neighbors must be even. Received: {num_neighbors}")
    return num_nodes, num_neighbors


def _rewired_lattice(who, height, num_nodes, num_neighbors, rewire_probability, seed):
    probability = check_share(who, "rewire_probability", rewire_probability, may_be_zero=True)
    rng = check_rng(who, seed)
    if num_neighbors == num_nodes:
        return np.ones((num_nodes, num_nodes), bool)
    edges = _lattice_edges(height, num_nodes // height, num_neighbors)
    mask = np.eye(num_nodes, dtype=bool)
    mask[edges[:, 0], edges[:, 1]] = mask[edges[:, 1], edges[:, 0]] = True
    # One by one, and not all at once: what is free depends on the edges rewired before.
    is_rewired = rng.random(len(edges)) < probability
    draws = rng.random(len(edges))
    for (one, other), draw in zip(edges[is_rewired].tolist(), draws[is_rewired], strict=True):
        free = np.flatnonzero(~mask[one])
        if len(free):
            new = free[int(draw * len(free))]
            mask[one, other] = mask[other, one] = False
            mask[one, new] = mask[new, one] = True
    return mask


def _lattice_edges(height, width, num_neighbors):
    """int[height * width * num_neighbors / 2, 2]: all edges of the lattice, nearest first."""
    row, column = np.divmod(np.arange(height * width), width)
    distance = np.minimum(row, height - row) ** 2 + np.minimum(column, width - column) ** 2
    opposite = -row % height * width + -column % width
    nearest = np.argsort(distance, kind="stable")
    pairs = nearest[nearest < opposite[nearest]][: num_neighbors // 2]
    # Half way around is its own opposite, one neighbour and not two: used when no pairs are left.
    halfway = nearest[(nearest == opposite[nearest]) & (nearest > 0)]
    steps = [*pairs, *halfway[: num_neighbors - 2 * len(pairs)]]
    edges = [np.zeros((0, 2), int)]
    for step in steps:
        one = np.arange(height * width)
        other = (row + row[step]) % height * width + (column + column[step]) % width
        keep = (one < other) | (opposite[step] != step)
        edges.append(np.stack([one, other], axis=1)[keep])
    return np.concatenate(edges)

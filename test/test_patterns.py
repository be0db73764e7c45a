"""What each sparsity pattern promises, the original's names for them, and the search."""

import contextlib

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocksparse import patterns

SIDES = st.integers(1, 24)
SEEDS = st.integers(0, 2**32)
# All that take a seed, at a size where two seeds giving one mask is out of the question.
SEEDED = {
    "random": lambda seed: patterns.random(32, 32, 0.2, seed),
    "random_oblong": lambda seed: patterns.random(32, 20, 0.2, seed),
    "balanced_random": lambda seed: patterns.balanced_random(32, 32, 0.2, seed),
    "balanced_random_oblong": lambda seed: patterns.balanced_random(32, 20, 0.8, seed),
    "barabasi_albert": lambda seed: patterns.barabasi_albert(32, 3, seed),
    "watts_strogatz": lambda seed: patterns.watts_strogatz(32, 6, 0.5, seed),
    "watts_strogatz_2d": lambda seed: patterns.watts_strogatz_2d(32, 6, 0.5, seed),
    "add_edges": lambda seed: patterns.add_edges(np.eye(32), 20, seed),
    "from_name": lambda seed: patterns.from_name("bae_2_10", 32, seed),
    "find_parameter": lambda seed: patterns.find_parameter("random", 32, 32, seed, density=0.3)[0],
}
quick = settings(max_examples=60, derandomize=True, deadline=None, database=None)


def check_mask(mask, in_blocks, out_blocks, is_symmetric=False):
    assert mask.dtype == bool and mask.shape == (in_blocks, out_blocks)
    if in_blocks == out_blocks:
        assert mask.diagonal().all()
    assert not is_symmetric or np.array_equal(mask, mask.T)


@pytest.mark.parametrize("name", SEEDED)
def test_seed_decides(name):
    make = SEEDED[name]
    np.testing.assert_array_equal(make(7), make(7))
    np.testing.assert_array_equal(make(7), make(np.random.default_rng(7)))
    assert not np.array_equal(make(7), make(8))
    rng = np.random.default_rng(7)
    assert not np.array_equal(make(rng), make(rng))


# ---- masks of any size ----


@quick
@given(SIDES, SIDES, st.floats(0.001, 1), SEEDS)
def test_random_masks_have_the_wanted_number(rows, cols, density, seed):
    num_blocks = max(rows if rows == cols else 1, round(density * rows * cols))
    for make in (patterns.random, patterns.balanced_random):
        mask = make(rows, cols, density, seed)
        check_mask(mask, rows, cols)
        assert mask.sum() == num_blocks
    assert np.ptp(mask.sum(axis=0)) <= 1 and np.ptp(mask.sum(axis=1)) <= 1  # balanced_random


@pytest.mark.parametrize("density", [0.3, 0.7])
@pytest.mark.parametrize("make", [patterns.random, patterns.balanced_random])
@pytest.mark.parametrize("cols", [10, 8])
def test_random_masks_prefer_no_place(make, cols, density):
    rng = np.random.default_rng(1)
    share = np.mean([make(10, cols, density, rng) for _ in range(600)], axis=0)
    if cols == 10:
        share = share[~np.eye(10, dtype=bool)]
    bound = 5 * np.sqrt(share.mean() * (1 - share.mean()) / 600)
    assert np.abs(share - share.mean()).max() < bound


@pytest.mark.parametrize("cols", [64, 56])
@pytest.mark.parametrize("density", [1 / 8, 1 / 4, 3 / 4, 7 / 8])
def test_balanced_rows_share_as_much_as_random_ones(cols, density):
    mask = patterns.balanced_random(64, cols, density, 0)
    pairs = np.triu_indices(64, k=1)
    shared = (mask.astype(int) @ mask.T)[pairs]
    independent = cols * (density * (1 - density)) ** 2
    assert shared.var() == pytest.approx(independent, rel=0.2)


@quick
@given(SIDES, SIDES, st.integers(0, 5))
def test_banded(rows, cols, width):
    mask = patterns.banded(rows, cols, width)
    check_mask(mask, rows, cols)
    for i, j in np.ndindex(rows, cols):  # the block, widened on both sides, meets the diagonal
        reach = width * min(rows, cols)
        is_met = i * cols < (j + 1) * rows + reach and j * rows < (i + 1) * cols + reach
        assert mask[i, j] == is_met
    assert mask.any(axis=0).all() and mask.any(axis=1).all()
    if rows == cols:
        np.testing.assert_array_equal(mask, np.tri(rows, k=width) * np.tri(rows, k=width).T)


@quick
@given(SIDES, SIDES, st.data())
def test_block_diagonal_and_dense(rows, cols, data):
    groups = data.draw(st.integers(1, min(rows, cols)))
    mask = patterns.block_diagonal(rows, cols, groups)
    check_mask(mask, rows, cols)
    kinds, sizes = np.unique(mask, axis=0, return_counts=True)
    assert len(kinds) == groups and np.ptp(sizes) <= 1 and np.ptp(kinds.sum(axis=1)) <= 1
    assert (kinds.sum(axis=0) == 1).all()
    assert patterns.dense(rows, cols).all()


# ---- graphs ----


@quick
@given(st.integers(2, 40), SEEDS, st.data())
def test_barabasi_albert(n, seed, data):
    m = data.draw(st.integers(1, n - 1))
    mask = patterns.barabasi_albert(n, m, seed)
    check_mask(mask, n, n, is_symmetric=True)
    links_to_earlier = np.tril(mask, -1).sum(axis=1)
    np.testing.assert_array_equal(links_to_earlier, np.minimum(np.arange(n), m))


def test_barabasi_albert_prefers_what_is_connected():
    ba = patterns.barabasi_albert(400, 3, 0).sum(axis=0)
    ws = patterns.watts_strogatz(400, 6, 1.0, 0).sum(axis=0)
    assert ba.max() > 2 * ws.max() and ba[:20].mean() > 3 * ba[200:].mean()


@quick
@given(st.integers(2, 40), st.floats(0, 1), SEEDS, st.data())
def test_watts_strogatz(n, p, seed, data):
    k = 2 * data.draw(st.integers(0, (n - 1) // 2))
    ring = networkx.to_numpy_array(networkx.watts_strogatz_graph(n, k, 0)) + np.eye(n)
    np.testing.assert_array_equal(patterns.watts_strogatz(n, k, 0, seed), ring)
    for make in (patterns.watts_strogatz, patterns.watts_strogatz_2d):
        np.testing.assert_array_equal(make(n, k, 0.0, seed).sum(axis=0), k + 1)
        mask = make(n, k, p, seed)
        check_mask(mask, n, n, is_symmetric=True)
        assert mask.sum() == n * (k + 1)
    # Each node keeps its own half of the edges.
    assert patterns.watts_strogatz(n, k, p, seed).sum(axis=0).min() >= 1 + k // 2


@pytest.mark.parametrize("make", [patterns.watts_strogatz, patterns.watts_strogatz_2d])
def test_watts_strogatz_rewires_the_wanted_share(make):
    lattice, edges = make(200, 10, 0, 0), 200 * 10 / 2
    for p in (0.1, 0.5, 0.9, 1.0):
        moved = (lattice & ~make(200, 10, p, 0)).sum() / 2 / edges
        assert abs(moved - p) < 0.05  # chance, and edges that come to lie on the lattice again
    assert make(12, 12, 0.5, 0).all()


def test_watts_strogatz_2d_is_a_torus():
    graph = networkx.grid_2d_graph(5, 7, periodic=True)
    torus = networkx.to_numpy_array(graph, nodelist=sorted(graph)) + np.eye(35)
    np.testing.assert_array_equal(patterns.watts_strogatz_2d(35, 4, 0, 0), torus)
    np.testing.assert_array_equal(
        patterns.watts_strogatz_2d(35, 4, 0, 0, height=1), patterns.watts_strogatz(35, 4, 0, 0)
    )
    nearest = np.flatnonzero(patterns.watts_strogatz_2d(63, 12, 0, 0, height=7)[3 * 9 + 4])
    offsets = np.stack(np.divmod(nearest, 9), axis=1) - [3, 4]
    assert len(offsets) == 13 and (np.square(offsets).sum(axis=1) <= 4).all()
    # What OpenAI's article says of its picture.
    assert patterns.average_path_length(patterns.watts_strogatz_2d(900, 20, 0.2, 0)) < 5


@quick
@given(st.integers(2, 16), SEEDS, st.data())
def test_add_edges(n, seed, data):
    before = patterns.watts_strogatz(n, 0, 0, 0)
    num_extra = data.draw(st.integers(0, n * (n - 1) // 2))
    rng = np.random.default_rng(seed)
    mask = before
    for _ in range(num_extra):  # one by one: the same, and each starts where connections are fewest
        after = patterns.add_edges(mask, 1, rng)
        ends = np.argwhere(after & ~mask)
        degrees = mask.sum(axis=0)
        assert len(ends) == 2 and degrees[ends[0]].min() == degrees.min()
        mask = after
    check_mask(mask, n, n, is_symmetric=True)
    np.testing.assert_array_equal(mask, patterns.add_edges(before, num_extra, seed))
    assert before.sum() == n


# ---- the original's names ----


def original_num_blocks(kind, n, m=0, extra=0):
    """Blocks by the original's rules, counted as its loops do."""
    if kind in ("ba", "bae", "old_ba"):
        count = n + m * (m - 1) + sum(2 * m for _ in range(m, n)) + 2 * extra
        while kind == "old_ba" and count < n * (2 * m + 1):
            count += 2
        return count
    neighbors = {"dense": n - 1, "rande": m, "ws": 2 * m, "br": 2 * m}[kind]
    return n * (1 + neighbors) + 2 * extra


@pytest.mark.parametrize("n", [13, 40])
@pytest.mark.parametrize(
    "name, kind, m, extra",
    [
        ("dense", "dense", 0, 0),
        ("ba_1", "ba", 1, 0),
        ("ba_5", "ba", 5, 0),
        ("bae_4_7", "bae", 4, 7),
        ("old_ba_1", "old_ba", 1, 0),
        ("old_ba_5", "old_ba", 5, 0),
        ("rande_4_9", "rande", 4, 9),
        ("rande_0_3", "rande", 0, 3),
        ("ws_3_0", "ws", 3, 0),
        ("ws_3_60", "ws", 3, 0),
        ("ws_2_12.5", "ws", 2, 0),
        ("ws_5_100", "ws", 5, 0),
        ("br_5", "br", 5, 0),
        ("br_0", "br", 0, 0),
    ],
)
def test_original_names(n, name, kind, m, extra):
    mask = patterns.from_name(name, n, seed=3)
    check_mask(mask, n, n, is_symmetric=kind != "br")
    assert mask.sum() == original_num_blocks(kind, n, m, extra)
    if "ba" in kind:
        assert mask[:m, :m].all()
        assert (np.tril(mask, -1).sum(axis=1) >= np.minimum(range(n), m)).all()
    if kind == "br":
        assert (mask.sum(axis=0) == 2 * m + 1).all() and (mask.sum(axis=1) == 2 * m + 1).all()


def test_names_mean_the_generators():
    for name, mask in {
        "ba_4": patterns.barabasi_albert(40, 4, 9),
        "ws_4_70": patterns.watts_strogatz(40, 8, 0.7, 9),
        "rande_4_0": patterns.watts_strogatz(40, 4, 1.0, 9),
    }.items():
        np.testing.assert_array_equal(patterns.from_name(name, 40, 9), mask)


# ---- search ----


def random_of_count(make):
    return lambda n, count: make(n, n + 3, count / (n * (n + 3)), 0)


# Pattern: whether it is square, and the mask of a value of its parameter (of a count for density).
SEARCHES = {
    "barabasi_albert": (True, lambda n, value: patterns.barabasi_albert(n, value, 0)),
    "watts_strogatz": (True, lambda n, value: patterns.watts_strogatz(n, value, 0.6, 0)),
    "watts_strogatz_2d": (True, lambda n, value: patterns.watts_strogatz_2d(n, value, 0.6, 0)),
    "banded": (False, lambda n, value: patterns.banded(n, n + 3, value)),
    "block_diagonal": (False, lambda n, value: patterns.block_diagonal(n, n + 3, value)),
    "random": (False, random_of_count(patterns.random)),
    "balanced_random": (False, random_of_count(patterns.balanced_random)),
}


@pytest.mark.parametrize("name", SEARCHES)
@settings(max_examples=20, derandomize=True, deadline=None, database=None)
@given(n=st.integers(2, 9), density=st.floats(0.02, 1))
def test_find_parameter_is_nearest(name, n, density):
    is_square, make = SEARCHES[name]
    cols = n if is_square else n + 3
    mask, parameter = patterns.find_parameter(name, n, cols, 0, density=density)
    value = round(parameter * mask.size) if "random" in name else parameter
    np.testing.assert_array_equal(mask, make(n, value))
    errors = []
    for other in range(mask.size + 1):
        with contextlib.suppress(ValueError):  # not a value of this parameter
            errors.append(abs(make(n, other).sum() - density * mask.size))
    assert abs(mask.sum() - density * mask.size) == min(errors)
    weights = max(64, round(density * mask.size * 64))
    budget, _ = patterns.find_parameter(name, n, cols, 0, num_weights=weights, block_size=8)
    np.testing.assert_array_equal(
        budget, patterns.find_parameter(name, n, cols, 0, density=weights / (64 * mask.size))[0]
    )


def test_find_parameter_of_a_large_grid():
    for name, (is_square, _) in SEARCHES.items():
        mask, _ = patterns.find_parameter(name, 256, 256 if is_square else 320, 0, density=0.05)
        assert abs(mask.mean() - 0.05) < 0.005

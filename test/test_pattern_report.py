"""The measures of masks against networkx, the drawings, and the modules' documentation."""

import ast
import doctest
import importlib
import itertools
import pathlib
import sys

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocksparse import patterns

MODULES = ["patterns", "pattern_grids", "pattern_graphs", "pattern_report"]


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(st.integers(2, 20), st.floats(0.05, 1), st.integers(0, 2**32))
def test_report_agrees_with_networkx(n, density, seed):
    mask = np.random.default_rng(seed).random((n, n)) < density
    graph = networkx.from_numpy_array(mask.astype(int), create_using=networkx.DiGraph)
    report = patterns.describe(mask, 16)
    if networkx.is_strongly_connected(graph):
        average = networkx.average_shortest_path_length(graph)
        assert report.average_path_length == pytest.approx(average)
        assert report.num_steps == networkx.diameter(graph)
    else:
        assert report.average_path_length == np.inf and report.num_steps is None
    degrees_in = [degree for _, degree in graph.in_degree()]
    degrees_out = [degree for _, degree in graph.out_degree()]
    for blocks, neurons, degrees in (
        (report.blocks_in, report.connections_in, degrees_in),
        (report.blocks_out, report.connections_out, degrees_out),
    ):
        mean = pytest.approx(np.mean(degrees))
        assert blocks == patterns.Spread(min(degrees), mean, max(degrees))
        assert neurons.max == 16 * blocks.max and neurons.mean == 16 * blocks.mean
    assert report.num_weights == mask.sum() * 256 and report.density == mask.mean()


def test_report_of_special_masks():
    assert patterns.num_steps_to_reach_all([[0]]) == 0 and patterns.average_path_length([[0]]) == 0
    assert patterns.describe(np.ones((3, 3)), 8).num_steps == 1
    assert patterns.num_steps_to_reach_all(patterns.banded(70, 70, 1)) == 69
    oblong = patterns.describe(patterns.banded(3, 6, 0), 8)
    assert oblong.average_path_length is None and oblong.num_steps is None
    assert str(oblong).splitlines() == [
        "3 x 6 blocks of 8: 6 stored, density 0.333, 384 weights",
        "blocks into an output block: min 1, mean 1, max 1",
        "blocks out of an input block: min 2, mean 2, max 2",
        "inputs of a neuron: min 8, mean 8, max 8",
        "outputs of a neuron: min 16, mean 16, max 16",
    ]
    ring = patterns.describe(patterns.watts_strogatz(5, 2, 0, 0), 8)
    assert str(ring).endswith(
        "average shortest path: 1.5 steps\nevery block reaches every other: after 2 steps"
    )


def test_sampled_path_length():
    mask = patterns.watts_strogatz(300, 6, 0.3, 0)
    exact = patterns.average_path_length(mask)
    sampled = [patterns.average_path_length(mask, num_sources=60, seed=seed) for seed in (1, 1, 2)]
    one_way = [patterns.average_path_length([[1, 1], [0, 1]], 1, seed) for seed in range(9)]
    assert one_way == [np.inf] * 9
    assert sampled[0] == sampled[1] != sampled[2] and sampled[0] == pytest.approx(exact, rel=0.03)


def test_mixing_ends_where_all_is_reached():
    mask = patterns.from_name("ba_3", 60, 0)
    shares = patterns.mixing([mask] * 6)
    assert shares[0] == mask.mean() and shares == sorted(shares)
    assert shares.index(1.0) + 1 == patterns.num_steps_to_reach_all(mask)
    assert patterns.mixing([np.eye(2, 5), np.eye(5, 2)]) == [0.2, 0.5]


def test_text():
    assert patterns.to_text(np.eye(4)) == "▀▄\n  ▀▄"
    assert patterns.to_text(np.eye(1000), width=4) == "▀▄\n  ▀▄"
    assert patterns.to_text(np.zeros((3, 3))) == "\n" and patterns.to_text(np.ones((1, 3))) == "▀▀▀"
    for shape in itertools.product((1, 7, 64), repeat=2):
        lines = patterns.to_text(np.ones(shape), width=10).split("\n")
        assert {len(line) for line in lines} == {min(10, shape[1])}
        assert set("".join(lines)) <= set("█▀")


def test_draw(tmp_path):
    pytest.importorskip("matplotlib", reason="draws with matplotlib, which is optional")
    path = tmp_path / "mask.png"
    figure = patterns.draw(patterns.banded(40, 20, 2), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert figure.axes[0].get_title() == "40 x 20 blocks, density 0.145"


def test_draw_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="draw: matplotlib is needed.*to_text draws without it"):
        patterns.draw(np.eye(3))


# ---- the modules ----


@pytest.mark.parametrize("name", patterns.__all__)
def test_all_public_names_are_documented(name):
    assert getattr(patterns, name).__doc__


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(f"blocksparse.{name}"))
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_imports_no_tensorflow(name):
    source = pathlib.Path(importlib.import_module(f"blocksparse.{name}").__file__).read_text()
    imported = {
        alias if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in ([node.module] if isinstance(node, ast.ImportFrom) else node.names)
    }
    allowed = {"dataclasses", "math", "re", "numpy", "networkx", "scipy.sparse"}
    optional = {"matplotlib.figure"}
    ours = {"blocksparse._pattern_checks", *(f"blocksparse.{module}" for module in MODULES)}
    assert imported <= allowed | optional | ours

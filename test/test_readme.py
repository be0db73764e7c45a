"""Everything that the documents show is run: README, docstring examples, example programs."""

import doctest
import importlib
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import blocksparse
from blocksparse.testing import support

ROOT = pathlib.Path(__file__).parents[1]
MODULES = (
    "clip",
    "cross_entropy",
    "embedding",
    "ewops",
    "layout",
    "l2_norm",
    "layers.lstm",
    "layers.mlstm",
    "lstm",
    "lstm_gates",
    "layer_norm",
    "matmul",
    "matmul_grouping",
    "matmul_init",
    "matmul_ops",
    "mlstm",
    "mlstm_config",
    "sparse_proj",
)


def test_readme_code_runs():
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(code) >= 2
    exec(compile("\n".join(code), "README.md", "exec"), {})  # later blocks use earlier ones


def test_readme_support_table_is_generated():
    assert support.table() in (ROOT / "README.md").read_text()


def test_readme_figures_are_the_committed_ones():
    sys.path.insert(0, str(ROOT / "bench"))
    import summarize

    results = json.loads((ROOT / "bench/results/h200-kernels-2026-11-21.json").read_text())
    figures = summarize.table(
        "times dense, feature_axis 1", results["results"], 1, summarize.speedup
    )
    assert figures in (ROOT / "README.md").read_text()


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    module = importlib.import_module(f"blocksparse.{name}")
    names = {"tf": tf, "np": np, "SparsityLayout": blocksparse.SparsityLayout, **vars(module)}
    result = doctest.testmod(module, extraglobs=names, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_examples_run(name):
    command = [sys.executable, str(ROOT / "examples" / name)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_every_combination_of_the_support_table_is_right(device):
    assert all(support.prove(device).values())

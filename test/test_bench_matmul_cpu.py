"""The benchmark of the CPU's products: its check finds what is wrong, its table adds up."""

import json
import pathlib
import sys

import numpy as np
import pytest
import tensorflow as tf

import blocksparse as bs

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "bench"))
import bench_matmul_cpu
import cpu_goals


def test_the_table_and_the_file(monkeypatch, tmp_path, capfd):
    path = tmp_path / "results.json"
    command = "bench_matmul_cpu.py --threads 1 --features 64 --samples 3 --block 8 32 --density 0.1"
    monkeypatch.setattr(sys, "argv", [*command.split(), "--json", str(path)])
    bench_matmul_cpu.main()
    found = json.loads(path.read_text())
    assert len(found["results"]) == 2 * 2 * 3 and found["environment"]["cpu_level"]
    for r in found["results"]:
        assert r["us"] > 0 and r["threads"] == 1
        assert r["of_dense"] == pytest.approx(r["dense_us"] / r["us"] * r["density"], rel=1e-2)
        has_rivals = (r["product"], r["dtype"]) == ("fprop", "float32")
        assert ("csr_us" in r) == ("scipy_us" in r) == has_rivals
    printed = capfd.readouterr().out
    assert "fprop float32 64x3 B8 10% 1 thr" in printed
    assert cpu_goals.table(found["results"]) in printed


@pytest.mark.parametrize("product", bench_matmul_cpu.PRODUCTS)
def test_the_check_finds_what_is_wrong(product):
    rng = np.random.default_rng(0)
    layout = bs.SparsityLayout(np.eye(2, 3), 8)
    x, dy = (tf.constant(rng.standard_normal((5, n)), tf.float32) for n in (16, 24))
    w = tf.constant(rng.standard_normal(layout.w_shape), tf.float32)
    inputs = {"fprop": (x, w), "dx": (dy, w), "dw": (x, dy)}[product]
    result = bench_matmul_cpu.sparse_product(product, layout)(*inputs)
    assert bench_matmul_cpu.error_of(product, layout, *inputs, result) < 1e-5
    assert bench_matmul_cpu.error_of(product, layout, *inputs, 1.1 * result) > 1e-2


def test_a_cell_of_the_table():
    results = [
        {"threads": 2, "product": "dx", "dtype": "float32", "block": 16, "of_dense": value}
        for value in (0.5, 2.0)
    ]
    lines = cpu_goals.table(results).splitlines()
    assert lines[2] == "| forward, dx float32, 2 thr |  | 0.90; 1.00, 0.50; 50% |  |  |"

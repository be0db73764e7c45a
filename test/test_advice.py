"""`BlocksparseMatMul.advise`: its numbers are those that were measured, and go the right way."""

import numpy as np
import pytest

import blocksparse as bs
from blocksparse import advice
from blocksparse.testing import layouts


def product(features, block_size, density):
    count = features // block_size
    mask = layouts.random(np.random.default_rng(0), count, count, density)
    return bs.BlocksparseMatMul(mask, block_size)


def test_measured_cases_come_back():
    """At its own sizes and densities the advice is the measurement itself."""
    machine = advice._machines()["NVIDIA H200"]
    grid = machine["us"]["bfloat16 fprop 32"]
    for i, density in enumerate(grid["densities"]):
        for j, samples in enumerate(grid["samples"]):
            us = advice._interpolate(grid, density, samples)
            assert us == pytest.approx(grid["us"][i][j], rel=1e-6)


def test_more_work_takes_longer():
    times = [product(4096, 32, d).advise(8192).estimates[0].us for d in (0.05, 0.2, 0.6)]
    assert times == sorted(times)
    bsmm = product(4096, 32, 0.1)
    times = [bsmm.advise(n).estimates[2].us for n in (64, 1024, 8192, 1 << 20)]
    assert times == sorted(times)
    assert times[-1] / times[-2] == pytest.approx(128, rel=0.05)


def test_what_to_use():
    """Few large blocks beat a dense layer, many small ones do not."""
    assert product(4096, 64, 0.1).advise(8192).speedup > 2
    found = product(4096, 8, 0.5).advise(8192)
    assert found.speedup < 1
    assert "a dense layer of these features is faster" in str(found)
    assert [e.product for e in found.estimates] == ["fprop", "dx", "dw"]


def test_a_recurrent_step_is_bound_by_memory_or_launch():
    wide = product(12288, 32, 0.1).advise(32).estimates[0]
    assert wide.bound_by in ("memory", "blocks")
    assert product(1024, 32, 0.05).advise(1).estimates[0].bound_by == "launch"


@pytest.mark.parametrize("dtype", ["bfloat16", "tf32", "float32"])
@pytest.mark.parametrize("block_size", [8, 16, 32, 64, 128])
def test_every_dtype_and_block_size(block_size, dtype):
    found = product(2048, block_size, 0.25).advise(512, dtype)
    assert all(np.isfinite(e.us) and e.us > 0 for e in found.estimates)


def test_errors():
    bsmm = product(256, 32, 0.5)
    with pytest.raises(ValueError, match="device must be one of .*H200.*Received: 'abacus'"):
        bsmm.advise(64, device="abacus")
    with pytest.raises(ValueError, match="dtype must be one of .*Received: 'int8'"):
        bsmm.advise(64, "int8")
    for n in (0, -1, 1.5, "many"):
        with pytest.raises(ValueError, match="samples must be a positive integer"):
            bsmm.advise(n)

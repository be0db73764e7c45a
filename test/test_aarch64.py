"""The portable CPU kernels compiled for aarch64 and run by QEMU, where both are installed.

On Debian: g++-aarch64-linux-gnu, qemu-user-static.
"""

import itertools
import os
import pathlib
import shutil
import subprocess

import numpy as np
import pytest
from test_cpu_levels import from_bits, shapes, to_bits

from blocksparse import SparsityLayout
from blocksparse.testing import kernels, layouts, reference, tolerance

ROOT = pathlib.Path(__file__).parents[1]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
REFERENCES = (reference.matmul, reference.matmul_dx, reference.matmul_dw)


def call(product, dtype, axis, layout, n, first, second, result_bytes):
    """One call as aarch64_main.cc reads it."""
    parts = [layout.plan.tobytes(), layout.lut.tobytes(), first.tobytes(), second.tobytes()]
    sizes = [*map(len, parts), result_bytes]
    header = np.array([product, kernels.DTYPES[dtype], axis, n, *sizes], np.int64)
    return b"".join([header.tobytes(), *parts])


@pytest.mark.skipif(
    not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
    reason=f"needs {COMPILER} and {EMULATOR}",
)
def test_integers_are_exact(tmp_path):
    build = tmp_path / "build"
    command = ["make", "-s", "kernels", "NVCC=", f"CXX={COMPILER}", f"BUILD={build}"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    program = tmp_path / "main"
    source = [ROOT / "test/aarch64_main.cc", build / "libblocksparse_kernels.so"]
    compile_main = [COMPILER, "-std=c++17", f"-I{ROOT}", *source, f"-Wl,-rpath,{build}"]
    subprocess.run([*compile_main, "-o", program], check=True)

    rng = np.random.default_rng(0)
    calls, expected = [], []
    for size, axis, dtype in itertools.product((8, 16, 32, 64, 128), (0, 1), kernels.DTYPES):
        layout, n = SparsityLayout(layouts.standard()["random"], size), 21
        x, w, dy = (
            tolerance.random_integers(rng, shape, 1024, dtype) for shape in shapes(layout, axis, n)
        )
        for product, operands in enumerate(((x, w), (dy, w), (x, dy))):
            bits = [to_bits(a, dtype) for a in operands]
            result = to_bits(REFERENCES[product](*operands, layout, axis), dtype)
            calls.append(call(product, dtype, axis, layout, n, *bits, result.nbytes))
            expected.append(result)
    (tmp_path / "calls").write_bytes(b"".join(calls))

    # Debian's cross compiler keeps the libraries here.
    environment = {**os.environ, "QEMU_LD_PREFIX": "/usr/aarch64-linux-gnu"}
    run = [EMULATOR, program, tmp_path / "calls", tmp_path / "results"]
    subprocess.run(run, env=environment, check=True)
    found = (tmp_path / "results").read_bytes()
    for result in expected:
        bits = np.frombuffer(found[: result.nbytes], result.dtype).reshape(result.shape)
        tolerance.check_equal(from_bits(bits), from_bits(result))
        found = found[result.nbytes :]
    assert not found

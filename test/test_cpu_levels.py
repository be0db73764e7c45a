"""The CPU products at every level of the instruction set that this machine has.

Through the C interface, so that one process covers all levels; with BLOCKSPARSE_KERNELS, without
TensorFlow (see test_kernels.py).
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import test_kernels
from test_kernels import ALONE, CASES, ROOT, SparsityLayout, kernels_module, layouts, reference

tolerance = test_kernels.tolerance
KERNELS = kernels_module.Kernels(ALONE or ROOT / "blocksparse/_blocksparse_ops.so")
DTYPES = tuple(kernels_module.DTYPES)


@pytest.fixture(params=kernels_module.CPU_LEVELS)
def level(request):
    before = KERNELS.cpu_level
    try:
        KERNELS.cpu_level = request.param
    except kernels_module.KernelError as error:
        pytest.skip(str(error))
    yield request.param
    KERNELS.cpu_level = before
    KERNELS.set_cpu_parts(1)


def to_bits(array, dtype):
    """Float32 numbers as the kernels take them: bfloat16 as uint16."""
    if dtype == "float32":
        return array.astype(np.float32)
    if dtype == "float16":
        return array.astype(np.float16)
    bits = array.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bits(array):
    if array.dtype == np.uint16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


def products(layout, axis, dtype, x, w, dy, dw_dtype=None, gate=None):
    """y, dx and dw, all in the kernels' formats."""
    n = x.shape[1 - axis]
    y, dx = np.zeros_like(dy), np.zeros_like(x)
    dw = np.zeros(layout.w_shape, np.float32 if dw_dtype == "float32" else x.dtype)
    kwargs = {"dtype": dtype, "feature_axis": axis, "gate": gate}
    KERNELS.matmul(layout.plan, layout.lut, x, w, y, batch=n, **kwargs)
    KERNELS.matmul(layout.plan, layout.lut, dy, w, dx, batch=n, is_dx=True, **kwargs)
    KERNELS.matmul_dw(layout.plan, layout.lut, [(x, dy, n)], dw, dw_dtype=dw_dtype, **kwargs)
    return y, dx, dw


def shapes(layout, axis, n):
    x, dy = (
        (n, features) if axis == 1 else (features, n)
        for features in (layout.in_features, layout.out_features)
    )
    return x, layout.w_shape, dy


@pytest.mark.parametrize(
    "mask, n", [("empty_lines", 33), ("power_law", 1), ("power_law", 15), ("random", 130)]
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size, axis", CASES)
def test_integers_are_exact(level, size, axis, dtype, mask, n):
    rng = np.random.default_rng(n)
    layout = SparsityLayout(layouts.standard()[mask], size)
    depth = max(layout.mask.sum(axis=0).max(), layout.mask.sum(axis=1).max()) * size
    x, w, dy = (
        tolerance.random_integers(rng, shape, max(n, depth), dtype)
        for shape in shapes(layout, axis, n)
    )
    bits = (to_bits(a, dtype) for a in (x, w, dy))
    y, dx, dw = map(from_bits, products(layout, axis, dtype, *bits))
    tolerance.check_equal(y, reference.matmul(x, w, layout, axis))
    tolerance.check_equal(dx, reference.matmul_dx(dy, w, layout, axis))
    tolerance.check_equal(dw, reference.matmul_dw(x, dy, layout, axis))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size, axis", CASES)
def test_real_numbers_round_within_the_bound(level, size, axis, dtype):
    rng = np.random.default_rng(4)
    layout = SparsityLayout(layouts.standard()["random"], size)
    n = 301
    bits = [to_bits(rng.standard_normal(shape), dtype) for shape in shapes(layout, axis, n)]
    x, w, dy = map(from_bits, bits)
    results = products(layout, axis, dtype, *bits, dw_dtype="float32")
    for result, product, operands, count, out in zip(
        results,
        (reference.matmul, reference.matmul_dx, reference.matmul_dw),
        ((x, w), (dy, w), (x, dy)),
        (layout.mask.sum(axis=0).max() * size, layout.mask.sum(axis=1).max() * size, n),
        (dtype, dtype, "float32"),
        strict=True,
    ):
        exact = product(*operands, layout, axis)
        magnitude = product(*map(np.abs, operands), layout, axis)
        tolerance.check_product(from_bits(result), exact, magnitude, count, out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size, axis", CASES)
def test_gates_scale_and_skip(level, size, axis, dtype):
    """Halves and doubles are exact; an infinity in a closed block does not show."""
    rng = np.random.default_rng(5)
    layout = SparsityLayout(layouts.standard()["random"], size)
    x, w, dy = (
        rng.choice([-1, 0, 0, 0, 1], shape).astype(np.float32) for shape in shapes(layout, axis, 37)
    )
    gate = rng.choice([0.0, 0.5, 1.0, 2.0], layout.num_blocks).astype(np.float32)
    gated = w * gate[:, None, None]
    w[gate == 0] = np.inf
    bits = [to_bits(a, dtype) for a in (x, w, dy)]
    y, dx, dw = map(from_bits, products(layout, axis, dtype, *bits, gate=gate))
    tolerance.check_equal(y, reference.matmul(x, gated, layout, axis))
    tolerance.check_equal(dx, reference.matmul_dx(dy, gated, layout, axis))
    ungated = reference.matmul_dw(x, dy, layout, axis)
    tolerance.check_equal(dw, np.where(gate[:, None, None] == 0, 0, ungated))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size, axis", CASES)
def test_parts_do_not_show(level, size, axis, dtype):
    """However the work is shared, the bits are the same; hubs and long minibatches included."""
    rng = np.random.default_rng(6)
    for mask, n in ((layouts.power_law(rng, 6, 6), 260), (layouts.standard()["full_row"], 70)):
        layout = SparsityLayout(mask, size)
        bits = [to_bits(rng.standard_normal(shape), dtype) for shape in shapes(layout, axis, n)]
        KERNELS.set_cpu_parts(1)
        whole = products(layout, axis, dtype, *bits)
        for parts in (2, 7, 100000):
            KERNELS.set_cpu_parts(parts)
            for a, b in zip(whole, products(layout, axis, dtype, *bits), strict=True):
                assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1])
def test_dw_of_many_chunks_and_pairs(level, axis, dtype):
    """Wide layers and long minibatches come in chunks; pairs share them, odd minibatches too."""
    layout = SparsityLayout(np.eye(40, 24), 128)
    batches = (301, 1, 0, 64, 400)
    pairs = [
        tuple(to_bits(np.ones((n, f) if axis == 1 else (f, n)), dtype) for f in (5120, 3072))
        for n in batches
    ]
    dw = np.zeros(layout.w_shape, pairs[0][0].dtype)
    calls = [(x, dy, n) for (x, dy), n in zip(pairs, batches, strict=True)]
    KERNELS.matmul_dw(layout.plan, layout.lut, calls, dw, dtype=dtype, feature_axis=axis)
    expected = from_bits(to_bits(np.full(1, sum(batches)), dtype))
    assert (from_bits(dw) == expected).all()


def aligned(shape, dtype, offset):
    """Zeros that start `offset` elements after a cache line's start."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = np.zeros(size + 128, np.uint8)
    start = -room.ctypes.data % 64 + offset * np.dtype(dtype).itemsize
    return room[start : start + size].view(dtype).reshape(shape)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size, axis", [(8, 0), (8, 1), (16, 1), (32, 1), (64, 1)])
def test_large_results_have_the_bits_of_small_ones(level, size, axis, dtype, offset):
    """Results of 4 MiB go past the caches, where they are made of whole cache lines."""
    rng = np.random.default_rng(7)
    layout = SparsityLayout(layouts.random(rng, 512 // size, 512 // size, 0.1), size)
    n, few = 4099 if dtype == "bfloat16" else 2051, 101
    x = to_bits(rng.standard_normal((n, 512) if axis == 1 else (512, n)), dtype)
    w = to_bits(rng.standard_normal(layout.w_shape), dtype)
    for is_dx in (False, True):
        kwargs = {"dtype": dtype, "feature_axis": axis, "is_dx": is_dx}
        y = aligned(x.shape, x.dtype, offset)
        KERNELS.matmul(layout.plan, layout.lut, x, w, y, batch=n, **kwargs)
        for part in (slice(0, few), slice(n - few, n)):
            of_x, of_y = (
                np.ascontiguousarray(a[part] if axis == 1 else a[:, part]) for a in (x, y)
            )
            result = np.zeros_like(of_y)
            KERNELS.matmul(layout.plan, layout.lut, of_x, w, result, batch=few, **kwargs)
            assert result.tobytes() == of_y.tobytes()


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [8, 16, 32])
@pytest.mark.parametrize("n", [1, 19, 300])
def test_a_large_dw_has_the_bits_of_a_small_one(level, n, size, dtype, offset):
    rng = np.random.default_rng(8)
    x, dy = (to_bits(rng.standard_normal((n, f)), dtype) for f in (1032 // size * size, 2048))

    def dw_of(outputs):
        mask = np.ones((x.shape[1] // size, outputs // size), bool)
        layout = SparsityLayout(mask, size, z_order=False)
        dw = aligned(layout.w_shape, x.dtype, offset)
        pairs = [(x, np.ascontiguousarray(dy[:, :outputs]), n)]
        KERNELS.matmul_dw(layout.plan, layout.lut, pairs, dw, dtype=dtype, feature_axis=1)
        return dw

    # Columns of blocks follow one another.
    small, large = dw_of(256), dw_of(2048)
    assert small.tobytes() == large[: len(small)].tobytes()


def test_a_level_that_does_not_exist_is_an_error():
    with pytest.raises(kernels_module.KernelError, match="level of this machine.*Received: sse9"):
        KERNELS.cpu_level = "sse9"


@pytest.mark.skipif(bool(ALONE), reason="needs TensorFlow")
@pytest.mark.parametrize("name", ["portable", "avx9"])
def test_the_environment_names_the_level(name):
    code = (
        "import numpy as np, tensorflow as tf, blocksparse as bs\n"
        "from blocksparse.testing.kernels import Kernels\n"
        f"print(Kernels({str(ROOT / 'blocksparse/_blocksparse_ops.so')!r}).cpu_level)\n"
        "bs.BlocksparseMatMul(np.eye(2), 8)(tf.ones([1, 16]), tf.ones([2, 8, 8]))\n"
    )
    environment = {**os.environ, "BLOCKSPARSE_CPU_LEVEL": name, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    if name == "portable":
        assert done.returncode == 0 and done.stdout.strip() == name
    else:
        assert done.returncode != 0
        assert "BLOCKSPARSE_CPU_LEVEL must name a level of this machine's CPU" in done.stderr
        assert "Received: avx9. Supported: portable" in done.stderr

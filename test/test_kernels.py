"""The kernels through their C interface: threads do not show, and damaged tables do no harm.

Runs without TensorFlow where BLOCKSPARSE_KERNELS names the library of `make kernels`, which is how
the sanitizers use it; with torch and a GPU, on the GPU too.
"""

import importlib.util
import os
import pathlib
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
ALONE = os.environ.get("BLOCKSPARSE_KERNELS")


def load(name):
    """A module of the package, by path where there may be no TensorFlow."""
    if not ALONE:
        return importlib.import_module(name)
    path = ROOT / (name.replace(".", "/") + ".py")
    spec = importlib.util.spec_from_file_location(name.replace(".", "_"), path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


layout_module = load("blocksparse.layout")
kernels_module = load("blocksparse.testing.kernels")
layouts = load("blocksparse.testing.layouts")
reference = load("blocksparse.testing.reference")
tolerance = load("blocksparse.testing.tolerance")
SparsityLayout = layout_module.SparsityLayout
KernelError = kernels_module.KernelError

CASES = [
    pytest.param(size, axis, id=f"B{size}-axis{axis}")
    for size in (8, 16, 32, 64, 128)
    for axis in (0, 1)
]


def gpu():
    try:
        import torch
    except ImportError:
        return None
    return torch if ALONE and torch.cuda.is_available() else None


@pytest.fixture(scope="module")
def kernels():
    return kernels_module.Kernels(ALONE or ROOT / "blocksparse/_blocksparse_ops.so")


@pytest.fixture(
    params=[
        "CPU",
        pytest.param(
            "GPU",
            marks=pytest.mark.skipif(
                gpu() is None, reason="needs torch, a GPU and BLOCKSPARSE_KERNELS"
            ),
        ),
    ]
)
def place(request):
    """Numpy arrays to where the kernel runs, and back."""
    return Place(request.param)


class Place:
    def __init__(self, name):
        self.device = {"CPU": kernels_module.CPU, "GPU": kernels_module.GPU}[name]
        self.torch = gpu() if name == "GPU" else None

    def put(self, array):
        # A copy of exactly this size, so that a sanitizer sees any access outside.
        return self.torch.from_numpy(array.copy()).cuda() if self.torch else array.copy()

    def empty(self, shape, dtype=np.float32):
        return self.put(np.full(shape, np.nan if dtype == np.float32 else 0, dtype))

    def get(self, array):
        return array.cpu().numpy() if self.torch else array


def matmul(kernels, place, plan, lut, *tensors, **kwargs):
    size = kernels.workspace_bytes(plan, lut, *tensors, **kwargs)
    workspace = place.empty(size // 2, np.int16) if size else None
    kernels.matmul(plan, lut, *tensors, workspace=workspace, **kwargs)


def products(kernels, place, layout, axis, n, x, w, dy, lut=None, gate=None, **kwargs):
    """y, dx and dw of float32 numpy arrays."""
    lut = place.put(layout.lut if lut is None else lut)
    x, w, dy = map(place.put, (x, w, dy))
    gate = None if gate is None else place.put(gate)
    y, dx, dw = (place.empty(shape) for shape in (dy.shape, x.shape, layout.w_shape))
    kwargs = {
        "dtype": "float32",
        "feature_axis": axis,
        "device": place.device,
        "gate": gate,
        **kwargs,
    }
    matmul(kernels, place, layout.plan, lut, x, w, y, batch=n, **kwargs)
    matmul(kernels, place, layout.plan, lut, dy, w, dx, batch=n, is_dx=True, **kwargs)
    size = kernels.dw_workspace_bytes(layout.plan, lut, [(x, dy, n)], **kwargs)
    workspace = place.empty(size // 4)
    kernels.matmul_dw(layout.plan, lut, [(x, dy, n)], dw, workspace=workspace, **kwargs)
    return tuple(map(place.get, (y, dx, dw)))


def inputs(rng, layout, axis, n):
    shapes = [(n, f) if axis == 1 else (f, n) for f in (layout.in_features, layout.out_features)]
    x, w, dy = (
        rng.choice([-1.0, 1.0, 2.0], shape).astype(np.float32)
        for shape in (shapes[0], layout.w_shape, shapes[1])
    )
    return x, w, dy


@pytest.mark.parametrize("tf32", [False, True], ids=["exact", "tf32"])
@pytest.mark.parametrize("n", [1, 63, 64, 130, 3001])
@pytest.mark.parametrize("mask", ["empty_lines", "power_law"])
@pytest.mark.parametrize("size, axis", CASES)
def test_products(kernels, place, size, axis, mask, n, tf32):
    rng = np.random.default_rng(n)
    layout = SparsityLayout(layouts.standard()[mask], size)
    x, w, dy = inputs(rng, layout, axis, n)
    y, dx, dw = products(kernels, place, layout, axis, n, x, w, dy, allow_tf32=tf32)
    tolerance.check_equal(y, reference.matmul(x, w, layout, axis))
    tolerance.check_equal(dx, reference.matmul_dx(dy, w, layout, axis))
    tolerance.check_equal(dw, reference.matmul_dw(x, dy, layout, axis))


def check_bfloat16(kernels, place, layout, axis, n, rng):
    """y and dx of signs; bfloat16 as the upper halves of float32: few of them add up exactly."""
    x, w, dy = (np.sign(array) for array in inputs(rng, layout, axis, n))
    w *= rng.choice(np.float32([-1, 1]), w.shape)
    halves = [place.put((array.view(np.int32) >> 16).astype(np.int16)) for array in (x, w, dy)]
    lut = place.put(layout.lut)
    kwargs = {"dtype": "bfloat16", "feature_axis": axis, "device": place.device, "batch": n}
    for is_dx, expected in (
        (False, reference.matmul(x, w, layout, axis)),
        (True, reference.matmul_dx(dy, w, layout, axis)),
    ):
        y = place.empty(expected.shape, np.int16)
        source = halves[2 if is_dx else 0]
        matmul(kernels, place, layout.plan, lut, source, halves[1], y, is_dx=is_dx, **kwargs)
        found = (place.get(y).astype(np.int32) << 16).view(np.float32)
        tolerance.check_equal(found, expected)


@pytest.mark.parametrize(
    "columns, n", [(100, 40), (200, 40), (330, 56), (250, 120), (500, 184), (600, 296)]
)
@pytest.mark.parametrize("size, axis", [case for case in CASES if case.values[0] <= 32])
def test_wide_layouts_and_few_samples(kernels, place, size, axis, columns, n):
    """An H200 has 8, 6, 4, 3, 2 or 1 warps for each tile of 64 samples by a block column."""
    if place.torch is None:
        pytest.skip("only a GPU divides the work like this")
    rng = np.random.default_rng(n)
    layout = SparsityLayout(layouts.random(rng, 6, columns, 0.7), size)
    check_bfloat16(kernels, place, layout, axis, n, rng)


@pytest.mark.parametrize("n", [5, 64, 130])
@pytest.mark.parametrize("size, axis", [case for case in CASES if case.values[0] < 32])
def test_many_small_blocks_and_few_samples(kernels, place, size, axis, n):
    """Where feature_axis is 1, a GPU transposes x first."""
    rng = np.random.default_rng(n)
    layout = SparsityLayout(layouts.random(rng, 25, 19, 0.9), size)
    x, w, dy = inputs(rng, layout, axis, n)
    y, dx, _ = products(kernels, place, layout, axis, n, x, w, dy)
    tolerance.check_equal(y, reference.matmul(x, w, layout, axis))
    tolerance.check_equal(dx, reference.matmul_dx(dy, w, layout, axis))

    check_bfloat16(kernels, place, layout, axis, n, rng)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("size, axis", CASES)
def test_16_bit_products_of_ones(kernels, place, size, axis, dtype):
    """numpy has no bfloat16; ones are enough to walk every address in 16 bits."""
    one = {"float16": 0x3C00, "bfloat16": 0x3F80}[dtype]
    layout = SparsityLayout(layouts.standard()["empty_lines"], size)
    for n in (1, 65, 136):
        shapes = [
            (n, f) if axis == 1 else (f, n) for f in (layout.in_features, layout.out_features)
        ]
        arrays = [
            np.full(shape, one, np.uint16).view(np.int16)
            for shape in (shapes[0], layout.w_shape, shapes[1])
        ]
        x, w, dy = map(place.put, arrays)
        y, dx = place.empty(shapes[1], np.int16), place.empty(shapes[0], np.int16)
        dw = place.empty(layout.w_shape)
        lut = place.put(layout.lut)
        kwargs = {"dtype": dtype, "feature_axis": axis, "device": place.device}
        kernels.matmul(layout.plan, lut, x, w, y, batch=n, **kwargs)
        kernels.matmul(layout.plan, lut, dy, w, dx, batch=n, is_dx=True, **kwargs)
        kernels.matmul_dw(layout.plan, lut, [(x, dy, n)], dw, dw_dtype="float32", **kwargs)
        assert (place.get(dw) == n).all()
        for result, lengths in ((y, layout.mask.sum(axis=0)), (dx, layout.mask.sum(axis=1))):
            expected = np.repeat(lengths, size) * size
            bits = place.get(result).view(np.uint16)
            bits = bits if axis == 1 else bits.T
            as_float = (
                bits.view(np.float16)
                if dtype == "float16"
                else (bits.astype(np.uint32) << 16).view(np.float32)
            )
            assert (as_float == expected).all()


@pytest.mark.parametrize("size, axis", CASES)
def test_unaligned_pointers(kernels, place, size, axis):
    """Slices of tensors start anywhere: results are those of aligned copies."""
    rng = np.random.default_rng(1)
    layout = SparsityLayout(layouts.standard()["random"], size)
    x, w, dy = inputs(rng, layout, axis, 40)
    aligned = products(kernels, place, layout, axis, 40, x, w, dy)

    class Shifted(Place):
        def put(self, array):
            buffer = np.concatenate([np.zeros(1, array.dtype), array.ravel()])
            buffer = super().put(buffer)[1:]
            return buffer.reshape(array.shape)

    shifted = products(
        kernels, Shifted("GPU" if place.torch else "CPU"), layout, axis, 40, x, w, dy
    )
    for a, b in zip(aligned, shifted, strict=True):
        tolerance.check_equal(b, a)


@pytest.mark.parametrize("size, axis", CASES)
def test_damaged_tables_give_no_wrong_address(kernels, place, size, axis):
    rng = np.random.default_rng(2)
    layout = SparsityLayout(layouts.standard()["power_law"], size)
    x, w, dy = inputs(rng, layout, axis, 70)
    for _ in range(10):
        lut = layout.lut.copy()
        damaged = rng.random(lut.size) < 0.2
        lut[damaged] = rng.choice([-1, 2**40, 2**31 - 1, -(2**62), 1000, 2**33 + 5], damaged.sum())
        products(
            kernels,
            place,
            layout,
            axis,
            70,
            x,
            w,
            dy,
            lut,
            gate=np.ones(layout.num_blocks, np.float32),
        )


@pytest.mark.skipif(bool(ALONE), reason="needs TensorFlow")
@pytest.mark.parametrize("size, axis", CASES)
def test_threads_do_not_show(kernels, size, axis):
    """TensorFlow's thread pool gives the bits of a single thread."""
    import tensorflow as tf

    import blocksparse as bs

    rng = np.random.default_rng(3)
    layout = SparsityLayout(layouts.power_law(rng, 12, 12), size)
    n = 517
    shapes = [(n, f) if axis == 1 else (f, n) for f in (layout.in_features, layout.out_features)]
    x, w, dy = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in (shapes[0], layout.w_shape, shapes[1])
    )
    serial = products(kernels, Place("CPU"), layout, axis, n, x, w, dy)
    with tf.device("CPU:0"):
        threaded = (
            bs.BlocksparseMatMul(layout, feature_axis=axis)(x, w),
            bs.matmul_dx(dy, w, layout, feature_axis=axis),
            bs.matmul_dw(x, dy, layout, feature_axis=axis),
        )
    for a, b in zip(serial, threaded, strict=True):
        assert a.tobytes() == b.numpy().tobytes()


def test_errors_are_sentences(kernels):
    layout = SparsityLayout(np.eye(2), 8)
    x = np.zeros((1, 16), np.float32)
    w = np.zeros(layout.w_shape, np.float32)
    with pytest.raises(
        KernelError, match=r"lut must have the \d+ elements that the plan names. Received: 3"
    ):
        kernels.matmul(layout.plan, layout.lut[:3], x, w, x, dtype="float32", batch=1)
    with pytest.raises(KernelError, match="plan must be made by SparsityLayout of this version"):
        kernels.matmul(layout.plan + 1, layout.lut, x, w, x, dtype="float32", batch=1)
    with pytest.raises(KernelError, match="no kernel for dtype 0, block_size 8, feature_axis 2"):
        kernels.matmul(layout.plan, layout.lut, x, w, x, dtype="float32", batch=1, feature_axis=2)
    with pytest.raises(KernelError, match="num_pairs must be 0 to 128. Received: 129"):
        kernels.matmul_dw(layout.plan, layout.lut, [(x, x, 1)] * 129, w, dtype="float32")
    with pytest.raises(KernelError, match="dw_dtype must be dtype or float32"):
        kernels.matmul_dw(
            layout.plan, layout.lut, [(x, x, 1)], w, dtype="float32", dw_dtype="float16"
        )


def test_supported_combinations_are_those_of_python(kernels):
    for dtype in (*kernels_module.DTYPES, "float64"):
        for size in range(1, 260):
            for axis in (-1, 0, 1, 2):
                expected = (
                    dtype != "float64" and size in layout_module.BLOCK_SIZES and axis in (0, 1)
                )
                assert kernels.is_supported(dtype, size, axis) == expected


def test_a_library_without_a_gpu_says_so(kernels):
    layout = SparsityLayout(np.eye(2), 8)
    x = np.zeros((1, 16), np.float32)
    w = np.zeros(layout.w_shape, np.float32)
    if gpu():
        pytest.skip("there is a GPU")
    expected = "CUDA|no CUDA-capable device|driver" if kernels.has_gpu else "built without nvcc"
    with pytest.raises(KernelError, match=expected):
        kernels.matmul(
            layout.plan, layout.lut, x, w, x, dtype="float32", batch=1, device=kernels_module.GPU
        )

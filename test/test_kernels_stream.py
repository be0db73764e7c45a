"""The streaming products (`src/kernels/matmul_stream.cuh`) of 16-bit types on a GPU, exactly.

Runs without TensorFlow where BLOCKSPARSE_KERNELS names the library of `make kernels`; needs torch
and an sm_90 GPU.
"""

import importlib

import numpy as np
import pytest
from without_tensorflow import ALONE, hopper, needs_hopper, random_layout

kernels_module = importlib.import_module("blocksparse.testing.kernels")
reference = importlib.import_module("blocksparse.testing.reference")
SparsityLayout = importlib.import_module("blocksparse.layout").SparsityLayout

pytestmark = needs_hopper

# Block columns of 32: one, two or three thread blocks a multiprocessor of an H200, and several
# waves of them.
COLUMNS = (90, 200, 390, 600)
SIZES = (8, 16, 32, 64, 128)


class Device:
    def __init__(self):
        self.torch = hopper()
        self.kernels = kernels_module.Kernels(ALONE)

    def put(self, array):
        return self.torch.from_numpy(np.array(array, order="C")).cuda()

    def halves(self, array):
        return self.put(array).to(self.torch.bfloat16)

    def product(self, layout, x, w, y, *, n, axis=1, is_dx=False, gate=None, lut=None):
        """Of tensors on the device, into y."""
        lut = self.put(layout.lut) if lut is None else lut
        kwargs = {
            "dtype": "bfloat16",
            "batch": n,
            "feature_axis": axis,
            "is_dx": is_dx,
            "gate": gate,
            "device": kernels_module.GPU,
            "stream": self.torch.cuda.current_stream().cuda_stream,
        }
        size = self.kernels.workspace_bytes(layout.plan, lut, x, w, y, **kwargs)
        workspace = self.torch.empty(size, dtype=self.torch.uint8, device="cuda")
        self.kernels.matmul(layout.plan, lut, x, w, y, workspace=workspace, **kwargs)


@pytest.fixture
def device():
    return Device()


def shape(n, features, axis):
    return (n, features) if axis == 1 else (features, n)


def check(device, layout, n, axis, gate=None):
    rng = np.random.default_rng(n)
    # Sums of at most 256 signs, and gates that are powers of two: bfloat16 has them.
    draw = lambda shape: rng.choice(np.float32([-1, 1]), shape)  # noqa: E731
    w = draw(layout.w_shape)
    gates = None if gate is None else device.put(gate)
    for is_dx in (False, True):
        sizes = [layout.in_features, layout.out_features]
        source, target = sizes[::-1] if is_dx else sizes
        x = draw(shape(n, source, axis))
        y = device.torch.full(shape(n, target, axis), float("nan"), device="cuda")
        y = y.to(device.torch.bfloat16)
        halves = device.halves(x), device.halves(w)
        device.product(layout, *halves, y, n=n, axis=axis, is_dx=is_dx, gate=gates)
        multiply = reference.matmul_dx if is_dx else reference.matmul
        expected = device.put(multiply(x, w, layout, axis, gate)).to(device.torch.bfloat16)
        assert device.torch.equal(y, expected)


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("axis", [1, 0])
def test_thread_blocks_share_multiprocessors(device, axis, columns):
    mask = np.random.default_rng(columns).random((8, columns)) < 8 / columns
    mask[3] = False
    mask[:, 5] = True
    for n in (8, 40, 64) if axis == 0 else (1, 33, 64):
        check(device, SparsityLayout(mask, 32), n, axis)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("axis", [1, 0])
def test_gates(device, axis, size):
    layout = random_layout(size, 5, 4, 0.5)
    gate = np.random.default_rng(0).choice(np.float32([0, 0.5, 1, 2]), layout.num_blocks)
    check(device, layout, 16, axis, gate)
    check(device, layout, 72, axis)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("axis", [1, 0])
def test_long_columns(device, axis, size):
    """More chunks of a warp than entries it reads at a time, and their gates."""
    torch = device.torch
    layout = random_layout(size, {64: 150, 128: 80}.get(size, 300), 3, 0.95)
    gate = np.random.default_rng(0).choice(np.float32([0, 0.5, 1, 2]), layout.num_blocks)
    x = torch.ones(shape(24, layout.in_features, axis), device="cuda").to(torch.bfloat16)
    y = torch.empty(shape(24, layout.out_features, axis), device="cuda").to(torch.bfloat16)
    w = torch.ones(layout.w_shape, device="cuda").to(torch.bfloat16)
    device.product(layout, x, w, y, n=24, axis=axis, gate=device.put(gate))
    sums = np.zeros(3)
    np.add.at(sums, layout.coordinates[:, 1], gate * size)
    expected = device.put(np.repeat(sums, size).astype(np.float32)).to(torch.bfloat16)
    assert (y == (expected if axis == 1 else expected[:, None])).all()


@pytest.mark.parametrize("axis", [1, 0])
def test_what_the_kernel_before_writes_is_read_after_it(device, axis):
    """Each kernel starts, and fetches W to the cache, while the one before it still runs."""
    torch = device.torch
    blocks = 200
    identity = SparsityLayout(np.eye(blocks), 32)
    eye = device.halves(np.broadcast_to(np.eye(32, dtype=np.float32), identity.w_shape))
    n = 32
    y = torch.empty(shape(n, 32 * blocks, axis), device="cuda").to(torch.bfloat16)
    gates = [None, torch.ones(blocks, device="cuda")]
    xs = [torch.randint(-2, 3, y.shape, device="cuda").to(torch.bfloat16) for _ in range(40)]
    zs = [torch.zeros_like(y) for _ in xs]
    ones = torch.ones_like(y)
    lut = device.put(identity.lut)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i, (x, z) in enumerate(zip(xs, zs, strict=True)):
            device.product(identity, x, eye, y, n=n, axis=axis, lut=lut)
            w = y.view(identity.w_shape)  # what that kernel writes is the next one's W
            device.product(identity, ones, w, z, n=n, axis=axis, lut=lut, gate=gates[i % 2])
    graph.replay()
    torch.cuda.synchronize()
    for x, z in zip(xs, zs, strict=True):
        sums = x.view(identity.w_shape).float().sum(1).reshape(-1).to(torch.bfloat16)
        assert (z == (sums if axis == 1 else sums[:, None])).all()


@pytest.mark.parametrize("columns", COLUMNS[1:])
def test_damaged_tables_give_no_wrong_address(device, columns):
    rng = np.random.default_rng(2)
    layout = random_layout(32, 6, columns, 0.5)
    x = device.halves(np.ones((48, layout.in_features), np.float32))
    w = device.halves(np.ones(layout.w_shape, np.float32))
    y = device.halves(np.ones((48, layout.out_features), np.float32))
    for _ in range(8):
        lut = layout.lut.copy()
        damaged = rng.random(lut.size) < 0.2
        lut[damaged] = rng.choice([-1, 2**40, 2**31 - 1, -(2**62), 1000, 2**33 + 5], damaged.sum())
        device.product(layout, x, w, y, n=48, lut=device.put(lut))
    device.torch.cuda.synchronize()

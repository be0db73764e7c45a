"""The packed products on an H100 or H200, through the kernels' C interface, with torch.

Runs where BLOCKSPARSE_KERNELS names the library of `make kernels`, without TensorFlow.
"""

import importlib

import numpy as np
import pytest
from without_tensorflow import ALONE, hopper

torch = hopper()
if torch is None:
    pytest.skip("needs torch, an sm_90 GPU and BLOCKSPARSE_KERNELS", allow_module_level=True)

SparsityLayout = importlib.import_module("blocksparse.layout").SparsityLayout
gpu_tables = importlib.import_module("blocksparse._gpu_tables").gpu_tables
kernels_module = importlib.import_module("blocksparse.testing.kernels")
layouts = importlib.import_module("blocksparse.testing.layouts")
tolerance = importlib.import_module("blocksparse.testing.tolerance")

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
CASES = [
    pytest.param(size, axis, is_dx, id=f"GPU-B{size}-axis{axis}-{'dx' if is_dx else 'fprop'}")
    for size in (8, 16)
    for axis in (0, 1)
    for is_dx in (False, True)
]


def masks():
    """All three shapes; ragged edges, empty lines, hubs, a tile of x cut short."""
    rng = np.random.default_rng(0)
    sparse = layouts.random(rng, 37, 29, 0.1)
    sparse[2, :] = sparse[:, 1] = True
    sparse[5, :] = sparse[:, 3] = False
    return {
        "sparse": sparse,
        "few": layouts.random(rng, 100, 110, 0.035),
        "dense": layouts.random(rng, 21, 34, 0.8),
        "hubs": layouts.power_law(rng, 70, 50),
        "one": np.ones((1, 1), bool),
    }


@pytest.fixture(scope="module")
def kernels():
    return kernels_module.Kernels(ALONE)


class Call:
    """One product's tensors; y is NaN before."""

    def __init__(self, layout, axis, is_dx, n, dtype="bfloat16", is_gated=False, draw=None):
        generator = torch.Generator("cuda").manual_seed(0)
        draw = draw or (lambda shape: torch.randn(shape, device="cuda", generator=generator))
        sizes = (layout.in_features, layout.out_features)[:: -1 if is_dx else 1]
        shapes = [(n, f) if axis == 1 else (f, n) for f in sizes]
        self.layout, self.axis, self.is_dx = layout, axis, is_dx
        self.x, self.w = draw(shapes[0]).to(DTYPES[dtype]), draw(layout.w_shape).to(DTYPES[dtype])
        self.y = torch.full(shapes[1], float("nan"), device="cuda", dtype=DTYPES[dtype])
        self.gate = None
        if is_gated:
            self.gate = torch.rand(layout.num_blocks, device="cuda", generator=generator)
            self.gate[::3] = 0
        self.lut, self.plan = gpu_tables(layout)
        self.lut = torch.tensor(self.lut, device="cuda")
        self.lut[: len(layout.lut)] = 0  # or another kernel could make the product
        self.kwargs = {
            "dtype": dtype,
            "batch": n,
            "feature_axis": axis,
            "is_dx": is_dx,
            "gate": self.gate,
            "device": kernels_module.GPU,
        }

    def workspace_bytes(self, kernels):
        """0 where another kernel serves."""
        tensors = (self.plan, self.lut, self.x, self.w, self.y)
        return kernels.workspace_bytes(*tensors, **self.kwargs)

    def run(self, kernels):
        tensors = (self.plan, self.lut, self.x, self.w, self.y)
        size = self.workspace_bytes(kernels)
        assert size > 0
        workspace = torch.full((size,), 255, device="cuda", dtype=torch.uint8)
        kernels.matmul(*tensors, workspace=workspace, **self.kwargs)
        torch.cuda.synchronize()
        return self.y.double() if self.axis == 1 else self.y.double().T

    def operands(self):
        """x [N, C] and W [C, K], float64, gated as the kernel rounds it."""
        w = self.w
        if self.gate is not None:
            w = (w.float() * self.gate[:, None, None]).to(w.dtype)
        dense = torch.tensor(self.layout.to_dense(w.double().cpu().numpy()), device="cuda")
        x = self.x.double()
        return x if self.axis == 1 else x.T, dense.T if self.is_dx else dense


@pytest.mark.parametrize("n", [8448, 8400, 9112])
@pytest.mark.parametrize("mask", masks())
@pytest.mark.parametrize("size, axis, is_dx", CASES)
def test_integers_are_exact(kernels, size, axis, is_dx, mask, n):
    generator = torch.Generator("cuda").manual_seed(0)

    def draw(shape):
        # At most 256 in magnitude, which bfloat16 holds exactly, with all but no chance of more.
        return torch.randint(0, 2, shape, device="cuda", generator=generator) * 2.0 - 1

    call = Call(SparsityLayout(masks()[mask], size), axis, is_dx, n, draw=draw)
    y = call.run(kernels)
    x, w = call.operands()
    assert torch.equal(y, x @ w)


@pytest.mark.parametrize("is_gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", ["sparse", "few", "dense"])
@pytest.mark.parametrize("size, axis, is_dx", CASES)
def test_rounding_is_within_the_bound(kernels, size, axis, is_dx, mask, dtype, is_gated):
    call = Call(SparsityLayout(masks()[mask], size), axis, is_dx, 8400, dtype, is_gated)
    y = call.run(kernels)
    x, w = call.operands()
    tolerance.check_product(
        y.cpu().numpy(),
        (x @ w).cpu().numpy(),
        (x.abs() @ w.abs()).cpu().numpy(),
        (w != 0).sum(0).cpu().numpy(),
        dtype,
    )


@pytest.mark.parametrize("mask", ["sparse", "few", "dense"])
@pytest.mark.parametrize("size, axis, is_dx", CASES)
def test_fewest_samples(kernels, size, axis, is_dx, mask):
    """As few as are served; racecheck is too slow for more."""
    layout = SparsityLayout(masks()[mask], size)
    for n in (1032, 1288, 2552, 5112):  # more than are streamed
        call = Call(layout, axis, is_dx, n, is_gated=True)
        if call.workspace_bytes(kernels) > 0:
            break
    y = call.run(kernels)
    x, w = call.operands()
    assert (y - x @ w).abs().max() < 1e-2 * (x.abs() @ w.abs()).max()


@pytest.mark.parametrize("size, axis, is_dx", CASES)
def test_two_runs_are_bitwise_equal(kernels, size, axis, is_dx):
    layout = SparsityLayout(masks()["hubs"], size)
    results = [Call(layout, axis, is_dx, 8400).run(kernels) for _ in range(2)]
    assert torch.equal(*results)


@pytest.mark.parametrize("size, axis, is_dx", CASES)
def test_damaged_tables_give_no_wrong_address(kernels, size, axis, is_dx):
    rng = np.random.default_rng(2)
    values = [-1, 2**40, 2**31 - 1, -(2**62), 1000, 2**33 + 5, 2**63 - 1]
    for mask in ("sparse", "few", "dense"):
        call = Call(SparsityLayout(masks()[mask], size), axis, is_dx, 8400)
        lut = call.lut
        for _ in range(10):
            damaged = torch.tensor(rng.random(len(lut)) < 0.2, device="cuda")
            new = torch.tensor(rng.choice(values, len(lut)), device="cuda")
            call.lut = torch.where(damaged, new, lut)
            call.run(kernels)

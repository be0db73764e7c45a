"""dw of float32 by regions (`src/kernels/matmul_region_dw_float.h`): on Hopper its products,
exactly and against float64.

Runs where BLOCKSPARSE_KERNELS names the library of `make kernels`; needs torch and an sm_90 GPU.
"""

import importlib
import itertools

import numpy as np
import pytest
from without_tensorflow import ALONE, hopper, needs_hopper

region_table = importlib.import_module("blocksparse._region_dw_table")
kernels_module = importlib.import_module("blocksparse.testing.kernels")
layouts = importlib.import_module("blocksparse.testing.layouts")
tolerance = importlib.import_module("blocksparse.testing.tolerance")
SparsityLayout = importlib.import_module("blocksparse.layout").SparsityLayout

SIZES = (8, 16, 32, 64, 128)
pytestmark = needs_hopper
arithmetics = pytest.mark.parametrize("tf32", [True, False], ids=["tf32", "float32"])
axes = pytest.mark.parametrize("axis", [1, 0])
sizes = pytest.mark.parametrize("size", SIZES)


def run(plan, lut, layout, pairs, tf32, axis, gate=None, shift=0):
    """(dw, bytes of workspace)."""
    torch = hopper()
    kernels = kernels_module.Kernels(ALONE)
    lut = torch.from_numpy(np.array(lut)).cuda()
    given = [
        (*(t if axis == 1 else t.T.contiguous() for t in pair), len(pair[0])) for pair in pairs
    ]
    buffer = torch.full((int(np.prod(layout.w_shape)) + shift,), float("nan"), device="cuda")
    gates = None if gate is None else torch.from_numpy(gate).cuda()
    kwargs = dict(dtype="float32", feature_axis=axis, gate=gates, allow_tf32=tf32)
    kwargs |= dict(device=kernels_module.GPU)
    size = kernels.dw_workspace_bytes(plan, lut, given, **kwargs)
    workspace = torch.full((size // 4,), float("nan"), device="cuda")
    kernels.matmul_dw(plan, lut, given, buffer[shift:], workspace=workspace, **kwargs)
    torch.cuda.synchronize()
    return buffer[shift:].view(layout.w_shape), size


class Product:
    """dw by regions: `dw`, and what float64 makes of it.

    Args:
      pairs: float32 of (n, in_features) and (n, out_features), given to the kernel in the order of
        `axis`.
      shift: elements from an aligned address to dw.
      damage: changes the tables of dw by regions.
    """

    def __init__(self, layout, pairs, tf32, axis=1, gate=None, shift=0, damage=None):
        self.torch = hopper()
        lut, plan = layout.join_sections(region_table.region_dw_sections(layout))
        if damage is not None:
            lut = np.array(lut)
            damage(lut)
        self.dw, size = run(plan, lut, layout, pairs, tf32, axis, gate, shift)
        samples = sum(len(x) for x, _ in pairs)
        turn = samples / -(-samples // 8192)
        features = layout.in_features + layout.out_features
        # Or another kernel serves these arguments.
        assert size > turn * features * (2 if tf32 else 4) + 4 * self.dw.numel()
        self.layout, self.pairs, self.gate, self.axis = layout, pairs, gate, axis

    def stored(self, dense):
        """The stored blocks of a dense matrix."""
        layout = self.layout
        grid = dense.view(layout.in_blocks, layout.block_size, layout.out_blocks, -1)
        rows, columns = self.torch.from_numpy(layout.coordinates.astype(np.int64)).cuda().T
        blocks = grid.transpose(1, 2)[rows, columns]
        if self.gate is not None:
            blocks = blocks * self.torch.from_numpy(self.gate != 0).cuda()[:, None, None]
        return blocks

    def expected(self):
        return self.stored(sum(x.double().T @ dy.double() for x, dy in self.pairs))

    def magnitude(self):
        return self.stored(sum(x.double().abs().T @ dy.double().abs() for x, dy in self.pairs))

    def errors(self):
        """|dw - x^T dy| / (|x|^T |dy|), the same of the general kernel and of a dense product."""
        self.torch.backends.cuda.matmul.allow_tf32 = False
        layout = self.layout
        general, _ = run(layout.plan, layout.lut, layout, self.pairs, False, self.axis)
        dense = self.stored(sum(x.T @ dy for x, dy in self.pairs))
        magnitude = self.magnitude().clamp_min(1e-300)
        return [
            ((dw.double() - self.expected()).abs() / magnitude).max().item()
            for dw in (self.dw, general, dense)
        ]

    def check_exact(self):
        assert self.torch.equal(self.dw.double(), self.expected())


def integers(layout, batches, tf32, seed=0):
    """Pairs of nonzero integers whose sums are exact; those of x need both halves."""
    rng = np.random.default_rng(seed)

    def some(shape, largest):
        values = rng.integers(1, largest + 1, size=shape) * rng.choice([-1, 1], size=shape)
        return hopper().from_numpy(values.astype(np.float32)).cuda()

    return [
        (some((n, layout.in_features), 3 if tf32 else 5000), some((n, layout.out_features), 2))
        for n in batches
    ]


MASKS = {name: layouts.standard()[name] for name in ("random", "power_law", "empty_lines")} | {
    "tall": np.ones((40, 3), bool)
}


def served(mask, size, batches, tf32):
    """A layout like the mask, finer where dw would be too small for the kernels."""
    if size > 32:
        least = 128 if tf32 else 64
    elif tf32 and sum(batches) < 1024:
        least = 5 * size
    else:
        least = 32 if tf32 and size == 32 else 16
    while size * mask.sum() < least * sum(mask.shape):
        mask = np.kron(mask, np.ones((2, 2), bool))
    return SparsityLayout(mask, size)


@arithmetics
@pytest.mark.parametrize(
    "batches",
    [[512], [1004], [4100], [9000], [128] * 20, [64, 8, 0, 520, 200], [72] * 120],
    ids=["one", "tail", "long", "turns", "many", "uneven", "most"],
)
@axes
@sizes
def test_products_of_integers(size, axis, batches, tf32):
    for mask in MASKS.values():
        layout = served(mask, size, batches, tf32)
        Product(layout, integers(layout, batches, tf32), tf32, axis).check_exact()


def random_mask(rows=20, columns=30, density=0.4):
    return np.random.default_rng(0).random((rows, columns)) < density


@arithmetics
@pytest.mark.parametrize("batches", [[513], [1001, 3]], ids=["odd", "pairs"])
@sizes
def test_any_number_of_samples(size, batches, tf32):
    layout = served(random_mask(), size, batches, tf32)
    Product(layout, integers(layout, batches, tf32), tf32).check_exact()


@arithmetics
@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "unaligned"])
@axes
@sizes
def test_gates_and_any_alignment_of_dw(size, axis, shift, tf32):
    for batches in ([640], [8500]):
        layout = served(random_mask(), size, batches, tf32)
        gate = np.random.default_rng(2).choice(np.float32([0, 0.5]), layout.num_blocks)
        pairs = integers(layout, batches, tf32)
        Product(layout, pairs, tf32, axis, gate=gate, shift=shift).check_exact()


@arithmetics
@axes
@sizes
def test_results_repeat_bit_for_bit(size, axis, tf32):
    layout = served(random_mask(), size, [5000], tf32)
    pairs = [(normal(5000, layout.in_features), normal(5000, layout.out_features, seed=1))]
    one, two = (Product(layout, pairs, tf32, axis).dw for _ in range(2))
    assert one.view(hopper().int32).equal(two.view(hopper().int32))


# ---- accuracy ----


def normal(*shape, spread=0.0, seed=0):
    """Normal numbers times powers of two with exponents from -spread to spread."""
    torch = hopper()
    generator = torch.Generator("cuda").manual_seed(seed)
    exponents = torch.rand(shape, device="cuda", generator=generator) * 2 * spread - spread
    return torch.randn(shape, device="cuda", generator=generator) * torch.exp2(exponents.round())


def accuracy_pair(data, n, layout):
    torch = hopper()
    x, dy = normal(n, layout.in_features), normal(n, layout.out_features, seed=1)
    if data == "positive":
        x, dy = x.abs(), dy.abs()
    elif data == "spread":
        x = normal(n, layout.in_features, spread=15)
    elif data == "both spread":
        x = normal(n, layout.in_features, spread=8)
        dy = normal(n, layout.out_features, spread=8, seed=1)
    elif data == "samples":
        x = x * torch.exp2(30 * (normal(n, 1, seed=2) > 0))
    elif data == "features":
        x = x * torch.exp2(normal(1, layout.in_features, seed=2) * 20).clamp(2.0**-60, 2.0**60)
    elif data == "rare":
        x = x * (normal(n, layout.in_features, seed=2) > 3)
    elif data == "tiny":
        x, dy = x * 2.0**-80, dy * 2.0**-30
    elif data == "subnormal":
        x, dy = x * 2.0**-130, dy * 2.0**60
    return x, dy


DATA = (
    "normal", "positive", "spread", "both spread", "samples", "features", "rare", "tiny",
    "subnormal",
)  # fmt: skip


@pytest.mark.parametrize("size, axis", itertools.product((16, 32, 64), (1, 0)))
@pytest.mark.parametrize("data", DATA)
def test_float32_is_as_accurate_as_the_arithmetic_units(data, size, axis):
    layout = SparsityLayout(random_mask(1024 // size, 768 // size, 0.3), size)
    pair = accuracy_pair(data, 8192, layout)
    ours, general, dense = Product(layout, [pair], False, axis).errors()
    units = " ".join(f"{error * 2**24:.1f}" for error in (ours, general, dense))
    print(f"{data} B={size} axis {axis}: ours, general, dense {units}")
    assert ours <= max(1.5 * general, 2.0**-21), units


@pytest.mark.parametrize("data", ["normal", "positive", "spread", "samples", "features"])
@axes
@arithmetics
def test_errors_are_within_the_bounds(tf32, axis, data):
    layout = served(random_mask(), 32, [1500], tf32)
    product = Product(layout, [accuracy_pair(data, 1500, layout)], tf32, axis)
    expected, magnitude = (t.cpu().numpy() for t in (product.expected(), product.magnitude()))
    rounded = "tf32" if tf32 else None
    tolerance.check_product(product.dw.cpu().numpy(), expected, magnitude, 1500, "float32", rounded)


@axes
@arithmetics
@pytest.mark.parametrize("size", [16, 32, 64])
def test_infinity_and_nan_reach_what_depends_on_them_and_nothing_else(size, tf32, axis):
    torch = hopper()
    layout = served(random_mask(), size, [3000], tf32)
    clean = accuracy_pair("normal", 3000, layout)
    before = Product(layout, [clean], tf32, axis).dw
    x, dy = clean[0].clone(), clean[1].clone()
    x[5, 7], x[2500, 40], dy[17, 33] = float("inf"), float("nan"), float("-inf")
    x[:, 9], dy[:, 2] = 0, 0
    zeroed = Product(layout, [(clean[0] * (x != 0), clean[1] * (dy != 0))], tf32, axis).dw
    product = Product(layout, [(x, dy)], tf32, axis)
    spoilt = torch.zeros((layout.in_features, layout.out_features), device="cuda")
    spoilt[[7, 40]] = 1
    spoilt[:, 33] = 1
    spoilt = product.stored(spoilt) > 0
    assert product.dw.isfinite().equal(~spoilt)
    assert product.dw[~spoilt].equal(zeroed[~spoilt])
    assert before.isfinite().all()
    only = torch.zeros((layout.in_features, layout.out_features), device="cuda")
    only[7] = 1
    only[:, [2, 33]] = 0
    only = product.stored(only) > 0
    assert product.dw[only].isinf().float().mean() > 0.95
    assert (
        product.dw[only & product.dw.isinf()]
        .sign()
        .equal(
            product.stored(clean[1][5].sign().expand(layout.in_features, -1).contiguous())[
                only & product.dw.isinf()
            ]
        )
    )


@arithmetics
@axes
@sizes
def test_damaged_tables_give_no_wrong_address(size, axis, tf32):
    rng = np.random.default_rng(3)
    layout = served(random_mask(30, 20, 0.3), size, [520], tf32)

    def damage(lut):
        start = len(layout.lut)
        which = start + np.flatnonzero(rng.random(len(lut) - start) < 0.2)
        lut[which] = rng.choice([-1, 2**40, 2**31 - 1, -(2**62), 1000, 2**33 + 5], len(which))

    pairs = integers(layout, [520], tf32)
    for _ in range(5):
        Product(layout, pairs, tf32, axis, damage=damage)

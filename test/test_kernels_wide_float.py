"""The wide float32 kernel (`src/kernels/matmul_wide_float.cuh`): its tables, and on Hopper its
products, exactly and against float64.

Runs without TensorFlow where BLOCKSPARSE_KERNELS names the library of `make kernels`; needs torch
and an sm_90 GPU for the products.
"""

import importlib
import re

import numpy as np
import pytest
from without_tensorflow import ALONE, ROOT, hopper, needs_hopper, random_layout

_gpu_tables = importlib.import_module("blocksparse._gpu_tables")
_wide_float_table = importlib.import_module("blocksparse._wide_float_table")
kernels_module = importlib.import_module("blocksparse.testing.kernels")
layouts = importlib.import_module("blocksparse.testing.layouts")
tolerance = importlib.import_module("blocksparse.testing.tolerance")
SparsityLayout = importlib.import_module("blocksparse.layout").SparsityLayout

SIZES = (32, 64, 128)
# Samples enough for a tile of 64 on each of an H200's 132 multiprocessors.
LONG = 8448
arithmetics = pytest.mark.parametrize("tf32", [True, False], ids=["tf32", "float32"])


# ---- tables ----


def test_constants_agree():
    header = (ROOT / "src/kernels/matmul_wide_float_policy.h").read_text()
    values = dict(re.findall(r"constexpr int (kWideFloat\w+) = (\d+);", header))
    assert int(values["kWideFloatBlock"]) == _wide_float_table.BLOCK
    assert int(values["kWideFloatGroup"]) == _wide_float_table.GROUP


def test_no_table_where_the_kernel_does_not_serve():
    assert _wide_float_table.wide_float_sections(random_layout(16, 4, 4, 0.5)) == {}


def place_of_part(number, size):
    """(block, row, column) of a part of 32 x 32, its rows and columns counted in its block."""
    row = column = 0
    for i in range((size // 32).bit_length() - 1):
        number, part = divmod(number, 4)
        row |= part // 2 << i
        column |= part % 2 << i
    return number, row, column


@pytest.mark.parametrize("density", [0.03, 0.3, 0.9])
@pytest.mark.parametrize("size", SIZES)
def test_a_table_names_each_part_once_and_never_two_in_one_place(size, density):
    layout = random_layout(size, 17, 23, density)
    sections = _wide_float_table.wide_float_sections(layout)
    parts = size // 32
    group_columns = _wide_float_table.GROUP
    for name, is_dx in (("wide_float_fprop", False), ("wide_float_dx", True)):
        vector, (num_groups, num_entries, _) = sections[name]
        ends = np.cumsum([num_groups + 1, num_groups * group_columns, 2 * num_entries])
        ptr, columns, entries, ids = np.split(vector, ends)
        columns, entries = columns.reshape(num_groups, -1), entries.reshape(-1, 2)
        assert sorted(columns[columns >= 0]) == list(range(layout.mask.shape[not is_dx] * parts))
        found = []
        for group in range(num_groups):
            places = []
            for i in range(ptr[group], ptr[group + 1]):
                low, first = entries[i]
                bits = [j for j in range(group_columns) if low >> 32 + j & 1]
                for j, number in zip(bits, ids[first : first + len(bits)], strict=True):
                    block, *part = place_of_part(number, size)
                    row, column = layout.coordinates[block] * parts + part
                    where = (column, row) if is_dx else (row, column)
                    assert where == (low & 0xFFFF, columns[group, j])
                    found.append(number)
                start, distance = low >> 16 & 0x7F, low >> 23 & 0x1F
                stop = start + 4 + len(bits)
                assert stop <= _wide_float_table.RING_BYTES // 4096
                places.append((start, stop, distance))
            for i, (start, stop, distance) in enumerate(places):
                for back in range(1, distance):
                    other_start, other_stop, _ = places[(i - back) % len(places)]
                    assert other_stop <= start or stop <= other_start
        assert sorted(found) == list(range(layout.num_blocks * parts**2))


# ---- products ----


class Product:
    """x W or dy W^T by the wide float32 kernel: `y`, and what float64 makes of it.

    Args:
      x: float32 of (n, features), given to the kernel in the order of `axis`.
    """

    def __init__(self, layout, x, w, tf32, axis=1, is_dx=False, gate=None, lut=None):
        torch = self.torch = hopper()
        table, plan = _gpu_tables.gpu_tables(layout)
        table = torch.from_numpy((table if lut is None else lut).copy()).cuda()
        kernels = kernels_module.Kernels(ALONE)
        n = len(x)
        features = layout.in_features if is_dx else layout.out_features
        y = torch.full((n, features) if axis == 1 else (features, n), float("nan"), device="cuda")
        gates = None if gate is None else torch.from_numpy(gate).cuda()
        arguments = (plan, table, x if axis == 1 else x.T.contiguous(), w, y)
        kwargs = dict(dtype="float32", batch=n, feature_axis=axis, is_dx=is_dx, gate=gates)
        kwargs |= dict(allow_tf32=tf32, device=kernels_module.GPU)
        size = kernels.workspace_bytes(*arguments, **kwargs)
        assert size > 0  # or another kernel serves these arguments
        workspace = torch.empty(size, dtype=torch.uint8, device="cuda")
        kernels.matmul(*arguments, workspace=workspace, **kwargs)
        torch.cuda.synchronize()
        self.y = y if axis == 1 else y.T
        self.layout, self.x, self.w, self.gate, self.is_dx = layout, x, w, gate, is_dx

    def dense(self):
        """W or W^T in float64."""
        torch, layout = self.torch, self.layout
        w = self.w.double()
        if self.gate is not None:
            gate = torch.from_numpy(self.gate).cuda()
            w = torch.where(gate[:, None, None] == 0, 0, w * gate[:, None, None])
        size = layout.block_size
        grid = torch.zeros((*layout.mask.shape, size, size), dtype=w.dtype, device="cuda")
        rows, columns = torch.from_numpy(layout.coordinates.astype(np.int64)).cuda().T
        grid[rows, columns] = w
        dense = grid.transpose(1, 2).reshape(layout.in_features, layout.out_features)
        return dense.T if self.is_dx else dense

    def errors(self):
        """|y - x W| / (|x| |W|), and the same of a dense float32 product."""
        torch = self.torch
        x, w = self.x.double(), self.dense()
        expected, magnitude = x @ w, x.abs() @ w.abs()
        magnitude[magnitude == 0] = 1
        torch.backends.cuda.matmul.allow_tf32 = False
        plain = self.x @ w.float()
        return [((y.double() - expected).abs() / magnitude).max().item() for y in (self.y, plain)]

    def check_exact(self):
        assert self.torch.equal(self.y.double(), self.x.double() @ self.dense())


def integers(shape, largest, seed=0):
    """Nonzero integers."""
    values = np.random.default_rng(seed).integers(1, largest + 1, size=shape).astype(np.float32)
    signs = np.random.default_rng(seed + 1).choice(np.float32([-1, 1]), size=shape)
    return hopper().from_numpy(values * signs).cuda()


def whole(layout, n, tf32, axis=1, is_dx=False, **kwargs):
    """A product of integers whose sums are exact; those of x need both halves."""
    features = layout.out_features if is_dx else layout.in_features
    x = integers((n, features), 3 if tf32 else 5000, seed=n)
    w = integers(layout.w_shape, 2, seed=n + 2)
    return Product(layout, x, w, tf32, axis, is_dx, **kwargs)


@needs_hopper
@arithmetics
@pytest.mark.parametrize("is_dx", [False, True], ids=["fprop", "dx"])
@pytest.mark.parametrize("axis", [1, 0])
@pytest.mark.parametrize("size", SIZES)
def test_products_of_integers(size, axis, is_dx, tf32):
    for name in ("random", "power_law", "empty_lines"):
        layout = SparsityLayout(layouts.standard()[name], size)
        for n in (LONG, LONG + 4, 17000) if axis == 0 else (LONG, LONG + 3, 17001):
            whole(layout, n, tf32, axis, is_dx).check_exact()


@needs_hopper
@arithmetics
@pytest.mark.parametrize("axis", [1, 0])
@pytest.mark.parametrize("density", [0.1, 0.7])
def test_long_lists(density, axis, tf32):
    """More entries than barriers, in several groups."""
    for size in SIZES:
        layout = random_layout(size, 2560 // size, 15, density)
        whole(layout, LONG, tf32, axis).check_exact()


@needs_hopper
@arithmetics
@pytest.mark.parametrize("is_dx", [False, True], ids=["fprop", "dx"])
@pytest.mark.parametrize("size", SIZES)
def test_gates(size, is_dx, tf32):
    layout = random_layout(size, 9, 20, 0.5)
    gate = np.random.default_rng(0).choice(np.float32([0, 0.5, 1, 2]), layout.num_blocks)
    whole(layout, LONG, tf32, 1, is_dx, gate=gate).check_exact()
    whole(layout, LONG, tf32, 0, is_dx, gate=np.zeros_like(gate)).check_exact()


@needs_hopper
@arithmetics
def test_a_block_with_gate_0_is_not_read(tf32):
    layout = SparsityLayout(np.ones((3, 2)), 32)
    gate = np.float32(layout.coordinates[:, 0] != 1)  # nothing reads the second block of x
    x, w = integers((LONG, 96), 3), integers(layout.w_shape, 3)
    spoilt_x, spoilt_w = x.clone(), w.clone()
    spoilt_x[:, 32:64] = float("nan")
    spoilt_w[hopper().from_numpy(gate == 0).cuda()] = float("nan")
    product = Product(layout, spoilt_x, spoilt_w, tf32, gate=gate)
    product.x, product.w = x, w
    product.check_exact()


@needs_hopper
@arithmetics
def test_results_repeat_bit_for_bit(tf32):
    torch = hopper()
    layout = random_layout(32, 40, 40, 0.2)
    x = torch.randn((LONG, 1280), device="cuda")
    w = torch.randn(layout.w_shape, device="cuda")
    one, two = (Product(layout, x, w, tf32).y for _ in range(2))
    assert one.view(torch.int32).equal(two.view(torch.int32))


# ---- accuracy ----


def normal(*shape, spread=0.0, seed=0):
    """Normal numbers times powers of two with exponents from -spread to spread."""
    torch = hopper()
    generator = torch.Generator("cuda").manual_seed(seed)
    exponents = torch.rand(shape, device="cuda", generator=generator) * 2 * spread - spread
    return torch.randn(shape, device="cuda", generator=generator) * torch.exp2(exponents.round())


@needs_hopper
@pytest.mark.parametrize("axis", [1, 0])
@pytest.mark.parametrize("density", [0.1, 0.6])
@pytest.mark.parametrize("data", ["normal", "positive", "samples", "features", "weights", "tiny"])
def test_float32_is_as_accurate_as_a_dense_float32_product(data, density, axis):
    layout = random_layout(32, 64, 24, density)
    x, w = normal(LONG, 2048), normal(*layout.w_shape, seed=1)
    if data == "positive":
        x, w = x.abs(), w.abs()
    elif data == "samples":
        x = x * hopper().exp2(30 * (normal(LONG, 1, seed=2) > 0))
    elif data == "features":
        x = normal(LONG, 2048, spread=8)
    elif data == "weights":
        w = normal(*layout.w_shape, spread=8)
    elif data == "tiny":
        x, w = x * 2.0**-60, w * 2.0**-40
    ours, plain = Product(layout, x, w, False, axis).errors()
    assert ours <= max(1.5 * plain, 2.0**-22), (ours * 2**24, plain * 2**24)


@needs_hopper
@pytest.mark.parametrize("is_dx", [False, True], ids=["fprop", "dx"])
@pytest.mark.parametrize("axis", [1, 0])
@arithmetics
def test_errors_are_within_the_bounds(tf32, axis, is_dx):
    layout = random_layout(32, 64, 60, 0.1)
    features = layout.out_features if is_dx else layout.in_features
    product = Product(layout, normal(LONG, features), normal(*layout.w_shape), tf32, axis, is_dx)
    x, w = product.x[:500].double().cpu().numpy(), product.dense().cpu().numpy()
    counts = (w != 0).sum(axis=0)[None]
    rounded = "tf32" if tf32 else None
    tolerance.check_product(
        product.y[:500].cpu().numpy(), x @ w, np.abs(x) @ np.abs(w), counts, "float32", rounded
    )


@needs_hopper
@pytest.mark.parametrize("axis", [1, 0])
@arithmetics
def test_infinity_and_nan_reach_what_depends_on_them_and_nothing_else(tf32, axis):
    torch = hopper()
    layout = random_layout(32, 30, 20, 0.3)
    x, w = normal(LONG, 960), normal(*layout.w_shape)
    clean = Product(layout, x, w, tf32, axis).y
    spoilt_x, spoilt_w = x.clone(), w.clone()
    for row, column, value in ((5, 77, "inf"), (900, 300, "-inf"), (2000, 301, "nan")):
        spoilt_x[row, column] = float(value)
    spoilt_w[40, 3, 17], spoilt_w[50, 9, 2] = float("inf"), float("nan")
    product = Product(layout, spoilt_x, spoilt_w, tf32, axis)
    dense = product.dense()
    stored = Product(layout, x, torch.ones_like(w), tf32, axis).dense()
    depends = (~spoilt_x.isfinite()).double() @ stored + (~dense.isfinite()).any(dim=0)
    assert product.y.isfinite().equal(depends == 0)
    assert product.y[depends == 0].equal(clean[depends == 0])
    assert product.y[5, stored[77] > 0].isinf().sum() > 0.9 * (stored[77] > 0).sum()
    assert product.y[2000, stored[301] > 0].isnan().all()


@needs_hopper
@arithmetics
@pytest.mark.parametrize("axis", [1, 0])
@pytest.mark.parametrize("size", SIZES)
def test_damaged_tables_give_no_wrong_address_and_no_hang(size, axis, tf32):
    rng = np.random.default_rng(2)
    layout = random_layout(size, 40, 30, 0.3)
    sound, _ = _gpu_tables.gpu_tables(layout)
    x, w = normal(LONG, layout.in_features), normal(*layout.w_shape)
    for share in (0.002, 0.02, 0.2):
        for _ in range(3):
            lut = sound.copy()
            damaged = rng.random(lut.size) < share
            junk = rng.integers(-(2**63), 2**63 - 1, lut.size)
            junk[::3] = lut[::3] ^ 1 << rng.integers(0, 63, len(lut[::3]))
            lut[damaged] = junk[damaged]
            for gate in (None, np.ones(layout.num_blocks, np.float32)):
                Product(layout, x, w, tf32, axis, lut=lut, gate=gate)

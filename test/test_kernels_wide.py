"""The wide kernel (`src/kernels/matmul_wide.cuh`): its tables, and on Hopper its products, exactly.

Runs without TensorFlow where BLOCKSPARSE_KERNELS names the library of `make kernels`; needs torch
and an sm_90 GPU for the products.
"""

import importlib
import re

import numpy as np
import pytest
from without_tensorflow import ALONE, ROOT, hopper, needs_hopper, random_layout

_column_groups = importlib.import_module("blocksparse._column_groups")
_gpu_tables = importlib.import_module("blocksparse._gpu_tables")
_wide_table = importlib.import_module("blocksparse._wide_table")
kernels_module = importlib.import_module("blocksparse.testing.kernels")
layouts = importlib.import_module("blocksparse.testing.layouts")
SparsityLayout = importlib.import_module("blocksparse.layout").SparsityLayout

SIZES = (32, 64, 128)
WIDE = ("wide_fprop", "wide_dx")
# Samples enough for a tile of 64 on each of an H200's 132 multiprocessors.
LONG = 8448


# ---- tables ----


def test_constants_agree():
    header = (ROOT / "src/kernels/matmul_wide_policy.h").read_text()
    values = dict(re.findall(r"constexpr int (kWide\w+) = ([\d *]+);", header))
    values = {name: np.prod([int(f) for f in value.split("*")]) for name, value in values.items()}
    assert values["kWideFeatures"] == _wide_table.FEATURES
    assert values["kWideRows"] == _wide_table.ROWS
    assert values["kWideRingBytes"] == _wide_table.RING_BYTES
    assert values["kWideReach"] == _wide_table.REACH


def test_no_table_where_the_kernel_does_not_serve():
    assert _wide_table.wide_sections(random_layout(16, 4, 4, 0.5)) == {}


@pytest.mark.parametrize("density", [0.03, 0.3, 0.9])
@pytest.mark.parametrize("size", SIZES)
def test_a_table_names_each_block_once_and_never_two_in_one_place(size, density):
    layout = random_layout(size, 37, 53, density)
    sections = _wide_table.wide_sections(layout)
    block = min(size, 64)
    halves = size // block
    per_group = _wide_table.FEATURES // block
    for name, is_dx in (("wide_fprop", False), ("wide_dx", True)):
        vector, (num_groups, num_entries, workers_granules) = sections[name]
        num_workers = workers_granules & 0xFF
        num_granules = 0
        ends = np.cumsum([num_groups + 1, num_groups * per_group, 2 * num_entries])
        ptr, columns, entries, ids = np.split(vector, ends)
        columns, entries = columns.reshape(num_groups, per_group), entries.reshape(-1, 2)
        assert sorted(columns[columns >= 0]) == list(range(layout.mask.shape[not is_dx] * halves))
        found = []
        for group in range(num_groups):
            places = []
            for i in range(ptr[group], ptr[group + 1]):
                low, first = entries[i]
                is_room = i >= ptr[group + 1] - num_workers
                masks = [low >> 32 & 0xFFF, low >> 44 & 0xFFF]
                bits = [(k, j) for k in (0, 1) for j in range(12) if masks[k] >> j & 1]
                assert (low >> 28 & 1) == any(k for k, _ in bits)
                for (k, j), number in zip(bits, ids[first : first + len(bits)], strict=True):
                    storage, part = divmod(number, halves**2)
                    row, column = layout.coordinates[storage] * halves + divmod(part, halves)
                    where = (column, row) if is_dx else (row, column)
                    assert where == ((low & 0xFFFF) + k, columns[group, j])
                    found.append(number)
                size_now = _wide_table.ROWS // block * (1 + (low >> 28 & 1)) + len(bits)
                num_granules += 0 if is_room else size_now
                if is_room:
                    size_now = _wide_table.ROWS // block * per_group // num_workers
                start, distance = low >> 16 & 0x7F, low >> 23 & 0x1F
                assert start + size_now <= _wide_table.RING_BYTES // (2 * block * block)
                assert 1 <= distance <= _wide_table.REACH
                places.append((start, start + size_now, distance))
            for i, (start, stop, distance) in enumerate(places):
                for back in range(1, distance):
                    other_start, other_stop, _ = places[(i - back) % len(places)]
                    assert other_stop <= start or stop <= other_start
        assert sorted(found) == list(range(layout.num_blocks * halves**2))
        assert workers_granules >> 8 == num_granules // num_groups


def test_groups_share_rows_and_cost_the_same():
    """Better than the natural order where there is something to gain, never worse."""
    rng = np.random.default_rng(0)
    hidden = rng.permutation(96)  # twelve kinds of columns that share nothing
    mask = np.arange(96)[:, None] // 8 == (hidden // 8)[None]
    groups = _column_groups.column_groups(mask, 8, 4, num_groups=12)
    rows = np.where(groups[..., None] >= 0, mask.T[groups], False).any(axis=1).sum(axis=1)
    assert rows.tolist() == [8] * 12


def test_the_natural_order_stays_where_it_is_best():
    mask = np.kron(np.eye(4), np.ones((5, 6))).astype(bool)
    groups = _column_groups.column_groups(mask, 6, 4, num_groups=4)
    assert groups.tolist() == np.arange(24).reshape(4, 6).tolist()


def test_a_larger_mask_is_ordered_evenly_too():
    mask = np.random.default_rng(0).random((1500, 1400)) < 0.02
    groups = _column_groups.column_groups(mask, 12, 4, num_groups=132, power=32)
    rows = np.where(groups[..., None] >= 0, mask.T[groups], False).any(axis=1).sum(axis=1)
    natural = mask.reshape(1500, 140, 10).any(axis=2).sum(axis=0) * 140 / 132
    assert rows.mean() < 0.92 * natural.mean()
    assert rows.max() < 1.1 * rows.mean()


@pytest.mark.parametrize("columns, least, expected", [(128, 12, 12), (320, 30, 33), (480, 45, 66)])
def test_many_groups_fill_waves_of_thread_blocks(columns, least, expected):
    """Tiles of 128 samples on 132 multiprocessors; few groups stay as large as they can be."""

    def num_tiles(num_groups, batch):
        return -(-num_groups * (batch // 128) // 132)

    mask = np.random.default_rng(0).random((columns, columns)) < 6400 / columns**2
    found = _column_groups.count_groups(mask, least, num_tiles, 4, 100)
    assert found == expected


def test_workers_of_a_group_have_even_shares():
    mask = np.zeros((16, 12), bool)
    mask[:, :4] = True  # the first worker would have all the work
    groups = _column_groups.balance_workers(np.arange(12)[None], mask, 3)
    shares = mask[:, groups[0]].reshape(16, 3, 4).sum(axis=(0, 2))
    assert shares.max() <= 32


# ---- products ----


def tables(layout):
    """(lut, plan) without what groups load, by which a short minibatch might be streamed."""
    if "wide alone" not in layout.cache:
        quick = _gpu_tables.quick_sections if layout.quick_plan else _gpu_tables.gpu_sections
        sections = {
            name: (vector, (*sizes[:2], sizes[2] & 0xFF) if name in WIDE else sizes)
            for name, (vector, sizes) in quick(layout).items()
        }
        layout.cache["wide alone"] = layout.join_sections(sections)
    return layout.cache["wide alone"]


class Product:
    """x W or dy W^T of small integers, exact in float32, by the wide kernel."""

    def __init__(self, layout, n, dtype, axis, is_dx, gate=None, lut=None, spoils=False):
        torch = self.torch = hopper()
        self.layout, self.axis, self.is_dx, self.gate = layout, axis, is_dx, gate
        rng = np.random.default_rng(n)
        features = [layout.in_features, layout.out_features]
        if is_dx:
            features.reverse()
        shapes = [(n, f) if axis == 1 else (f, n) for f in features]
        self.x, self.w = (
            torch.from_numpy(rng.choice([-1.0, 1.0, 2.0], s).astype(np.float32)).cuda()
            for s in (shapes[0], layout.w_shape)
        )
        x, w = self.x, self.w
        if spoils:  # what no open gate leads to
            unused = gate == 0
            rows = np.setdiff1d(layout.coordinates[unused, 0], layout.coordinates[~unused, 0])
            x, w = x.clone(), w.clone()
            w[torch.from_numpy(unused).cuda()] = float("nan")
            for row in rows * layout.block_size:
                x[:, row : row + layout.block_size] = float("nan")
        self.type = getattr(torch, dtype)
        y = torch.full(shapes[1], float("nan"), dtype=self.type, device="cuda")
        table, plan = tables(layout)
        table = torch.from_numpy((table if lut is None else lut).copy()).cuda()
        table[: len(layout.lut)] = 0  # or another kernel could have made the product
        kernels = kernels_module.Kernels(ALONE)
        gates = None if gate is None else torch.from_numpy(gate).cuda()
        arguments = (plan, table, x.to(self.type), w.to(self.type), y)
        kwargs = dict(dtype=dtype, batch=n, feature_axis=axis, is_dx=is_dx, gate=gates)
        kwargs["device"] = kernels_module.GPU
        self.workspace_bytes = kernels.workspace_bytes(*arguments, **kwargs)
        workspace = torch.empty(self.workspace_bytes, dtype=torch.uint8, device="cuda")
        kernels.matmul(*arguments, workspace=workspace, **kwargs)
        torch.cuda.synchronize()
        self.y = y

    def expected(self):
        torch, layout = self.torch, self.layout
        w = self.w
        if self.gate is not None:
            w = w * torch.from_numpy(self.gate).cuda()[:, None, None]
        size = layout.block_size
        grid = torch.zeros((*layout.mask.shape, size, size), device="cuda")
        rows, columns = torch.from_numpy(layout.coordinates.astype(np.int64)).cuda().T
        grid[rows, columns] = w
        dense = grid.transpose(1, 2).reshape(layout.in_features, layout.out_features)
        dense = dense.T if self.is_dx else dense
        x = self.x if self.axis == 1 else self.x.T
        y = (x.double() @ dense.double()).float()
        return (y if self.axis == 1 else y.T).to(self.type)

    def check(self):
        assert self.torch.equal(self.y, self.expected())


@needs_hopper
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("is_dx", [False, True], ids=["fprop", "dx"])
@pytest.mark.parametrize("axis", [1, 0])
@pytest.mark.parametrize("size", SIZES)
def test_products(size, axis, is_dx, dtype):
    for name in ("random", "power_law", "empty_lines"):
        layout = SparsityLayout(layouts.standard()[name], size)
        for n in (LONG, LONG + 8, 17000) if axis == 0 else (LONG, LONG + 3, 17001):
            Product(layout, n, dtype, axis, is_dx).check()


@needs_hopper
@pytest.mark.parametrize("is_dx", [False, True], ids=["fprop", "dx"])
@pytest.mark.parametrize("axis", [1, 0])
def test_w_is_packed_where_it_is_read_often(axis, is_dx):
    shape = (760, 40) if is_dx else (40, 760)
    for n, is_packed in ((200, False), (512, False), (520, True), (1600, True)):
        product = Product(random_layout(32, *shape, 0.1), n, "bfloat16", axis, is_dx)
        product.check()
        assert (product.workspace_bytes > 0) == is_packed


@needs_hopper
@pytest.mark.parametrize("density", [0.1, 0.7])
@pytest.mark.parametrize("size", SIZES)
def test_long_lists(size, density):
    """More entries than barriers, in several groups."""
    for axis in (0, 1):
        layout = random_layout(size, 70, 15, density)
        Product(layout, LONG, "bfloat16", axis, False).check()


@needs_hopper
@pytest.mark.parametrize("is_dx", [False, True], ids=["fprop", "dx"])
@pytest.mark.parametrize("size", SIZES)
def test_gates(size, is_dx):
    layout = random_layout(size, 9, 20, 0.5)
    gate = np.random.default_rng(0).choice(np.float32([0, 0.5, 1, 2]), layout.num_blocks)
    Product(layout, LONG, "bfloat16", 1, is_dx, gate).check()
    Product(layout, LONG, "float16", 0, is_dx, np.zeros_like(gate)).check()


@needs_hopper
@pytest.mark.parametrize("size", SIZES)
def test_a_block_with_gate_0_is_not_read(size):
    layout = SparsityLayout(np.ones((3, 2)), size)
    gate = np.float32(layout.coordinates[:, 0] != 1)  # nothing reads the second block of x
    product = Product(layout, LONG, "bfloat16", 1, False, gate, spoils=True)
    product.check()


@needs_hopper
def test_results_repeat_bit_for_bit():
    layout = random_layout(32, 40, 40, 0.2)
    one, two = (Product(layout, LONG, "bfloat16", 1, False).y for _ in range(2))
    assert one.view(hopper().int16).equal(two.view(hopper().int16))


@needs_hopper
@pytest.mark.parametrize("axis", [1, 0])
@pytest.mark.parametrize("size", SIZES)
def test_damaged_tables_give_no_wrong_address_and_no_hang(size, axis):
    rng = np.random.default_rng(2)
    layout = random_layout(size, 40, 30, 0.3)
    sound, _ = _gpu_tables.gpu_tables(layout)
    for share in (0.002, 0.02, 0.2):
        for _ in range(5):
            lut = sound.copy()
            damaged = rng.random(lut.size) < share
            junk = rng.integers(-(2**63), 2**63 - 1, lut.size)
            junk[::3] = lut[::3] ^ 1 << rng.integers(0, 63, len(lut[::3]))
            lut[damaged] = junk[damaged]
            for gate in (None, np.ones(layout.num_blocks, np.float32)):
                Product(layout, LONG, "bfloat16", axis, False, gate, lut)


def test_quick_plan_searches_nothing_and_gives_the_same_products():
    mask = np.random.default_rng(3).random((60, 50)) < 0.2
    quick = SparsityLayout(mask, 32, quick_plan=True)
    sections = _gpu_tables.quick_sections(quick)
    names = ("wide_fprop", "wide_dx", "wide_float_fprop", "wide_float_dx")
    assert set(sections) == set(names)
    vector, (num_groups, _, _) = sections["wide_fprop"]
    columns = vector[num_groups + 1 : num_groups + 1 + num_groups * 12]
    assert columns[columns >= 0].tolist() == list(range(50))
    assert (
        _gpu_tables.gpu_tables(quick)[0].size
        < _gpu_tables.gpu_tables(SparsityLayout(mask, 32))[0].size
    )
    if hopper():
        Product(quick, LONG, "bfloat16", 1, False).check()

"""dw by regions (`src/kernels/matmul_region_dw.cuh`): tables, and on Hopper products, exactly.

Runs without TensorFlow where BLOCKSPARSE_KERNELS names the library of `make kernels`; needs torch
and an sm_90 GPU for the products.
"""

import importlib
import re

import numpy as np
import pytest
from without_tensorflow import ALONE, ROOT, hopper, needs_hopper

region_division = importlib.import_module("blocksparse._region_division")
table = importlib.import_module("blocksparse._region_dw_table")
large_table = importlib.import_module("blocksparse._region_large_table")
kernels_module = importlib.import_module("blocksparse.testing.kernels")
layouts = importlib.import_module("blocksparse.testing.layouts")
SparsityLayout = importlib.import_module("blocksparse.layout").SparsityLayout

RNG = np.random.default_rng(0)
MASKS = layouts.standard() | {
    "tenth": RNG.random((70, 90)) < 0.1,
    "half": RNG.random((40, 33)) < 0.5,
    "sparse": RNG.random((150, 140)) < 0.01,
    "hubs": layouts.power_law(RNG, 60, 70),
}
ALL_CASES = [
    pytest.param(name, size, axis, id=f"{name}-B{size}-axis{axis}")
    for name in MASKS
    for size in (8, 16, 32, 64, 128)
    for axis in (0, 1)
]
CASES = [case for case in ALL_CASES if case.values[1] <= 32]


# ---- tables ----


def test_constants_agree():
    text = (ROOT / "src/kernels/matmul_region_dw.h").read_text()
    values = dict(re.findall(r"constexpr int k(\w+Region\w+) = (\d+);", text))
    assert int(values["MaxRegionChunks"]) == region_division.MAX_CHUNKS
    assert int(re.search(r"kRegionChunkWords = (\d+)", text)[1]) == table.CHUNK_WORDS
    for name, of_16 in (("Warps", table.WARPS), ("Run", table.RUNS)):
        found = re.search(rf"Region{name}\(int unit\) {{ return unit == 16 \? (\d+) : (\d+)", text)
        assert tuple(map(int, found.groups())) == (of_16[16], of_16[32])
    chunks = re.search(r"RegionChunk\(.*?feature_axis == 1 \? (\d+) : (\d+);", text, re.DOTALL)
    assert tuple(map(int, chunks.groups())) == table.CHUNKS[::-1]
    kernel = (ROOT / "src/kernels/matmul_region_dw_ring.cuh").read_text()
    slots = re.search(r"kSlots = kUnit == 16 \? (\d+) : (\d+);", kernel)
    assert tuple(map(int, slots.groups())) == (table.SLOTS[16], table.SLOTS[32])


def test_constants_of_large_blocks_agree():
    text = (ROOT / "src/kernels/matmul_region_dw_large.h").read_text()
    values = {name: int(value) for name, value in re.findall(r"kLargeDw(\w+) = (\d+);", text)}
    assert values["Words"] == large_table.WORDS
    assert values["FirstChunk"] == large_table.FIRST_CHUNK
    assert values["FirstBlock"] == large_table.FIRST_BLOCK
    assert values["FirstPlace"] == large_table.FIRST_PLACE
    for name, limits in (("Blocks", large_table.MAX_BLOCKS), ("Chunks", large_table.MAX_CHUNKS)):
        found = re.search(rf"LargeDw{name}\(.*?block_size == 64 \? (\d+) : (\d+);", text, re.DOTALL)
        assert tuple(map(int, found.groups())) == (limits[64], limits[128])


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("is_quick", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_regions_of_large_blocks_hold_each_block_once(name, size, is_quick):
    layout = SparsityLayout(MASKS[name], size)
    section, (num_regions, clocks, _) = table.region_dw_sections(layout, is_quick)["dw_regions_0"]
    words = section.view(np.int32).reshape(num_regions, large_table.WORDS)
    assert clocks > 0
    found = {}
    for region in words.tolist():
        num_x, num_dy, num_blocks = region[:3]
        assert min(num_x, num_dy) > 0 and num_x + num_dy <= large_table.MAX_CHUNKS[size]
        assert 0 < num_blocks <= large_table.MAX_BLOCKS[size]
        chunks = region[large_table.FIRST_CHUNK :]
        for i in range(num_blocks):
            block, place = (
                region[first + i] for first in (large_table.FIRST_BLOCK, large_table.FIRST_PLACE)
            )
            assert block not in found
            assert place % 256 < num_x and place // 256 < num_dy
            found[block] = (chunks[place % 256], chunks[num_x + place // 256])
    assert [found[block] for block in range(layout.num_blocks)] == [
        tuple(place) for place in layout.coordinates.tolist()
    ]


@pytest.mark.parametrize("is_quick", [False, True])
@pytest.mark.parametrize("name, size, axis", CASES)
def test_walks_pass_each_block_once(name, size, axis, is_quick):
    layout = SparsityLayout(MASKS[name], size)
    sections = table.region_dw_sections(layout, is_quick, axes=(axis,))
    section, (num_regions, unit_clocks, num_entries) = sections[f"dw_regions_{axis}"]
    unit = unit_clocks & 0xFF
    warps, run, per_edge = table.WARPS[unit], table.RUNS[unit], unit // size
    words = (per_edge**2 + 2) // 2 * 2
    parts = np.cumsum([num_regions * warps + 1, num_regions * table.CHUNK_WORDS // 2])
    first, chunks, entries = np.split(section, parts)
    chunks = chunks.view(np.int32).reshape(num_regions, -1)
    entries = entries.view(np.int32).reshape(num_entries, words)
    lengths = np.diff(first)
    assert first[-1] == num_entries
    assert lengths.max() <= table.SLOTS[unit] + table.SLOTS[unit] // run
    assert (chunks[:, :2] > 0).all()
    assert (chunks[:, :2].sum(axis=1) <= region_division.MAX_CHUNKS).all()

    per_chunk = table.CHUNKS[axis] // unit
    region = np.repeat(np.arange(len(lengths)), lengths) // warps
    is_step = (np.arange(num_entries) - np.repeat(first[:-1], lengths)) % (run + 1) > 0
    vertex = entries[:, 0]
    num_x = chunks[region, 0] * per_chunk
    assert (vertex >= 0).all() and (vertex < chunks[region, :2].sum(axis=1) * per_chunk).all()
    ends = np.stack([np.roll(vertex, 1), vertex])[:, is_step]
    num_x, region = num_x[is_step], region[is_step]
    assert ((ends >= num_x).sum(axis=0) == 1).all(), "x and dy take turns"
    ends = np.sort(ends, axis=0)
    slots = 2 + ends // per_chunk
    coordinates = chunks[region, slots] * per_chunk + ends % per_chunk
    coordinates = coordinates - np.stack([0 * num_x, num_x % per_chunk])
    found = {}
    for i in range(per_edge**2):
        for block, row, column in zip(entries[is_step, 1 + i], *coordinates, strict=True):
            if block >= 0:
                assert block not in found
                found[block] = (row * per_edge + i // per_edge, column * per_edge + i % per_edge)
    assert [found[block] for block in range(layout.num_blocks)] == [
        tuple(place) for place in layout.coordinates.tolist()
    ]
    assert (entries[~is_step, 1 : 1 + per_edge**2] == -1).all()


# ---- products ----


@pytest.fixture(scope="module")
def kernels():
    return kernels_module.Kernels(ALONE)


def run(kernels, layout, axis, batches, dtype, dw_dtype, gate=None, shift=0, damage=None):
    """(dw, reference) of small integers, float64."""
    torch = hopper()
    types = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
    sections = table.region_dw_sections(layout)
    if layout.block_size <= 32:  # without clocks, so that the general kernel is never preferred
        sections = {n: (v, (p[0], p[1] & 0xFF, p[2])) for n, (v, p) in sections.items()}
    lut, plan = layout.join_sections(sections)
    lut = np.array(lut)
    if damage is not None:
        damage(lut)
    lut = torch.from_numpy(lut).cuda()
    generator = torch.Generator("cuda").manual_seed(1)
    pairs, dense = [], 0.0
    for n in batches:
        shapes = [
            (n, f) if axis == 1 else (f, n) for f in (layout.in_features, layout.out_features)
        ]
        x, dy = (
            torch.randint(-1, 2, shape, device="cuda", generator=generator).to(types[dtype])
            for shape in shapes
        )
        pairs.append((x, dy, n))
        x, dy = (t.double() if axis == 1 else t.double().T for t in (x, dy))
        dense = dense + x.T @ dy
    size = layout.block_size
    rows, columns = torch.from_numpy(np.array(layout.coordinates)).cuda().long().T
    grid = dense.view(layout.in_blocks, size, layout.out_blocks, size).permute(0, 2, 1, 3)
    expected = grid[rows, columns]
    buffer = torch.full(
        (layout.num_blocks * size**2 + shift,), float("nan"), device="cuda", dtype=types[dw_dtype]
    )
    dw = buffer[shift:]
    if gate is not None:
        gate = torch.from_numpy(gate).cuda()
        expected = expected * (gate != 0)[:, None, None]
    kwargs = {
        "dtype": dtype,
        "dw_dtype": dw_dtype,
        "feature_axis": axis,
        "gate": gate,
        "device": kernels_module.GPU,
    }
    size_bytes = kernels.dw_workspace_bytes(plan, lut, pairs, **kwargs)
    workspace = torch.full((size_bytes // 4,), float("nan"), device="cuda")
    kernels.matmul_dw(plan, lut, pairs, dw, workspace=workspace, **kwargs)
    torch.cuda.synchronize()
    return dw.double().cpu().numpy(), expected.cpu().numpy().ravel()


@needs_hopper
@pytest.mark.parametrize(
    "batches",
    [[512], [1000], [2048], [128] * 20, [64, 8, 0, 520, 200], [72] * 12 + [0, 8]],
    ids=["one", "tail", "split", "many", "uneven", "short"],
)
@pytest.mark.parametrize("name, size, axis", ALL_CASES)
def test_products(kernels, name, size, axis, batches):
    dw, expected = run(
        kernels, SparsityLayout(MASKS[name], size), axis, batches, "bfloat16", "float32"
    )
    assert (dw == expected).all()


@needs_hopper
@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("size", [8, 16, 32, 64, 128])
def test_float16_gates_and_any_alignment(kernels, size, shift):
    layout = SparsityLayout(MASKS["tenth"], size)
    gate = (np.random.default_rng(2).random(layout.num_blocks) < 0.5).astype(np.float32)
    for axis in (0, 1):
        dw, expected = run(
            kernels, layout, axis, [640], "float16", "float16", gate=gate, shift=shift
        )
        assert (dw == expected).all()


@needs_hopper
@pytest.mark.parametrize("size", [8, 16, 32, 64, 128])
def test_damaged_tables_give_no_wrong_address(kernels, size):
    rng = np.random.default_rng(3)
    layout = SparsityLayout(MASKS["hubs"], size)

    def damage(lut):
        start = len(layout.lut)
        which = start + np.flatnonzero(rng.random(len(lut) - start) < 0.2)
        lut[which] = rng.choice([-1, 2**40, 2**31 - 1, -(2**62), 1000, 2**33 + 5], len(which))

    for axis in (0, 1) * 5:
        run(kernels, layout, axis, [520], "bfloat16", "bfloat16", damage=damage)


def test_regions_of_scattered_blocks():
    """So few blocks that a region would have room for more chunks than walks can name."""
    mask = np.random.default_rng(0).random((768, 768)) < 0.01
    sections = table.region_dw_sections(SparsityLayout(mask, 16))
    assert all(parameters[0] > 0 for _, parameters in sections.values())

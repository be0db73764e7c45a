"""The plan of a block-sparse matrix alone: numpy and scipy, no kernel."""

import pickle
import tracemalloc

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from blocksparse import SparsityLayout
from blocksparse.layout import (
    BLOCK_SIZES,
    DW_TILE_ROWS,
    PLAN_HEADER,
    PLAN_PARAMETERS,
    PLAN_VERSION,
    SECTIONS,
)

EXAMPLE = [[1, 1, 0], [0, 1, 1], [1, 0, 1]]  # the worked example of original-api.md, section 3.3

grids = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20)).filter(np.any)
sizes = st.sampled_from(BLOCK_SIZES)
any_layout = st.builds(SparsityLayout, grids, sizes, st.booleans())
small_layout = st.builds(SparsityLayout, grids, st.sampled_from((8, 16)), st.booleans())
seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


def weights(rng, layout):
    return rng.integers(1, 100, layout.w_shape).astype(np.float32)


def unpack(entries):
    """The two int32 of each int64, in memory order."""
    return entries.view(np.int32).reshape(-1, 2)


# ---- order of the blocks ----


@given(any_layout)
def test_every_block_has_one_place(layout):
    assert sorted(layout.coordinates.tolist()) == np.argwhere(layout.mask).tolist()
    assert layout.coordinates.dtype == np.int32
    assert np.array_equal(unpack(layout.sections["blocks"]), layout.coordinates)


def slow_morton(in_idx, out_idx):
    code = 0
    for bit in range(31):
        code += ((in_idx >> bit) & 1) * 4**bit + ((out_idx >> bit) & 1) * 2 * 4**bit
    return code


@given(grids)
def test_z_order_is_the_morton_order(mask):
    coordinates = SparsityLayout(mask, 8).coordinates.tolist()
    assert coordinates == sorted(coordinates, key=lambda c: slow_morton(*c))


@pytest.mark.parametrize("shape", [(70000, 2), (2, 70000), (1, 2**22)])
def test_z_order_holds_for_coordinates_beyond_16_bits(rng, shape):
    mask = rng.random(shape) < 0.001
    mask[-1, -1] = True
    coordinates = SparsityLayout(mask, 8).coordinates.tolist()
    assert coordinates == sorted(coordinates, key=lambda c: slow_morton(*c))


@given(grids)
def test_without_z_order_blocks_follow_output_then_input(mask):
    coordinates = SparsityLayout(mask, 8, z_order=False).coordinates.tolist()
    assert coordinates == sorted(coordinates, key=lambda c: (c[1], c[0]))


def test_input_blocks_come_first_along_the_curve():
    assert SparsityLayout(np.ones((2, 2))).coordinates.tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]


def test_the_originals_worked_example():
    layout = SparsityLayout(EXAMPLE, 8)
    assert layout.coordinates.tolist() == [[0, 0], [0, 1], [1, 1], [2, 0], [1, 2], [2, 2]]
    for direction, entries in (
        ("fprop", [0, 0, 2, 3, 0, 1, 1, 2, 1, 4, 2, 5]),
        ("dx", [0, 0, 1, 1, 1, 2, 2, 4, 0, 3, 2, 5]),
    ):
        assert layout.sections[f"{direction}_ptr"].tolist() == [0, 2, 4, 6]
        assert unpack(layout.sections[f"{direction}_entries"]).ravel().tolist() == entries


# ---- tables ----


@pytest.mark.parametrize("direction, this, other", [("fprop", 1, 0), ("dx", 0, 1)])
@given(layout=any_layout)
def test_entries_list_each_line_of_blocks_in_order(layout, direction, this, other):
    ptr = layout.sections[f"{direction}_ptr"]
    entries = unpack(layout.sections[f"{direction}_entries"])
    assert sorted(entries[:, 1].tolist()) == list(range(layout.num_blocks))
    assert len(ptr) == layout.mask.shape[this] + 1
    assert (ptr[0], ptr[-1]) == (0, layout.num_blocks)
    for line, (begin, end) in enumerate(zip(ptr, ptr[1:], strict=False)):
        stored = np.flatnonzero(np.take(layout.mask, line, axis=this))
        assert entries[begin:end, 0].tolist() == stored.tolist()
        assert (layout.coordinates[entries[begin:end, 1], this] == line).all()
        assert (layout.coordinates[entries[begin:end, 1], other] == stored).all()


@pytest.mark.parametrize("direction, this", [("fprop", 1), ("dx", 0)])
@given(layout=any_layout)
def test_order_puts_the_longest_line_first(layout, direction, this):
    order = layout.sections[f"{direction}_order"].tolist()
    length = layout.mask.sum(axis=1 - this)
    assert order == sorted(range(len(length)), key=lambda line: (-length[line], line))


@given(any_layout)
def test_dw_items_cut_each_column_into_runs_of_at_most_128_rows(layout):
    items = unpack(layout.sections["dw_items"])
    ptr = layout.sections["fprop_ptr"]
    covered = [entry for first, count in items.tolist() for entry in range(first, first + count)]
    assert covered == list(range(layout.num_blocks))
    assert (items[:, 1] >= 1).all()
    assert (items[:, 1] * layout.block_size <= DW_TILE_ROWS).all()
    column = np.searchsorted(ptr, items[:, 0], side="right")
    last_column = np.searchsorted(ptr, items.sum(axis=1) - 1, side="right")
    assert np.array_equal(column, last_column)
    per_item = DW_TILE_ROWS // layout.block_size
    assert len(items) == sum(-(-length // per_item) for length in layout.mask.sum(axis=0).tolist())


@given(any_layout)
def test_plan_names_sizes_and_offsets(layout):
    plan = layout.plan.tolist()
    header = dict(zip(PLAN_HEADER, plan[: len(PLAN_HEADER)], strict=True))
    assert header == {
        "version": PLAN_VERSION,
        "block_size": layout.block_size,
        "in_blocks": layout.mask.shape[0],
        "out_blocks": layout.mask.shape[1],
        "num_blocks": layout.mask.sum(),
        "lut_size": len(layout.lut),
        "num_sections": len(SECTIONS),
    }
    fields = np.reshape(plan[len(PLAN_HEADER) :], (-1, 3 + PLAN_PARAMETERS)).tolist()
    assert len(fields) == len(SECTIONS)
    end = 0
    for expected_number, (number, offset, size, *parameters) in enumerate(fields):
        assert (number, offset, parameters) == (expected_number, end, [0] * PLAN_PARAMETERS)
        section = layout.lut[offset : offset + size]
        assert np.array_equal(section, layout.sections[SECTIONS[number]])
        end += size
    assert end == len(layout.lut)
    assert (layout.plan.dtype, layout.lut.dtype) == (np.int32, np.int64)


@given(any_layout)
def test_sizes(layout):
    in_blocks, out_blocks = layout.mask.shape
    assert (layout.in_blocks, layout.out_blocks) == (in_blocks, out_blocks)
    assert layout.in_features == in_blocks * layout.block_size
    assert layout.out_features == out_blocks * layout.block_size
    assert layout.w_shape == (layout.mask.sum(), layout.block_size, layout.block_size)
    assert layout.density == layout.mask.mean()
    assert f"{in_blocks}x{out_blocks} blocks of {layout.block_size}, " in repr(layout)


def test_tables_of_a_million_blocks_take_little_memory():
    mask = np.ones((1024, 1024), bool)
    tracemalloc.start()
    layout = SparsityLayout(mask, 32)
    assert len(layout.plan) and len(layout.sections["blocks"]) == 2**20
    bytes_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert layout.lut.nbytes < 27 * 2**20 and bytes_peak < 5 * layout.lut.nbytes


# ---- conversions ----


@given(small_layout, seeds)
def test_to_dense_places_blocks_and_from_dense_takes_them_back(layout, rng):
    w, size = weights(rng, layout), layout.block_size
    dense = layout.to_dense(w)
    assert dense.shape == (layout.in_features, layout.out_features) and dense.dtype == w.dtype
    for block, (c, k) in zip(w, layout.coordinates.tolist(), strict=True):
        assert np.array_equal(dense[c * size : (c + 1) * size, k * size : (k + 1) * size], block)
    assert np.count_nonzero(dense) == w.size
    assert np.array_equal(layout.from_dense(dense), w)


@given(small_layout, seeds)
def test_bsr_round_trip(layout, rng):
    w = weights(rng, layout)
    matrix = layout.to_bsr(w)
    assert np.array_equal(matrix.toarray(), layout.to_dense(w)) and matrix.nnz == w.size
    back, w_back = SparsityLayout.from_bsr(matrix, layout.z_order)
    assert back == layout and np.array_equal(w_back, w)


@given(small_layout, seeds)
def test_from_bsr_takes_unsorted_and_duplicate_blocks(layout, rng):
    w = weights(rng, layout)
    chosen = np.r_[rng.permutation(len(w)), rng.integers(0, len(w), 3)]
    chosen = chosen[np.argsort(layout.coordinates[chosen, 0], kind="stable")]
    rows, columns = layout.coordinates[chosen].T
    indptr = np.searchsorted(rows, np.arange(layout.in_blocks + 1))
    dense_shape = (layout.in_features, layout.out_features)
    matrix = scipy.sparse.bsr_matrix((w[chosen], columns, indptr), dense_shape)
    data, indices = matrix.data.copy(), matrix.indices.copy()
    result, result_w = SparsityLayout.from_bsr(matrix, layout.z_order)
    assert result == layout
    assert np.array_equal(result.to_dense(result_w), matrix.toarray())
    assert np.array_equal(matrix.data, data) and np.array_equal(matrix.indices, indices)


def test_from_bsr_keeps_blocks_of_zeros():
    zeros = scipy.sparse.bsr_matrix((np.zeros((2, 8, 8)), [0, 1], [0, 1, 2]))
    layout, w = SparsityLayout.from_bsr(zeros)
    assert np.array_equal(layout.mask, np.eye(2)) and not w.any()


def test_from_dense_refuses_to_lose_elements():
    layout = SparsityLayout(EXAMPLE, 8)
    dense = np.zeros((24, 24))
    dense[3, 17] = np.nan
    with pytest.raises(ValueError, match=r"allow_loss=True.*nonzero elements in 1 .* \[0, 2\]"):
        layout.from_dense(dense)
    assert not layout.from_dense(dense, allow_loss=True).any()


# ---- identity ----


@given(grids, sizes, st.booleans())
def test_equal_content_means_equal_layouts(mask, size, z_order):
    layout = SparsityLayout(mask, size, z_order)
    same = SparsityLayout(mask.astype(np.float32) * -2.5, np.int64(size), z_order)
    assert layout == same and hash(layout) == hash(same)
    other_size = BLOCK_SIZES[BLOCK_SIZES.index(size) - 1]
    others = [SparsityLayout(mask, size, not z_order), SparsityLayout(mask, other_size, z_order)]
    assert layout not in others and layout != "layout"


def test_other_masks_mean_other_layouts():
    masks = [np.ones((2, 3)), np.ones((3, 2)), np.ones((1, 6)), [[1, 1, 1], [1, 1, 0]]]
    assert len({SparsityLayout(mask) for mask in masks}) == 4


@given(any_layout)
def test_pickle_keeps_the_content_and_drops_the_cache(layout):
    layout.cache["device"] = lambda: "cannot be pickled"
    copy = pickle.loads(pickle.dumps(layout))
    assert copy == layout and not copy.cache
    assert np.array_equal(copy.lut, layout.lut) and np.array_equal(copy.plan, layout.plan)


def test_arrays_are_read_only_and_apart_from_the_callers():
    mask = np.array(EXAMPLE, bool)
    layout = SparsityLayout(mask, 8)
    mask[0, 2] = True
    assert not layout.mask[0, 2]
    arrays = (layout.mask, layout.coordinates, layout.plan, layout.lut, *layout.sections.values())
    for array in arrays:
        with pytest.raises(ValueError, match="read-only"):
            array[(0,) * array.ndim] = 1


@pytest.mark.parametrize(
    "mask, error, message",
    [
        ([["1"]], TypeError, r"bool, integer or float\. Received: dtype <U1"),
        ([[1j]], TypeError, "Received: dtype complex128"),
        (np.array([[None]]), TypeError, "Received: dtype object"),
        ([1, 0], ValueError, r"two dimensions, input blocks and output blocks.* shape \(2,\)"),
        (np.ones((1, 1, 1)), ValueError, r"two dimensions.* shape \(1, 1, 1\)"),
        (1, ValueError, r"two dimensions.* shape \(\)"),
        ([[1.0, np.nan]], ValueError, "must not hold NaN. Received: 1 of them"),
        (np.zeros((2, 3)), ValueError, r"at least one nonzero.* none in shape \(2, 3\)"),
        (np.zeros((0, 3)), ValueError, r"at least one nonzero.* none in shape \(0, 3\)"),
    ],
)
def test_masks_that_are_refused(mask, error, message):
    with pytest.raises(error, match=f"^SparsityLayout: .*{message}"):
        SparsityLayout(mask)


@pytest.mark.parametrize(
    "block_size, error",
    [
        *[(value, TypeError) for value in (True, 32.0, "32", None)],
        *[(value, ValueError) for value in (12, 0, -8, 256)],
    ],
)
def test_block_sizes_that_are_refused(block_size, error):
    with pytest.raises(error, match=f"^SparsityLayout: block_size .* Received: {block_size!r}$"):
        SparsityLayout(EXAMPLE, block_size)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda layout: layout.to_dense(np.ones((6, 8))),
            ValueError,
            r"to_dense: w must have shape \(6, 8, 8\)\. Received: \(6, 8\)",
        ),
        (
            lambda layout: layout.to_bsr(np.ones((5, 8, 8))),
            ValueError,
            r"to_bsr: w must have shape \(6, 8, 8\)\. Received: \(5, 8, 8\)",
        ),
        (
            lambda layout: layout.from_dense(np.ones((24, 16))),
            ValueError,
            r"from_dense: the matrix must have shape \(24, 24\)\. Received: \(24, 16\)",
        ),
        (
            lambda layout: layout.from_bsr(scipy.sparse.eye(8)),
            TypeError,
            "from_bsr: a scipy.sparse BSR matrix is needed. Received: dia_matrix",
        ),
        (lambda layout: layout.from_bsr(np.eye(8)), TypeError, "needed. Received: ndarray"),
        (
            lambda layout: layout.from_bsr(
                scipy.sparse.bsr_matrix(np.ones((8, 16)), blocksize=(8, 16))
            ),
            ValueError,
            r"from_bsr: blocks must be square with sizes \(8, .*\)\. Received: 8x16",
        ),
        (
            lambda layout: layout.from_bsr(
                scipy.sparse.bsr_matrix(np.ones((4, 4)), blocksize=(4, 4))
            ),
            ValueError,
            "Received: 4x4",
        ),
    ],
)
def test_conversions_that_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(SparsityLayout(EXAMPLE, 8))

"""BlocksparseMatMul as an object: sizes, identity, pruning."""

import pickle

import numpy as np
import pytest
import tensorflow as tf

from blocksparse import BlocksparseMatMul, SparsityLayout, l2_normalize
from blocksparse.testing import reference, tolerance

MASK = [[1, 0, 1], [1, 1, 0]]  # in storage order: (0, 0), (1, 0), (1, 1), (0, 2)


@pytest.mark.parametrize("axis", [0, 1])
def test_attributes_keep_the_originals_names(axis):
    bsmm = BlocksparseMatMul(MASK, block_size=16, feature_axis=axis, name="dense")
    assert (bsmm.axis, bsmm.bsize, bsmm.z_order, bsmm.name) == (axis, 16, True, "dense")
    assert (bsmm.CB, bsmm.KB, bsmm.C, bsmm.K, bsmm.blocks) == (2, 3, 32, 48, 4)
    assert (bsmm.w_shape, bsmm.g_shape) == ((4, 16, 16), (4,))
    assert (bsmm.flops, bsmm.sparsity) == (2 * 4 * 16 * 16, 0.667)
    assert bsmm.layout.dtype == bool and np.array_equal(bsmm.layout, MASK)
    assert bsmm.i_shape(7) == ((7, 32) if axis == 1 else (32, 7))
    assert bsmm.o_shape(7) == ((7, 48) if axis == 1 else (48, 7))


def test_features_are_last_and_blocks_are_32_by_default():
    bsmm = BlocksparseMatMul(MASK)
    assert (bsmm.axis, bsmm.bsize, bsmm.z_order, bsmm.name) == (1, 32, True, "BlocksparseMatMul")


def test_block_coord_follows_the_storage_order():
    bsmm = BlocksparseMatMul(MASK, 8)
    assert [bsmm.block_coord(block) for block in range(4)] == [(0, 0), (1, 0), (1, 1), (0, 2)]
    bsmm = BlocksparseMatMul([[1, 0, 1, 1], [0, 1, 1, 1]], 8, z_order=False)
    assert [bsmm.block_coord(np.int64(block)) for block in (1, 2, 3)] == [(1, 1), (0, 2), (1, 2)]


@pytest.mark.parametrize("block", [-1, 4])
def test_block_coord_refuses_what_is_not_stored(block):
    with pytest.raises(IndexError, match=f"block_coord: block must be 0 to 3. Received: {block}"):
        BlocksparseMatMul(MASK, 8).block_coord(block)


def test_a_layout_brings_its_own_block_size_and_order():
    layout = SparsityLayout(MASK, 64, z_order=False)
    bsmm = BlocksparseMatMul(layout, block_size=8, z_order=True)
    assert bsmm.sparsity_layout is layout
    assert (bsmm.bsize, bsmm.z_order) == (64, False)


# ---- identity ------------------------------------------------------------------------------------


def test_equal_content_means_equal_objects():
    bsmm = BlocksparseMatMul(MASK, 8)
    same = BlocksparseMatMul(SparsityLayout(np.array(MASK, np.float32), 8), name="other")
    assert bsmm == same and hash(bsmm) == hash(same)
    others = [
        BlocksparseMatMul(MASK, 16),
        BlocksparseMatMul(MASK, 8, feature_axis=0),
        BlocksparseMatMul(MASK, 8, z_order=False),
        BlocksparseMatMul(np.ones((2, 3)), 8),
        bsmm.sparsity_layout,
        None,
    ]
    assert bsmm not in others and len({bsmm, same, *others}) == 1 + len(others)


def test_pickle_keeps_everything(rng):
    bsmm = BlocksparseMatMul(MASK, 8, feature_axis=0, z_order=False, name="pickled")
    w, x = rng.standard_normal(bsmm.w_shape), rng.standard_normal(bsmm.i_shape(3))
    w, x = w.astype(np.float32), x.astype(np.float32)
    y = bsmm(x, w)  # fills the caches, which hold tensors
    copy = pickle.loads(pickle.dumps(bsmm))
    assert copy == bsmm and copy.name == "pickled"
    assert np.array_equal(copy(x, w), y)


def test_repr_tells_name_layout_and_axis():
    assert repr(BlocksparseMatMul(MASK, 8, 0, name="hidden")) == (
        "hidden(SparsityLayout(2x3 blocks of 8, 4 stored, density 0.667), feature_axis=0)"
    )


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        ({"feature_axis": 2}, ValueError, r"feature_axis must be 1 .* or 0 .* Received: 2"),
        ({"feature_axis": -1}, ValueError, "Received: -1"),
        ({"feature_axis": True}, ValueError, "Received: True"),
        ({"feature_axis": 1.0}, ValueError, "Received: 1.0"),
        ({"feature_axis": None}, ValueError, "Received: None"),
        ({"block_size": 24}, ValueError, "block_size must be one of"),
        ({"block_size": "32"}, TypeError, "block_size must be an integer"),
        ({"layout": np.zeros((2, 2))}, ValueError, "at least one nonzero"),
        ({"layout": [1, 1]}, ValueError, "two dimensions"),
        ({"layout": "full"}, TypeError, "bool, integer or float"),
    ],
)
def test_constructions_that_are_refused(kwargs, error, message):
    with pytest.raises(error, match=message):
        BlocksparseMatMul(**{"layout": MASK, **kwargs})


# ---- calls ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
def test_references_of_the_class_are_those_of_the_package(rng, axis):
    bsmm = BlocksparseMatMul(MASK, 8, axis)
    layout = bsmm.sparsity_layout
    x, w, dy, gate = (
        rng.standard_normal(shape)
        for shape in (bsmm.i_shape(5), bsmm.w_shape, bsmm.o_shape(5), bsmm.g_shape)
    )
    gate[1] = 0
    dense = layout.to_dense(w * gate[:, None, None])
    y = x @ dense if axis == 1 else dense.T @ x
    np.testing.assert_allclose(bsmm.fprop_test(x, w, gate), y, rtol=1e-12)
    dx = dy @ dense.T if axis == 1 else dense @ dy
    np.testing.assert_allclose(bsmm.bprop_test(dy, w, gate), dx, rtol=1e-12)
    dw = layout.from_dense(x.T @ dy if axis == 1 else x @ dy.T, allow_loss=True)
    for gated in (False, True):
        expected = dw * (gate != 0)[:, None, None] if gated else dw
        np.testing.assert_allclose(bsmm.updat_test(x, dy, gate, gated), expected, rtol=1e-12)
    results = bsmm.l2_normalize_test(w, 2.0), bsmm.l2_normalize_grad_test(w, w + 1, 2.0)
    assert np.array_equal(results[0], reference.l2_normalize(w, layout, epsilon=2.0))
    assert np.array_equal(results[1], reference.l2_normalize_grad(w, w + 1, layout, epsilon=2.0)[0])


def test_matmul_is_the_call(rng):
    bsmm = BlocksparseMatMul(MASK, 8)
    x, w = rng.standard_normal((3, 16)).astype(np.float32), np.ones(bsmm.w_shape, np.float32)
    gate = np.float32([0, 1, 2, 3])
    assert np.array_equal(bsmm.matmul(x, w, gate), bsmm(x, w, gate))


def test_ops_are_named_after_the_object():
    bsmm = BlocksparseMatMul(MASK, 8, name="hidden")
    with tf.Graph().as_default():
        x, w = tf.ones([2, 16]), tf.ones(bsmm.w_shape)
        assert [bsmm(x, w).op.name, bsmm(x, w).op.name, bsmm(x, w, name="own").op.name] == [
            "hidden",
            "hidden_1",
            "own",
        ]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_l2_normalize_is_that_of_the_package(device, rng, dtype):
    bsmm = BlocksparseMatMul(MASK, 8)
    w = tf.constant(rng.standard_normal(bsmm.w_shape), tf.float32)
    gain = tf.constant(rng.standard_normal(bsmm.K), tf.float32)
    result = bsmm.l2_normalize(w, gain, 20.0, dtype)
    expected = l2_normalize(w, bsmm.sparsity_layout, gain=gain, epsilon=20.0, dtype=dtype)
    assert result.dtype == dtype and np.array_equal(result, expected)
    assert not np.array_equal(result, bsmm.l2_normalize(w, gain, dtype=dtype))


# ---- pruning -------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("z_order", [False, True])
def test_a_pruned_product_equals_the_gated_one(device, rng, axis, z_order):
    bsmm = BlocksparseMatMul(np.ones((3, 4)), 8, axis, z_order, name="sparse")
    x, w = rng.integers(-2, 3, bsmm.i_shape(9)), rng.integers(-2, 3, bsmm.w_shape)
    x, w = np.float32(x), np.float32(w)
    gate = np.float32(rng.random(12) < 0.5)
    pruned_w, pruned_gate = bsmm.prune(w, gate)
    pruned = bsmm.pruned(gate)
    assert pruned_gate.dtype == gate.dtype and np.array_equal(pruned_gate, np.ones(pruned.g_shape))
    assert pruned_w.shape == pruned.w_shape and 0 < pruned.blocks < 12
    assert (pruned.axis, pruned.bsize, pruned.z_order, pruned.name) == (axis, 8, z_order, "sparse")
    gated = bsmm(x, w, gate).numpy()
    tolerance.check_equal(pruned(x, pruned_w, pruned_gate).numpy(), gated)
    assert bsmm.blocks == 12 and bsmm.layout.all()


def test_prune_takes_tensors_and_slots():
    bsmm = BlocksparseMatMul(MASK, 8)
    step, gate = bsmm.prune(tf.range(4), tf.constant([-1.0, 0.0, 0.0, 0.5]))
    assert step.tolist() == [0, 3] and gate.tolist() == [1, 1]
    assert np.array_equal(bsmm.pruned([-1, 0, 0, 0.5]).layout, [[1, 0, 1], [0, 0, 0]])


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda bsmm: bsmm.prune(np.ones(3), np.ones(4)),
            r"param must have 4 blocks. .* shape \(3,\)",
        ),
        (lambda bsmm: bsmm.prune(1.0, np.ones(4)), r"param must have 4 blocks. .* shape \(\)"),
        (
            lambda bsmm: bsmm.prune(np.ones(4), np.ones(3)),
            r"gate must have shape \(4,\) .* \(3,\), 3",
        ),
        (
            lambda bsmm: bsmm.prune(np.ones(4), np.zeros(4)),
            r"a nonzero element.* \(4,\), 0 nonzero",
        ),
        (lambda bsmm: bsmm.pruned(np.zeros(4)), r"a nonzero element"),
        (lambda bsmm: bsmm.pruned(np.ones((4, 1))), r"Received: shape \(4, 1\), 4 nonzero"),
    ],
)
def test_prunings_that_are_refused(call, message):
    with pytest.raises(ValueError, match=f"^BlocksparseMatMul.prune: .*{message}"):
        call(BlocksparseMatMul(MASK, 8))

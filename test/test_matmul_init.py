"""Initialisers of weights and gates."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from blocksparse import BlocksparseMatMul
from blocksparse.testing import layouts

MASKS = layouts.standard()
DTYPES = ("float32", "float16", "bfloat16")


def dense(bsmm, initializer, dtype="float32"):
    w = initializer(bsmm.w_shape, dtype)
    assert w.shape == bsmm.w_shape and w.dtype == dtype
    return bsmm.sparsity_layout.to_dense(w.numpy().astype(np.float64))


# ---- identity_init -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_identity_of_a_square_layout(dtype, scale):
    bsmm = BlocksparseMatMul(np.ones((3, 3)), 16)
    assert np.array_equal(dense(bsmm, bsmm.identity_init(scale), dtype), scale * np.eye(48))


@pytest.mark.parametrize("mask", ["full", "corners", "random", "empty_lines", "power_law"])
def test_identity_repeats_along_the_longer_side_where_blocks_are_stored(mask):
    bsmm = BlocksparseMatMul(MASKS[mask], 8)
    c, k = np.ogrid[: bsmm.C, : bsmm.K]
    stored = np.kron(MASKS[mask], np.ones((8, 8)))
    assert np.array_equal(dense(bsmm, bsmm.identity_init()), (c % bsmm.K == k % bsmm.C) * stored)


def test_identity_passes_features_through():
    bsmm = BlocksparseMatMul(layouts.banded(6, 6), 32)
    x = tf.random.normal([5, bsmm.C], seed=1)
    assert np.array_equal(bsmm(x, bsmm.identity_init()(bsmm.w_shape)), x)


# ---- ortho_init ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["random", "empty_lines", "full_column", "diagonal", "one"])
def test_output_features_are_orthonormal_within_each_block_column(mask):
    bsmm = BlocksparseMatMul(MASKS[mask], 16)
    w = dense(bsmm, bsmm.ortho_init(seed=3))
    for column in range(bsmm.KB):
        features = w[:, column * 16 : (column + 1) * 16]
        expected = np.eye(16) * MASKS[mask][:, column].any()
        np.testing.assert_allclose(features.T @ features, expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 2), (2, 4), (3, 3)])
def test_a_full_layout_gets_one_orthogonal_matrix(shape):
    bsmm = BlocksparseMatMul(np.ones(shape), 8)
    w = dense(bsmm, bsmm.ortho_init(seed=3))
    product = w.T @ w if shape[0] >= shape[1] else w @ w.T
    np.testing.assert_allclose(product, np.eye(8 * min(shape)), atol=1e-6)


def test_ortho_init_follows_its_seed():
    bsmm = BlocksparseMatMul(MASKS["random"], 8)
    first, again, other, anew, anew_again = (
        bsmm.ortho_init(seed)(bsmm.w_shape).numpy() for seed in (1, 1, 2, None, None)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other) and not np.array_equal(anew, anew_again)


def test_ortho_init_has_no_preferred_sign():
    bsmm = BlocksparseMatMul(np.eye(64), 8)
    diagonal = np.diagonal(dense(bsmm, bsmm.ortho_init(seed=5)))
    assert 0.4 < np.mean(diagonal > 0) < 0.6


# ---- checker_init --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_checker_opens_blocks_of_equal_parity(dtype):
    bsmm = BlocksparseMatMul(MASKS["random"], 8)
    gate = bsmm.checker_init()(bsmm.g_shape, dtype)
    assert gate.shape == bsmm.g_shape and gate.dtype == dtype
    expected = [(c + k) % 2 == 0 for c, k in map(bsmm.block_coord, range(bsmm.blocks))]
    assert gate.numpy().tolist() == expected and len(set(expected)) == 2


# ---- where initialisers are used -----------------------------------------------------------------

BSMM = BlocksparseMatMul([[1, 0], [1, 1]], 8)
INITIALIZERS = {
    "identity": (BSMM.identity_init(2.0), BSMM.w_shape),
    "ortho": (BSMM.ortho_init(seed=1), BSMM.w_shape),
    "checker": (BSMM.checker_init(), BSMM.g_shape),
}


def variable(initializer, shape, dtype):
    return tf.Variable(initializer(shape, dtype)).numpy()


def variable_in_function(initializer, shape, dtype):
    variables = []

    @tf.function
    def value():
        if not variables:
            variables.append(tf.Variable(lambda: initializer(shape, dtype), dtype=dtype))
        return variables[0].read_value()

    return value().numpy()


def tf1_variable(initializer, shape, dtype):
    tf1 = tf.compat.v1
    with tf.Graph().as_default():
        w = tf1.get_variable("w", shape, tf.as_dtype(dtype), initializer)
        with tf1.Session() as session:
            session.run(tf1.global_variables_initializer())
            return session.run(w)


def tf1_partitioned_variable(initializer, shape, dtype):
    """A partitioner makes get_variable pass partition_info."""
    tf1 = tf.compat.v1
    with tf.Graph().as_default():
        w = tf1.get_variable(
            "w", shape, tf.as_dtype(dtype), initializer, partitioner=tf1.fixed_size_partitioner(1)
        )
        with tf1.Session() as session:
            session.run(tf1.global_variables_initializer())
            return session.run(w.as_tensor())


def keras_weight(initializer, shape, dtype):
    layer = keras.layers.Layer()
    return layer.add_weight(shape=shape, initializer=initializer, dtype=dtype).value.numpy()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", INITIALIZERS)
@pytest.mark.parametrize(
    "make",
    [variable, variable_in_function, tf1_variable, tf1_partitioned_variable, keras_weight],
    ids=lambda make: make.__name__,
)
def test_variables_of_every_kind(make, name, dtype):
    initializer, shape = INITIALIZERS[name]
    value = make(initializer, shape, dtype)
    expected = initializer(shape, dtype).numpy()
    assert value.dtype == expected.dtype and np.array_equal(value, expected) and value.any()


@pytest.mark.parametrize("name", INITIALIZERS)
@pytest.mark.parametrize("shape", [(3, 8), (2, 8, 8), (3, 8, 16), (), (None, 8, 8)])
def test_wrong_shapes_are_refused(name, shape):
    initializer, right = INITIALIZERS[name]
    with pytest.raises(ValueError) as error:
        initializer(shape)
    who = type(initializer).__name__
    assert str(error.value) == f"{who}: the variable must have shape {right}. Received: {shape}"

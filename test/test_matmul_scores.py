"""Scores of blocks that may be grown, and the dense weight gradient, against numpy."""

import numpy as np
import pytest
import tensorflow as tf

from blocksparse import (
    SparsityLayout,
    block_reduced_full_dw,
    dw_matmul_large_n,
    group_param_grads,
    largest_block,
    reduced_full_dw,
)
from blocksparse.matmul import matmul
from blocksparse.testing import tolerance


def half(x):
    return tf.cast(x, tf.float16)


def score(xs, dys, axis, norm):
    total = 0
    for pair in zip(xs, dys, strict=True):
        x, dy = (np.moveaxis(t, 0, -1) if axis == 0 else t for t in pair)
        x, dy = (np.where(np.isfinite(t), t, 0).reshape(-1, t.shape[-1] // 8, 8) for t in (x, dy))
        x, dy = (np.abs(t).max(2) if norm == "max" else np.linalg.norm(t, axis=2) for t in (x, dy))
        total = total + x.T @ dy
    return total


def activations(rng, axis, num_steps, batch=(5,)):
    """Pairs with 24 and 40 features, with infinities and NaNs."""
    pairs = []
    for features in (24, 40):
        t = rng.integers(-9, 10, (num_steps, *batch, features)).astype(np.float32)
        t[rng.random(t.shape) < 0.05] = np.inf
        t[rng.random(t.shape) < 0.05] = np.nan
        pairs.append(np.moveaxis(t, -1, 1) if axis == 0 else t)
    return pairs


@pytest.mark.parametrize("norm", ["max", "l2"])
@pytest.mark.parametrize("axis", [0, 1])
def test_reduced_full_dw_scores_every_block(device, run, rng, axis, norm):
    xs, dys = activations(rng, axis, 3, batch=(2, 3))

    def function(xs, dys):
        xs, dys = tf.unstack(xs, 3), tf.unstack(dys, 3)
        return [
            reduced_full_dw(xs, dys, 8, axis, scale=0.25, norm=norm),
            reduced_full_dw(xs[0], half(dys[0]), 8, axis, norm=norm),
        ]

    many, one = run(function, xs, dys)
    assert many.shape == (3, 5) and many.dtype == one.dtype == np.float32
    np.testing.assert_allclose(many, score(xs, dys, axis, norm) / 4, rtol=1e-6)
    np.testing.assert_allclose(one, score(xs[:1], dys[:1], axis, norm), rtol=1e-6)


@pytest.mark.parametrize("run", ["function", "tf1"], indirect=True)
@pytest.mark.parametrize("norm", ["max", "l2"])
@pytest.mark.parametrize("axis", [0, 1])
def test_block_reduced_full_dw_finds_the_pairs(device, run, rng, axis, norm):
    layout = SparsityLayout(np.eye(3, 5), 8)
    xs, dys = activations(rng, axis, 3)

    def function(w, xs, dys):
        ys = [matmul(half(x), half(w), layout, feature_axis=axis) for x in tf.unstack(xs, 3)]
        [grad] = tf.gradients(ys, [w], tf.unstack(half(dys), 3))
        return [
            block_reduced_full_dw(grad, 2.0, norm),
            block_reduced_full_dw(group_param_grads(grad), 2.0, norm),
        ]

    for result in run(function, np.ones(layout.w_shape, np.float32), xs, dys):
        np.testing.assert_allclose(result, 2 * score(xs, dys, axis, norm), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dw_matmul_large_n_sums_in_float32(device, run, rng, dtype):
    x, dy = (tf.cast(rng.standard_normal((50, 40, f)), dtype).numpy() for f in (12, 7))
    [dw] = run(lambda x, dy: [dw_matmul_large_n(x, dy)], x, dy)
    assert dw.dtype == np.float32
    x, dy = (t.reshape(2000, -1).astype(np.float64) for t in (x, dy))
    tolerance.check_product(dw, x.T @ dy, np.abs(x).T @ np.abs(dy), 2000, "float32")


def test_largest_block():
    assert [largest_block(dim) for dim in (8, 16, 24, 32, 48, 320)] == [
        (8, 1),
        (16, 1),
        (8, 3),
        (32, 1),
        (16, 3),
        (32, 10),
    ]
    for dim in (0, -8, 4, 12, 33):
        with pytest.raises(ValueError, match=f"^largest_block: .* multiple of 8. Received: {dim}$"):
            largest_block(dim)


def test_a_gradient_without_products_has_no_score():
    with tf.Graph().as_default(), pytest.raises(ValueError, match="Received: mine:0, behind which"):
        block_reduced_full_dw(tf.ones([1], name="mine"))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"norm": "l1"}, "norm must be 'max' or 'l2'. Received: 'l1'"),
        ({"feature_axis": 2}, "feature_axis must be 1 .* Received: 2"),
        ({"x": []}, "x and dy must be lists of the same length, at least 1. Received: 0 and 1"),
        ({"dy": [np.ones((2, 8))] * 2}, ".* Received: 1 and 2"),
        (
            {"x": np.ones((4, 20))},
            "x must have a multiple of 8 features.* Received: x.shape=.4, 20",
        ),
        ({"dy": np.ones((2, 4)), "feature_axis": 0}, "dy must have a multiple of 8 features"),
    ],
)
def test_scores_that_are_refused(kwargs, message):
    x = np.ones((8, 8), np.float32)
    with pytest.raises(ValueError, match=f"^reduced_full_dw: {message}"):
        reduced_full_dw(**{"x": x, "dy": x, "block_size": 8, **kwargs})

"""Gates: scaled and skipped blocks, and the three ways of their gradients."""

import numpy as np
import pytest
import tensorflow as tf

from blocksparse import BlocksparseMatMul
from blocksparse.testing import layouts, reference, tolerance

CASES = [
    pytest.param(dtype, size, axis, id=f"{dtype}-B{size}-axis{axis}")
    for dtype in ("float32", "float16", "bfloat16")
    for size in (8, 16, 32, 64, 128)
    for axis in (0, 1)
]


def setup(rng, dtype, size, axis, n=37):
    bsmm = BlocksparseMatMul(layouts.standard()["random"], size, axis)
    x, dy = (
        rng.choice([-1, 0, 0, 0, 1], shape).astype(np.float32)
        for shape in (bsmm.i_shape(n), bsmm.o_shape(n))
    )
    w = rng.choice([-1, 1], bsmm.w_shape).astype(np.float32)
    gate = rng.choice([0.0, 0.5, 1.0, 2.0], bsmm.g_shape).astype(np.float32)
    return bsmm, tf.cast(x, dtype), tf.cast(w, dtype), tf.cast(dy, dtype), tf.constant(gate)


def gradients(bsmm, x, w, dy, gate, **kwargs):
    with tf.GradientTape() as tape:
        tape.watch([x, w, gate])
        y = bsmm(x, w, gate, **kwargs)
    return y, *tape.gradient(y, [x, w, gate], dy)


def check(result, reference, dtype):
    """Halves and doubles are exact, so only the last rounding of a large sum may show."""
    tolerance.check_product(result, reference, np.zeros_like(reference), 1, dtype)


@pytest.mark.parametrize("dtype, size, axis", CASES)
def test_gate_scales_and_skips_blocks(device, rng, dtype, size, axis):
    bsmm, x, w, dy, gate = setup(rng, dtype, size, axis)
    y, dx, dw, dgate = gradients(bsmm, x, w, dy, gate, dw_dtype="float32")
    check(y, bsmm.fprop_test(x, w, gate), dtype)
    check(dx, bsmm.bprop_test(dy, w, gate), dtype)
    check(dw, bsmm.updat_test(x, dy), "float32")  # by default not scaled: the original's contract
    assert dgate is None


@pytest.mark.parametrize("dtype, size, axis", CASES)
def test_dw_gated_leaves_out_closed_blocks(device, rng, dtype, size, axis):
    bsmm, x, w, dy, gate = setup(rng, dtype, size, axis)
    *_, dw, _ = gradients(bsmm, x, w, dy, gate, dw_gated=True, dw_dtype="float32")
    check(dw, bsmm.updat_test(x, dy, gate, dw_gated=True), "float32")
    assert not dw.numpy()[gate.numpy() == 0].any()


@pytest.mark.parametrize("dtype, size, axis", CASES)
def test_gate_grad_is_the_gradient_of_gated_weights(device, rng, dtype, size, axis):
    bsmm, x, w, dy, gate = setup(rng, dtype, size, axis)
    *_, dw, dgate = gradients(bsmm, x, w, dy, gate, gate_grad=True, dw_dtype="float32")
    expected_dw, expected_dgate = reference.gate_gradients(bsmm.updat_test(x, dy), w, gate)
    check(dw, expected_dw, "float32")
    check(dgate, expected_dgate, "float32")


@pytest.mark.parametrize("mode", ["gate_grad", "dw_gated"])
def test_gate_works_in_every_mode(device, run, rng, mode):
    bsmm, *inputs = setup(rng, "float32", 16, 1)

    def function(x, w, dy, gate):
        y, dx, dw, dgate = gradients(bsmm, x, w, dy, gate, **{mode: True})
        return [y, dx, dw] + ([dgate] if mode == "gate_grad" else [])

    arrays = [t.numpy() for t in inputs]
    for result, expected in zip(run(function, *arrays), function(*inputs), strict=True):
        tolerance.check_equal(result, expected.numpy())


def test_skipped_blocks_are_not_read(device, rng):
    """Neither a NaN in a closed block's weights nor one in its inputs shows."""
    bsmm = BlocksparseMatMul(np.eye(3), 8)
    gate = tf.constant([1.0, 0.0, 1.0])
    w = np.ones(bsmm.w_shape, np.float32)
    x = np.ones(bsmm.i_shape(4), np.float32)
    w[1] = np.nan
    x[:, 8:16] = np.inf
    y = bsmm(x, w, gate).numpy()
    assert np.array_equal(y[0], [8] * 8 + [0] * 8 + [8] * 8)


def test_gate_gradients_have_gradients(device, rng):
    """The second derivative of sum(y u) with respect to gate and w, by both orders."""
    bsmm, x, w, dy, gate = setup(rng, "float32", 8, 1)

    def mixed(first, second, shape):
        v = tf.constant(rng.choice([-1.0, 1.0], shape), tf.float32)
        with tf.GradientTape() as outer:
            outer.watch([w, gate])
            with tf.GradientTape() as inner:
                inner.watch([w, gate])
                y = bsmm(x, w, gate, gate_grad=True)
            first_grad = inner.gradient(y, first(w, gate), dy)
            s = tf.reduce_sum(first_grad * v)
        return v, outer.gradient(s, second(w, gate))

    dw = bsmm.updat_test(x, dy)
    v, grad = mixed(lambda w, g: w, lambda w, g: g, bsmm.w_shape)
    check(grad, np.sum(dw * v, axis=(1, 2)), "float32")
    v, grad = mixed(lambda w, g: g, lambda w, g: w, bsmm.g_shape)
    check(grad, dw * v.numpy()[:, None, None], "float32")

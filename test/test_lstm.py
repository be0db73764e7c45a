"""The dense LSTMs with fused gates: against their float64 definition, and grouped gradients."""

import numpy as np
import pytest
import tensorflow as tf

from blocksparse.layer_norm import layer_norm
from blocksparse.lstm import basic_lstm_step, fused_lstm_gates, grouped_lstm, grouped_lstm_weights
from blocksparse.testing import reference
from blocksparse.testing.tolerance import UNIT_ROUNDOFF

BATCH, TIME, IN, WIDTH = 3, 4, 6, 8
norms = pytest.mark.parametrize("layernorm", [True, False], ids=["layernorm", "bias"])
dtypes = pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])


def make(rng, layernorm=True, dtype="float32", masters=True):
    """(inputs, c, h, weights)."""

    def random(*shape):
        return tf.cast(tf.constant(rng.standard_normal(shape), tf.float32), dtype)

    weights = grouped_lstm_weights(IN, WIDTH, 1, layernorm, "float32" if masters else dtype)
    for name in set(weights) - {"kernel"}:
        weights[name] += 0.1 * rng.standard_normal(4 * WIDTH).astype(np.float32)
    return random(BATCH, TIME, IN), random(BATCH, WIDTH), random(BATCH, WIDTH), weights


def grouped(layernorm):
    def run(inputs, c, h, weights):
        outputs, (c, h) = grouped_lstm(inputs, WIDTH, weights, (c, h), layernorm, 0.5)
        return outputs, c, h

    return run


def step_by_step(layernorm):
    def run(inputs, c, h, weights):
        outputs = []
        for x in tf.unstack(inputs, axis=1):
            if layernorm:
                gates = tf.concat([x, h], 1) @ tf.cast(weights["kernel"], x.dtype)
                gates = layer_norm(gates, weights["gain"], weights["bias"], segments=4)
                c, h = fused_lstm_gates(c, gates, forget_bias=0.5)
            else:
                c, h = basic_lstm_step(x, (c, h), weights["kernel"], weights["bias"], 0.5)
            outputs.append(h)
        return tf.stack(outputs, 1), c, h

    return run


def gradients(function, tensors, cotangents=None):
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        outputs = function(*tensors)
    dtensors = tape.gradient(outputs, tensors, output_gradients=cotangents)
    return [np.asarray(tf.cast(t, tf.float64)) for t in tf.nest.flatten((outputs, dtensors))]


@norms
def test_sequence_is_its_definition(layernorm, rng, device):
    inputs, c, h, weights = make(rng, layernorm)
    outputs, state = grouped_lstm(inputs, WIDTH, weights, (c, h), layernorm, forget_bias=0.5)
    kernel, bias = np.float64(weights["kernel"]), np.float64(weights["bias"])
    for t in range(TIME):
        gates = np.concatenate([inputs[:, t], h], 1).astype(np.float64) @ kernel
        if layernorm:
            gates = reference.layer_norm(gates, weights["gain"], bias, segments=4)
        c, h = reference.lstm_gates(c, gates, None if layernorm else bias, forget_bias=0.5)
        np.testing.assert_allclose(outputs[:, t], h, rtol=0, atol=1e-5)
    np.testing.assert_allclose(state[0], c, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(state[1], outputs[:, -1])


@norms
@dtypes
@pytest.mark.parametrize("masters", [True, False])
def test_gradients_are_those_of_the_steps(layernorm, dtype, masters, rng, device):
    tensors = make(rng, layernorm, dtype, masters)
    results = gradients(grouped(layernorm), tensors)
    expected = gradients(step_by_step(layernorm), tensors)
    for y, e in zip(results, expected, strict=True):  # which adds steps in dtype
        assert np.linalg.norm(y - e) <= 2 * TIME * UNIT_ROUNDOFF[dtype] * np.linalg.norm(e)


@norms
def test_functions_and_lists_agree_with_eager_tensors(layernorm, rng):
    inputs, c, h, weights = make(rng, layernorm)
    run = grouped(layernorm)
    expected = gradients(run, (inputs, c, h, weights))
    lists = gradients(run, (tf.unstack(inputs, axis=1), c, h, weights))
    lists[3 : 3 + TIME] = [np.stack(lists[3 : 3 + TIME], 1)]
    graph = gradients(tf.function(run), (inputs, c, h, weights))
    for e, one, other in zip(expected, lists, graph, strict=True):
        np.testing.assert_array_equal(one, e)
        np.testing.assert_allclose(other, e, rtol=0, atol=1e-5 * np.abs(e).max())


def test_the_kernel_has_one_gradient_product(rng):
    tensors = make(rng)

    @tf.function
    def run(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            outputs = grouped(True)(*tensors)
        return tape.gradient(outputs, tensors[3]["kernel"])

    ops = run.get_concrete_function(*tensors).graph.get_operations()
    assert len([op for op in ops if op.type == "MatMul" and op.get_attr("transpose_a")]) == 1


def test_state_is_zero_by_default(rng):
    inputs, c, _, weights = make(rng)
    zero = tf.zeros_like(c)
    expected, _ = grouped_lstm(inputs, WIDTH, weights, (zero, zero))
    np.testing.assert_array_equal(grouped_lstm(inputs, WIDTH, weights)[0], expected)


def test_everything_repeats_bit_for_bit(rng):
    tensors = make(rng)
    for a, b in zip(*(gradients(grouped(True), tensors) for _ in range(2)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_errors(rng):
    inputs, c, h, weights = make(rng)
    with pytest.raises(ValueError, match="1 time step or more. Received: an empty list"):
        grouped_lstm([], WIDTH, weights)
    with pytest.raises(ValueError, match=r"inputs must have shape \[N, T, C\].*shape=\(3, 6\)"):
        grouped_lstm(inputs[:, 0], WIDTH, weights)
    with pytest.raises(
        ValueError, match="weights must be a dict of kernel, bias, gain. Received: "
    ):
        grouped_lstm(inputs, WIDTH, {"kernel": weights["kernel"], "bias": weights["bias"]})
    half = weights | {"kernel": tf.cast(weights["kernel"], "float16")}
    with pytest.raises(
        TypeError, match="kernel must be float32, or float32 as inputs. Received: float16"
    ):
        grouped_lstm(inputs, WIDTH, half)
    with pytest.raises(ValueError, match=r"kernel must have shape \[15, 36\]"):
        grouped_lstm(inputs, WIDTH + 1, weights)
    with pytest.raises(TypeError, match="c must be float32 as inputs. Received: float16"):
        grouped_lstm(inputs, WIDTH, weights, (tf.cast(c, "float16"), h))
    with pytest.raises(ValueError, match=r"h must have shape \[3, 8\]"):
        grouped_lstm(inputs, WIDTH, weights, (c, h[:2]))
    with pytest.raises(TypeError, match="inputs has an unsupported dtype. Received: float64"):
        grouped_lstm(tf.cast(inputs, "float64"), WIDTH, weights)

"""Products of weights that steps share: the helper behind `mlstm_sequence` and `grouped_lstm`."""

import numpy as np
import tensorflow as tf

from blocksparse._step_products import run_steps

NUM_STEPS = 5


def recurrent(x, w, unused):
    """x <- tanh(x w), again and again; the number of pairs in each gradient goes to `counts`."""
    counts = []

    def body(product, x):
        for _ in range(NUM_STEPS):
            x = tf.tanh(product("w", x))
        return [x]

    def multiply_dw(_, xs, dys):
        counts.append(len(xs))
        return tf.matmul(tf.concat(xs, 0), tf.concat(dys, 0), transpose_a=True)

    weights = {"w": w, "unused": unused}
    (y,) = run_steps(body, [x], weights, lambda _, x, w: x @ w, multiply_dw)
    return y, counts


def plain(x, w):
    for _ in range(NUM_STEPS):
        x = tf.tanh(x @ w)
    return x


def arrays(rng):
    return [rng.standard_normal(shape).astype(np.float32) for shape in ((3, 4), (4, 4), (2, 2))]


def test_gradients_are_those_of_a_tape_from_one_product(rng):
    x, w, unused = map(tf.constant, arrays(rng))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([x, w, unused])
        y, counts = recurrent(x, w, unused)
        expected = plain(x, w)
    np.testing.assert_array_equal(y, expected)
    dx, dw, dunused = tape.gradient(y, [x, w, unused])
    assert counts == [NUM_STEPS]
    for got, value in zip([dx, dw], tape.gradient(expected, [x, w]), strict=True):
        np.testing.assert_allclose(got, value, rtol=0, atol=1e-6 * np.abs(value).max())
    np.testing.assert_array_equal(dunused, np.zeros((2, 2)))


def test_a_tape_that_does_not_watch_the_weights(rng):
    x, w, unused = map(tf.constant, arrays(rng))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y, _ = recurrent(x, w, unused)
    assert tape.gradient(y, x).shape == x.shape


def test_tf1_graphs(rng):
    tf1 = tf.compat.v1
    values = arrays(rng)
    with tf.Graph().as_default():
        inputs = [tf1.placeholder(tf.float32, a.shape) for a in values]
        y, counts = recurrent(*inputs)
        dw = tf1.gradients(y, inputs[1])[0]
        expected = tf1.gradients(plain(*inputs[:2]), inputs[1])[0]
        with tf1.Session() as session:
            dw, expected = session.run([dw, expected], dict(zip(inputs, values, strict=True)))
    assert counts == [NUM_STEPS]
    np.testing.assert_allclose(dw, expected, rtol=0, atol=1e-6 * np.abs(expected).max())

"""Gradients of dense kernels over many time steps, grouped in graphs that stay as they are."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from blocksparse import basic_lstm_step, group_lstm_grads, grouped_lstm, grouped_lstm_weights
from blocksparse.layers import FusedBasicLSTMCell
from blocksparse.testing import tolerance

NUM_STEPS, BATCH, IN, OUT = 7, 3, 5, 4
in_graphs = pytest.mark.parametrize("run", ["function", "tf1"], indirect=True)


def arrays(rng, num_steps=NUM_STEPS):
    """(w, xs, dys): integers whose sums over all steps are exact in float16."""
    shapes = (IN, OUT), (num_steps, BATCH, IN), (num_steps, BATCH, OUT)
    return [rng.choice([-1.0, 1.0], shape).astype(np.float32) for shape in shapes]


def gradient(product, w, xs, dys, num_steps=NUM_STEPS):
    """The gradient of w from `product(x, w)` at every step."""
    ys = [product(x, w) for x in tf.unstack(xs, num_steps)]
    dys = [tf.cast(dy, y.dtype) for dy, y in zip(tf.unstack(dys, num_steps), ys, strict=True)]
    return tf.gradients(ys, [w], dys)[0]


def products(tensor):
    """The MatMul ops that `tensor` is computed from."""
    ops, to_visit = set(), [tensor.op]
    while to_visit:
        op = to_visit.pop()
        if op not in ops:
            ops.add(op)
            to_visit += [t.op for t in op.inputs]
    return [op for op in ops if op.type == "MatMul"]


def group(grad, param, expected_products, group_size=None):
    """Groups; checks the number of products and that the graph only grew."""
    before = [op.node_def for op in grad.graph.get_operations()]
    (grouped,) = group_lstm_grads([grad], [param], scope=None, group_size=group_size)
    after = [op.node_def for op in grad.graph.get_operations()]
    assert after[: len(before)] == before and len(after) > len(before)
    assert (grouped.dtype, grouped.graph) == (grad.dtype, grad.graph)
    assert len(products(grouped)) == expected_products
    return grouped


@in_graphs
@pytest.mark.parametrize(
    "num_steps, group_size, expected",
    [(2, None, 1), (7, None, 1), (7, 7, 1), (7, 3, 3), (3, 1, 3), (130, None, 1)],
)
def test_many_products_become_few(device, run, rng, num_steps, group_size, expected):
    w, xs, dys = arrays(rng, num_steps)

    def function(w, xs, dys):
        grad = gradient(tf.matmul, w, xs, dys, num_steps)
        assert len(products(grad)) == num_steps
        return grad, group(grad, w, expected, group_size)

    grad, grouped = run(function, w, xs, dys)
    tolerance.check_equal(grouped, np.einsum("tni,tno->io", xs, dys))
    tolerance.check_equal(grad, grouped)


def cast_both(dtype):
    return lambda x, w: tf.matmul(tf.cast(x, dtype), tf.cast(w, dtype))


def features_first(x, w):
    return tf.transpose(tf.matmul(w, x, transpose_a=True, transpose_b=True))


USES = {
    "features_first": features_first,
    "float16_at_each_step": cast_both(tf.float16),
    "bfloat16_at_each_step": cast_both(tf.bfloat16),
    "float64_at_each_step": cast_both(tf.float64),
    "identity_at_each_step": lambda x, w: tf.matmul(x, tf.identity(w)),
}


@in_graphs
@pytest.mark.parametrize("use", USES)
def test_products_of_every_form(device, run, rng, use):
    def function(w, xs, dys):
        grad = gradient(USES[use], w, xs, dys)
        return grad, group(grad, w, 1)

    grad, grouped = run(function, *arrays(rng))
    assert np.all(np.any(grad, axis=0))
    tolerance.check_equal(grouped, grad)


@in_graphs
def test_a_transposed_use_of_the_kernel(run, rng):
    """w itself is multiplied transposed, at every step."""

    def function(w, xs, dys):
        v = tf.transpose(w)
        grad = gradient(lambda x, v: tf.matmul(x, v, transpose_b=True), v, xs, dys)
        return grad, group(grad, v, 1)

    grad, grouped = run(function, *arrays(rng))
    tolerance.check_equal(grouped, grad)


@in_graphs
def test_other_terms_stay(run, rng):
    """A regulariser's gradient, one that broadcasts, products of two forms, one used twice."""

    def function(w, xs, dys):
        grad = gradient(tf.matmul, w, xs, dys) + gradient(features_first, w, xs, dys)
        grad = tf.add_n([0.5 * w, grad, grad]) + 1.0 + tf.identity(w)
        return grad, group(grad, w, 2)

    grad, grouped = run(function, *arrays(rng))
    tolerance.check_equal(grouped, grad)


@in_graphs
def test_groups_are_added_in_float32(run, rng):
    """Each step's float16 gradient is finite, their sum is not."""
    w, _, _ = arrays(rng)
    xs = np.full((NUM_STEPS, BATCH, IN), 110, np.float32)
    dys = np.full((NUM_STEPS, BATCH, OUT), 110, np.float32)

    def function(w, xs, dys):
        return [group(gradient(cast_both(tf.float16), w, xs, dys), w, 1)]

    [grouped] = run(function, w, xs, dys)
    tolerance.check_equal(grouped, np.full(w.shape, NUM_STEPS * BATCH * 110.0**2))


@in_graphs
def test_fewer_than_two_products_stay_as_they_are(run, rng):
    def function(w, xs, dys):
        grad = gradient(tf.matmul, w, xs, dys, 1)
        for tensor in (grad, grad + 0.5 * w, 0.5 * w):
            assert group_lstm_grads([tensor], [w], scope=None)[0] is tensor
        assert group_lstm_grads([None], [w], scope=None) == [None]
        return [grad]

    run(function, *arrays(rng, 1))


# ---- LSTMs ---------------------------------------------------------------------------------------


def lstm_loss(xs, weights):
    c = h = tf.zeros([tf.shape(xs)[1], OUT])
    for x in tf.unstack(xs, NUM_STEPS):
        c, h = basic_lstm_step(x, (c, h), weights["kernel"], weights["bias"])
    return tf.reduce_sum(h * tf.range(1.0, OUT + 1))


def test_a_tf1_graph_with_variables_and_scopes(device, rng):
    """As callers of the original have it: names choose, the list is changed."""
    tf1 = tf.compat.v1
    xs = rng.standard_normal([NUM_STEPS, BATCH, IN]).astype(np.float32)
    start = {name: t.numpy() for name, t in grouped_lstm_weights(IN, OUT, 1, False).items()}
    with tf.Graph().as_default():
        params = []
        for scope in ("grouped_lstm", "other"):
            with tf1.variable_scope(scope):
                params += [tf1.get_variable(n, initializer=start[n]) for n in ("kernel", "bias")]
        weights = [dict(zip(("kernel", "bias"), params[i : i + 2], strict=True)) for i in (0, 2)]
        loss = sum(lstm_loss(tf.constant(xs), w) for w in weights)
        grads = tf1.gradients(loss, params)
        ungrouped = list(grads)
        assert group_lstm_grads(grads, params) is grads
        assert [g is u for g, u in zip(grads, ungrouped, strict=True)] == [False, True, True, True]
        forward_and_dx = NUM_STEPS + NUM_STEPS - 1  # what dw is computed from; x needs no gradient
        assert len(products(ungrouped[0])) == forward_and_dx + NUM_STEPS
        assert len(products(grads[0])) == forward_and_dx + 1
        with tf1.Session() as session:
            session.run(tf1.global_variables_initializer())
            results = session.run(grads[:2])
            expected = session.run(ungrouped[2:])
    for result, value in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, value, rtol=0, atol=1e-5 * np.abs(value).max())


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_a_keras_model_in_a_function(rng, dtype):
    keras.utils.set_random_seed(1)
    cell = FusedBasicLSTMCell(OUT, dtype=dtype)
    layer = keras.layers.RNN(cell, unroll=True, dtype=dtype)
    sequences = tf.constant(rng.standard_normal([BATCH, NUM_STEPS, IN]), tf.float32)
    layer(sequences)
    counts = []

    @tf.function
    def gradients(sequences):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(tf.cast(layer(sequences), tf.float32)))
        grads = tape.gradient(loss, layer.trainable_variables)
        grouped = group_lstm_grads(list(grads), layer.trainable_variables, scope="fused_basic")
        counts.extend(len(products(g[0])) for g in (grads, grouped))
        return grads, grouped

    grads, grouped = gradients(sequences)
    assert counts[0] - counts[1] == NUM_STEPS - 1
    atol = 1e-6 if dtype == "float32" else NUM_STEPS * 2.0**-8  # bfloat16 products are rounded
    for grad, other in zip(grads, grouped, strict=True):
        np.testing.assert_allclose(other, grad, rtol=0, atol=atol * np.abs(grad).max())


def test_grouped_lstm_needs_no_grouping(rng):
    weights = grouped_lstm_weights(IN, OUT)

    @tf.function
    def gradients(inputs, kernel):
        outputs, _ = grouped_lstm(inputs, OUT, weights | {"kernel": kernel})
        grad = tf.gradients(outputs, kernel)[0]
        assert group_lstm_grads([grad], [kernel], scope=None)[0] is grad
        return grad

    gradients(tf.ones([BATCH, NUM_STEPS, IN]), weights["kernel"])


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("grad", [tf.ones([2]), np.ones(2)], ids=["eager", "numpy"])
def test_eager_gradients_are_refused(grad):
    with pytest.raises(TypeError, match="^group_lstm_grads: .* eager code calls grouped_lstm. Rec"):
        group_lstm_grads([grad], [tf.Variable(1.0)], scope=None)


def test_errors():
    kernel = tf.Variable(1.0, name="lstm/kernel")
    with pytest.raises(TypeError, match="grads must be a list, .* Received: tuple"):
        group_lstm_grads((None,), [kernel])
    with pytest.raises(ValueError, match="group_size must be 1 or more, or None. Received: 0"):
        group_lstm_grads([None], [kernel], group_size=0)
    with pytest.raises(ValueError, match="must be of the same length. Received: 1 and 2"):
        group_lstm_grads([None], [kernel, kernel])
    with pytest.raises(ValueError, match="have 'gru' and 'kernel' .* Received: lstm/kernel:0"):
        group_lstm_grads([None], [kernel], "gru")

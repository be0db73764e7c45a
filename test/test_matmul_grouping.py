"""Weight gradients of shared weights, grouped in graphs that stay as they are."""

import numpy as np
import pytest
import tensorflow as tf

from blocksparse import (
    SparsityLayout,
    block_reduced_full_dw,
    get_bsmm_dx_ops,
    group_param_grads,
    l2_normalize,
)
from blocksparse.matmul import matmul
from blocksparse.testing import reference, tolerance

LAYOUT = SparsityLayout([[1, 0, 1], [1, 1, 0], [0, 1, 1]], 8)
NUM_STEPS = 19
in_graphs = pytest.mark.parametrize("run", ["function", "tf1"], indirect=True)


def draw(rng, *shape):
    return rng.choice([-1, 1], shape).astype(np.float32)


def arrays(rng, num_steps=NUM_STEPS):
    """(w, xs, dys): integers whose sums over all steps are exact in float16."""
    steps = (num_steps, 4, LAYOUT.in_features)
    return draw(rng, *LAYOUT.w_shape), draw(rng, *steps), draw(rng, *steps)


def gradient(product, w, xs, dys, num_steps=NUM_STEPS):
    """The gradient of w from `product(x, w, step)` at every step."""
    ys = [product(x, w, step) for step, x in enumerate(tf.unstack(xs, num_steps))]
    dys = [tf.cast(dy, y.dtype) for dy, y in zip(tf.unstack(dys, num_steps), ys, strict=True)]
    return tf.gradients(ys, [w], dys)[0]


def ancestors(tensor):
    ops, to_visit = set(), [tensor.op]
    while to_visit:
        op = to_visit.pop()
        if op not in ops:
            ops.add(op)
            to_visit += [t.op for t in op.inputs]
    return ops


def num_products(tensor):
    return sum(op.type == "BlocksparseMatmulDW" for op in ancestors(tensor))


def group(grad, expected_products, group_size=8):
    """Groups; checks the number of products and that the graph only grew."""
    before = [op.node_def for op in grad.graph.get_operations()]
    grouped = group_param_grads(grad, group_size)
    after = [op.node_def for op in grad.graph.get_operations()]
    assert after[: len(before)] == before and len(after) > len(before)
    assert (grouped.dtype, grouped.graph) == (grad.dtype, grad.graph)
    assert num_products(grouped) == expected_products
    return grouped


@in_graphs
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    "num_steps, group_size, expected",
    [(2, 8, 1), (8, 8, 1), (9, 8, 2), (19, 2, 10), (5, 1, 5), (130, 128, 2)],
)
def test_many_products_become_few(device, run, rng, axis, num_steps, group_size, expected):
    w, xs, dys = arrays(rng, num_steps)
    if axis == 0:
        xs, dys = xs.swapaxes(1, 2), dys.swapaxes(1, 2)

    def function(w, xs, dys):
        grad = gradient(
            lambda x, w, _: matmul(x, w, LAYOUT, feature_axis=axis), w, xs, dys, num_steps
        )
        assert num_products(grad) == num_steps
        return grad, group(grad, expected, group_size)

    grad, grouped = run(function, w, xs, dys)
    tolerance.check_equal(grouped, reference.matmul_dw(list(xs), list(dys), LAYOUT, axis))
    tolerance.check_equal(grad, grouped)


def half(x):
    return tf.cast(x, tf.float16)


GATES = [[0.5, 0, 1, 2, 1, 1], [1, 1, 0, 1, 2, 0.5]]


def uses(w):
    """Ways to use w at each step: {name: (product(x, step), grouped products of 19 steps)}."""
    w16, normalized = half(w), l2_normalize(w, LAYOUT)
    normalized16 = l2_normalize(w, LAYOUT, dtype="float16")
    gates = tf.unstack(tf.constant(GATES))

    def gated(**kwargs):
        return lambda x, step: matmul(x, w, LAYOUT, gate=gates[step % 2], **kwargs)

    def alternating_axis(x, step):
        if step % 2:
            return tf.transpose(matmul(tf.transpose(x), w, LAYOUT, feature_axis=0))
        return matmul(x, w, LAYOUT)

    return {
        "float16": (lambda x, _: matmul(half(x), w16, LAYOUT), 3),
        "float16_at_each_step": (lambda x, _: matmul(half(x), half(w), LAYOUT), 3),
        "float32_dw": (lambda x, _: matmul(half(x), w16, LAYOUT, dw_dtype="float32"), 3),
        "identity_at_each_step": (lambda x, _: matmul(x, tf.identity(w), LAYOUT), 3),
        "normalized": (lambda x, _: matmul(x, normalized, LAYOUT), 3),
        "normalized16": (lambda x, _: matmul(half(x), normalized16, LAYOUT), 3),
        "normalized_then_float16": (lambda x, _: matmul(half(x), half(normalized), LAYOUT), 3),
        "gate": (gated(), 3),
        "dw_gated": (gated(dw_gated=True), 4),
        "gate_grad": (gated(gate_grad=True), 4),
        "alternating_axis": (alternating_axis, 4),
    }


with tf.Graph().as_default():
    USES = list(uses(tf.ones(LAYOUT.w_shape)))


@in_graphs
@pytest.mark.parametrize("use", USES)
def test_products_are_found_behind_linear_ops(device, run, rng, use):
    def function(w, xs, dys):
        product, expected = uses(w)[use]
        grad = gradient(lambda x, w, step: product(x, step), w, xs, dys)
        return grad, group(grad, expected)

    grad, grouped = run(function, *arrays(rng))
    assert np.all(np.any(grad, axis=(1, 2)))
    tolerance.check_equal(grouped, grad)


@in_graphs
def test_the_gradient_of_a_gate_is_grouped_too(device, run, rng):
    w, xs, dys = arrays(rng)

    def function(w, xs, dys):
        gate = tf.constant(GATES[0])
        ys = [matmul(x, w, LAYOUT, gate=gate, gate_grad=True) for x in tf.unstack(xs, NUM_STEPS)]
        grads = tf.gradients(ys, [w, gate], tf.unstack(dys, NUM_STEPS))
        return *grads, *[group(grad, 3) for grad in grads]

    dw, dgate, grouped_dw, grouped_dgate = run(function, w, xs, dys)
    tolerance.check_equal(grouped_dw, dw)
    tolerance.check_equal(grouped_dgate, dgate)


@in_graphs
def test_other_terms_stay(device, run, rng):
    """A regulariser's gradient, one that broadcasts, and a second use of the products."""
    w, xs, dys = arrays(rng)

    def function(w, xs, dys):
        grad = gradient(lambda x, w, _: matmul(x, w, LAYOUT), w, xs, dys)
        grad = tf.add_n([0.5 * w, grad, grad]) + 1.0 + tf.identity(w)
        return grad, group(grad, 5)

    grad, grouped = run(function, w, xs, dys)
    tolerance.check_equal(grouped, grad)


@in_graphs
def test_a_long_chain_of_additions_is_searched(run, rng):
    """As written by hand, one addition for each step: longer than Python's stack."""
    w, xs, dys = arrays(rng, 1)

    def function(w, xs, dys):
        products = [gradient(lambda x, w, _: matmul(x, w, LAYOUT), w, xs, dys, 1) for _ in range(3)]
        grad = products[0]
        for _ in range(1200):
            grad = grad + products[1]
        return grad, group(grad + products[2], 10, 128)

    grad, grouped = run(function, w, xs, dys)
    tolerance.check_equal(grouped * 1201, grad * 1202)


@in_graphs
def test_float16_groups_are_added_in_float32_for_float32_weights(run, rng):
    """Each step's gradient fits float16, their sum does not."""
    w, _, _ = arrays(rng)
    xs = np.full((NUM_STEPS, 4, LAYOUT.in_features), 45, np.float32)

    def function(w, xs):
        return [group(gradient(lambda x, w, _: matmul(half(x), half(w), LAYOUT), w, xs, xs), 3)]

    [grouped] = run(function, w, xs)
    tolerance.check_equal(grouped, np.full(w.shape, NUM_STEPS * 4 * 45.0**2))


@in_graphs
def test_fewer_than_two_products_stay_as_they_are(run, rng):
    def function(w, xs, dys):
        grad = gradient(lambda x, w, _: matmul(half(x), half(w), LAYOUT), w, xs, dys, 1)
        other = tf.add_n([w, w])
        with_other = grad + other
        for tensor in (grad, other, with_other):
            assert group_param_grads(tensor) is tensor
        return [grad]

    run(function, *arrays(rng, 1))


# ---- get_bsmm_dx_ops -----------------------------------------------------------------------------


@in_graphs
def test_dx_ops_of_a_recurrent_weight(run, rng):
    """h = x + h W + h' U: U has the tables of W and meets the same dy, V even the same x."""
    w, xs, _ = arrays(rng, 4)

    def function(w, xs):
        u, other = tf.stop_gradient(w), SparsityLayout(np.eye(3), 8)
        v = tf.ones(other.w_shape)
        xs = tf.ensure_shape(xs, [4, 4, LAYOUT.in_features])  # else each addend has a dy of its own
        h = h2 = xs[0]
        for x in tf.unstack(xs):
            h, h2 = x + matmul(h, w, LAYOUT) + matmul(h2, u, LAYOUT) + matmul(h, v, other), h
        dw, du, _ = tf.gradients(h, [w, u, xs])
        for weight, grad in ((w, dw), (u, du)):
            expected = [
                op
                for op in h.graph.get_operations()
                if op.type == "BlocksparseMatmulDX" and op.inputs[1] is weight
            ]
            found = get_bsmm_dx_ops(grad)
            assert len(found) == len(expected) == 4 and set(found) == set(expected)
        return [dw]

    run(function, w, xs)


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [group_param_grads, get_bsmm_dx_ops, block_reduced_full_dw])
@pytest.mark.parametrize("grad", [tf.ones([2]), np.ones(2)], ids=["eager", "numpy"])
def test_eager_gradients_are_refused(function, grad):
    with pytest.raises(TypeError, match=rf"^{function.__name__}: .* eager code calls matmul_dw"):
        function(grad)


@pytest.mark.parametrize("group_size", [0, 129])
def test_group_sizes_that_are_refused(group_size):
    with pytest.raises(ValueError, match=f"group_size must be 1 to 128. Received: {group_size}"):
        group_param_grads(None, group_size)

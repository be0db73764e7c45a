"""Casts, sums, biases, dropout and global norms against the reference."""

import numpy as np
import pytest
import tensorflow as tf

from blocksparse import (
    add_n,
    add_n8,
    bias_relu,
    clip_by_global_norm,
    dropout,
    float_cast,
    global_norm,
)
from blocksparse.testing import reference, tolerance

DTYPES = ("float32", "float16", "bfloat16")
ACTIVATIONS = (None, "relu", "fast_gelu")


def as_dtype(array, dtype):
    return tf.cast(array, dtype).numpy()


def gradients(function, xs, dy):
    """Of one output, in any execution mode: [y, dx, ...]."""
    if not tf.executing_eagerly():
        y = function(*xs)
        return [y, *tf.gradients(y, xs, dy)]
    with tf.GradientTape() as tape:
        tape.watch(xs)
        y = function(*xs)
    return [y, *tape.gradient(y, xs, dy)]


def kept(function, count=1):
    """How many tensors of the forward pass, constants aside, the gradient uses: what a graph keeps.

    Eagerly TensorFlow's tape keeps the inputs of every op besides.
    """
    with tf.Graph().as_default() as graph:
        xs = [tf.compat.v1.placeholder(tf.float32, [4]) for _ in range(count)]
        y = function(*xs)
        dy = tf.compat.v1.placeholder(y.dtype, [4])
        forward = {op.name for op in graph.get_operations()}
        new, used = [dx.op for dx in tf.gradients(y, xs, dy)], set()
        while new:  # back from the gradients to where the forward pass ends
            op = new.pop()
            if op.name not in forward:
                new.extend(tensor.op for tensor in op.inputs)
            elif op.type != "Const" and op != dy.op:
                used.add(op.name)
        return len(used)


# ---- float_cast


@pytest.mark.parametrize("dx_dtype", [None, *DTYPES])
@pytest.mark.parametrize("to", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_float_cast(device, rng, dtype, to, dx_dtype):
    x, dy = (tf.cast(rng.standard_normal((5, 3)), t) for t in (dtype, to))
    y, dx = gradients(lambda x: float_cast(x, to, dx_dtype), [x], dy)
    np.testing.assert_array_equal(y, tf.cast(x, to))
    np.testing.assert_array_equal(dx, tf.cast(dy, dx_dtype or dtype))
    assert y.dtype == to and dx.dtype == (dx_dtype or dtype)


def test_float_cast_modes(device, run, rng):
    x, dy = np.float32(rng.standard_normal((5, 3))), as_dtype(np.ones((5, 3)), "float16")
    y, dx = run(
        lambda x, dy: gradients(lambda x: float_cast(x, "float16", "float16"), [x], dy), x, dy
    )
    np.testing.assert_array_equal(y, np.float16(x))
    assert dx.dtype == np.float16 and np.all(dx == 1)


def test_float_cast_does_nothing_where_nothing_is_to_be_cast():
    x = tf.ones([2])
    assert float_cast(x, tf.float32) is x
    assert kept(lambda x: float_cast(x, tf.float16)) == 0


# ---- add_n


@pytest.mark.parametrize("count", [1, 2, 8, 9, 30])
@pytest.mark.parametrize("dtype", DTYPES)
def test_add_n_rounds_once(device, rng, dtype, count):
    xs = [as_dtype(rng.standard_normal((6, 7)), dtype) for _ in range(count)]
    dy = tf.cast(rng.standard_normal((6, 7)), dtype)
    wide = [np.float64(x) for x in xs]
    for function in (add_n, add_n8):
        y, *dxs = gradients(lambda *xs, f=function: f(xs), [tf.constant(x) for x in xs], dy)
        assert y.dtype == dtype and len(dxs) == count
        tolerance.check_product(y, sum(wide), sum(map(np.abs, wide)), count, dtype)
        for dx in dxs:
            np.testing.assert_array_equal(dx, dy)


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_n_modes(device, run, rng, dtype):
    xs = [as_dtype(rng.integers(-2, 3, (3, 4)), dtype) for _ in range(10)]
    y, *dxs = run(lambda *xs: gradients(lambda *xs: add_n(list(xs)), list(xs), xs[0]), *xs)
    np.testing.assert_array_equal(np.float64(y), sum(map(np.float64, xs)))
    assert all(np.array_equal(dx, xs[0]) for dx in dxs) and len(dxs) == 10


def test_add_n_leaves_the_list_alone_and_keeps_nothing():
    xs = [tf.ones([2])] * 12
    assert add_n(xs).numpy().tolist() == [12, 12] and len(xs) == 12
    assert add_n(xs[:1]) is xs[0]
    assert kept(lambda *xs: add_n(xs), 3) == 0


# ---- bias_relu


def check_bias_relu(x, b, dy, axis, activation, results):
    """Within the rounding of the result and, on the way to it, 16 roundings of float32."""
    y, dx, db = results
    dtype = tf.as_dtype(y.dtype).name
    z = np.abs(reference.bias_relu(np.abs(np.float64(x)), np.abs(b), axis))
    expected = reference.bias_relu(x, b, axis, activation)
    tolerance.check_product(y, expected, z, 16, dtype)
    expected, of_bias = reference.bias_relu_grad(dy, x, b, axis, activation)
    size = np.abs(np.float64(dy)) * (1 + z if activation == "fast_gelu" else 1)
    tolerance.check_product(dx, expected, size, 16, dtype)
    size = np.moveaxis(size, axis, -1)
    sums = size.sum(axis=tuple(range(size.ndim - 1)))
    count = dy.size // max(len(b), 1)
    tolerance.check_product(db, of_bias, sums, 16 + count, "float32")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("shape", [(5,), (33, 7), (4, 5, 6), (0, 3), (3, 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_relu(device, rng, dtype, shape, axis, activation):
    x, dy = (as_dtype(rng.standard_normal(shape), dtype) for _ in range(2))
    b = np.float32(rng.standard_normal(shape[axis]))
    act = {activation: True} if activation else {}
    call = lambda x, b: bias_relu(x, b, axis=axis, **act)  # noqa: E731
    results = gradients(call, [tf.constant(x), tf.constant(b)], tf.constant(dy))
    check_bias_relu(x, b, dy, axis, activation, results)
    if activation != "fast_gelu":  # exact, from y
        y = np.float64(results[0])
        expected = np.where(y > 0, dy, 0) if activation else dy
        np.testing.assert_array_equal(results[1], expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_bias_relu_modes(device, run, rng, axis, activation):
    x, dy = (as_dtype(rng.standard_normal((6, 4)), "bfloat16") for _ in range(2))
    b = np.float32(rng.standard_normal(x.shape[axis]))
    act = {activation: True} if activation else {}
    call = lambda x, b: bias_relu(x, b, axis=axis, **act)  # noqa: E731
    results = run(lambda x, b, dy: gradients(call, [x, b], dy), x, b, dy)
    check_bias_relu(x, b, dy, axis, activation, results)


@pytest.mark.parametrize("axis", [0, -1])
def test_bias_relu_of_unknown_rank(device, rng, axis):
    specs = [tf.TensorSpec(None), tf.TensorSpec(None), tf.TensorSpec(None)]

    @tf.function(input_signature=specs)
    def function(x, b, dy):
        return gradients(lambda x, b: bias_relu(x, b, axis=axis, relu=True), [x, b], dy)

    x, dy = (np.float32(rng.standard_normal((3, 4, 5))) for _ in range(2))
    b = np.float32(rng.standard_normal(x.shape[axis]))
    check_bias_relu(x, b, dy, axis, "relu", function(x, b, dy))


def test_bias_relu_keeps_what_its_gradient_needs():
    options = ({}, {"relu": True}, {"fast_gelu": True})
    assert [kept(lambda x, b, o=o: bias_relu(x, b, **o), 2) for o in options] == [0, 1, 2]


@pytest.mark.parametrize("activation", ["relu", "fast_gelu"])
def test_bias_relu_has_second_gradients(device, activation):
    """Against the differences of the first ones, in the middle of each branch."""

    def slope(x):
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = bias_relu(x, tf.zeros([3]), **{activation: True})
        return inner.gradient(y, x)

    x, step = tf.constant([[-1.5, 0.7, 2.0]]), 1e-2
    with tf.GradientTape() as outer:
        outer.watch(x)
        dx = slope(x)
    second = outer.gradient(dx, x, unconnected_gradients="zero")
    np.testing.assert_allclose(second, (slope(x + step) - slope(x - step)) / (2 * step), atol=1e-3)


# ---- dropout


@pytest.mark.parametrize("keep_prob", [0.1, 0.75, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout(device, run, rng, dtype, keep_prob):
    x, dy = (as_dtype(rng.standard_normal((40, 50)), dtype) for _ in range(2))

    def function(x, dy):
        masks = []

        def call(x):
            y, mask = dropout(x, keep_prob, seed=(3, 4))
            masks.append(mask)
            return y

        return [*gradients(call, [x], dy), masks[0]]

    y, dx, mask = run(function, x, dy)
    assert mask.dtype == bool and mask.shape == x.shape
    for result, of in ((y, x), (dx, dy)):
        expected = reference.dropout(of, keep_prob, mask)
        tolerance.check_product(result, expected, np.abs(expected), 1, dtype)
    # 6 standard deviations
    assert abs(mask.mean() - keep_prob) <= 6 * np.sqrt(keep_prob * (1 - keep_prob) / mask.size)


def test_keep_prob_may_be_a_tensor(device):
    @tf.function
    def function(x, keep_prob):
        return dropout(x, keep_prob, seed=(0, 1))

    for keep_prob in (0.25, 0.5):
        y, mask = function(tf.ones([1000]), tf.constant(keep_prob))
        np.testing.assert_array_equal(y, np.where(mask, 1 / keep_prob, 0))


def test_masks_come_from_the_seed_alone(device):
    x = tf.ones([10, 10], tf.float16)
    masks = [dropout(x, 0.5, seed=seed)[1].numpy() for seed in ((1, 2), (1, 2), (2, 1))]
    with tf.device("CPU:0"):
        masks.append(dropout(tf.ones([10, 10]), 0.5, seed=tf.constant([1, 2]))[1].numpy())
    assert np.array_equal(masks[0], masks[1]) and np.array_equal(masks[0], masks[3])
    assert not np.array_equal(masks[0], masks[2])
    generator = tf.random.Generator.from_seed(1)
    masks = [dropout(x, 0.5, seed=generator)[1].numpy() for _ in range(2)]
    assert not np.array_equal(*masks)
    again = dropout(x, 0.5, seed=tf.random.Generator.from_seed(1))[1]
    assert np.array_equal(masks[0], again)


@pytest.mark.parametrize("mask_shape", [(1, 5), (4, 1), (5,), (1, 1), ()])
def test_masks_are_broadcast_and_reused(device, mask_shape):
    x = tf.reshape(tf.range(1.0, 21.0), [4, 5])
    y, mask = dropout(x, 0.5, mask_shape=mask_shape, seed=(5, 5))
    assert mask.shape == mask_shape
    np.testing.assert_array_equal(y, reference.dropout(x, 0.5, mask))
    again, same = dropout(x, 0.5, mask=mask)
    np.testing.assert_array_equal(again, y)
    np.testing.assert_array_equal(same, mask)


def test_what_is_dropped_is_zero():
    x = tf.constant([np.nan, np.inf, 1.0])
    y, dx = gradients(lambda x: dropout(x, 0.5, mask=[False, False, True])[0], [x], x)
    assert y.numpy().tolist() == dx.numpy().tolist() == [0, 0, 2]


def test_dropout_keeps_its_mask_alone():
    assert kept(lambda x: dropout(x, 0.5, seed=(0, 0))[0]) == 1


# ---- global_norm, clip_by_global_norm


def random_grads(rng, dtypes=DTYPES):
    shapes = [(300, 7), (), (0, 4), (2, 3, 5)]
    return [as_dtype(rng.standard_normal(shape), dtype) for dtype in dtypes for shape in shapes]


@pytest.mark.parametrize("clip_norm", [0.5, 1e6])
@pytest.mark.parametrize("grad_scale", [1.0, 0.125])
@pytest.mark.parametrize("saturate", [0.0, 0.5])
def test_global_norm(device, run, rng, clip_norm, grad_scale, saturate):
    grads = random_grads(rng)
    options = {"grad_scale": grad_scale, "saturate": saturate}
    norm, scale = run(lambda *grads: clip_by_global_norm(grads, clip_norm, **options), *grads)
    expected = reference.global_norm(grads, **options)
    assert norm.dtype == scale.dtype == np.float32
    np.testing.assert_allclose(norm, expected, rtol=1e-6)
    np.testing.assert_allclose(scale, clip_norm / max(expected, clip_norm), rtol=1e-6)
    (alone,) = run(lambda *grads: [global_norm(grads, **options)], *grads)
    assert alone == norm


@pytest.mark.parametrize("zero_infs", [False, True])
@pytest.mark.parametrize("zero_nans", [False, True])
@pytest.mark.parametrize("saturate", [0.0, 2.0])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite(device, dtype, value, saturate, zero_nans, zero_infs):
    options = {"saturate": saturate, "zero_infs": zero_infs, "zero_nans": zero_nans}
    grads = [tf.ones([3]), tf.constant([value, 5.0], dtype)]
    norm, scale = clip_by_global_norm(grads, 1.0, **options)
    expected = reference.global_norm(grads, **options)
    np.testing.assert_allclose(norm, expected, rtol=1e-6)
    if np.isfinite(expected):
        np.testing.assert_allclose(scale, 1 / expected, rtol=1e-6)
    else:
        assert scale == 0


def test_the_norm_of_16_bit_gradients_is_summed_in_float32(device):
    """In their own dtypes these sums would overflow or stand still."""
    for dtype, value in (("float16", 200.0), ("bfloat16", 1.0)):
        norm = global_norm([tf.fill([100000], tf.cast(value, dtype))])
        np.testing.assert_allclose(norm, value * np.sqrt(100000), rtol=1e-5)


def test_gradients_may_be_none_few_or_sparse(device):
    assert global_norm([]) == 0
    norm, scale = clip_by_global_norm([None, tf.constant([3.0])], tf.constant(2.0))
    assert norm == 3 and scale == np.float32(2 / 3)
    slices = tf.IndexedSlices(tf.ones([2, 1]), tf.constant([1, 1]), tf.constant([4, 1]))
    assert global_norm([slices], grad_scale=tf.constant(0.5)) == 1  # the two are one element of 2


def test_clipping_leaves_the_gradients_alone():
    grads = [tf.constant([3.0, 4.0])]
    norm, scale = clip_by_global_norm(grads, 1.0, saturate=3.5)
    assert grads[0].numpy().tolist() == [3, 4]
    assert norm == np.float32(np.hypot(3, 3.5)) and scale < 1


# ---- errors

X, B, MASK = tf.zeros([2, 3]), tf.zeros([3]), tf.ones([2, 3], tf.bool)
SUPPORTED = "Supported: float32, float16, bfloat16."


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: float_cast(tf.zeros([2], tf.float64), "float32"),
            TypeError,
            f"float_cast: x has an unsupported dtype. Received: float64. {SUPPORTED}",
        ),
        (
            lambda: float_cast(X, "int32"),
            TypeError,
            f"float_cast: the result has an unsupported dtype. Received: int32. {SUPPORTED}",
        ),
        (
            lambda: float_cast(X, "float16", "float64"),
            TypeError,
            f"float_cast: the gradient has an unsupported dtype. Received: float64. {SUPPORTED}",
        ),
        (lambda: add_n([]), ValueError, "add_n: there must be one tensor or more. Received: none"),
        (
            lambda: add_n8([X, tf.zeros([2, 3], tf.float16)]),
            TypeError,
            "add_n8: a tensor must be float32 as the first. Received: float16.",
        ),
        (
            lambda: add_n([X, B]),
            ValueError,
            "add_n: all tensors must have one shape. Received: (2, 3) and (3,)",
        ),
        (
            lambda: bias_relu(tf.zeros([2], tf.float64), B),
            TypeError,
            f"bias_relu: x has an unsupported dtype. Received: float64. {SUPPORTED}",
        ),
        (
            lambda: bias_relu(X, tf.zeros([3], tf.float16)),
            TypeError,
            "bias_relu: b must be float32. Received: float16.",
        ),
        (
            lambda: bias_relu(X, B, relu=True, fast_gelu=True),
            ValueError,
            "bias_relu: one activation function at most. Received: relu and fast_gelu",
        ),
        (
            lambda: bias_relu(tf.zeros([2, 3, 4]), B, axis=1),
            ValueError,
            "bias_relu: axis must be the first or the last of x. Received: axis=1, "
            "x.shape=(2, 3, 4)",
        ),
        (
            lambda: bias_relu(X, B, axis=0),
            ValueError,
            "bias_relu: b must have shape [2]. Received: b.shape=(3,)",
        ),
        (
            lambda: dropout(X, 0.0, seed=(0, 0)),
            ValueError,
            "dropout: keep_prob must be in (0, 1]. Received: 0.0",
        ),
        (
            lambda: dropout(X, tf.ones([3]), seed=(0, 0)),
            ValueError,
            "dropout: keep_prob must have shape []. Received: keep_prob.shape=(3,)",
        ),
        (
            lambda: dropout(X, 0.5),
            ValueError,
            "dropout: either mask, or seed and perhaps mask_shape, must be given. Received: none",
        ),
        (
            lambda: dropout(X, 0.5, mask=MASK, mask_shape=[1, 3]),
            ValueError,
            "dropout: either mask, or seed and perhaps mask_shape, must be given. Received: mask, "
            "mask_shape",
        ),
        (
            lambda: dropout(X, 0.5, mask=X),
            TypeError,
            "dropout: mask must be bool. Received: float32.",
        ),
        (
            lambda: dropout(X, 0.5, mask=MASK[:, :2]),
            ValueError,
            "dropout: mask must have a shape that can be broadcast to that of x. Received: "
            "mask.shape=(2, 2), x.shape=(2, 3)",
        ),
        (
            lambda: dropout(B, 0.5, mask=MASK),
            ValueError,
            "dropout: mask must have a shape that can be broadcast to that of x. Received: "
            "mask.shape=(2, 3), x.shape=(3,)",
        ),
        (
            lambda: dropout(X, 0.5, seed=(0.0, 1.0)),
            TypeError,
            "dropout: seed must be two integers or a tf.random.Generator. Received: float32.",
        ),
        (
            lambda: dropout(X, 0.5, seed=7),
            ValueError,
            "dropout: seed must have shape [2]. Received: seed.shape=()",
        ),
        (
            lambda: clip_by_global_norm([X], 0.0),
            ValueError,
            "clip_by_global_norm: clip_norm must be positive. Received: 0.0",
        ),
        (
            lambda: global_norm([X], saturate=-1.0),
            ValueError,
            "global_norm: saturate must not be negative. Received: -1.0",
        ),
        (
            lambda: global_norm([tf.zeros([2], tf.float64)]),
            TypeError,
            f"global_norm: a gradient has an unsupported dtype. Received: float64. {SUPPORTED}",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error) as info:
        call()
    assert str(info.value) == message

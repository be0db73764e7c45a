"""Layer normalisation against the dense reference."""

import re

import numpy as np
import pytest
import tensorflow as tf

from blocksparse import layer_norm
from blocksparse._ops import ops
from blocksparse.testing import reference, tolerance

DTYPES = ("float32", "float16", "bfloat16")
EPSILON = 1e-6
# Features and segments: one thread to many, odd, every tile of layer_norm_policy.h.
SIZES = [(1, 1), (3, 1), (8, 1), (32, 1), (100, 1), (1024, 1), (5000, 1), (9001, 1), (16384, 1)]
SIZES += [(4, 4), (12, 4), (100, 4), (1024, 4), (5000, 4), (600, 600)]
BATCHES = (0, 1, 2, 63, 257)


def cases(sizes=tuple(SIZES), batches=BATCHES, relu=(False, True)):
    """dtype x K x S x axis x N x relu, with ids like float16-K100-S4-axis0-N63-relu."""
    return [
        pytest.param(
            dtype,
            features,
            segments,
            axis,
            n,
            with_relu,
            id=f"{dtype}-K{features}-S{segments}-axis{axis}-N{n}{'-relu' * with_relu}",
        )
        for dtype in DTYPES
        for features, segments in sizes
        for axis in (0, 1)
        for n in batches
        if features < 1100 or n in (1, 63)
        for with_relu in relu
    ]


def as_dtype(array, dtype):
    return tf.cast(array, dtype).numpy()


def inputs(rng, dtype, features, axis, n, offset=0.0):
    """(x, dy, g, b) of the shapes that they have."""
    shape = (n, features) if axis == 1 else (features, n)
    x = as_dtype(offset + rng.standard_normal(shape), dtype)
    dy = as_dtype(rng.standard_normal(shape), dtype)
    g, b = (rng.standard_normal(features).astype(np.float32) for _ in range(2))
    return x, dy, g, b


def away_from_the_edge_of_relu(x, dy, g, b, **kwargs):
    """dy with zeros where rounding decides whether y is 0."""
    y = reference.layer_norm(x, g, b, **{**kwargs, "relu": False})
    return np.where(np.abs(y) < 1e-3, np.zeros_like(dy), dy)


def normalized(**kwargs):
    """A function of (x, dy, g, b) that returns y, dx, dg and db."""

    def function(x, dy, g, b):
        with tf.GradientTape() as tape:
            tape.watch([x, g, b])
            y = layer_norm(x, g, b, **kwargs)
        return y, *tape.gradient(y, [x, g, b], dy)

    return function


def magnitudes(x, dy, g, b, feature_axis, segments, relu):
    """What the rounding errors of y, dx, dg and db are proportional to.

    xhat is (x - mean) rstd, computed from values as large as |x| and the mean of |x|. Each of these
    is the same formula as the result with absolute values for all terms.
    """
    back = (lambda t: t) if feature_axis == 1 else (lambda t: np.moveaxis(t, -1, 0))
    x, dy = (
        np.float64(t) if feature_axis == 1 else np.moveaxis(np.float64(t), 0, -1) for t in (x, dy)
    )
    parts = (-1, segments, len(g) // segments)
    g, b = (np.abs(np.float64(t)).reshape(parts[1:]) for t in (g, b))
    size, dy = np.abs(x).reshape(parts), np.abs(dy).reshape(parts)
    centred = x.reshape(parts) - x.reshape(parts).mean(axis=-1, keepdims=True)
    rstd = 1 / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPSILON)
    xhat = rstd * (np.abs(centred) + size + size.mean(axis=-1, keepdims=True))
    t = g * dy
    dots, sums = (v.mean(axis=-1, keepdims=True) for v in (t * xhat, t))
    dx = rstd * (t + xhat * dots + sums)
    y = g * xhat + b
    return (
        back(y.reshape(x.shape)),
        back(dx.reshape(x.shape)),
        (dy * xhat).sum(axis=0).reshape(-1),
        dy.sum(axis=0).reshape(-1),
    )


def check(results, x, dy, g, b, feature_axis, segments=1, relu=False):
    kwargs = dict(feature_axis=feature_axis, segments=segments, relu=relu)
    expected = (
        reference.layer_norm(x, g, b, epsilon=EPSILON, **kwargs),
        *reference.layer_norm_grad(dy, x, g, b, epsilon=EPSILON, **kwargs),
    )
    results = [np.asarray(result) for result in results]
    assert [result.dtype for result in results] == [x.dtype, x.dtype, np.float32, np.float32]
    size, batch = len(g) // segments, x.size // len(g)
    scales = magnitudes(x, dy, g, b, **kwargs)
    counts = (size, size, size + batch, batch)
    for result, exact, scale, count in zip(results, expected, scales, counts, strict=True):
        tolerance.check_product(result, exact, scale, max(count, 1), result.dtype.name)


@pytest.mark.parametrize("dtype, features, segments, axis, n, relu", cases())
def test_values_and_gradients(device, rng, dtype, features, segments, axis, n, relu):
    x, dy, g, b = inputs(rng, dtype, features, axis, n)
    kwargs = dict(feature_axis=axis, segments=segments, relu=relu)
    if relu:
        dy = away_from_the_edge_of_relu(x, dy, g, b, **kwargs)
    function = normalized(axis=axis, segments=segments, relu=relu, epsilon=EPSILON)
    check(function(*map(tf.constant, (x, dy, g, b))), x, dy, g, b, **kwargs)


@pytest.mark.parametrize("features", [32, 1000, 5000, 9001])
@pytest.mark.parametrize("axis", [0, 1])
def test_values_far_from_zero_keep_their_variance(device, rng, features, axis):
    """With mean 1000 and deviation 1, E[x^2] - mean^2 in float32 has an error of about 6 %.

    What remains is the rounding of the mean, at most 2^-15 for |mean| < 1024, and of the sums.
    """
    x, dy, g, b = inputs(rng, "float32", features, axis, 65, offset=1000.0)
    results = normalized(axis=axis)(*map(tf.constant, (x, dy, g, b)))
    check(results, x, dy, g, b, axis)
    y = reference.layer_norm(x, g, b, axis)
    weight = np.abs(g) if axis == 1 else np.abs(g)[:, None]
    assert np.max(np.abs(results[0].numpy() - y) / (1 + weight)) < 5e-4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1])
def test_integers_are_normalised_exactly(device, dtype, axis):
    """Rows of -1, 1, -1, 1, ... have mean 0 and variance 1: every element and sum is an integer."""
    x = np.tile(np.float32([-1, 1]), [66, 24])
    g, b = np.arange(48, dtype=np.float32) % 5, np.arange(48, dtype=np.float32) % 7 - 3
    dy = np.ones_like(x)
    if axis == 0:
        x, dy = x.T.copy(), dy.T.copy()
    kwargs = dict(segments=3, epsilon=0.0)
    x, dy = (as_dtype(t, dtype) for t in (x, dy))
    y, _, dg, db = normalized(axis=axis, **kwargs)(*map(tf.constant, (x, dy, g, b)))
    tolerance.check_equal(y.numpy(), np.round(reference.layer_norm(x, g, b, axis, **kwargs)))
    tolerance.check_equal(dg.numpy(), np.tile(np.float32([-66, 66]), 24))
    tolerance.check_equal(db.numpy(), np.full(48, 66))


@pytest.mark.parametrize(
    "dtype, features, segments, axis, n, relu", cases([(24, 1), (96, 4)], (0, 65))
)
def test_execution_modes_agree(device, run, rng, dtype, features, segments, axis, n, relu):
    x, dy, g, b = inputs(rng, dtype, features, axis, n)
    kwargs = dict(feature_axis=axis, segments=segments, relu=relu)
    dy = away_from_the_edge_of_relu(x, dy, g, b, **kwargs)
    results = run(normalized(axis=axis, segments=segments, relu=relu), x, dy, g, b)
    check(results, x, dy, g, b, **kwargs)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_empty_minibatch_gives_empty_results_and_zero_gradients(device, run, rng, dtype, axis):
    x, dy, g, b = inputs(rng, dtype, 8, axis, 0)
    y, dx, dg, db = run(normalized(axis=axis, segments=2), x, dy, g, b)
    assert y.shape == dx.shape == x.shape
    assert dg.shape == db.shape == (8,) and not dg.any() and not db.any()


@pytest.mark.parametrize("axis", [0, 1, -1, 3, -4])
def test_other_dimensions_are_the_minibatch(device, rng, axis):
    feature_axis = 0 if axis in (0, -4) else 1
    shape = (2, 3, 5, 16) if feature_axis == 1 else (16, 2, 3, 5)
    x, dy = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    g, b = (rng.standard_normal(16).astype(np.float32) for _ in range(2))
    results = normalized(axis=axis)(*map(tf.constant, (x, dy, g, b)))
    flat = (30, 16) if feature_axis == 1 else (16, 30)
    assert results[0].shape == results[1].shape == shape
    y, dx = (t.numpy().reshape(flat) for t in results[:2])
    check((y, dx, *results[2:]), x.reshape(flat), dy.reshape(flat), g, b, feature_axis)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_constant_row_becomes_the_bias(device, rng, dtype, axis):
    x, dy, g, b = inputs(rng, dtype, 24, axis, 5)
    x = np.full_like(x, 2.5)
    y = layer_norm(x, g, b, axis=axis).numpy()
    rows = as_dtype(np.tile(b, [5, 1]), dtype)
    tolerance.check_equal(y, np.float64(rows if axis == 1 else rows.T))


@pytest.mark.parametrize("axis", [0, 1])
def test_nan_stays_in_its_row(device, rng, axis):
    x, dy, g, b = inputs(rng, "float32", 40, axis, 70)
    x[(33, 7) if axis == 1 else (7, 33)] = np.nan
    y, dx, _, _ = normalized(axis=axis, relu=True)(*map(tf.constant, (x, dy, g, b)))
    for result in (y.numpy(), dx.numpy()):
        rows = np.isnan(result if axis == 1 else result.T)
        assert rows[33].all() and not np.delete(rows, 33, axis=0).any()


@pytest.mark.parametrize("features, n", [(96, 513), (3001, 70), (9001, 40)])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_repeat_bit_for_bit(device, rng, dtype, axis, features, n):
    arrays = [tf.constant(a) for a in inputs(rng, dtype, features, axis, n)]
    first = normalized(axis=axis, relu=True)(*arrays)
    for _ in range(3):
        for one, other in zip(first, normalized(axis=axis, relu=True)(*arrays), strict=True):
            assert one.numpy().tobytes() == other.numpy().tobytes()


@pytest.mark.parametrize("features, segments", [(64, 1), (64, 2), (33, 3)])
@pytest.mark.parametrize("axis", [0, 1])
def test_unaligned_tensors(device, rng, features, segments, axis):
    """A slice of a larger tensor may start at any element."""
    x, dy, g, b = inputs(rng, "float16", features, axis, 64)
    flat = [tf.constant(np.concatenate([np.zeros(1, np.float16), t.reshape(-1)])) for t in (x, dy)]

    @tf.function(jit_compile=False)
    def function(x_flat, dy_flat, g, b):
        tensors = (tf.reshape(t[1:], x.shape) for t in (x_flat, dy_flat))
        return normalized(axis=axis, segments=segments)(*tensors, g, b)

    check(function(*flat, g, b), x, dy, g, b, axis, segments)


def plain(x, g, b, axis, segments, relu):
    """The same of TensorFlow's ops."""
    x = x if axis == 1 else tf.transpose(x)
    parts = tf.reshape(x, [-1, segments, g.shape[0] // segments])
    # Not tf.nn.moments: it stops the gradient of the mean inside the variance, which the second
    # derivative needs.
    centred = parts - tf.reduce_mean(parts, -1, keepdims=True)
    variance = tf.reduce_mean(centred**2, -1, keepdims=True)
    y = tf.reshape(centred / tf.sqrt(variance + EPSILON), x.shape) * g + b
    y = tf.nn.relu(y) if relu else y
    return y if axis == 1 else tf.transpose(y)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("axis, segments", [(0, 1), (1, 1), (0, 3), (1, 3)])
def test_gradients_of_gradients(device, rng, axis, segments, relu):
    x, dy, g, b = (tf.constant(a) for a in inputs(rng, "float32", 12, axis, 5))
    weights = [tf.constant(rng.standard_normal(t.shape), tf.float32) for t in (x, g, b)]

    def third_order(function):
        tensors = [x, g, b]
        with tf.GradientTape() as third:
            third.watch([dy, *tensors])
            with tf.GradientTape() as second:
                second.watch([dy, *tensors])
                with tf.GradientTape() as first:
                    first.watch(tensors)
                    y = function()
                gradients = first.gradient(y, tensors, dy)
                total = sum(tf.reduce_sum(w * t) for w, t in zip(weights, gradients, strict=True))
            gradients = second.gradient(total, [dy, x, g])
            total = sum(tf.reduce_sum(t**2) for t in gradients)
        return *gradients, *third.gradient(total, [dy, x, g])

    ours = third_order(lambda: layer_norm(x, g, b, axis, segments, EPSILON, relu))
    theirs = third_order(lambda: plain(x, g, b, axis, segments, relu))
    for one, other in zip(ours, theirs, strict=True):
        scale = np.max(np.abs(other.numpy()))
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=2e-3, atol=1e-4 * scale)


def test_gradients_of_gradients_in_a_graph(device, run, rng):
    x, dy, g, b = inputs(rng, "float32", 12, 1, 5)

    def second(x, dy, g, b):
        with tf.GradientTape() as tape:
            tape.watch(x)
            gradients = normalized(segments=2)(x, dy, g, b)[1]
            total = tf.reduce_sum(gradients**2)
        return [tape.gradient(total, x)]

    (result,) = run(second, x, dy, g, b)
    step, numeric = 1e-5, np.zeros(x.shape)
    for i in np.ndindex(*x.shape):
        ends = []
        for sign in (1, -1):
            moved = np.float64(x)
            moved[i] += sign * step
            dx = reference.layer_norm_grad(np.float64(dy), moved, g, b, segments=2)[0]
            ends.append(np.sum(dx**2))
        numeric[i] = (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(result, numeric, rtol=1e-3, atol=1e-4 * np.abs(numeric).max())


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_reference_gradients_are_those_of_the_reference(rng, axis, relu):
    arrays = [np.float64(a) for a in inputs(rng, "float32", 12, axis, 3)]
    x, dy, g, b = arrays
    kwargs = dict(feature_axis=axis, segments=2, relu=relu)
    gradients = reference.layer_norm_grad(dy, x, g, b, **kwargs)
    for array, gradient in zip((x, g, b), gradients, strict=True):
        for i in np.ndindex(*array.shape):
            ends = []
            for step in (1e-6, -1e-6):
                saved = array[i]
                array[i] += step
                ends.append(np.sum(dy * reference.layer_norm(x, g, b, **kwargs)))
                array[i] = saved
            assert abs((ends[0] - ends[1]) / 2e-6 - gradient[i]) < 1e-6


def test_static_shapes_are_inferred():
    @tf.function(input_signature=[tf.TensorSpec([None, 4, 6])])
    def function(x):
        y = layer_norm(x, tf.ones(6), tf.zeros(6))
        assert y.shape.as_list() == [None, 4, 6]
        y, mean, rstd = ops.blocksparse_layer_norm(
            x[:7], tf.ones(6), tf.zeros(6), feature_axis=1, segments=2, epsilon=0.1, relu=False
        )
        assert mean.shape.as_list() == rstd.shape.as_list() == [2, None]
        return y

    function.get_concrete_function()


def test_the_name_is_that_of_the_op():
    with tf.Graph().as_default():
        y = layer_norm(tf.ones([2, 4]), tf.ones(4), tf.zeros(4), name="norm")
        assert y.op.name == "norm"


# ---- errors --------------------------------------------------------------------------------------

SHAPES = {"x": [6, 8], "g": [8], "b": [8]}
WRONG_SHAPES = [
    ({"x": [8]}, "x must have rank 2 or more (features and minibatch). Received: x.shape="),
    ({"x": [8], "axis": 0}, "x must have rank 2 or more (features and minibatch). Received: "),
    (
        {"x": [6, 0], "g": [0], "b": [0]},
        "the number of features on the last axis of x must be a positive multiple of segments=1. "
        "Received: x.shape=",
    ),
    (
        {"segments": 3},
        "the number of features on the last axis of x must be a positive multiple of segments=3. "
        "Received: x.shape=",
    ),
    (
        {"x": [8, 6], "axis": 0, "segments": 3},
        "the number of features on axis 0 of x must be a positive multiple of segments=3. ",
    ),
    ({"g": [6]}, "g must have shape [8]. Received: g.shape="),
    ({"g": [1, 8]}, "g must have shape [8]. Received: g.shape="),
    ({"b": [9]}, "b must have shape [8]. Received: b.shape="),
    ({"axis": 0}, "g must have shape [6]. Received: g.shape="),
]


def normalize_ones(**arguments):
    arguments = {**SHAPES, **arguments}
    tensors = [tf.ones(arguments.pop(key)) for key in SHAPES]
    return layer_norm(*tensors, **arguments)


@pytest.mark.parametrize("arguments, message", WRONG_SHAPES)
def test_wrong_shapes_are_refused(arguments, message):
    message = re.escape(f"BlocksparseLayerNorm: {message}")
    for call in (normalize_ones, lambda **kw: tf.function(lambda: normalize_ones(**kw))()):
        with pytest.raises(ValueError, match=message):
            call(**arguments)


@pytest.mark.parametrize("arguments, message", WRONG_SHAPES)
def test_wrong_shapes_are_refused_when_the_graph_runs(device, arguments, message):
    arguments = {**SHAPES, **arguments}
    shapes = [arguments.pop(key) for key in SHAPES]

    @tf.function(input_signature=[tf.TensorSpec(None)] * 3)
    def normalize(x, g, b):
        return layer_norm(x, g, b, **arguments)

    with pytest.raises(tf.errors.InvalidArgumentError, match=re.escape(message)):
        normalize(*map(tf.ones, shapes))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {"axis": 2},
            "axis must be 1, -1 or rank - 1 (features last) or 0 (features first). Received: "
            "axis=2, x.shape=(6, 8)",
        ),
        ({"axis": -3}, "axis must be 1, -1 or rank - 1 (features last) or 0"),
        ({"axis": True}, "axis must be 1, -1 or rank - 1 (features last) or 0"),
        ({"axis": 1.0}, "axis must be 1, -1 or rank - 1 (features last) or 0"),
        ({"x": [2, 6, 8], "axis": -2}, "axis must be 1, -1 or rank - 1 (features last) or 0"),
        ({"segments": 0}, "segments must be a positive integer. Received: 0"),
        ({"segments": 2.0}, "segments must be a positive integer. Received: 2.0"),
        ({"epsilon": -1e-6}, "epsilon must be 0 or more. Received: -1e-06"),
        ({"epsilon": float("nan")}, "epsilon must be 0 or more. Received: nan"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match="^" + re.escape(f"norm: {message}")):
        normalize_ones(name="norm", **arguments)


@pytest.mark.parametrize(
    "dtypes, message",
    [
        (
            ["float64", "float32", "float32"],
            "x has an unsupported dtype. Received: float64. Supported: float32, float16, bfloat16.",
        ),
        (["int32", "float32", "float32"], "x has an unsupported dtype. Received: int32."),
        (["float16", "float16", "float32"], "g must be float32. Received: float16."),
        (["float32", "float32", "float64"], "b must be float32. Received: float64."),
    ],
)
def test_wrong_dtypes_are_refused(dtypes, message):
    tensors = [tf.ones(SHAPES[key], dtype) for key, dtype in zip(SHAPES, dtypes, strict=True)]
    with pytest.raises(TypeError, match="^" + re.escape(f"norm: {message}")):
        layer_norm(*tensors, name="norm")


OP = dict(feature_axis=1, segments=2, epsilon=0.1, relu=False)


@pytest.mark.parametrize(
    "attributes, message",
    [
        (
            {"feature_axis": 2},
            "BlocksparseLayerNorm: feature_axis must be 1 (features last) or 0 (features first). "
            "Received: 2",
        ),
        ({"epsilon": -1.0}, "BlocksparseLayerNorm: epsilon must be 0 or more. Received: -1"),
        ({"segments": 0}, "segments"),
        (
            {"segments": 5},
            "BlocksparseLayerNorm: the number of features on the last axis of x must be a"
            " positive multiple of segments=5. Received: x.shape=[6, 8]",
        ),
    ],
)
def test_the_op_refuses_wrong_attributes(device, attributes, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=re.escape(message)):
        ops.blocksparse_layer_norm(*map(tf.ones, SHAPES.values()), **{**OP, **attributes})


@pytest.mark.parametrize(
    "shapes, message",
    [
        ({"dy": [5, 8]}, "dy must have shape [6, 8]. Received: dy.shape=[5, 8]"),
        ({"mean": [6, 2]}, "mean must have shape [2, 6]. Received: mean.shape=[6, 2]"),
        ({"rstd": [2, 5]}, "rstd must have shape [2, 6]. Received: rstd.shape=[2, 5]"),
        ({"x": [8]}, "x must have rank 2 or more (features and minibatch). Received: x.shape=[8]"),
        ({"g": [7]}, "g must have shape [8]. Received: g.shape=[7]"),
        ({"b": [7]}, "b must have shape [8]. Received: b.shape=[7]"),
    ],
)
def test_the_gradient_op_refuses_wrong_shapes(device, shapes, message):
    shapes = {"dy": [6, 8], **SHAPES, "mean": [2, 6], "rstd": [2, 6], **shapes}
    message = "BlocksparseLayerNormGrad: " + message
    with pytest.raises(tf.errors.InvalidArgumentError, match=re.escape(message)):
        ops.blocksparse_layer_norm_grad(*map(tf.ones, shapes.values()), **OP)

"""Weight normalisation against the dense reference."""

import numpy as np
import pytest
import tensorflow as tf

from blocksparse import SparsityLayout, l2_normalize
from blocksparse.testing import layouts, reference, tolerance

DTYPES = ("float32", "float16", "bfloat16")
MASKS = layouts.standard()
CASES = [
    pytest.param(dtype, result_dtype, size, mask, id=f"{dtype}-to-{result_dtype}-B{size}-{mask}")
    for dtype in DTYPES
    for result_dtype in DTYPES
    for size in (8, 16, 32, 64, 128)
    for mask in (("empty_lines", "full_column", "one") if size == 16 else ("empty_lines",))
]


def as_dtype(array, dtype):
    return tf.cast(array, dtype).numpy()


def normalized(layout, **kwargs):
    """A function of (w, dy) or (w, dy, gain) that returns y and the gradients of w and gain."""

    def function(w, dy, *gain):
        with tf.GradientTape() as tape:
            tape.watch([w, *gain])
            y = l2_normalize(w, layout, gain=gain[0] if gain else None, **kwargs)
        return y, *tape.gradient(y, [w, *gain], dy)

    return function


def inputs(rng, layout, dtype, result_dtype):
    """(w, dy, gain): output features of lengths that differ by orders of magnitude."""
    dense = rng.standard_normal((layout.in_features, layout.out_features))
    w = layout.from_dense(dense * np.exp(2 * rng.standard_normal(layout.out_features)), True)
    dy = rng.standard_normal(layout.w_shape)
    gain = rng.standard_normal(layout.out_features)
    return as_dtype(w, dtype), as_dtype(dy, result_dtype), gain.astype(np.float32)


def check(layout, results, w, dy, gain=None, epsilon=1e-12):
    y, dw, *dgain = (np.asarray(result) for result in results)
    rows = layout.mask.sum(axis=0).max() * layout.block_size
    expected = reference.l2_normalize(w, layout, gain, epsilon)
    assert (y.dtype, dw.dtype) == (dy.dtype, w.dtype)
    tolerance.check_product(y, expected, np.abs(expected), rows, y.dtype.name)

    expected_dw, expected_dgain = reference.l2_normalize_grad(w, dy, layout, gain, epsilon)
    dense_w, dense_dy = (np.abs(layout.to_dense(np.float64(a))) for a in (w, dy))
    bounded = np.maximum(np.sum(dense_w**2, axis=0), epsilon)
    dots = np.sum(dense_w * dense_dy, axis=0)
    magnitude = np.abs(1 if gain is None else gain) * (dense_dy + dense_w * dots / bounded)
    magnitude = layout.from_dense(magnitude / np.sqrt(bounded))
    tolerance.check_product(dw, expected_dw, magnitude, rows, dw.dtype.name)
    if gain is not None:
        magnitude = dots / np.sqrt(bounded)
        tolerance.check_product(dgain[0], expected_dgain, magnitude, rows, "float32")


@pytest.mark.parametrize("has_gain", [False, True], ids=["no_gain", "gain"])
@pytest.mark.parametrize("dtype, result_dtype, size, mask", CASES)
def test_values_and_gradients(device, rng, dtype, result_dtype, size, mask, has_gain):
    layout = SparsityLayout(MASKS[mask], size)
    w, dy, gain = inputs(rng, layout, dtype, result_dtype)
    arrays = [w, dy, gain] if has_gain else [w, dy]
    check(layout, normalized(layout, dtype=result_dtype)(*map(tf.constant, arrays)), *arrays)


def test_output_features_get_the_length_of_their_gain(device, rng):
    layout = SparsityLayout(MASKS["random"], 8)
    w, _, gain = inputs(rng, layout, "float32", "float32")
    lengths = np.linalg.norm(layout.to_dense(l2_normalize(w, layout, gain=gain).numpy()), axis=0)
    stored = np.repeat(layout.mask.any(axis=0), 8)
    np.testing.assert_allclose(lengths, np.where(stored, np.abs(gain), 0), rtol=1e-6)


def test_empty_columns_have_no_gradient_of_gain(device, rng):
    layout = SparsityLayout([[1, 0, 1], [1, 0, 0]], 8)
    w, dy, gain = inputs(rng, layout, "float32", "float32")
    *_, dgain = normalized(layout)(*map(tf.constant, (w, dy, gain)))
    assert not dgain[8:16].numpy().any() and dgain[:8].numpy().all() and dgain[16:].numpy().all()


@pytest.mark.parametrize("has_gain", [False, True], ids=["no_gain", "gain"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_short_features_are_divided_by_the_root_of_epsilon(device, rng, dtype, has_gain):
    """Such features are scaled by a constant, so their gradient is; zeros stay zeros."""
    layout = SparsityLayout(MASKS["full_column"], 16)
    w, dy, gain = inputs(rng, layout, dtype, "float32")
    w[layout.coordinates[:, 1] == 1] = 0
    squares = np.sum(layout.to_dense(w.astype(np.float64)) ** 2, axis=0)
    epsilon = float(np.float32(np.median(squares)))
    assert 20 < np.sum(squares < epsilon) < layout.out_features - 20
    arrays = [w, dy, gain] if has_gain else [w, dy]
    results = normalized(layout, epsilon=epsilon)(*map(tf.constant, arrays))
    check(layout, results, *arrays, epsilon=epsilon)
    assert np.array_equal(results[0].numpy() == 0, w == 0)


def test_a_feature_as_long_as_epsilon_counts_as_long(device):
    layout = SparsityLayout([[1]], 8)
    w, dy = np.full(layout.w_shape, 0.5, np.float32), np.zeros(layout.w_shape, np.float32)
    dy[0, 0] = 1
    results = normalized(layout, epsilon=2.0)(*map(tf.constant, (w, dy)))
    check(layout, results, w, dy, epsilon=2.0)
    assert (results[1].numpy()[0, 1] < 0).all()


@pytest.mark.parametrize("dtype, result_dtype", [("float32", "bfloat16"), ("float16", "float32")])
@pytest.mark.parametrize("has_gain", [False, True], ids=["no_gain", "gain"])
def test_execution_modes_agree(device, run, rng, dtype, result_dtype, has_gain):
    layout = SparsityLayout(MASKS["banded"], 8)
    w, dy, gain = inputs(rng, layout, dtype, result_dtype)
    arrays = [w, dy, gain] if has_gain else [w, dy]
    check(layout, run(normalized(layout, dtype=result_dtype), *arrays), *arrays)


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_repeat_bit_for_bit(device, rng, dtype):
    layout = SparsityLayout(layouts.power_law(rng, 60, 30), 32)
    arrays = [tf.constant(a) for a in inputs(rng, layout, dtype, dtype)]
    first = normalized(layout, dtype=dtype)(*arrays)
    for _ in range(3):
        for a, b in zip(first, normalized(layout, dtype=dtype)(*arrays), strict=True):
            assert a.numpy().tobytes() == b.numpy().tobytes()


def test_the_name_is_that_of_the_op():
    layout = SparsityLayout([[1]], 8)
    with tf.Graph().as_default():
        assert l2_normalize(tf.ones([1, 8, 8]), layout, name="norm").op.name == "norm"


# ---- errors --------------------------------------------------------------------------------------

LAYOUT = SparsityLayout([[1, 0], [1, 1]], 8)
WRONG_SHAPES = [
    ({"w": [2, 8, 8]}, r"(w|x) must have shape \[3, 8, 8\]\. Received: (w|x)\.shape=[\[(]2, 8, 8"),
    ({"w": [3, 8, 16]}, r"(w|x) must have shape \[(3|\?), 8, 8\]"),
    ({"w": [3, 64]}, r"(w|x) must have shape \[(3|\?), 8, 8\]"),
    ({"gain": [8]}, r"gain must have shape \[16\]\. Received: gain\.shape=[\[(]8"),
    ({"gain": [16, 1]}, r"gain must have shape \[16\]"),
]


def normalize_ones(w=(3, 8, 8), gain=(16,)):
    return l2_normalize(tf.ones(w), LAYOUT, gain=tf.ones(gain))


@pytest.mark.parametrize("shapes, message", WRONG_SHAPES)
def test_wrong_shapes_are_refused(shapes, message):
    for call in (normalize_ones, tf.function(normalize_ones).get_concrete_function):
        with pytest.raises(ValueError, match=f"BlocksparseL2Normalize: {message}"):
            call(**shapes)


@pytest.mark.parametrize("shapes, message", WRONG_SHAPES)
def test_wrong_shapes_are_refused_when_the_graph_runs(device, shapes, message):
    @tf.function(input_signature=[tf.TensorSpec(None), tf.TensorSpec(None)])
    def normalize(w, gain):
        return l2_normalize(w, LAYOUT, gain=gain)

    shapes = {"w": [3, 8, 8], "gain": [16], **shapes}
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"BlocksparseL2Normalize: {message}"):
        normalize(tf.ones(shapes["w"]), tf.ones(shapes["gain"]))


@pytest.mark.parametrize(
    "w_dtype, kwargs, message",
    [
        (
            "float64",
            {},
            "w has an unsupported dtype. Received: float64. Supported: float32, float16",
        ),
        ("int32", {}, "w has an unsupported dtype. Received: int32"),
        ("float32", {"dtype": "float64"}, "the result has an unsupported dtype. Received: float64"),
        ("float32", {"gain": np.ones(16)}, "gain must be float32. Received: float64"),
        ("float16", {"gain": np.ones(16, np.float16)}, "gain must be float32. Received: float16"),
    ],
)
def test_wrong_dtypes_are_refused(w_dtype, kwargs, message):
    with pytest.raises(TypeError, match=f"^norm: {message}"):
        l2_normalize(tf.ones([3, 8, 8], w_dtype), LAYOUT, name="norm", **kwargs)

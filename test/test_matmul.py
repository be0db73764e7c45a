"""The products and their gradients against the dense reference."""

import numpy as np
import pytest
import tensorflow as tf

from blocksparse import BlocksparseMatMul, SparsityLayout, matmul_dw, matmul_dx
from blocksparse.matmul import matmul
from blocksparse.testing import layouts, reference, tolerance

DTYPES = ("float32", "float16", "bfloat16")
BLOCK_SIZES = (8, 16, 32, 64, 128)
MASKS = layouts.standard()


def as_dtype(array, dtype):
    return tf.cast(array, dtype).numpy()


def cases(masks=tuple(MASKS), batches=(1, 7, 64, 65, 129), block_sizes=BLOCK_SIZES, dtypes=DTYPES):
    """dtype x block size x axis x layout x N, with ids like float16-B32-axis0-corners-N65."""
    return [
        pytest.param(dtype, size, axis, mask, n, id=f"{dtype}-B{size}-axis{axis}-{mask}-N{n}")
        for dtype in dtypes
        for size in block_sizes
        for axis in (0, 1)
        for mask in masks
        for n in batches
    ]


def activation(features, n, axis):
    return (n, features) if axis == 1 else (features, n)


def products(layout, axis, **kwargs):
    """A function of (x, w, dy) that returns y, dx and dw."""

    def function(x, w, dy):
        y = matmul(x, w, layout, feature_axis=axis, **kwargs)
        return y, *tf.gradients(y, [x, w], dy)

    def function_with_tape(x, w, dy):
        with tf.GradientTape() as tape:
            tape.watch([x, w])
            y = matmul(x, w, layout, feature_axis=axis, **kwargs)
        return y, *tape.gradient(y, [x, w], dy)

    return lambda *tensors: (function_with_tape if tf.executing_eagerly() else function)(*tensors)


@pytest.mark.parametrize("dtype, size, axis, mask, n", cases())
def test_products_are_exact_on_integers(device, rng, dtype, size, axis, mask, n):
    layout = SparsityLayout(MASKS[mask], size)
    x, w, dy = exact_inputs(rng, layout, axis, n, dtype)
    y, dx, dw = [
        t.numpy() for t in products(layout, axis)(*(tf.cast(a, dtype) for a in (x, w, dy)))
    ]
    assert y.dtype == dx.dtype == dw.dtype == as_dtype(x, dtype).dtype
    tolerance.check_equal(y, reference.matmul(x, w, layout, axis))
    tolerance.check_equal(dx, reference.matmul_dx(dy, w, layout, axis))
    tolerance.check_equal(dw, reference.matmul_dw(x, dy, layout, axis))


def exact_inputs(rng, layout, axis, n, dtype):
    depth = max(layout.mask.sum(axis=0).max(), layout.mask.sum(axis=1).max()) * layout.block_size
    x = tolerance.random_integers(
        rng, activation(layout.in_features, n, axis), max(depth, n), dtype
    )
    w = tolerance.random_integers(rng, layout.w_shape, depth, dtype)
    dy = tolerance.random_integers(
        rng, activation(layout.out_features, n, axis), max(depth, n), dtype
    )
    return x, w, dy


@pytest.mark.parametrize("tf32", [False, True], ids=["exact", "tf32"])
@pytest.mark.parametrize("dtype, size, axis, mask, n", cases(masks=["random"], batches=(65, 300)))
def test_products_round_within_bound(device, rng, dtype, size, axis, mask, n, tf32):
    if tf32 and (dtype, device) != ("float32", "GPU"):
        pytest.skip("TF32 is a matter of float32 on a GPU")
    tf.config.experimental.enable_tensor_float_32_execution(tf32)
    layout = SparsityLayout(MASKS[mask], size)
    shapes = (
        activation(layout.in_features, n, axis),
        layout.w_shape,
        activation(layout.out_features, n, axis),
    )
    x, w, dy = (as_dtype(rng.standard_normal(shape), dtype) for shape in shapes)
    y, dx, dw = [t.numpy() for t in products(layout, axis)(*map(tf.constant, (x, w, dy)))]
    rounded = "tf32" if tf32 else None
    for result, product, operands, count in (
        (y, reference.matmul, (x, w), layout.mask.sum(axis=0).max() * size),
        (dx, reference.matmul_dx, (dy, w), layout.mask.sum(axis=1).max() * size),
        (dw, reference.matmul_dw, (x, dy), n),
    ):
        exact = product(*operands, layout, axis)
        magnitude = product(*map(np.abs, operands), layout, axis)
        tolerance.check_product(result, exact, magnitude, count, dtype, rounded)


@pytest.mark.parametrize(
    "dtype, size, axis, mask, n", cases(masks=["empty_lines"], batches=(33,), block_sizes=(8, 32))
)
def test_execution_modes_agree(device, run, rng, dtype, size, axis, mask, n):
    layout = SparsityLayout(MASKS[mask], size)
    inputs = [as_dtype(a, dtype) for a in exact_inputs(rng, layout, axis, n, dtype)]
    y, dx, dw = run(products(layout, axis), *inputs)
    x, w, dy = inputs
    tolerance.check_equal(y, reference.matmul(x, w, layout, axis))
    tolerance.check_equal(dx, reference.matmul_dx(dy, w, layout, axis))
    tolerance.check_equal(dw, reference.matmul_dw(x, dy, layout, axis))


@pytest.mark.parametrize("axis", [0, 1])
def test_other_dimensions_are_the_minibatch(device, rng, axis):
    layout = SparsityLayout(MASKS["random"], 16)
    shape = (3, 2, 5, layout.in_features) if axis == 1 else (layout.in_features, 3, 2, 5)
    x = rng.integers(-2, 3, shape).astype(np.float32)
    w = rng.integers(-2, 3, layout.w_shape).astype(np.float32)
    y = BlocksparseMatMul(layout, feature_axis=axis)(x, w)
    tolerance.check_equal(y.numpy(), reference.matmul(x, w, layout, axis))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_empty_minibatch_gives_empty_results_and_zero_dw(device, run, dtype, axis):
    layout = SparsityLayout(MASKS["random"], 8)
    x = as_dtype(np.zeros(activation(layout.in_features, 0, axis)), dtype)
    dy = as_dtype(np.zeros(activation(layout.out_features, 0, axis)), dtype)
    y, dx, dw = run(products(layout, axis), x, as_dtype(np.ones(layout.w_shape), dtype), dy)
    assert y.shape == dy.shape and dx.shape == x.shape
    assert dw.shape == layout.w_shape and not dw.any()


def test_static_shapes_are_inferred():
    layout = SparsityLayout(MASKS["random"], 8)

    @tf.function(input_signature=[tf.TensorSpec([None, 4, layout.in_features])])
    def function(x):
        y = matmul(x, tf.ones(layout.w_shape), layout)
        assert y.shape.as_list() == [None, 4, layout.out_features]
        return y

    function.get_concrete_function()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dw_dtype_float32_keeps_the_sums(device, run, rng, dtype):
    layout = SparsityLayout(MASKS["random"], 16)
    n = 700
    x, dy = (
        as_dtype(rng.standard_normal((n, f)), dtype)
        for f in (layout.in_features, layout.out_features)
    )
    w = as_dtype(np.ones(layout.w_shape), dtype)
    *_, dw = run(products(layout, 1, dw_dtype="float32"), x, w, dy)
    assert dw.dtype == np.float32
    magnitude = reference.matmul_dw(np.abs(x), np.abs(dy), layout)
    tolerance.check_product(dw, reference.matmul_dw(x, dy, layout), magnitude, n, "float32")


@pytest.mark.parametrize("num_pairs", [1, 2, 9, 128, 300])
@pytest.mark.parametrize("axis", [0, 1])
def test_dw_sums_pairs_of_different_minibatches(device, rng, axis, num_pairs):
    layout = SparsityLayout(MASKS["random"], 8)
    batches = rng.integers(0, 40, num_pairs)
    xs, dys = (
        [rng.integers(-2, 3, activation(features, n, axis)).astype(np.float32) for n in batches]
        for features in (layout.in_features, layout.out_features)
    )
    dw = matmul_dw(xs, dys, layout, feature_axis=axis)
    tolerance.check_equal(dw.numpy(), reference.matmul_dw(xs, dys, layout, axis))


def test_dw_sums_a_long_minibatch(device, rng):
    """Long enough that the GPU splits it and adds partial sums."""
    layout = SparsityLayout(MASKS["diagonal"], 32)
    x, dy = (
        rng.integers(-2, 3, (20011, f)).astype(np.float32)
        for f in (layout.in_features, layout.out_features)
    )
    tolerance.check_equal(matmul_dw(x, dy, layout).numpy(), reference.matmul_dw(x, dy, layout))


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_repeat_bit_for_bit(device, rng, dtype):
    layout = SparsityLayout(layouts.power_law(rng, 20, 20), 32)
    x, w, dy = (
        tf.cast(rng.standard_normal(shape), dtype)
        for shape in ((3000, layout.in_features), layout.w_shape, (3000, layout.out_features))
    )
    first = products(layout, 1)(x, w, dy)
    for _ in range(3):
        for a, b in zip(first, products(layout, 1)(x, w, dy), strict=True):
            assert a.numpy().tobytes() == b.numpy().tobytes()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_gradients(device, run, rng, dtype, axis):
    """s = sum of (dx u) and (dw v): its gradients with respect to x, w and dy, all in integers."""
    layout = SparsityLayout(MASKS["diagonal"], 8)
    x, u = (rng.choice([-1, 1], activation(layout.in_features, 6, axis)) for _ in range(2))
    w, v = (rng.choice([-1, 1], layout.w_shape) for _ in range(2))
    dy = rng.choice([-1, 1], activation(layout.out_features, 6, axis))

    def function(x, w, dy, u, v):
        with tf.GradientTape() as outer:
            outer.watch([x, w, dy])
            with tf.GradientTape() as inner:
                inner.watch([x, w])
                y = matmul(x, w, layout, feature_axis=axis)
            dx, dw = inner.gradient(y, [x, w], dy)
            s = tf.reduce_sum(dx * u) + tf.reduce_sum(dw * v)
        return outer.gradient(s, [x, w, dy])

    grad_x, grad_w, grad_dy = run(function, *(as_dtype(a, dtype) for a in (x, w, dy, u, v)))
    tolerance.check_equal(grad_x, reference.matmul_dx(dy, v, layout, axis))
    tolerance.check_equal(grad_w, reference.matmul_dw(u, dy, layout, axis))
    expected = reference.matmul(u, w, layout, axis) + reference.matmul(x, v, layout, axis)
    tolerance.check_equal(grad_dy, expected)


def test_layouts_change_without_retracing(device, rng):
    """The tables are inputs of the op: one trace serves any layout of the same grid."""
    from blocksparse._ops import ops

    traces = []
    grid = {"block_size": 8, "in_blocks": 5, "out_blocks": 4, "feature_axis": 1}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 40]),
            tf.TensorSpec([None, 8, 8]),
            tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([None], tf.int32),
        ]
    )
    def step(x, w, lut, plan):
        traces.append(1)
        return ops.blocksparse_matmul(
            x=x, w=w, gate=[], lut=lut, plan=plan, dw_dtype=tf.float32, **grid
        )

    for density in (0.1, 0.5, 0.9):
        layout = SparsityLayout(layouts.random(rng, 5, 4, density), 8)
        x = rng.integers(-2, 3, (3, 40)).astype(np.float32)
        w = rng.integers(-2, 3, layout.w_shape).astype(np.float32)
        y = step(x, w, layout.lut, layout.plan)
        tolerance.check_equal(y.numpy(), reference.matmul(x, w, layout))
    assert len(traces) == 1


def test_memory_follows_the_stored_blocks(rng):
    """A layer whose dense matrix would take 64 GiB."""
    layout = SparsityLayout(np.eye(1024, dtype=bool), 128)
    x = tf.constant(rng.integers(-2, 3, (3, layout.in_features)), tf.float32)
    w = tf.ones(layout.w_shape)
    y, dx, dw = products(layout, 1)(x, w, x)
    sums = tf.repeat(tf.reduce_sum(tf.reshape(x, [3, -1, 128]), axis=-1), 128, axis=-1)
    assert np.array_equal(y, sums) and np.array_equal(dx, sums)
    blocks = tf.reshape(x, [3, -1, 128])
    assert np.array_equal(dw, tf.einsum("nbi,nbj->bij", blocks, blocks))


def test_matmul_dx_is_the_transposed_product(device, rng):
    layout = SparsityLayout(MASKS["full_row"], 16)
    dy = rng.integers(-2, 3, (9, layout.out_features)).astype(np.float32)
    w = rng.integers(-2, 3, layout.w_shape).astype(np.float32)
    tolerance.check_equal(matmul_dx(dy, w, layout).numpy(), reference.matmul_dx(dy, w, layout))

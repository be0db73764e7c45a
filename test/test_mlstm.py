"""The multiplicative LSTM: against its float64 definition, and its grouped gradients.

There is no simple bound through so many norms. The rule: the distance of `mlstm_sequence` from a
float64 implementation is at most twice that of plain ones, plus roundoff. Plain are in float32
TensorFlow's own dense ops, on these numbers and on ones that differ in the last bit; in 16 bits a
tape over the single steps.
"""

import numpy as np
import pytest
import tensorflow as tf

from blocksparse.mlstm import MLSTMConfig, mlstm_cell, mlstm_inputs, mlstm_sequence, mlstm_weights
from blocksparse.testing import reference
from blocksparse.testing.tolerance import UNIT_ROUNDOFF

SIZES = {"nhidden": 64, "nembd": 16, "isteps": 3, "block_size": 16, "masks": "ba_1"}
CASES = {
    "sparse": {},
    "dense": {"masks": "dense", "isteps": 2, "block_size": 32},
    "fewer_inputs": {"nproj_in": 24, "isteps": 2},
    "shared_masks": {"share_masks": True, "block_size": 8},
    "shared_isteps": {"share_isteps": True, "nproj_in": 32},
    "lsteps": {"lsteps": 2, "nproj_in": 48},
}
DTYPES = ("float32", "bfloat16", "float16")
TIME, BATCH = 3, 3

cases = pytest.mark.parametrize("case", CASES)
axes = pytest.mark.parametrize("feature_axis", [1, 0], ids=["axis1", "axis0"])
modes = pytest.mark.parametrize("mode", ["eager", "function", "tape_outside_function"])


def make(rng, case="sparse", feature_axis=1, dtype="float32", masters=True):
    """(config, tensors): x, c, h and weights, random enough that no gradient is trivial."""
    config = MLSTMConfig(**{**SIZES, **CASES[case]}, feature_axis=feature_axis, dtype=dtype, seed=1)

    def random(*shape):
        shape = shape if feature_axis == 1 else (shape[-1], *shape[:-1])
        return tf.cast(tf.constant(rng.standard_normal(shape), tf.float32), dtype)

    state = random(BATCH, config.nhidden), random(BATCH, config.nhidden)
    weights = {}
    for name, w in mlstm_weights(config).items():
        w += 0.1 * rng.standard_normal(w.shape).astype(np.float32)
        if name[0] == "w":  # what the products round it to
            w = tf.cast(w, dtype)
            w = tf.cast(w, tf.float32) if masters else w
        weights[name] = w
    return config, (random(TIME, BATCH, config.nembd), *state, weights)


def sequence(config):
    def run(x, c, h, weights):
        outputs, (c, h) = mlstm_sequence(x, (c, h), weights, config)
        return outputs, c, h

    return run


def step_by_step(config):
    def run(x, c, h, weights):
        outputs = []
        for e in tf.unstack(x, axis=1 - config.feature_axis):
            c, h = mlstm_cell(mlstm_inputs(e, weights, config), (c, h), weights, config)
            outputs.append(h)
        return tf.stack(outputs, 1 - config.feature_axis), c, h

    return run


def with_dense_ops(config):
    """The same with TensorFlow's dense ops, in the dtype of its arguments; takes features last."""

    def placed(value, chosen, background):
        if chosen is None:
            return value
        place = np.zeros((len(chosen), config.nhidden), value.dtype.as_numpy_dtype)
        place[np.arange(len(chosen)), list(chosen)] = 1
        return value @ place + background * (1 - place.sum(0))

    def run(x, c, h, weights):
        def linear(p, x):
            y = x @ weights[f"w_{p}"]
            deviations = y - tf.reduce_mean(y, -1, keepdims=True)
            var = tf.reduce_mean(deviations**2, -1, keepdims=True)
            return weights[f"g_{p}"] * deviations / tf.sqrt(var + 1e-6) + weights[f"b_{p}"]

        outputs = []
        for e in tf.unstack(x):
            for lstep in range(config.lsteps):
                for step in range(config.isteps):
                    h = linear("h0" if config.share_isteps else f"h{step}", h)
                    if lstep == 0 and step == 0:
                        h *= placed(linear("m", e), config.mul_features, 1.0)
                    if lstep == 0 and step == 1:
                        h += placed(linear("a", e), config.add_features, 0.0)
                    h = tf.nn.relu(h) if step else h
                i, f, o, u = (linear(p, h) for p in "ifou")
                c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(u)
                h = tf.sigmoid(o) * tf.tanh(c)
            outputs.append(h)
        return tf.stack(outputs), c, h

    return run


def gradients(function, tensors, cotangents, mode="eager"):
    """[outputs, gradients of all tensors], flat, as numpy float64."""
    inner = tf.function(function) if mode == "tape_outside_function" else function

    def run(tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            outputs = inner(*tensors)
        return outputs, tape.gradient(outputs, tensors, output_gradients=cotangents)

    run = tf.function(run) if mode == "function" else run
    return [np.asarray(tf.cast(t, tf.float64)) for t in tf.nest.flatten(run(tensors))]


def dense_gradients(config, tensors, cotangents=None, dtype=tf.float64):
    """`gradients` of `with_dense_ops`, in the layout of `tensors`."""

    def last(tensor):
        tensor = np.asarray(tf.cast(tensor, tf.float64))
        tensor = tensor if config.feature_axis == 1 else np.moveaxis(tensor, 0, -1)
        return tf.constant(tensor, dtype)

    *activations, weights = tensors
    dense = {name: np.asarray(tf.cast(w, tf.float64)) for name, w in weights.items()}
    for name in [f"w_{p}" for p in config.layouts]:
        dense[name] = config.layouts[name[2:]].to_dense(dense[name])
    dense = {name: tf.constant(w, dtype) for name, w in dense.items()}
    cotangents = cotangents and [last(tensor) for tensor in cotangents]
    results = gradients(with_dense_ops(config), (*map(last, activations), dense), cotangents)
    if config.feature_axis == 0:
        results[:6] = [np.moveaxis(t, -1, 0) for t in results[:6]]
    for number, name in enumerate(sorted(weights), 6):  # the order of tf.nest
        if name[0] == "w":
            layout = config.layouts[name[2:]]
            results[number] = layout.from_dense(results[number], allow_loss=True)
    return results


def in_float32(config, tensors, cotangents, rng):
    """`dense_gradients` in float32, of the tensors and of two copies with other last bits."""

    def other(tensor):
        return tensor * (1 + 2.0**-23 * rng.choice([-1, 1], tensor.shape).astype(np.float32))

    copies = [tf.nest.map_structure(other, tensors) for _ in range(2)]
    return [dense_gradients(config, t, cotangents, tf.float32) for t in (tensors, *copies)]


def check_as_good(results, plain, exact, dtype):
    """Distances from exact are at most twice the largest of the plain ones, plus roundoff."""
    for number, (y, e, *plains) in enumerate(zip(results, exact, *plain, strict=True)):
        floor = 4 * UNIT_ROUNDOFF[dtype] * np.linalg.norm(e)
        error = np.linalg.norm(y - e)
        bound = 2 * max(np.linalg.norm(p - e) for p in plains) + floor
        assert error <= bound, f"result {number}: error {error}, bound {bound}"


# ---- forward ----


def defined(config, x, c, h, weights):
    """[outputs, c, h] of the numpy definition."""
    time_dim, outputs = 1 - config.feature_axis, []
    for t in range(TIME):
        c, h = reference.mlstm_step(np.take(x, t, time_dim), c, h, weights, config)
        outputs.append(h)
    return [np.stack(outputs, time_dim), c, h]


@cases
@axes
def test_sequence_is_its_definition(case, feature_axis, rng, device):
    config, tensors = make(rng, case, feature_axis)
    exact = defined(config, *tensors)
    np.testing.assert_allclose(
        dense_gradients(config, tensors)[0], exact[0], rtol=0, atol=1e-12
    )  # so that gradients can be compared with those of the dense ops
    plain = in_float32(config, tensors, None, rng)
    outputs, c, h = (t.numpy() for t in sequence(config)(*tensors))
    check_as_good([outputs, c, h], [p[:3] for p in plain], exact, "float32")
    np.testing.assert_array_equal(h, np.take(outputs, TIME - 1, 1 - feature_axis))


@axes
def test_step_without_input_is_its_definition(feature_axis, rng):
    config, (_, c, h, weights) = make(rng, "sparse", feature_axis)
    got = mlstm_cell(None, (c, h), weights, config)
    # With gains 0, m = 1 and a = 0 whatever the input.
    ones = {"g_m": 0.0, "b_m": 1.0, "g_a": 0.0, "b_a": 0.0}
    weights |= {name: tf.fill([config.nproj_in], value) for name, value in ones.items()}
    x = np.zeros([BATCH, config.nembd] if feature_axis == 1 else [config.nembd, BATCH])
    expected = reference.mlstm_step(x, c, h, weights, config)
    for result, value in zip(got, expected, strict=True):
        np.testing.assert_allclose(result, value, rtol=0, atol=1e-5)


# ---- gradients ----


@cases
@axes
def test_gradients_are_those_of_the_steps(case, feature_axis, rng, device):
    check_gradients(rng, case, feature_axis, "float32", "eager")


@modes
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_in_every_mode(mode, dtype, rng):
    check_gradients(rng, "fewer_inputs", 1, dtype, mode)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@axes
def test_gradients_of_16_bit_weights(dtype, feature_axis, rng):
    check_gradients(rng, "sparse", feature_axis, dtype, "eager", masters=False)


def check_gradients(rng, case, feature_axis, dtype, mode, masters=True):
    config, tensors = make(rng, case, feature_axis, dtype, masters)
    x, c, _, _ = tensors
    shape = x.shape.as_list()
    shape[-1 if feature_axis == 1 else 0] = config.nhidden
    cotangents = [tf.cast(rng.standard_normal(s), x.dtype) for s in (shape, c.shape, c.shape)]
    results = gradients(sequence(config), tensors, cotangents, mode)
    steps = gradients(step_by_step(config), tensors, cotangents, mode)
    exact = dense_gradients(config, tensors, cotangents)
    plain = in_float32(config, tensors, cotangents, rng) if dtype == "float32" else [steps]
    check_as_good(results, plain, exact, dtype)
    check_as_good(steps, plain, exact, dtype)
    assert all(np.linalg.norm(e) > 0 for e in exact)


@pytest.mark.parametrize("num_steps", [1, TIME])
@axes
def test_state_is_zero_by_default(num_steps, feature_axis, rng):
    config, (x, c, _, weights) = make(rng, "lsteps", feature_axis)
    x = x[:num_steps] if feature_axis == 1 else x[:, :num_steps]
    zero = tf.zeros_like(c), tf.zeros_like(c)

    def run(state):
        return lambda x, weights: mlstm_sequence(x, state, weights, config)[0]

    expected = gradients(run(zero), (x, weights), None)
    for got, value in zip(gradients(run(None), (x, weights), None), expected, strict=True):
        np.testing.assert_allclose(got, value, rtol=0, atol=1e-6 * np.abs(value).max())


def test_gradients_of_masters_are_float32_sums(rng):
    config, tensors = make(rng, dtype="bfloat16")
    with tf.GradientTape() as tape:
        tape.watch(tensors[3])
        outputs, _, _ = sequence(config)(*tensors)
    dw = tape.gradient(outputs, tensors[3])["w_i"]
    assert dw.dtype == tf.float32
    assert np.any(dw != tf.cast(tf.cast(dw, tf.bfloat16), tf.float32))


def test_each_weight_has_one_product_over_all_steps(rng):
    config, tensors = make(rng, "lsteps")

    @tf.function
    def run(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            outputs, _, _ = sequence(config)(*tensors)
        return tape.gradient(outputs, tensors)

    ops = run.get_concrete_function(*tensors).graph.get_operations()
    pairs = [op.get_attr("num_pairs") for op in ops if op.type == "BlocksparseMatmulDW"]
    assert pairs == [TIME * config.lsteps] * (config.isteps + 4)


@axes
def test_dense_products_are_those_of_tensorflow(feature_axis, rng):
    """And one for the gradient of each weight, over all time steps."""
    config, tensors = make(rng, "dense", feature_axis)

    @tf.function
    def run(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            outputs, _, _ = sequence(config)(*tensors)
        return tape.gradient(outputs, tensors)

    ops = run.get_concrete_function(*tensors).graph.get_operations()
    assert not [op for op in ops if op.type.startswith("BlocksparseMatmul")]
    count = config.isteps + 4
    assert sum(op.type == "MatMul" for op in ops) == 2 * count * TIME + count + 2 * 3


@pytest.mark.parametrize("mode", ["eager", "function"])
def test_everything_repeats_bit_for_bit(mode, rng, device):
    config, tensors = make(rng, "fewer_inputs")
    first, second = (gradients(sequence(config), tensors, None, mode) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_tape_may_ask_twice_but_not_for_gradients_of_gradients(rng):
    config, (x, c, h, weights) = make(rng)
    with tf.GradientTape() as outer, tf.GradientTape(persistent=True) as inner:
        outer.watch(x)
        inner.watch(x)
        outputs, _ = mlstm_sequence(x, (c, h), weights, config)
        dx = inner.gradient(outputs, x)
    np.testing.assert_array_equal(inner.gradient(outputs, x), dx)
    with pytest.raises(LookupError, match="LstmGatesGrad"):
        outer.gradient(dx, x)

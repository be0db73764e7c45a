"""Selections of features and their gradients against numpy indexing."""

import pickle

import numpy as np
import pytest
import tensorflow as tf

from blocksparse import SparseProj

DTYPES = ("float32", "float16", "bfloat16", "float64")
LUT = [5, 0, 11, 3, 4]
NHIDDEN = 13
# The other dimensions of activations of rank 1 to 4.
BATCHES = [(), (7,), (1,), (3, 5), (2, 1, 3)]


def setup(rng, axis=0, batch=(7,), dtype="float32", lut_dtype=np.int32):
    """The projection, and random integers in the shapes of all and of the chosen features."""
    proj = SparseProj(NHIDDEN, gather_lut=np.array(LUT, lut_dtype), feature_axis=axis)
    all_shape, chosen_shape = (
        (features, *batch) if axis == 0 else (*batch, features) for features in (NHIDDEN, len(LUT))
    )

    def draw(shape):
        return tf.constant(rng.integers(-4, 5, shape), dtype).numpy()

    return proj, lambda: draw(all_shape), lambda: draw(chosen_shape)


class Reference:
    """The four operations by numpy's indexing."""

    def __init__(self, axis):
        self.axis = axis

    def at(self, z):
        return np.moveaxis(z, 0 if self.axis == 0 else -1, 0)

    def gather(self, x):
        return np.moveaxis(self.at(x)[LUT], 0, 0 if self.axis == 0 else -1)

    def scatter(self, x, base=0):
        shape = (NHIDDEN, *self.at(x).shape[1:])
        z = np.full(shape, base, x.dtype)
        z[LUT] = self.at(x)
        return np.moveaxis(z, 0, 0 if self.axis == 0 else -1)

    def scatter_add(self, x, y):
        z = x.copy()
        self.at(z)[LUT] += self.at(y)
        return z

    def scatter_mul(self, x, y):
        z = x.copy()
        self.at(z)[LUT] *= self.at(y)
        return z


def with_gradients(function):
    """A function of (dz, *inputs) that returns z and the gradients of the inputs."""

    def result(dz, *inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            z = function(*inputs)
        return z, *tape.gradient(z, inputs, dz)

    return result


def check(results, expected):
    for result, array in zip(results, expected, strict=True):
        assert np.asarray(result).dtype == array.dtype
        np.testing.assert_array_equal(result, array)


def cases(test):
    for name, values in (("dtype", DTYPES), ("lut_dtype", (np.int32, np.int64)), ("axis", (0, 1))):
        test = pytest.mark.parametrize(name, values)(test)
    return test


@cases
def test_gather_and_its_gradient(device, rng, axis, dtype, lut_dtype):
    proj, all_features, chosen = setup(rng, axis, (7,), dtype, lut_dtype)
    x, dz, expected = all_features(), chosen(), Reference(axis)
    results = with_gradients(proj.gather)(*map(tf.constant, (dz, x)))
    check(results, [expected.gather(x), expected.scatter(dz)])


@cases
def test_scatter_and_its_gradient(device, rng, axis, dtype, lut_dtype):
    proj, all_features, chosen = setup(rng, axis, (7,), dtype, lut_dtype)
    x, dz, expected = chosen(), all_features(), Reference(axis)
    results = with_gradients(proj.scatter)(*map(tf.constant, (dz, x)))
    check(results, [expected.scatter(x), expected.gather(dz)])


@cases
def test_scatter_add_and_its_gradients(device, rng, axis, dtype, lut_dtype):
    proj, all_features, chosen = setup(rng, axis, (7,), dtype, lut_dtype)
    x, y, dz, expected = all_features(), chosen(), all_features(), Reference(axis)
    results = with_gradients(proj.scatter_add)(*map(tf.constant, (dz, x, y)))
    check(results, [expected.scatter_add(x, y), dz, expected.gather(dz)])


@cases
def test_scatter_mul_and_its_gradients(device, rng, axis, dtype, lut_dtype):
    proj, all_features, chosen = setup(rng, axis, (7,), dtype, lut_dtype)
    x, y, dz, expected = all_features(), chosen(), all_features(), Reference(axis)
    results = with_gradients(proj.scatter_mul)(*map(tf.constant, (dz, x, y)))
    check(
        results, [expected.scatter_mul(x, y), expected.scatter_mul(dz, y), expected.gather(dz * x)]
    )


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_every_rank_in_every_mode(device, run, rng, batch, axis):
    proj, all_features, chosen = setup(rng, axis, batch)
    x, y, dz, expected = all_features(), chosen(), all_features(), Reference(axis)

    def function(x, y, dz):
        return (
            proj.gather(x),
            proj.scatter(y),
            *with_gradients(proj.scatter_add)(dz, x, y),
            *with_gradients(proj.scatter_mul)(dz, x, y),
        )

    check(
        run(function, x, y, dz),
        [
            expected.gather(x),
            expected.scatter(y),
            expected.scatter_add(x, y),
            dz,
            expected.gather(dz),
            expected.scatter_mul(x, y),
            expected.scatter_mul(dz, y),
            expected.gather(dz * x),
        ],
    )


@pytest.mark.parametrize("axis", [0, 1])
def test_gradients_of_gradients(device, run, rng, axis):
    """Through the gradients of scatter_mul, dz * y and gather(dz * x), to x, y and dz."""
    proj, all_features, chosen = setup(rng, axis)
    x, y, dz, u, v = all_features(), chosen(), all_features(), all_features(), chosen()

    def function(x, y, dz, u, v):
        with tf.GradientTape() as tape:
            tape.watch([x, y, dz])
            _, dx, dy = with_gradients(proj.scatter_mul)(dz, x, y)
            s = tf.reduce_sum(dx * u) + tf.reduce_sum(dy * v)
        return tape.gradient(s, [x, y, dz])

    expected = Reference(axis)
    check(
        run(function, x, y, dz, u, v),
        [
            expected.scatter(v) * dz,
            expected.gather(dz * u),
            expected.scatter_mul(u, y) + expected.scatter(v) * x,
        ],
    )


@pytest.mark.parametrize("name", ["gather", "scatter"])
def test_gather_and_scatter_are_gradients_of_each_others_gradients(device, rng, name):
    proj, all_features, chosen = setup(rng)
    x, dz = (all_features(), chosen()) if name == "gather" else (chosen(), all_features())
    x, dz = tf.constant(x), tf.constant(dz)
    with tf.GradientTape() as tape:
        tape.watch(dz)
        _, dx = with_gradients(getattr(proj, name))(dz, x)
    upstream = tf.constant(all_features() if name == "gather" else chosen())
    second = tape.gradient(dx, dz, upstream)
    check([second], [getattr(Reference(0), name)(upstream.numpy())])


def test_what_is_not_chosen_does_not_spread(device):
    proj = SparseProj(3, gather_lut=[0])
    x = tf.constant([1.0, np.nan, np.inf])
    assert proj.gather(x).numpy().tolist() == [1]
    assert proj.scatter([np.inf]).numpy().tolist() == [np.inf, 0, 0]
    np.testing.assert_array_equal(proj.scatter_mul(x, [2.0]), [2, np.nan, np.inf])
    np.testing.assert_array_equal(proj.scatter_mul([1.0, 2.0, 3.0], [np.nan]), [np.nan, 2, 3])


def test_inputs_stay_as_they_are(device, rng):
    proj, all_features, chosen = setup(rng)
    x, y = tf.Variable(all_features()), tf.Variable(chosen())
    before = [x.numpy().copy(), y.numpy().copy()]
    for z in (proj.scatter_add(x, y), proj.scatter_mul(x, y), proj.gather(x), proj.scatter(y)):
        assert z.dtype == tf.float32
    check([x, y], before)


# ---- construction --------------------------------------------------------------------------------


def assert_inverse(proj):
    assert np.array_equal(proj.scatter_lut[proj.gather_lut], np.arange(proj.nproj))
    rest = np.delete(proj.scatter_lut, proj.gather_lut)
    assert (rest == -1).all() and len(rest) == proj.nhidden - proj.nproj


def test_nproj_draws_features_in_ascending_order():
    proj = SparseProj(100, nproj=30, seed=1)
    assert proj.nproj == 30 and (np.diff(proj.gather_lut) > 0).all()
    assert proj.gather_lut.min() >= 0 and proj.gather_lut.max() < 100
    assert np.array_equal(proj.gather_lut, SparseProj(100, nproj=30, seed=1).gather_lut)
    assert not np.array_equal(proj.gather_lut, SparseProj(100, nproj=30, seed=2).gather_lut)
    assert SparseProj(5, nproj=5).gather_lut.tolist() == [0, 1, 2, 3, 4]
    assert_inverse(proj)


@pytest.mark.parametrize(
    "nhidden, stride, block_size, expected",
    [
        (64, 2, 32, range(0, 64, 2)),
        (80, 2, 16, range(0, 64, 2)),
        (33, 1, 32, range(32)),
        (100, 3, 8, range(0, 96, 3)),
    ],
)
def test_proj_stride_makes_whole_blocks(nhidden, stride, block_size, expected):
    proj = SparseProj(nhidden, proj_stride=stride, block_size=block_size)
    assert proj.gather_lut.tolist() == list(expected)
    assert_inverse(proj)


@pytest.mark.parametrize(
    "dtype, expected",
    [(np.int32, np.int32), (np.int64, np.int64), (np.uint8, np.int32), (np.uint64, np.int64)],
)
def test_gather_lut_keeps_its_order(dtype, expected):
    for kwargs in ({}, {"nproj": len(LUT)}):
        proj = SparseProj(NHIDDEN, gather_lut=np.array(LUT, dtype), **kwargs)
        assert proj.gather_lut.tolist() == LUT
        assert proj.gather_lut.dtype == proj.scatter_lut.dtype == expected
        assert_inverse(proj)


def test_pickle_keeps_the_selection(rng):
    proj = SparseProj(9, nproj=4, name="hubs", feature_axis=1)
    copy = pickle.loads(pickle.dumps(proj))
    assert vars(copy).keys() == vars(proj).keys()
    assert (copy.name, copy.feature_axis, copy.nhidden, copy.nproj) == ("hubs", 1, 9, 4)
    x = rng.standard_normal((2, 9))
    assert np.array_equal(copy.gather(x), proj.gather(x))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({}, "exactly one of nproj, proj_stride and gather_lut"),
        ({"nproj": 4, "proj_stride": 2}, "exactly one .* Received: nproj=4, proj_stride=2"),
        ({"nproj": 0}, "nproj must be 1 to nhidden=64. Received: 0"),
        ({"nproj": 65}, "nproj must be 1 to nhidden=64. Received: 65"),
        ({"proj_stride": 3}, "at least one block of 32 of nhidden=64 features. Received: 3"),
        ({"proj_stride": 0}, "at least one block .* Received: 0"),
        ({"proj_stride": -1}, "at least one block .* Received: -1"),
        ({"gather_lut": [0, 1], "nproj": 3}, "excludes .* another nproj.* nproj=3, .* 2 indices"),
        ({"gather_lut": [0, 1], "proj_stride": 2}, "excludes proj_stride"),
        ({"gather_lut": [0, 64]}, r"distinct integers in \[0, 64\).* dtype int64, shape \(2,\)"),
        ({"gather_lut": [-1, 3]}, "distinct integers"),
        ({"gather_lut": [3, 3]}, "distinct integers"),
        ({"gather_lut": []}, "distinct integers"),
        ({"gather_lut": [[1]]}, "distinct integers"),
        ({"gather_lut": [1.0]}, "distinct integers .* Received: dtype float64"),
        ({"nproj": 4, "feature_axis": 2}, "feature_axis must be 0 or 1. Received: 2"),
    ],
)
def test_constructions_that_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=f"^SparseProj: .*{message}"):
        SparseProj(64, **kwargs)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda p: p.gather(tf.ones([12, 4])),
            r"x must have 13 features on axis 0.* x.shape=\(12,",
        ),
        (lambda p: p.scatter(tf.ones([13])), "x must have 5 features on axis 0"),
        (lambda p: p.scatter_add(tf.ones([5, 2]), tf.ones([5, 2])), "x must have 13 features"),
        (lambda p: p.scatter_mul(tf.ones([13, 2]), tf.ones([13, 2])), "y must have 5 features"),
        (lambda p: p.scatter_add(tf.ones([13, 2]), tf.ones([13, 2])), "y must have 5 features"),
        (lambda p: p.gather(1.0), "x must have a known rank of at least 1"),
    ],
)
def test_wrong_shapes_are_refused(call, message):
    with pytest.raises(ValueError, match=f"^hubs: {message}"):
        call(SparseProj(NHIDDEN, gather_lut=LUT, name="hubs"))


@pytest.mark.parametrize("name", ["scatter_add", "scatter_mul"])
@pytest.mark.parametrize(
    "x_shape, y_shape", [((13, 1), (5, 4)), ((13, 4), (5, 1)), ((13, 13), (5,))]
)
def test_inputs_do_not_broadcast(name, x_shape, y_shape):
    call = getattr(SparseProj(NHIDDEN, gather_lut=LUT), name)
    with pytest.raises(ValueError, match="^SparseProj: y must have the shape of x but for"):
        call(tf.ones(x_shape), tf.ones(y_shape))


def test_an_unknown_rank_is_refused():
    proj = SparseProj(NHIDDEN, gather_lut=LUT)
    with pytest.raises(ValueError, match="known rank of at least 1. Received: x.shape=<unknown>"):
        tf.function(proj.gather).get_concrete_function(tf.TensorSpec(None))

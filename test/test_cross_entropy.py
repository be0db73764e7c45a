"""Softmax cross entropy against the reference, within a derived bound."""

import gc

import numpy as np
import pytest
import tensorflow as tf

from blocksparse import softmax_cross_entropy
from blocksparse._ops import ops
from blocksparse.testing import reference, tolerance

DTYPES = ("float32", "float16", "bfloat16")
LABEL_DTYPES = ("uint8", "uint16", "int32", "int64")
# (N, V): one class, tails and misaligned rows, either side of the row lengths where the GPU's
# kernels change, several chunks of the gradient
SHAPES = [
    (1, 1),
    (7, 2),
    (5, 31),
    (9, 256),
    (4, 1023),
    (4, 1024),
    (6, 1025),
    (3, 8193),
    (2, 50257),
    (1, 200003),
]
CASES = [pytest.param(dtype, n, v, id=f"{dtype}-N{n}-V{v}") for dtype in DTYPES for n, v in SHAPES]
U32 = tolerance.UNIT_ROUNDOFF["float32"]


def as_dtype(array, dtype):
    return tf.cast(array, dtype).numpy()


def loss_and_gradient(logits, labels, dloss):
    if not tf.executing_eagerly():
        loss = softmax_cross_entropy(logits, labels)
        return loss, tf.gradients(loss, logits, dloss)[0]
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = softmax_cross_entropy(logits, labels)
    return loss, tape.gradient(loss, logits, dloss)


def random_labels(rng, shape, classes, dtype="int64"):
    return rng.integers(0, min(classes, np.iinfo(dtype).max + 1), shape).astype(dtype)


def check(logits, labels, dloss, loss, dlogits):
    """Both results within their bounds, in units of float32's roundoff u.

    With d = row_max - x[j] an exponential errs by d u (its argument's rounding) and, the fast one,
    2 (2 + 1.2 d) u, relative. Weighted with the probabilities d is log V at most, so the sum errs
    by (4 + 3.4 log V) u and 4 sqrt(V) u for adding V terms.
    """
    dtype = tf.as_dtype(logits.dtype).name
    x = np.float64(logits)
    classes = x.shape[-1]
    below = np.max(x, axis=-1, keepdims=True) - x
    log_sum = np.log(np.sum(np.exp(-below), axis=-1))
    chosen = np.take_along_axis(below, np.int64(labels)[..., None], axis=-1)[..., 0]
    sum_error = 4 + 3.4 * np.log(classes) + 4 * np.sqrt(classes) + 2 * log_sum

    assert np.asarray(loss).dtype == np.float32
    check_units(loss, reference.softmax_cross_entropy(x, labels), sum_error + chosen, "float32")

    expected = reference.softmax_cross_entropy_grad(x, labels, dloss)
    onehot = np.int64(labels)[..., None] == np.arange(classes)
    exponent = below + log_sum[..., None]
    errors = 2 * exponent + 2 * (2 + 1.2 * exponent) + sum_error[..., None]
    p = np.exp(-exponent)
    units = np.abs(np.float64(dloss))[..., None] * (p * (errors + 2) + 2 * onehot)
    assert np.asarray(dlogits).dtype == logits.dtype
    check_units(dlogits, expected, units, dtype)


def check_units(result, expected, units, dtype):
    # 4 sqrt(1 / 16) = 1 in tolerance.product_bound; float32 flushes what is below 2^-126
    tolerance.check_product(result, expected, units + 2.0**-120 / U32, 1 / 16, dtype)


@pytest.mark.parametrize("dtype, n, v", CASES)
def test_loss_and_gradient(device, rng, dtype, n, v):
    logits = as_dtype(3 * rng.standard_normal((n, v)), dtype)
    labels = random_labels(rng, n, v)
    dloss = np.float32(rng.standard_normal(n))
    loss, dlogits = loss_and_gradient(*map(tf.constant, (logits, labels, dloss)))
    check(logits, labels, dloss, loss, dlogits)


@pytest.mark.parametrize("label_dtype", LABEL_DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_execution_modes_and_label_dtypes(device, run, rng, dtype, label_dtype):
    logits = as_dtype(rng.standard_normal((6, 77)), dtype)
    labels = random_labels(rng, 6, 77, label_dtype)
    dloss = np.float32(rng.standard_normal(6))
    check(logits, labels, dloss, *run(loss_and_gradient, logits, labels, dloss))


@pytest.mark.parametrize("label_dtype, v", [("uint8", 256), ("uint16", 65536), ("int32", 70001)])
def test_labels_reach_the_last_class(device, label_dtype, v):
    logits = np.zeros((2, v), np.float32)
    logits[0, -1] = 30
    labels = np.full(2, v - 1, label_dtype)
    dloss = np.ones(2, np.float32)
    loss, dlogits = loss_and_gradient(*map(tf.constant, (logits, labels, dloss)))
    check(logits, labels, dloss, loss, dlogits)
    assert loss[0] < 1e-6 < loss[1]


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 3), (0,), (2, 0, 3)])
def test_labels_may_have_any_shape(device, run, rng, shape):
    logits = np.float32(rng.standard_normal((*shape, 11)))
    labels = random_labels(rng, shape, 11)
    dloss = np.float32(rng.standard_normal(shape))
    loss, dlogits = run(loss_and_gradient, logits, np.asarray(labels), np.asarray(dloss))
    assert loss.shape == shape and dlogits.shape == logits.shape
    if loss.size:
        check(logits, labels, dloss, loss, dlogits)


@pytest.mark.parametrize("offset", [-6e4, -1e3, 1e3, 6e4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("v", [100, 3000])
def test_large_logits_lose_nothing(device, rng, dtype, offset, v):
    """The bound knows distances from the maximum alone, not the logits' magnitude."""
    logits = as_dtype(offset + 4 * rng.standard_normal((5, v)), dtype)
    labels = random_labels(rng, 5, v)
    dloss = np.ones(5, np.float32)
    loss, dlogits = loss_and_gradient(*map(tf.constant, (logits, labels, dloss)))
    check(logits, labels, dloss, loss, dlogits)


@pytest.mark.parametrize("v", [5, 1000, 4000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rising_and_falling_rows(device, dtype, v):
    """The running maximum changes with every element, or never."""
    rise = np.linspace(-300, 300, v)
    logits = as_dtype(np.stack([rise, -rise, np.abs(rise)]), dtype)
    labels = np.array([v - 1, 0, v // 2])
    dloss = np.ones(3, np.float32)
    loss, dlogits = loss_and_gradient(*map(tf.constant, (logits, labels, dloss)))
    check(logits, labels, dloss, loss, dlogits)


@pytest.mark.parametrize("v", [40, 2049])
@pytest.mark.parametrize("dtype", DTYPES)
def test_impossible_classes_count_for_nothing(device, rng, dtype, v):
    some = 3 * rng.standard_normal((4, v))
    some[:, ::2] = -np.inf
    some[1, :-1] = -np.inf  # one class remains, the last
    some[2, :-2] = -np.inf
    some[:, -1] = 1.0
    logits = as_dtype(some, dtype)
    labels = np.array([v - 1, v - 1, v - 1, 1])
    dloss = np.float32([1, 2, 3, -4])
    loss, dlogits = loss_and_gradient(*map(tf.constant, (logits, labels, dloss)))
    with np.errstate(invalid="ignore"):
        expected = reference.softmax_cross_entropy(logits, labels)
        gradient = reference.softmax_cross_entropy_grad(logits, labels, dloss)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)
    tolerance_of = 4 * tolerance.UNIT_ROUNDOFF[dtype]
    np.testing.assert_allclose(np.float64(dlogits), gradient, rtol=tolerance_of, atol=tolerance_of)
    assert loss[1] == 0 and not np.any(dlogits[1])
    assert not np.any(dlogits.numpy()[np.isinf(logits)])


@pytest.mark.parametrize("v", [40, 2049])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_label_that_cannot_be_has_infinite_loss(device, dtype, v):
    logits = np.zeros((1, v))
    logits[0, 3] = -np.inf
    inputs = tf.cast(logits, dtype), tf.constant([3]), tf.ones([1])
    loss, dlogits = loss_and_gradient(*inputs)
    assert loss[0] == np.inf
    expected = np.full(v, 1 / (v - 1))
    expected[3] = -1
    np.testing.assert_allclose(
        np.float64(dlogits[0]), expected, rtol=4 * tolerance.UNIT_ROUNDOFF[dtype]
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, "all -inf"])
@pytest.mark.parametrize("v", [40, 2049])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_without_a_distribution_are_nan(device, dtype, v, value):
    logits = np.zeros((3, v))
    if value == "all -inf":
        logits[1] = -np.inf
    else:
        logits[1, 7] = value
    inputs = tf.cast(logits, dtype), tf.constant([0, 0, 0]), tf.ones([3])
    loss, dlogits = loss_and_gradient(*inputs)
    assert np.isnan(loss).tolist() == [False, True, False]
    assert np.isnan(np.float64(dlogits)).all(axis=-1).tolist() == [False, True, False]


def test_a_single_class_is_certain(device):
    logits = tf.constant([[5.0], [-1e30], [1e30]])
    loss, dlogits = loss_and_gradient(logits, tf.zeros([3], tf.int32), tf.ones([3]))
    assert not np.any(loss) and not np.any(dlogits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n, v", [(1000, 33), (3, 70001)])
def test_results_repeat_bit_for_bit(device, rng, dtype, n, v):
    inputs = (
        tf.cast(rng.standard_normal((n, v)), dtype),
        tf.constant(random_labels(rng, n, v)),
        tf.constant(rng.standard_normal(n), tf.float32),
    )
    first = [t.numpy().tobytes() for t in loss_and_gradient(*inputs)]
    for _ in range(3):
        assert [t.numpy().tobytes() for t in loss_and_gradient(*inputs)] == first


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_less_exact_than_tensorflow(device, rng, dtype):
    """At most twice the error of TensorFlow's op in the same dtype, and a floor."""
    logits = as_dtype(20 + 3 * rng.standard_normal((50, 1001)), dtype)
    labels = random_labels(rng, 50, 1001)
    exact = reference.softmax_cross_entropy(logits, labels)
    plain = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, tf.constant(logits))
    error, of_plain = (
        np.max(np.abs(np.float64(loss) - exact))
        for loss in (softmax_cross_entropy(logits, labels), plain)
    )
    assert error <= 2 * of_plain + 1e-6


def test_static_shapes_are_inferred():
    specs = [tf.TensorSpec([None, 3, 5]), tf.TensorSpec([None, None], tf.int32)]

    @tf.function(input_signature=specs)
    def function(logits, labels):
        loss = softmax_cross_entropy(logits, labels)
        assert loss.shape.as_list()[:1] == [None]
        assert tf.gradients(loss, logits)[0].shape.as_list() == [None, 3, 5]
        return loss

    function.get_concrete_function()


WHO = "BlocksparseSoftmaxCrossEntropy"


@pytest.mark.parametrize("value, dtype", [(4, "int32"), (-1, "int64"), (200, "uint8")])
def test_a_bad_label_is_named_on_a_cpu(run, value, dtype):
    labels = np.zeros((3, 2), dtype)
    labels[1, 1] = labels[2, 0] = value
    inputs = np.zeros((3, 2, 4), np.float32), labels, np.ones((3, 2), np.float32)
    with tf.device("CPU:0"), pytest.raises(tf.errors.InvalidArgumentError) as info:
        run(loss_and_gradient, *inputs)
    message = "labels must be in [0, 4), the classes of logits. Received: labels[1, 1]="
    assert f"{WHO}: {message}{value}" in info.value.message


def test_the_gradient_op_checks_labels_too():
    rows = tf.zeros([1])
    with tf.device("CPU:0"), pytest.raises(tf.errors.InvalidArgumentError) as info:
        ops.blocksparse_softmax_cross_entropy_grad(
            dloss=rows, logits=tf.zeros([1, 4]), labels=[4], row_max=rows, log_sum=rows
        )
    message = "Grad: labels must be in [0, 4), the classes of logits. Received: labels[0]=4"
    assert WHO + message in info.value.message


@pytest.mark.gpu
@pytest.mark.parametrize("v", [4, 5000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bad_label_is_nan_on_a_gpu(dtype, v):
    with tf.device("GPU:0"):
        labels = tf.constant([0, v, 1, -1], tf.int64)
        loss, dlogits = loss_and_gradient(tf.zeros([4, v], dtype), labels, tf.ones([4]))
    assert np.isnan(loss).tolist() == [False, True, False, True]
    assert np.any(dlogits, axis=-1).tolist() == [True, False, True, False]
    assert not np.isnan(np.float64(dlogits)).any()


@pytest.mark.gpu
def test_no_probabilities_are_stored():
    """Peak memory beside the logits is their gradient; float32 probabilities would add 4 n v."""
    gpu = "GPU:0"
    n, v = 512, 50257
    with tf.device(gpu):
        logits = tf.zeros([n, v], tf.bfloat16)
        labels, dloss = tf.zeros([n], tf.int64), tf.ones([n])
        loss_and_gradient(logits, labels, dloss)
        gc.collect()
        tf.config.experimental.reset_memory_stats(gpu)
        before = tf.config.experimental.get_memory_info(gpu)["current"]
        loss_and_gradient(logits, labels, dloss)
        tf.test.experimental.sync_devices()
        peak = tf.config.experimental.get_memory_info(gpu)["peak"] - before
    assert peak < 4 * n * v  # the allocator may hand out more than the 2 n v that are asked for


@pytest.mark.parametrize(
    "logits, labels, error, message",
    [
        (
            tf.zeros([2, 3], tf.float64),
            [0, 1],
            TypeError,
            "logits has an unsupported dtype. Received: float64. Supported: float32, float16, "
            "bfloat16.",
        ),
        (
            tf.zeros([2, 3]),
            [0.0, 1.0],
            TypeError,
            "labels have an unsupported dtype. Received: float32. Supported: uint8, uint16, int32, "
            "int64.",
        ),
        (
            tf.zeros([2, 3]),
            [0, 1, 2],
            ValueError,
            "labels must have shape [2]. Received: labels.shape=(3,)",
        ),
        (
            tf.zeros([2, 0]),
            [0, 1],
            ValueError,
            "logits must have rank 1 or more and at least one class on the last axis. Received: "
            "logits.shape=(2, 0)",
        ),
        (
            tf.zeros([]),
            0,
            ValueError,
            "logits must have rank 1 or more and at least one class on the last axis. Received: "
            "logits.shape=()",
        ),
    ],
)
def test_python_errors(logits, labels, error, message):
    with pytest.raises(error) as info:
        softmax_cross_entropy(logits, labels)
    assert str(info.value) == f"{WHO}: {message}"


OP_ERRORS = [
    ((2, 3), (3,), "labels must have shape [2]. Received: labels.shape=[3]"),
    (
        (2, 0),
        (2,),
        "logits must have rank 1 or more and at least one class on the last axis. Received: "
        "logits.shape=[2, 0]",
    ),
    (
        (),
        (),
        "logits must have rank 1 or more and at least one class on the last axis. Received: "
        "logits.shape=[]",
    ),
]


@pytest.mark.parametrize("logits, labels, message", OP_ERRORS)
def test_op_errors(device, logits, labels, message):
    with pytest.raises(tf.errors.InvalidArgumentError) as info:
        ops.blocksparse_softmax_cross_entropy(
            logits=tf.zeros(logits), labels=tf.zeros(labels, tf.int64)
        )
    assert f"{WHO}: {message}" in info.value.message
    with tf.Graph().as_default(), pytest.raises(ValueError) as info:  # the shape function
        ops.blocksparse_softmax_cross_entropy(
            logits=tf.zeros(logits), labels=tf.zeros(labels, tf.int64)
        )
    assert f"{WHO}: {message}" in str(info.value)
    with pytest.raises(tf.errors.InvalidArgumentError) as info:
        rows = tf.zeros(logits[:-1])
        ops.blocksparse_softmax_cross_entropy_grad(
            dloss=rows,
            logits=tf.zeros(logits),
            labels=tf.zeros(labels, tf.int64),
            row_max=rows,
            log_sum=rows,
        )
    assert f"{WHO}Grad: {message}" in info.value.message


@pytest.mark.parametrize("name", ["dloss", "row_max", "log_sum"])
def test_gradient_op_errors(device, name):
    rows = dict.fromkeys(("dloss", "row_max", "log_sum"), tf.zeros([2]))
    rows[name] = tf.zeros([3])
    with pytest.raises(tf.errors.InvalidArgumentError) as info:
        ops.blocksparse_softmax_cross_entropy_grad(
            logits=tf.zeros([2, 4]), labels=tf.zeros([2], tf.int64), **rows
        )
    message = f"{name} must have shape [2]. Received: {name}.shape=[3]"
    assert f"{WHO}Grad: {message}" in info.value.message


def test_shapes_unknown_to_python_are_checked_when_the_graph_runs(device):
    @tf.function(input_signature=[tf.TensorSpec(None), tf.TensorSpec(None, tf.int64)])
    def function(logits, labels):
        return softmax_cross_entropy(logits, labels)

    with pytest.raises(tf.errors.InvalidArgumentError) as info:
        function(tf.zeros([2, 3]), tf.zeros([4], tf.int64))
    message = "labels must have shape [2]. Received: labels.shape=[4]"
    assert f"{WHO}: {message}" in info.value.message


def test_gradients_of_gradients_are_refused():
    logits = tf.zeros([2, 3])
    with tf.GradientTape() as outer:
        outer.watch(logits)
        _, dlogits = loss_and_gradient(logits, tf.constant([0, 1]), tf.ones([2]))
    with pytest.raises(LookupError, match="BlocksparseSoftmaxCrossEntropyGrad"):
        outer.gradient(dlogits, logits)

"""Embedding lookup: copies to the bit, gradients against the reference."""

import numpy as np
import pytest
import tensorflow as tf

from blocksparse import embedding_lookup
from blocksparse._ops import ops
from blocksparse.testing import reference, tolerance

DTYPES = ("float32", "float16", "bfloat16")
INDEX_DTYPES = ("uint8", "uint16", "int32", "int64")
# (C, K, N): one of each, rows that are no whole vectors, several tiles of columns, more rows than
# indices, chunks of 64 sorted positions and their neighbours, runs over many chunks
SHAPES = [
    (1, 1, 1),
    (3, 2, 63),
    (2, 7, 65),
    (5, 8, 64),
    (100, 33, 17),
    (7, 264, 200),
    (70001, 16, 300),
    (9, 600, 1000),
    (1, 40, 3001),
    (1000, 12, 0),
]
CASES = [
    pytest.param(dtype, c, k, n, id=f"{dtype}-C{c}-K{k}-N{n}")
    for dtype in DTYPES
    for c, k, n in SHAPES
]


def lookup_and_gradient(emb, idx, dy, demb_dtype=None):
    if not tf.executing_eagerly():
        y = embedding_lookup(emb, idx, demb_dtype)
        return y, tf.gradients(y, emb, dy)[0]
    with tf.GradientTape() as tape:
        tape.watch(emb)
        y = embedding_lookup(emb, idx, demb_dtype)
    return y, tape.gradient(y, emb, dy)


def as_dtype(array, dtype):
    return tf.cast(array, dtype).numpy()


def random_indices(rng, shape, rows, dtype="int64"):
    return rng.integers(0, min(rows, np.iinfo(dtype).max + 1), shape).astype(dtype)


def skewed_indices(rng, n, rows):
    """A few indices very often and most of them seldom, as words are."""
    return np.minimum(rng.pareto(0.7, n), rows - 1).astype(np.int64)


def check_gradient(demb, dy, idx, rows, dtype):
    expected = reference.embedding_lookup_grad(dy, idx, rows)
    magnitude = reference.embedding_lookup_grad(np.abs(np.float64(dy)), idx, rows)
    counts = np.bincount(np.int64(idx).reshape(-1), minlength=rows)[:, None]
    assert tf.as_dtype(demb.dtype).name == dtype
    tolerance.check_product(demb, expected, magnitude, counts, dtype)


@pytest.mark.parametrize("dtype, c, k, n", CASES)
def test_lookup_copies_every_bit(device, rng, dtype, c, k, n):
    bits = rng.integers(0, 256, (c, k, tf.as_dtype(dtype).size)).astype(np.uint8)
    emb = tf.bitcast(bits, dtype)  # NaN and subnormal numbers too
    idx = random_indices(rng, n, c)
    y = tf.bitcast(embedding_lookup(emb, idx), tf.uint8)
    np.testing.assert_array_equal(y, bits[idx])


@pytest.mark.parametrize("dtype, c, k, n", CASES)
def test_gradient(device, rng, dtype, c, k, n):
    emb = tf.zeros([c, k], dtype)
    idx = random_indices(rng, n, c)
    dy = as_dtype(rng.standard_normal((n, k)), dtype)
    for demb_dtype in (None, "float32"):
        _, demb = lookup_and_gradient(emb, tf.constant(idx), tf.constant(dy), demb_dtype)
        check_gradient(demb, dy, idx, c, demb_dtype or dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 40, 264])
def test_gradient_is_exact_on_integers(device, rng, dtype, k):
    """Each row is chosen seldom enough for its sums to be exact."""
    idx = rng.permutation(np.repeat(np.arange(40), rng.integers(0, 60, 40)))
    dy = tolerance.random_integers(rng, (idx.size, k), 60, dtype)
    emb = tf.zeros([40, k], dtype)
    _, demb = lookup_and_gradient(emb, tf.constant(idx), tf.cast(dy, dtype))
    tolerance.check_equal(demb, reference.embedding_lookup_grad(dy, idx, 40))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [5, 520])
def test_gradient_where_some_rows_are_chosen_often(device, rng, dtype, k):
    """Runs inside a chunk, across one border, and over many chunks; sums are exact in float32."""
    idx = skewed_indices(rng, 5000, 300)
    dy = tolerance.random_integers(rng, (5000, k), 5000, "float32")
    emb = tf.zeros([300, k], dtype)
    _, demb = lookup_and_gradient(emb, tf.constant(idx), tf.cast(dy, dtype), "float32")
    tolerance.check_equal(demb, reference.embedding_lookup_grad(dy, idx, 300))


@pytest.mark.parametrize("run_length", [1, 63, 64, 65, 127, 128, 129, 500])
def test_runs_that_begin_and_end_at_chunks(device, rng, run_length):
    """Sorted indices in runs of one length, so that every border between chunks is met."""
    idx = np.arange(1000) // run_length
    dy = tolerance.random_integers(rng, (1000, 8), 1000, "float32")
    emb = tf.zeros([1000, 8])
    _, demb = lookup_and_gradient(emb, tf.constant(idx), tf.constant(dy))
    tolerance.check_equal(demb, reference.embedding_lookup_grad(dy, idx, 1000))


@pytest.mark.parametrize("index_dtype", INDEX_DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_execution_modes_and_index_dtypes(device, run, rng, dtype, index_dtype):
    emb = as_dtype(rng.standard_normal((200, 24)), dtype)
    idx = random_indices(rng, (6, 30), 200, index_dtype)
    dy = as_dtype(rng.standard_normal((6, 30, 24)), dtype)
    y, demb = run(lookup_and_gradient, emb, idx, dy)
    np.testing.assert_array_equal(np.float64(y), reference.embedding_lookup(emb, idx))
    check_gradient(demb, dy, idx, 200, dtype)


@pytest.mark.parametrize("index_dtype, c", [("uint8", 256), ("uint16", 65536), ("int32", 70001)])
def test_indices_reach_the_last_row(device, index_dtype, c):
    emb = np.zeros((c, 2), np.float32)
    emb[-1] = 3, 4
    idx = tf.constant([c - 1, 0, c - 1], index_dtype)
    y, demb = lookup_and_gradient(tf.constant(emb), idx, tf.ones([3, 2]))
    assert np.array_equal(y, [[3, 4], [0, 0], [3, 4]])
    assert np.array_equal(np.flatnonzero(demb[:, 0]), [0, c - 1]) and demb[-1, 1] == 2


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 3), (0,), (2, 0, 3)])
def test_indices_may_have_any_shape(device, run, rng, shape):
    emb = np.float32(rng.standard_normal((11, 5)))
    idx = np.asarray(random_indices(rng, shape, 11))
    dy = np.float32(rng.standard_normal((*shape, 5)))
    y, demb = run(lookup_and_gradient, emb, idx, dy)
    assert y.shape == (*shape, 5)
    np.testing.assert_array_equal(y, reference.embedding_lookup(emb, idx))
    check_gradient(demb, dy, idx, 11, "float32")


def test_a_table_without_rows_or_columns(device):
    none = tf.zeros([0], tf.int32)
    y, demb = lookup_and_gradient(tf.zeros([0, 3]), none, tf.zeros([0, 3]))
    assert y.shape == (0, 3) and demb.shape == (0, 3)
    y, demb = lookup_and_gradient(tf.zeros([4, 0]), tf.constant([1, 3]), tf.zeros([2, 0]))
    assert y.shape == (2, 0) and demb.shape == (4, 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_misaligned_tensors(device, rng, dtype):
    """Slices of the first axis share their buffer: here they begin between two vectors."""

    @tf.function
    def function(emb, idx, dy):
        return lookup_and_gradient(emb[1:], idx[1:], dy[1:])

    emb, dy = (as_dtype(rng.standard_normal((n, 3)), dtype) for n in (31, 101))
    idx = random_indices(rng, 101, 30)
    y, demb = function(emb, idx, dy)
    expected = reference.embedding_lookup(emb[1:], idx[1:])
    np.testing.assert_array_equal(np.float64(y), expected)
    check_gradient(demb.numpy(), dy[1:], idx[1:], 30, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [33, 256])
def test_results_repeat_bit_for_bit(device, rng, dtype, k):
    idx = tf.constant(skewed_indices(rng, 20000, 1000))
    dy = tf.cast(rng.standard_normal((20000, k)), dtype)
    emb = tf.zeros([1000, k], dtype)
    first = lookup_and_gradient(emb, idx, dy)[1].numpy().tobytes()
    for _ in range(3):
        assert lookup_and_gradient(emb, idx, dy)[1].numpy().tobytes() == first


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("demb_dtype", [None, "float32"])
def test_gradients_of_gradients(device, rng, dtype, demb_dtype):
    """demb is linear in dy: its gradient with respect to dy is a lookup."""
    idx = random_indices(rng, 20, 6)
    ddemb = tf.cast(rng.standard_normal((6, 4)), demb_dtype or dtype)
    dy = tf.ones([20, 4], dtype)
    with tf.GradientTape() as outer:
        outer.watch(dy)
        _, demb = lookup_and_gradient(tf.zeros([6, 4], dtype), tf.constant(idx), dy, demb_dtype)
    ddy = outer.gradient(demb, dy, ddemb)
    np.testing.assert_array_equal(ddy, tf.cast(tf.gather(ddemb, idx), dtype))


def test_static_shapes_are_inferred():
    specs = [tf.TensorSpec([None, 5]), tf.TensorSpec([None, 3], tf.int32)]

    @tf.function(input_signature=specs)
    def function(emb, idx):
        y = embedding_lookup(emb, idx)
        assert y.shape.as_list() == [None, 3, 5]
        assert tf.gradients(y, emb)[0].shape.as_list() == [None, 5]
        return y

    function.get_concrete_function()


def test_a_variable_is_trained(device, rng):
    emb = tf.Variable(tf.zeros([4, 2]))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(embedding_lookup(emb, [1, 1, 3]))
    demb = tape.gradient(loss, emb)
    assert isinstance(demb, tf.Tensor)  # dense, no IndexedSlices
    assert demb.numpy().tolist() == [[0, 0], [2, 2], [0, 0], [1, 1]]


WHO = "BlocksparseEmbeddingLookup"


@pytest.mark.parametrize("value, dtype", [(4, "int32"), (-1, "int64"), (200, "uint8")])
def test_a_bad_index_is_named_on_a_cpu(run, value, dtype):
    idx = np.zeros((3, 2), dtype)
    idx[1, 1] = idx[2, 0] = value
    inputs = np.zeros((4, 5), np.float32), idx, np.zeros((3, 2, 5), np.float32)
    with tf.device("CPU:0"), pytest.raises(tf.errors.InvalidArgumentError) as info:
        run(lookup_and_gradient, *inputs)
    message = f": idx must be in [0, 4), the rows of emb. Received: idx[1, 1]={value}"
    # of the lookup or, in a graph, of its gradient, which does not wait for it
    assert WHO in info.value.message and message in info.value.message


def test_the_gradient_op_checks_indices_too():
    with tf.device("CPU:0"), pytest.raises(tf.errors.InvalidArgumentError) as info:
        ops.blocksparse_embedding_lookup_grad(
            dy=tf.zeros([1, 2]), idx=[4], emb=tf.zeros([4, 2]), demb_dtype=tf.float32
        )
    message = "Grad: idx must be in [0, 4), the rows of emb. Received: idx[0]=4"
    assert WHO + message in info.value.message


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [3, 300])
@pytest.mark.parametrize("c", [0, 1, 50])
def test_a_bad_index_is_zero_on_a_gpu(rng, dtype, k, c):
    idx = rng.integers(-c - 1, 2 * c + 1, 1000)
    is_good = (idx >= 0) & (idx < c)
    dy = tolerance.random_integers(rng, (1000, k), 1000, "float32")
    with tf.device("GPU:0"):
        emb = tf.ones([c, k], dtype)
        y, demb = lookup_and_gradient(emb, tf.constant(idx), tf.cast(dy, dtype), "float32")
    assert np.array_equal(np.float64(y), np.repeat(is_good[:, None], k, axis=1))
    expected = reference.embedding_lookup_grad(dy[is_good], idx[is_good], c)
    tolerance.check_equal(demb, expected)


@pytest.mark.gpu
def test_offsets_beyond_32_bits():
    """More than 2^31 elements in the table, and its last row is the one that is used."""
    c, k = 2**20 + 1, 2**11
    with tf.device("GPU:0"):
        emb = tf.concat([tf.zeros([c - 1, k], tf.float16), tf.ones([1, k], tf.float16)], axis=0)
        y, demb = lookup_and_gradient(emb, tf.constant([c - 1] * 70), tf.ones([70, k], tf.float16))
        assert bool(tf.reduce_all(y == 1)) and bool(tf.reduce_all(demb[-1] == 70))
        assert not bool(tf.reduce_any(demb[:-1] != 0))


@pytest.mark.parametrize(
    "emb, idx, demb_dtype, error, message",
    [
        (
            tf.zeros([2, 3], tf.float64),
            [0, 1],
            None,
            TypeError,
            "emb has an unsupported dtype. Received: float64. Supported: float32, float16, "
            "bfloat16.",
        ),
        (
            tf.zeros([2, 3]),
            [0.0, 1.0],
            None,
            TypeError,
            "idx has an unsupported dtype. Received: float32. Supported: uint8, uint16, int32, "
            "int64.",
        ),
        (
            tf.zeros([2, 3]),
            [0],
            tf.float16,
            TypeError,
            "demb_dtype must be that of emb (float32) or float32. Received: float16.",
        ),
        (tf.zeros([2]), [0], None, ValueError, "emb must have rank 2. Received: emb.shape=(2,)"),
    ],
)
def test_python_errors(emb, idx, demb_dtype, error, message):
    with pytest.raises(error) as info:
        embedding_lookup(emb, idx, demb_dtype)
    assert str(info.value) == f"{WHO}: {message}"


def test_op_errors(device):
    call = ops.blocksparse_embedding_lookup
    idx = tf.constant([0])
    message = f"{WHO}: emb must have rank 2. Received: emb.shape=[2]"
    with pytest.raises(tf.errors.InvalidArgumentError) as info:
        call(emb=tf.zeros([2]), idx=idx, demb_dtype=tf.float32)
    assert message in info.value.message
    with tf.Graph().as_default(), pytest.raises(ValueError) as info:  # the shape function
        call(emb=tf.zeros([2]), idx=[0], demb_dtype=tf.float32)
    assert message in str(info.value)
    with pytest.raises(tf.errors.InvalidArgumentError) as info:
        call(emb=tf.zeros([2, 3]), idx=idx, demb_dtype=tf.float16)
    message = f"{WHO}: demb_dtype must be that of emb or float32. Received: half"
    assert message in info.value.message
    with pytest.raises(tf.errors.InvalidArgumentError) as info:
        ops.blocksparse_embedding_lookup_grad(
            dy=tf.zeros([2, 3]), idx=idx, emb=tf.zeros([2, 3]), demb_dtype=tf.float32
        )
    message = f"{WHO}Grad: dy must have shape [1, 3]. Received: dy.shape=[2, 3]"
    assert message in info.value.message


def test_shapes_unknown_to_python_are_checked_when_the_graph_runs(device):
    @tf.function(input_signature=[tf.TensorSpec(None), tf.TensorSpec(None, tf.int64)])
    def function(emb, idx):
        return embedding_lookup(emb, idx)

    with pytest.raises(tf.errors.InvalidArgumentError) as info:
        function(tf.zeros([2]), tf.zeros([1], tf.int64))
    message = "emb must have rank 2. Received: emb.shape=[2]"
    assert f"{WHO}: {message}" in info.value.message

"""LSTM gates against the reference: exact where every activation is, else within a bound."""

import numpy as np
import pytest
import tensorflow as tf

from blocksparse import concat4, fused_lstm_gates, sparse_relu, split4
from blocksparse._ops import ops
from blocksparse.testing import reference, tolerance

DTYPES = ("float32", "float16", "bfloat16")
# (N, K): vectors and tails, one and many rows, more columns than one thread block has
SHAPES = [(1, 1), (3, 5), (7, 8), (65, 24), (33, 257), (300, 64), (2, 2056), (1025, 8)]
CASES = [
    pytest.param(dtype, form, n, k, id=f"{dtype}-{form}-N{n}-K{k}")
    for dtype in DTYPES
    for form in ("one", "bias", "four")
    for n, k in SHAPES
]
U32 = tolerance.UNIT_ROUNDOFF["float32"]


def as_dtype(array, dtype):
    return tf.cast(array, dtype).numpy()


def step(form, forget_bias=1.0):
    """A function of (c, dc_next, dh_next, bias, *gates) that returns the state and the gradients:
    c_next, h_next, dc, dbias (if form is "bias"), dgates...
    """

    def gradients(outputs, sources, seeds, tape):
        if tape is None:
            return tf.gradients(outputs, sources, seeds)
        return tape.gradient(outputs, sources, seeds)

    def function(c, dc_next, dh_next, bias, *gates):
        sources = [c, bias, *gates] if form == "bias" else [c, *gates]
        options = {"bias": bias} if form == "bias" else {}
        if not tf.executing_eagerly():
            states = fused_lstm_gates(c, *gates, forget_bias=forget_bias, **options)
            return *states, *gradients(states, sources, [dc_next, dh_next], None)
        with tf.GradientTape() as tape:
            tape.watch(sources)
            states = fused_lstm_gates(c, *gates, forget_bias=forget_bias, **options)
        return *states, *gradients(states, sources, [dc_next, dh_next], tape)

    return function


def pack(form, dtype, c, dc_next, dh_next, bias, gates):
    """The arguments of `step` as arrays."""
    gates = gates if form == "four" else [np.concatenate(gates, axis=-1)]
    arrays = [as_dtype(a, dtype) for a in (c, dc_next, dh_next)]
    return *arrays, np.float32(bias), *(as_dtype(gate, dtype) for gate in gates)


def unpack(form, results):
    """(c_next, h_next, dc, [di, du, df, do], dbias or None) as arrays."""
    results = [np.asarray(r) for r in results]
    c_next, h_next, dc = results[:3]
    dbias = results[3] if form == "bias" else None
    dgates = results[4 if form == "bias" else 3 :]
    if form != "four":
        dgates = np.split(dgates[0], 4, axis=-1)
    return c_next, h_next, dc, dgates, dbias


def exact_inputs(rng, n, k):
    """Every sigmoid is 0, 1/2 or 1, every tanh -1, 0 or 1, and so all else is exact: |c'| > 30."""
    c = rng.choice([-64, 64], (n, k))
    dc_next, dh_next = (rng.choice([-2, -1, 1, 2], (n, k)) for _ in range(2))
    i, u, o = (rng.choice([-200, 0, 200], (n, k)) for _ in range(3))
    f = rng.choice([0, 200], (n, k))
    return c, dc_next, dh_next, np.zeros(4 * k), [i, u, f, o]


def check_exact(form, results, inputs, forget_bias=0.0):
    c, dc_next, dh_next, bias, gates = inputs
    c_next, h_next, dc, dgates, dbias = unpack(form, results)
    expected_c, expected_h = reference.lstm_gates(c, gates, None, forget_bias)
    expected_dc, expected_dgates = reference.lstm_gates_grad(
        c, gates, dc_next, dh_next, None, forget_bias
    )
    tolerance.check_equal(c_next, expected_c)
    tolerance.check_equal(h_next, expected_h)
    tolerance.check_equal(dc, expected_dc)
    for result, expected in zip(dgates, expected_dgates, strict=True):
        tolerance.check_equal(result, expected)
    if form == "bias":
        sums = np.concatenate([d.sum(axis=0) for d in expected_dgates])
        tolerance.check_equal(dbias, sums)
        assert dbias.dtype == np.float32


@pytest.mark.parametrize("dtype, form, n, k", CASES)
def test_saturated_and_closed_gates_are_exact(device, rng, dtype, form, n, k):
    inputs = exact_inputs(rng, n, k)
    arrays = pack(form, dtype, *inputs)
    results = step(form, forget_bias=0.0)(*map(tf.constant, arrays))
    assert results[0].dtype == results[1].dtype == results[2].dtype == dtype
    check_exact(form, results, inputs)


@pytest.mark.parametrize("form", ["one", "bias", "four"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_execution_modes_agree(device, run, rng, dtype, form):
    inputs = exact_inputs(rng, 9, 20)
    check_exact(form, run(step(form, forget_bias=0.0), *pack(form, dtype, *inputs)), inputs)


# Bounds. With pre-activations up to 13 (two of 6 and a forget_bias of 1) a sigmoid errs by at most
# 13 u (its argument's rounding), 2 (2 + 1.2 * 13) u (the fast exponential) and 3 u: 52 u, relative.
# Its slope e r^2 adds twice that of r. tanh errs by 4 u. Sums are bounded by sums of magnitudes.
FORWARD_ROUNDINGS = 2 * 52
GRADIENT_ROUNDINGS = 6 * 52


def check(result, expected, magnitude, roundings, dtype):
    """|result - expected| <= roundings u32 magnitude, and the rounding of the result."""
    # 4 sqrt(1 / 16) = 1 in tolerance.product_bound; float32 flushes what is below 2^-126
    tolerance.check_product(
        result, expected, roundings * magnitude + 2.0**-126 / U32, 1 / 16, dtype
    )


@pytest.mark.parametrize("dtype, form, n, k", CASES)
def test_results_round_within_bound(device, rng, dtype, form, n, k):
    def random(shape, limit=6.0):
        return as_dtype(np.clip(2 * rng.standard_normal(shape), -limit, limit), dtype)

    c, dc_next, dh_next = (random((n, k)) for _ in range(3))
    gates = [random((n, k)) for _ in range(4)]
    bias = np.float32(np.clip(rng.standard_normal(4 * k), -6, 6) if form == "bias" else [0] * 4 * k)
    arrays = pack(form, dtype, c, dc_next, dh_next, bias, gates)
    c_next, h_next, dc, dgates, dbias = unpack(form, step(form)(*map(tf.constant, arrays)))

    whole = np.concatenate([np.float64(gate) for gate in gates], axis=-1)
    expected_c, expected_h = reference.lstm_gates(c, whole, bias)
    expected_dc, expected = reference.lstm_gates_grad(c, whole, dc_next, dh_next, bias)
    c, dc_next, dh_next = (np.abs(np.float64(t)) for t in (c, dc_next, dh_next))
    i, u, f, o = np.split(whole + bias, 4, axis=-1)
    i, f, o = (1 / (1 + np.exp(-x)) for x in (i, f + 1, o))
    u = np.abs(np.tanh(u))

    wide_c = f * c + i * u  # |c'| errs by FORWARD_ROUNDINGS of these, tanh(c') by no more
    check(c_next, expected_c, wide_c, FORWARD_ROUNDINGS, dtype)
    check(h_next, expected_h, o * (wide_c + 1), FORWARD_ROUNDINGS, dtype)
    e = dc_next + dh_next * o * (1 + 2 * wide_c)
    magnitudes = [
        e * u * i * (1 - i),
        e * i,
        e * c * f * (1 - f),
        dh_next * (1 + wide_c) * o * (1 - o),
    ]
    check(dc, expected_dc, e * f, GRADIENT_ROUNDINGS, dtype)
    for result, exact, magnitude in zip(dgates, expected, magnitudes, strict=True):
        check(result, exact, magnitude, GRADIENT_ROUNDINGS, dtype)
    if form == "bias":
        # from gradients before they are rounded: 16-bit types lose nothing here
        exact, magnitude = (
            np.concatenate([t.sum(axis=0) for t in parts]) for parts in (expected, magnitudes)
        )
        roundings = GRADIENT_ROUNDINGS + 4 * np.sqrt(n)
        check(dbias, exact, magnitude, roundings, "float32")


@pytest.mark.parametrize("form", ["one", "bias", "four"])
@pytest.mark.parametrize("missing", ["dc_next", "dh_next", "both"])
def test_a_missing_gradient_is_zero(device, rng, form, missing):
    c, dc_next, dh_next, _, gates = (
        rng.standard_normal((5, 9)),
        *(rng.standard_normal((5, 9)) for _ in range(2)),
        None,
        [rng.standard_normal((5, 9)) for _ in range(4)],
    )
    arrays = pack(form, "float32", c, dc_next, dh_next, rng.standard_normal(36), gates)
    c, dc_next, dh_next, bias, *gates = map(tf.constant, arrays)
    biases = [bias] if form == "bias" else []

    def grad(dc_next, dh_next):
        dc, dgates, dbiases = ops.blocksparse_lstm_gates_grad(
            c=c, gates=gates, bias=biases, dc_next=dc_next, dh_next=dh_next, forget_bias=1.0
        )
        return [dc, *dgates, *dbiases]

    no_dc, no_dh = missing in ("dc_next", "both"), missing in ("dh_next", "both")
    left_out = grad([] if no_dc else [dc_next], [] if no_dh else [dh_next])
    zeros = tf.zeros_like(c)
    as_zeros = grad([zeros if no_dc else dc_next], [zeros if no_dh else dh_next])
    for a, b in zip(left_out, as_zeros, strict=True):
        assert np.array_equal(a, b)
        assert missing != "both" or not np.any(a)


@pytest.mark.parametrize("state", [0, 1], ids=["c_next", "h_next"])
def test_one_state_alone_has_gradients(device, run, rng, state):
    c, gates = rng.standard_normal((4, 6)), rng.standard_normal((4, 24))

    def function(c, gates):
        with tf.GradientTape() as tape:
            tape.watch([c, gates])
            y = fused_lstm_gates(c, gates)[state]
        return tape.gradient(y, [c, gates])

    dc, dgates = run(function, np.float32(c), np.float32(gates))
    seeds = np.zeros((2, 4, 6))
    seeds[state] = 1
    expected_dc, expected = reference.lstm_gates_grad(c, gates, *seeds)
    np.testing.assert_allclose(dc, expected_dc, rtol=0, atol=1e-6)
    np.testing.assert_allclose(dgates, np.concatenate(expected, axis=-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["one", "bias", "four"])
def test_an_empty_minibatch_gives_empty_results_and_zero_dbias(device, run, dtype, form):
    empty = np.zeros((0, 6))
    arrays = pack(form, dtype, empty, empty, empty, np.ones(24), [empty] * 4)
    c_next, h_next, dc, dgates, dbias = unpack(form, run(step(form), *arrays))
    assert all(t.shape == (0, 6) for t in (c_next, h_next, dc, *dgates))
    assert dbias is None or (dbias.shape == (24,) and not dbias.any())


def test_no_features_give_empty_results(device):
    c_next, h_next = fused_lstm_gates(tf.zeros([3, 0]), tf.zeros([3, 0]), bias=tf.zeros([0]))
    assert c_next.shape == h_next.shape == (3, 0)


@pytest.mark.parametrize("shape", [(), (7,), (12, 3), (2, 3, 4)])
def test_four_tensors_may_have_any_shape(device, rng, shape):
    c, *gates = (np.float32(rng.standard_normal(shape)) for _ in range(5))
    expected_c, expected_h = reference.lstm_gates(c, gates)
    c_next, h_next = fused_lstm_gates(c, *gates)
    np.testing.assert_allclose(c_next, expected_c, rtol=0, atol=1e-6)
    np.testing.assert_allclose(h_next, expected_h, rtol=0, atol=1e-6)


def test_other_dimensions_are_the_minibatch(device, rng):
    c, gates = (np.float32(rng.standard_normal((2, 3, k))) for k in (5, 20))
    bias = np.float32(rng.standard_normal(20))
    for result, expected in zip(
        fused_lstm_gates(c, gates, bias=bias), reference.lstm_gates(c, gates, bias), strict=True
    ):
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_gates_are_finite(device, dtype):
    limit = float(tf.as_dtype(dtype).max)
    values = np.array([-limit, -100, -1e-6, 0, 1e-6, 100, limit, np.inf, -np.inf])
    gates = [a.ravel()[None] for a in np.meshgrid(*[values] * 2, indexing="ij")]
    gates = [gates[0], gates[1], gates[0], gates[1]]
    ones = np.ones_like(gates[0])
    results = step("four")(*map(tf.constant, pack("four", dtype, ones, ones, ones, [0], gates)))
    assert all(np.isfinite(np.float64(r)).all() for r in results)


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_repeat_bit_for_bit(device, rng, dtype):
    n, k = 3001, 72
    arrays = [rng.standard_normal(shape) for shape in ((n, k),) * 3 + ((4 * k,),) + ((n, k),) * 4]
    inputs = list(map(tf.constant, pack("bias", dtype, *arrays[:4], arrays[4:])))
    first = [t.numpy().tobytes() for t in step("bias")(*inputs)]
    for _ in range(3):
        assert [t.numpy().tobytes() for t in step("bias")(*inputs)] == first


def test_static_shapes_are_inferred():
    @tf.function(input_signature=[tf.TensorSpec([None, 6]), tf.TensorSpec([None, None])])
    def function(c, gates):
        c_next, h_next = fused_lstm_gates(c, gates)
        assert c_next.shape.as_list() == h_next.shape.as_list() == [None, 6]
        assert tf.gradients(h_next, c)[0].shape.as_list() == [None, 6]
        return c_next

    function.get_concrete_function()


C, GATES = tf.zeros([2, 3]), tf.zeros([2, 12])
WHO = "BlocksparseLstmGates: "
FORM = "the gates must be one tensor [N, 4 K] or four (i, u, f, o). Received: "


@pytest.mark.parametrize(
    "c, args, bias, error, message",
    [
        (C, [], None, ValueError, FORM + "0 tensors"),
        (C, [GATES] * 3, None, ValueError, FORM + "3 tensors"),
        (
            tf.cast(C, tf.float64),
            [GATES],
            None,
            TypeError,
            "c has an unsupported dtype. Received: float64. Supported: float32, float16, bfloat16.",
        ),
        (
            C,
            [tf.cast(GATES, tf.float16)],
            None,
            TypeError,
            "gates must be float32 as c. Received: float16.",
        ),
        (
            C,
            [C] * 4,
            tf.zeros([12]),
            ValueError,
            "bias is supported with a single tensor of gates only; add it to i, u, f and o. "
            "Received: 4 tensors and a bias",
        ),
        (
            C,
            [GATES],
            tf.zeros([12], tf.float16),
            TypeError,
            "bias must be float32. Received: float16.",
        ),
        (C, [C], None, ValueError, "gates must have shape [2, 12]. Received: gates.shape=(2, 3)"),
        (
            C,
            [C, C, GATES, C],
            None,
            ValueError,
            "gates must have shape [2, 3]. Received: gates.shape=(2, 12)",
        ),
        (
            C,
            [GATES],
            tf.zeros([3]),
            ValueError,
            "bias must have shape [12]. Received: bias.shape=(3,)",
        ),
        (
            tf.zeros([]),
            [tf.zeros([4])],
            None,
            ValueError,
            "c must have rank 1 or more. Received: c.shape=()",
        ),
    ],
)
def test_python_errors(c, args, bias, error, message):
    with pytest.raises(error) as info:
        fused_lstm_gates(c, *args, bias=bias)
    assert str(info.value) == WHO + message


OP_ERRORS = {
    "gates must be 1 tensor or 4 (i, u, f, o). Received: 2": {"gates": [C, C]},
    "at most one bias is supported with 1 gates. Received: 2": {"bias": [tf.zeros([12])] * 2},
    "no bias is supported with 4 gates. Received: 1": {"gates": [C] * 4, "bias": [tf.zeros([12])]},
    "gates must have shape [2, 12]. Received: gates.shape=[2, 3]": {"gates": [C]},
    "gates must have shape [2, 3]. Received: gates.shape=[2, 12]": {"gates": [C, C, C, GATES]},
    "bias must have shape [12]. Received: bias.shape=[3]": {"bias": [tf.zeros([3])]},
    "c must have rank 1 or more. Received: c.shape=[]": {"c": tf.zeros([])},
}
GRADIENT_ERRORS = {
    "at most one dc_next is supported. Received: 2": {"dc_next": [C, C]},
    "at most one dh_next is supported. Received: 3": {"dh_next": [C, C, C]},
    "dc_next must have shape [2, 3]. Received: dc_next.shape=[2, 12]": {"dc_next": [GATES]},
    "dh_next must have shape [2, 3]. Received: dh_next.shape=[3]": {"dh_next": [tf.zeros([3])]},
}


def call(op, **changed):
    arguments = {"c": C, "gates": [GATES], "bias": [], "forget_bias": 1.0}
    if op is ops.blocksparse_lstm_gates_grad:
        arguments |= {"dc_next": [], "dh_next": []}
    return op(**(arguments | changed))


@pytest.mark.parametrize("message", OP_ERRORS)
def test_op_errors(device, message):
    for op, who in (
        (ops.blocksparse_lstm_gates, "BlocksparseLstmGates: "),
        (ops.blocksparse_lstm_gates_grad, "BlocksparseLstmGatesGrad: "),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError) as info:
            call(op, **OP_ERRORS[message])
        assert who + message in info.value.message
        with tf.Graph().as_default(), pytest.raises(ValueError) as info:  # the shape function
            changed = {
                name: [constant(t) for t in value] if isinstance(value, list) else constant(value)
                for name, value in ({"c": C, "gates": [GATES]} | OP_ERRORS[message]).items()
            }
            call(op, **changed)
        assert who + message in str(info.value)


def constant(tensor):
    return tf.zeros(tensor.shape, tensor.dtype)


@pytest.mark.parametrize("message", GRADIENT_ERRORS)
def test_gradient_op_errors(device, message):
    with pytest.raises(tf.errors.InvalidArgumentError) as info:
        call(ops.blocksparse_lstm_gates_grad, **GRADIENT_ERRORS[message])
    assert "BlocksparseLstmGatesGrad: " + message in info.value.message


def test_shapes_unknown_to_python_are_checked_when_the_graph_runs(device):
    @tf.function(input_signature=[tf.TensorSpec(None), tf.TensorSpec(None)])
    def function(c, gates):
        return fused_lstm_gates(c, gates)

    with pytest.raises(tf.errors.InvalidArgumentError) as info:
        function(C, C)
    message = "gates must have shape [2, 12]. Received: gates.shape=[2, 3]"
    assert WHO + message in info.value.message


def test_gradients_of_gradients_are_refused():
    with tf.GradientTape() as outer:
        outer.watch(C)
        with tf.GradientTape() as inner:
            inner.watch(C)
            h = fused_lstm_gates(C, GATES)[1]
        dc = inner.gradient(h, C)
    with pytest.raises(LookupError, match="BlocksparseLstmGatesGrad"):
        outer.gradient(dc, C)


@pytest.mark.parametrize("dtype", [*DTYPES, "int32"])
def test_split4_and_concat4_undo_each_other(device, run, dtype):
    x = np.arange(24).reshape(2, 12).astype(tf.as_dtype(dtype).as_numpy_dtype)
    *parts, joined = run(lambda x: (*split4(x), concat4(*split4(x))), x)
    for part, expected in zip(parts, np.split(x, 4, axis=1), strict=True):
        assert np.array_equal(part, expected)
    assert np.array_equal(joined, x)


def test_split4_and_concat4_are_each_other_s_gradients(device):
    x, parts = tf.zeros([2, 12]), [tf.zeros([2, 3]) for _ in range(4)]
    dy = tf.reshape(tf.range(24.0), [2, 12])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([x, *parts])
        quarters, whole = split4(x), concat4(*parts)
    assert np.array_equal(tape.gradient(quarters, x, split4(dy)), dy)
    assert np.array_equal(tape.gradient(whole, parts, dy), split4(dy))


@pytest.mark.parametrize("shape", [[2, 10], [4], [2, 2, 4]])
def test_split4_errors(shape):
    with pytest.raises(ValueError) as info:
        split4(tf.zeros(shape))
    received = tf.TensorShape(shape)
    assert str(info.value) == f"split4: x must have shape [N, 4 K]. Received: x.shape={received}"


def test_concat4_errors():
    with pytest.raises(ValueError) as info:
        concat4(C, C, GATES, C)
    assert str(info.value) == (
        "concat4: x0 to x3 must have one shape [N, K]. Received: (2, 3), (2, 3), (2, 12), (2, 3)"
    )


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 1.0, 2.5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sparse_relu_and_its_gradient(device, run, rng, dtype, alpha):
    x, dy = (as_dtype(rng.standard_normal((5, 4, 101)), dtype) for _ in range(2))

    def function(x, dy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = sparse_relu(x, alpha)
        return y, tape.gradient(y, x, dy)

    y, dx = run(function, x, dy)
    expected = reference.sparse_relu(x, alpha)
    # mean and std are of order 1, sums of 101 elements
    magnitude = 1 + np.abs(np.float64(x)) + abs(alpha)
    tolerance.check_product(y, expected, magnitude, 101, dtype)
    assert y.dtype == dx.dtype == x.dtype
    sure = np.abs(expected) + (expected == 0) > 1e-3  # not where rounding decides
    below = np.float64(x) - (np.mean(x, -1, keepdims=True, dtype=np.float64))
    sure &= np.abs(below - alpha * np.std(np.float64(x), -1, keepdims=True)) > 1e-3
    assert np.array_equal(dx[sure], np.where(expected > 0, dy, 0)[sure])


def test_sparse_relu_errors():
    with pytest.raises(TypeError, match="sparse_relu: x has an unsupported dtype. Received: int32"):
        sparse_relu([[1, 2]])
    with pytest.raises(ValueError, match="sparse_relu: x must have rank 1 or more."):
        sparse_relu(1.0)

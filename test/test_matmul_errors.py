"""Wrong arguments of the products, in every mode and with shapes known early or late."""

import numpy as np
import pytest
import tensorflow as tf

from blocksparse import SparsityLayout, matmul_dw, matmul_dx
from blocksparse.matmul import matmul
from blocksparse.matmul_ops import MAX_PAIRS

LAYOUT = SparsityLayout([[1, 0, 1], [1, 1, 0]], 8)  # 16 to 24 features, 4 blocks

# Right arguments, as shapes; a case replaces some of them by a shape or by (shape, dtype).
ARGUMENTS = {
    matmul: {"x": [5, 16], "w": [4, 8, 8]},
    matmul_dx: {"dy": [5, 24], "w": [4, 8, 8]},
    matmul_dw: {"x": [5, 16], "dy": [5, 24]},
}
OP_NAMES = {
    matmul: "BlocksparseMatmul",
    matmul_dx: "BlocksparseMatmulDX",
    matmul_dw: "BlocksparseMatmulDW",
}


def case(function, arguments, message, **attrs):
    """`arguments` and `attrs` are wrong, and `message` follows the op's name in the exception."""
    changed = "-".join(f"{name}{value}" for name, value in [*arguments.items(), *attrs.items()])
    return pytest.param(function, arguments, attrs, message, id=f"{function.__name__}-{changed}")


def features(name, count, blocks, axis=1):
    where = "the last axis" if axis == 1 else "axis 0"
    return (
        rf"{name} must have {count} features on {where} \({blocks} blocks of 8, "
        rf"feature_axis={axis}\)\. Received: {name}\.shape=[\[(]"
    )


def shape(name, expected):
    return rf"{name} must have shape \[{expected}\]\. Received: {name}\.shape=[\[(]"


RANK = r"must have rank 2 or more \(features and minibatch\)\. Received: "
AXIS0 = {"x": [16, 5], "dy": [24, 5]}
SHAPE_ERRORS = [
    case(matmul, {"x": [5, 24]}, features("x", 16, 2)),
    case(matmul, {"x": [16, 5]}, features("x", 16, 2)),
    case(matmul, {"x": [2, 16, 5]}, features("x", 16, 2)),
    case(matmul, {"x": [5, 16]}, features("x", 16, 2, axis=0), feature_axis=0),
    case(matmul, {"x": [16]}, f"x {RANK}"),
    case(matmul, {"x": []}, f"x {RANK}"),
    case(matmul, {"w": [3, 8, 8]}, shape("w", "4, 8, 8")),
    case(matmul, {"w": [4, 8, 16]}, shape("w", r"(4|\?), 8, 8")),
    case(matmul, {"w": [4, 64]}, shape("w", r"(4|\?), 8, 8")),
    case(matmul, {"w": [16, 24]}, shape("w", r"(4|\?), 8, 8")),
    case(matmul, {"gate": [3]}, shape("gate", "4")),
    case(matmul, {"gate": [4, 1]}, shape("gate", "4")),
    case(matmul, {"gate": []}, shape("gate", "4")),
    case(matmul_dx, {"dy": [5, 16]}, features("dy", 24, 3)),
    case(matmul_dx, {"dy": [5, 24]}, features("dy", 24, 3, axis=0), feature_axis=0),
    case(matmul_dx, {"dy": [24]}, f"dy {RANK}"),
    case(matmul_dx, {"w": [5, 8, 8]}, shape("w", "4, 8, 8")),
    case(matmul_dx, {"gate": [5]}, shape("gate", "4")),
    case(matmul_dw, {"x": [5, 8]}, features("x", 16, 2)),
    case(matmul_dw, {"dy": [5, 16]}, features("dy", 24, 3)),
    case(matmul_dw, {**AXIS0, "dy": [5, 24]}, features("dy", 24, 3, axis=0), feature_axis=0),
    case(matmul_dw, {"x": [16]}, f"x {RANK}"),
    case(matmul_dw, {"dy": [24]}, f"dy {RANK}"),
    case(matmul_dw, {"gate": [3]}, shape("gate", "4")),
    case(matmul_dw, {"dy": [6, 24]}, r"x and dy must have the same minibatch\. Received: x.shape"),
    case(matmul_dw, {"dy": [0, 24]}, "x and dy must have the same minibatch"),
    case(matmul_dw, {"x": [2, 3, 16], "dy": [2, 24]}, "x and dy must have the same minibatch"),
    case(matmul_dw, {**AXIS0, "x": [16, 6]}, "x and dy must have the same", feature_axis=0),
]

UNSUPPORTED = "has an unsupported dtype. Received: "
DTYPE_ERRORS = [
    case(matmul, {"x": ([5, 16], "float64")}, f"x {UNSUPPORTED}float64. Supported: float32, "),
    case(matmul, {"x": ([5, 16], "int32")}, f"x {UNSUPPORTED}int32"),
    case(matmul, {"w": ([4, 8, 8], "float64")}, f"w {UNSUPPORTED}float64"),
    case(matmul, {"w": ([4, 8, 8], "float16")}, "w must be float32 as x. Received: float16"),
    case(matmul, {"gate": ([4], "float16")}, "gate must be float32. Received: float16"),
    case(matmul, {"gate": ([4], "float64")}, "gate must be float32. Received: float64"),
    case(
        matmul,
        {},
        "dw_dtype must be float32 or .* of x, float32. Received: float16",
        dw_dtype="float16",
    ),
    case(
        matmul,
        {"x": ([5, 16], "float16"), "w": ([4, 8, 8], "float16")},
        "dw_dtype must be float32 or .* float16. Received: bfloat16",
        dw_dtype="bfloat16",
    ),
    case(matmul_dx, {"dy": ([5, 24], "int64")}, f"dy {UNSUPPORTED}int64"),
    case(matmul_dx, {"w": ([4, 8, 8], "bfloat16")}, "w must be float32 as dy. Received: bfloat16"),
    case(matmul_dx, {"gate": ([4], "int32")}, "gate must be float32. Received: int32"),
    case(matmul_dw, {"x": ([5, 16], "float64")}, f"x {UNSUPPORTED}float64"),
    case(matmul_dw, {"dy": ([5, 24], "float16")}, "dy must be float32 as x. Received: float16"),
    case(matmul_dw, {"gate": ([4], "bfloat16")}, "gate must be float32. Received: bfloat16"),
    case(matmul_dw, {}, "dw_dtype must be float32 or .* Received: float64", dw_dtype="float64"),
]

AXIS = r"feature_axis must be 1 \(features last\) or 0 \(features first\)\. Received: "
ATTR_ERRORS = [
    *[case(matmul, {}, f"{AXIS}{axis!r}", feature_axis=axis) for axis in (True, 1.0, None, "1")],
    *[case(function, {}, f"{AXIS}2", feature_axis=2) for function in ARGUMENTS],
    case(matmul, {}, "gate_grad needs a gate. Received: gate=None", gate_grad=True),
]


# ---- modes ---------------------------------------------------------------------------------------


def call(function, tensors, attrs):
    return function(**tensors, layout=LAYOUT, **attrs)


def eager(function, specs, attrs):
    call(function, {name: tf.ones(s.shape, s.dtype) for name, s in specs.items()}, attrs)


def traced(function, specs, attrs):
    @tf.function(input_signature=[specs], autograph=False)
    def run(tensors):
        return call(function, tensors, attrs)

    run.get_concrete_function()


def tf1_graph(function, specs, attrs):
    with tf.Graph().as_default():
        tensors = {name: tf.compat.v1.placeholder(s.dtype, s.shape) for name, s in specs.items()}
        call(function, tensors, attrs)


def unknown_in_function(function, specs, attrs):
    unknown = {name: tf.TensorSpec(None, s.dtype) for name, s in specs.items()}

    @tf.function(input_signature=[unknown], autograph=False)
    def run(tensors):
        return call(function, tensors, attrs)

    run.get_concrete_function()
    run({name: tf.ones(s.shape, s.dtype) for name, s in specs.items()})


def unknown_in_tf1_graph(function, specs, attrs):
    tf1 = tf.compat.v1
    with tf.Graph().as_default(), tf1.Session() as session:
        tensors = {name: tf1.placeholder(s.dtype) for name, s in specs.items()}
        values = {tensors[name]: np.ones(s.shape) for name, s in specs.items()}
        session.run(call(function, tensors, attrs), values)


KNOWN = [eager, traced, tf1_graph]
UNKNOWN = [unknown_in_function, unknown_in_tf1_graph]


def modes(*choice):
    return pytest.mark.parametrize("mode", choice, ids=lambda mode: mode.__name__)


def specs_of(function, arguments):
    specs = {}
    for name, value in {**ARGUMENTS[function], **arguments}.items():
        size, dtype = value if isinstance(value, tuple) else (value, "float32")
        specs[name] = tf.TensorSpec(size, dtype)
    return specs


@modes(*KNOWN, *UNKNOWN)
@pytest.mark.parametrize("function", ARGUMENTS, ids=lambda function: function.__name__)
def test_right_arguments_pass(device, mode, function):
    mode(function, specs_of(function, {"gate": [4]}), {"feature_axis": 1})


@modes(*KNOWN)
@pytest.mark.parametrize("function, arguments, attrs, message", SHAPE_ERRORS)
def test_wrong_shapes_are_refused_before_anything_runs(mode, function, arguments, attrs, message):
    with pytest.raises(ValueError, match=f"{OP_NAMES[function]}: {message}"):
        mode(function, specs_of(function, arguments), attrs)


@modes(*UNKNOWN)
@pytest.mark.parametrize("function, arguments, attrs, message", SHAPE_ERRORS)
def test_wrong_shapes_are_refused_when_the_graph_runs(
    device, mode, function, arguments, attrs, message
):
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"{OP_NAMES[function]}: {message}"):
        mode(function, specs_of(function, arguments), attrs)


@modes(*KNOWN, *UNKNOWN)
@pytest.mark.parametrize("function, arguments, attrs, message", DTYPE_ERRORS)
def test_wrong_dtypes_are_refused(mode, function, arguments, attrs, message):
    with pytest.raises(TypeError, match=f"{OP_NAMES[function]}: {message}"):
        mode(function, specs_of(function, arguments), attrs)


@modes(*KNOWN)
@pytest.mark.parametrize("function, arguments, attrs, message", ATTR_ERRORS)
def test_wrong_attributes_are_refused(mode, function, arguments, attrs, message):
    with pytest.raises(ValueError, match=f"{OP_NAMES[function]}: {message}"):
        mode(function, specs_of(function, arguments), attrs)


@pytest.mark.parametrize("num_x, num_dy", [(0, 0), (1, 2), (3, 2), (0, 1)])
def test_lists_of_other_lengths_are_refused(num_x, num_dy):
    x, dy = tf.ones([5, 16]), tf.ones([5, 24])
    message = f"lists of the same length, at least 1. Received: {num_x} and {num_dy}"
    for wrapped in (matmul_dw, tf.function(matmul_dw)):
        with pytest.raises(ValueError, match=f"BlocksparseMatmulDW: x and dy must be {message}"):
            wrapped([x] * num_x, [dy] * num_dy, LAYOUT)


@pytest.mark.parametrize("position", [1, MAX_PAIRS + 1])
@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"x": tf.ones([5, 16], "float16")}, TypeError, "x must be float32 as the first x"),
        ({"dy": tf.ones([5, 24], "float16")}, TypeError, "dy must be float32 as x"),
        ({"x": tf.ones([5, 8])}, ValueError, "x must have 16 features"),
        ({"dy": tf.ones([4, 24])}, ValueError, "the same minibatch"),
    ],
)
def test_every_pair_is_checked(position, wrong, error, message):
    pairs = {"x": [tf.ones([5, 16])] * (MAX_PAIRS + 2), "dy": [tf.ones([5, 24])] * (MAX_PAIRS + 2)}
    for name, tensor in wrong.items():
        pairs[name][position] = tensor
    with pytest.raises(error, match=message):
        matmul_dw(pairs["x"], pairs["dy"], LAYOUT)


def test_messages_begin_with_the_name_that_the_caller_gave():
    x, w = tf.ones([5, 16]), tf.ones([4, 8, 8])
    for call, arguments in ((matmul, (x, w[:3])), (matmul_dx, (x, w)), (matmul_dw, (x, x))):
        with pytest.raises(ValueError, match="^layer7: "):
            call(*arguments, LAYOUT, name="layer7")

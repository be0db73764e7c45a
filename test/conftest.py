"""What the tests share: devices, execution modes, seeds."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
import tensorflow as tf

GPUS = tf.config.list_physical_devices("GPU")
for gpu in GPUS:  # several test processes share a GPU
    tf.config.experimental.set_memory_growth(gpu, True)

if os.environ.get("BLOCKSPARSE_REQUIRE_GPU") and not GPUS:
    pytest.exit("BLOCKSPARSE_REQUIRE_GPU is set, but TensorFlow sees no GPU", returncode=1)


def pytest_collection_modifyitems(items):
    skip = pytest.mark.skip(reason="TensorFlow sees no GPU")
    for item in items:
        if item.get_closest_marker("gpu") and not GPUS:
            item.add_marker(skip)


@pytest.fixture(params=["CPU", pytest.param("GPU", marks=pytest.mark.gpu)])
def device(request):
    """Runs the test's eager ops and graphs on this device."""
    with tf.device(f"{request.param}:0"):
        yield request.param


@pytest.fixture(autouse=True)
def exact_float32():
    """float32 on a GPU means float32, except where a test says TF32."""
    tf.config.experimental.enable_tensor_float_32_execution(False)


@pytest.fixture
def rng(request):
    """A generator seeded by the test's name: the same numbers in every run."""
    return np.random.default_rng(list(request.node.name.encode()))


def eager(function, *arrays):
    return [tensor.numpy() for tensor in function(*map(tf.constant, arrays))]


def in_function(function, *arrays):
    """As a tf.function whose minibatch size is unknown."""
    specs = [tf.TensorSpec([None] * a.ndim, a.dtype) for a in map(tf.constant, arrays)]
    return [tensor.numpy() for tensor in tf.function(function, input_signature=specs)(*arrays)]


def in_tf1_graph(function, *arrays):
    """As a TensorFlow 1 graph with placeholders and a session."""
    tf1 = tf.compat.v1
    with tf.Graph().as_default():
        inputs = [tf1.placeholder(tf.as_dtype(a.dtype), [None] * a.ndim) for a in arrays]
        outputs = function(*inputs)
        with tf1.Session() as session:
            return session.run(outputs, dict(zip(inputs, arrays, strict=True)))


MODES = {"eager": eager, "function": in_function, "tf1": in_tf1_graph}


@pytest.fixture(params=MODES)
def run(request):
    """Calls run(function, *arrays) in each execution mode, with a function of tensors."""
    return MODES[request.param]

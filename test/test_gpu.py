"""What only a GPU can show: where things run and lie, what is copied, and sizes past 2^31."""

import gc

import numpy as np
import pytest
import tensorflow as tf

from blocksparse import BlocksparseMatMul, SparsityLayout, matmul_dw, matmul_dx
from blocksparse.matmul import matmul
from blocksparse.testing import layouts, tolerance

pytestmark = pytest.mark.gpu
GPU = "GPU:0"


@pytest.fixture
def layout():
    return SparsityLayout(layouts.standard()["random"], 32)


def test_results_and_tables_lie_on_the_gpu(layout):
    with tf.device(GPU):
        x, w = tf.ones([4, layout.in_features]), tf.ones(layout.w_shape)
        y = matmul(x, w, layout)
    assert y.device.endswith(GPU)
    lut, plan = layout.cache[x.device]
    assert lut.device.endswith(GPU) and plan.device.endswith("CPU:0")
    matmul(x, w, layout)
    assert layout.cache[x.device][0] is lut  # the second call copied nothing


def test_a_step_copies_nothing_to_the_gpu(layout):
    """The partitioned graph of a step: what crosses from host to device is the fed input alone."""
    tf1 = tf.compat.v1
    with tf.Graph().as_default():
        x = tf1.placeholder(tf.float32, [None, layout.in_features], name="fed")
        with tf.device(GPU):
            w = tf1.get_variable("w", layout.w_shape, use_resource=True)
            loss = tf.reduce_sum(matmul(x, w, layout))
            gradients = tf.gradients(loss, [w, x])
        with tf1.Session() as session:
            session.run(tf1.global_variables_initializer())
            options = tf1.RunOptions(output_partition_graphs=True)
            metadata = tf1.RunMetadata()
            feed = {x: np.ones((3, layout.in_features), np.float32)}
            session.run([g.op for g in gradients], feed, options=options, run_metadata=metadata)
    nodes = [node for graph in metadata.partition_graphs for node in graph.node]
    products = [node for node in nodes if node.op.startswith("BlocksparseMatmul")]
    assert len(products) >= 2 and all("GPU" in node.device for node in products)
    luts = [node for node in nodes if node.op == "Const" and "lut" in node.name.split("/")[-1]]
    assert luts and all("GPU" in node.device for node in luts)
    sent = {
        node.attr["tensor_name"].s.decode()
        for node in nodes
        if node.op in ("_Send", "_HostSend")
        and "CPU" in node.device
        and node.attr["T"].type != tf.int32.as_datatype_enum
    }
    assert all("fed" in name for name in sent), sent


def test_two_runs_of_a_long_training_step_are_bitwise_equal():
    rng = np.random.default_rng(0)
    mask = layouts.power_law(rng, 64, 64)
    with tf.device(GPU):
        bsmm = BlocksparseMatMul(mask, 32)
        x = tf.random.stateless_normal([4096, bsmm.C], [1, 2], dtype=tf.bfloat16)
        w = tf.random.stateless_normal(bsmm.w_shape, [3, 4], dtype=tf.bfloat16)

        @tf.function
        def step():
            with tf.GradientTape() as tape:
                tape.watch([x, w])
                y = bsmm(bsmm(x, w), w)
            return y, *tape.gradient(y, [x, w])

        first = [t.numpy().tobytes() for t in step()]
        for _ in range(5):
            assert [t.numpy().tobytes() for t in step()] == first


def peak_bytes(function):
    tf.config.experimental.reset_memory_stats(GPU)
    before = tf.config.experimental.get_memory_info(GPU)["current"]
    result = function()
    tf.test.experimental.sync_devices()
    peak = tf.config.experimental.get_memory_info(GPU)["peak"] - before
    del result
    return peak


def test_memory_follows_the_stored_blocks():
    """The peak is the result, which the allocator may round up to twice its size."""
    rng = np.random.default_rng(0)
    with tf.device(GPU):
        layout = SparsityLayout(layouts.random(rng, 512, 512, 0.01), 32)
        x = tf.ones([512, layout.in_features], tf.bfloat16)
        w = tf.ones(layout.w_shape, tf.bfloat16)
        matmul(x, w, layout)  # the tables are there from now on
        activation, weights = 2 * x.shape.num_elements(), 2 * w.shape.num_elements()
        dense = 2 * layout.in_features * layout.out_features
        assert peak_bytes(lambda: matmul(x, w, layout)) <= 2 * activation < dense / 8
        assert peak_bytes(lambda: matmul_dx(x, w, layout)) <= 2 * activation
        assert peak_bytes(lambda: matmul_dw(x, x, layout)) <= 2 * weights < dense / 40


@pytest.mark.parametrize("axis", [0, 1])
def test_tensors_of_more_than_2_to_the_31_elements(axis):
    """Every product on activations of 2^31 + elements; the last samples show any 32-bit offset."""
    features, n = 4096, 2**19 + 130
    mask = np.zeros((128, 128), bool)
    mask[0, 127] = mask[127, 0] = mask[64, 64] = True
    layout = SparsityLayout(mask, 32)
    shape = (n, features) if axis == 1 else (features, n)
    with tf.device(GPU):
        x = tf.cast(tf.random.stateless_uniform(shape, [1, 2], -1, 2, tf.int32), tf.float16)
        assert x.shape.num_elements() > 2**31
        w = tf.cast(
            tf.random.stateless_uniform(layout.w_shape, [3, 4], -1, 2, tf.int32), tf.float16
        )

        def columns(t, block):
            part = slice(32 * block, 32 * (block + 1))
            return (
                tf.cast(t[:, part], tf.float32)
                if axis == 1
                else tf.transpose(tf.cast(t[part], tf.float32))
            )

        for product, transpose in ((matmul, False), (matmul_dx, True)):
            y = product(x, w, layout, feature_axis=axis)
            for block, (i, o) in enumerate(layout.coordinates):
                i, o = (o, i) if transpose else (i, o)
                expected = tf.matmul(
                    columns(x, i), tf.cast(w[block], tf.float32), transpose_b=transpose
                )
                assert bool(tf.reduce_all(columns(y, o) == expected))
            del y
        dw = matmul_dw(x, x, layout, feature_axis=axis, dw_dtype="float32")
        for block, (i, o) in enumerate(layout.coordinates):
            expected = tf.matmul(columns(x, i), columns(x, o), transpose_a=True)
            tolerance.check_equal(dw[block].numpy(), expected.numpy().astype(np.float64))
    del x, dw
    gc.collect()

"""SavedModels and checkpoints, which outlive a process; and graphs, which must not outlive use."""

import gc
import os
import subprocess
import sys
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from blocksparse import BlocksparseMatMul
from blocksparse.testing import layouts, reference

MASK = layouts.standard()["empty_lines"]


def in_fresh_process(function, *arguments):
    """Calls a function of this module in a new interpreter."""
    code = f"from {__name__} import {function.__name__} as f; f(*{arguments!r})"
    env = {
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    child = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr


class Model(tf.Module):
    """Uses every op: y = x g l2_normalize(w, gain)."""

    def __init__(self, axis):
        super().__init__()
        self.bsmm = BlocksparseMatMul(MASK, 8, axis)
        self.w = tf.Variable(self.bsmm.ortho_init(seed=1)(self.bsmm.w_shape), name="w")
        self.gain = tf.Variable(tf.range(1.0, 1 + self.bsmm.K), name="gain")
        self.gate = tf.Variable(tf.linspace(0.0, 2.0, self.bsmm.blocks), name="gate")

    @property
    def parameters(self):
        return self.w, self.gain, self.gate

    @tf.function(input_signature=[tf.TensorSpec([None, None])])
    def predict(self, x):
        w = self.bsmm.l2_normalize(self.w, self.gain)
        return {"y": self.bsmm(x, w, self.gate, gate_grad=True)}

    @tf.function(input_signature=[tf.TensorSpec([None, None])])
    def gradients(self, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(self.predict(x)["y"] ** 2)
        dx, dw, dgain, dgate = tape.gradient(loss, [x, *self.parameters])
        return {"dx": dx, "dw": dw, "dgain": dgain, "dgate": dgate}


# ---- SavedModel ----------------------------------------------------------------------------------


def load_and_compare(*folders):
    """In the process that loads: the signatures, and gradients through the loaded function."""
    tf.config.experimental.enable_tensor_float_32_execution(False)
    for folder in folders:
        expected = np.load(f"{folder}/expected.npz")
        model = tf.saved_model.load(folder)
        x = tf.constant(expected["x"])
        results = {**model.signatures["serving_default"](x), **model.signatures["gradients"](x)}
        assert results.keys() | {"x"} == set(expected.files)
        for name, result in results.items():
            assert np.array_equal(result, expected[name]), name
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(model.predict(x)["y"] ** 2)
        for name, result in zip(("dx", "dw"), tape.gradient(loss, [x, model.w]), strict=True):
            assert np.array_equal(result, expected[name]), name


def test_saved_models_work_in_a_fresh_process(rng, tmp_path):
    folders = [f"{tmp_path}/axis{axis}" for axis in (0, 1)]
    for axis, folder in enumerate(folders):
        model = Model(axis)
        x = rng.standard_normal(model.bsmm.i_shape(7)).astype(np.float32)
        results = {**model.predict(x), **model.gradients(x)}
        assert all(np.any(result) for result in results.values())
        tf.saved_model.save(
            model,
            folder,
            signatures={"serving_default": model.predict, "gradients": model.gradients},
        )
        np.savez(f"{folder}/expected.npz", x=x, **{k: v.numpy() for k, v in results.items()})
    in_fresh_process(load_and_compare, *folders)


# ---- checkpoints ---------------------------------------------------------------------------------


def test_a_checkpoint_holds_only_the_parameters(rng, tmp_path):
    model = Model(1)
    x = rng.standard_normal(model.bsmm.i_shape(3)).astype(np.float32)
    y, _ = model.predict(x)["y"], model.gradients(x)
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "checkpoint"))
    assert dict(tf.train.list_variables(path)) == {
        "_CHECKPOINTABLE_OBJECT_GRAPH": [],
        **{
            f"model/{parameter.name[:-2]}/.ATTRIBUTES/VARIABLE_VALUE": parameter.shape.as_list()
            for parameter in model.parameters
        },
    }
    other = Model(1)
    for parameter in other.parameters:
        parameter.assign(tf.ones_like(parameter))
    tf.train.Checkpoint(model=other).read(path).assert_consumed()
    assert np.array_equal(other.predict(x)["y"], y)


def test_a_tf1_checkpoint_holds_only_the_weights(rng, tmp_path):
    tf1 = tf.compat.v1
    bsmm = BlocksparseMatMul(MASK, 8)
    x = rng.standard_normal(bsmm.i_shape(3)).astype(np.float32)

    def result(initializer, prepare):
        with tf.Graph().as_default(), tf1.Session() as session:
            w = tf1.get_variable("w", bsmm.w_shape, initializer=initializer)
            y = bsmm(x, w)
            tf.gradients(y, [w])
            assert tf1.global_variables() == [w]
            session.run(tf1.global_variables_initializer())
            prepare(tf1.train.Saver(), session)
            return session.run(y)

    path = str(tmp_path / "tf1")
    first = result(bsmm.ortho_init(seed=1), lambda saver, session: saver.save(session, path))
    assert tf.train.list_variables(path) == [("w", list(bsmm.w_shape))]
    again = result(tf1.zeros_initializer(), lambda saver, session: saver.restore(session, path))
    assert first.any() and np.array_equal(again, first)


# ---- Keras ---------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("blocksparse_test")
class SparseDense(keras.layers.Layer):
    def __init__(self, mask, **kwargs):
        super().__init__(**kwargs)
        self.supports_jit = False
        self.bsmm = BlocksparseMatMul(np.asarray(mask), 8)

    def build(self, input_shape):
        self.w = self.add_weight(shape=self.bsmm.w_shape, initializer=self.bsmm.identity_init())

    def call(self, x):
        return self.bsmm(x, self.w)

    def get_config(self):
        return {**super().get_config(), "mask": self.bsmm.layout.tolist()}


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_keras_model_trains_and_reloads(rng, tmp_path, policy):
    keras.utils.set_random_seed(1)
    layer = SparseDense(MASK, dtype=policy, name="sparse")
    bsmm = layer.bsmm
    x = rng.standard_normal(bsmm.i_shape(256)).astype(np.float32)
    y = reference.matmul(x, rng.standard_normal(bsmm.w_shape), bsmm.sparsity_layout)
    model = keras.Sequential([keras.Input([bsmm.C]), layer, keras.layers.Activation("linear")])
    model.compile(keras.optimizers.Adam(0.05), "mse")
    losses = model.fit(x, y, batch_size=32, epochs=12, verbose=0).history["loss"]
    assert losses[-1] < 0.02 * losses[0]
    assert (layer.w.dtype, layer.compute_dtype) == (
        "float32",
        "float32" if policy == "float32" else "bfloat16",
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("sparse").bsmm == bsmm
    assert np.array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    loaded.fit(x, y, epochs=1, verbose=0)


# ---- graphs are freed ----------------------------------------------------------------------------


def use_tf1_graph(bsmm):
    tf1 = tf.compat.v1
    with tf.Graph().as_default() as graph, tf1.Session() as session:
        x, w = tf1.placeholder(tf.float32, [None, bsmm.C]), tf.ones(bsmm.w_shape)
        session.run(tf.gradients(bsmm(x, w), [x, w]), {x: np.ones(bsmm.i_shape(2))})
        return weakref.ref(graph)


def use_function(bsmm):
    @tf.function
    def gradient(x, w):
        return tf.gradients(bsmm(x, w), [x, w])

    graph = gradient.get_concrete_function(tf.ones(bsmm.i_shape(2)), tf.ones(bsmm.w_shape)).graph
    gradient(tf.ones(bsmm.i_shape(2)), tf.ones(bsmm.w_shape))
    return weakref.ref(graph)


@pytest.mark.parametrize("use", [use_tf1_graph, use_function])
def test_a_layout_keeps_no_graph_alive(use):
    bsmm = BlocksparseMatMul(MASK, 8)
    graph = use(bsmm)
    gc.collect()
    assert graph() is None
    assert bsmm(tf.ones(bsmm.i_shape(2)), tf.ones(bsmm.w_shape)).shape == bsmm.o_shape(2)


# ---- several devices -----------------------------------------------------------------------------


def compare_replicas():
    """Two replicas, each with half of the minibatch, against one with all of it."""
    cpu = tf.config.list_physical_devices("CPU")
    tf.config.set_visible_devices(cpu)
    tf.config.set_logical_device_configuration(cpu[0], [tf.config.LogicalDeviceConfiguration()] * 2)
    bsmm = BlocksparseMatMul(MASK, 8)
    rng = np.random.default_rng(0)
    x, dy, w = (
        rng.integers(-2, 3, shape).astype(np.float32)
        for shape in (bsmm.i_shape(8), bsmm.o_shape(8), bsmm.w_shape)
    )

    devices = set()

    def gradient(x, dy, w):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(bsmm(x, w) * dy)
        dw = tape.gradient(loss, w)
        devices.add(dw.device[-5:])
        return dw

    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        replicated_w = tf.Variable(w)

    def replicated_gradient():
        def half(array):
            return strategy.experimental_distribute_values_from_function(
                lambda context: tf.constant(np.split(array, 2)[context.replica_id_in_sync_group])
            )

        pieces = strategy.run(lambda x, dy: gradient(x, dy, replicated_w), [half(x), half(dy)])
        return strategy.reduce("sum", pieces, axis=None)

    expected = gradient(tf.constant(x), tf.constant(dy), tf.Variable(w))
    assert np.array_equal(expected, reference.matmul_dw(x, dy, bsmm.sparsity_layout))
    for call in (replicated_gradient, tf.function(replicated_gradient)):
        devices.clear()
        assert np.array_equal(call(), expected)
        assert devices == {"CPU:0", "CPU:1"}


def test_replicas_have_the_gradients_of_one_device():
    in_fresh_process(compare_replicas)

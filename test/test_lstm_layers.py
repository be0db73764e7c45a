"""The Keras layers: cells against sequences, training, mixed precision, saving."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import blocksparse.lstm
from blocksparse import MLSTMConfig
from blocksparse.layers import MLSTM, FusedBasicLSTMCell, MLSTMCell
from blocksparse.testing import reference

CONFIG = {"nhidden": 32, "nembd": 16, "isteps": 2, "block_size": 8, "masks": "ba_1"}
axes = pytest.mark.parametrize("feature_axis", [1, 0], ids=["axis1", "axis0"])


def config(**kwargs):
    return MLSTMConfig(**{**CONFIG, **kwargs})


def random(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def randomised(layer, rng):
    """The layer with weights that are far from the identity."""
    layer.set_weights([w + 0.3 * random(rng, *w.shape) for w in layer.get_weights()])
    return layer


# ---- MLSTM and MLSTMCell ----


@axes
def test_rnn_of_the_cell_is_the_layer(feature_axis, rng):
    kwargs = {"return_sequences": True, "return_state": True}
    layer = MLSTM(config(feature_axis=feature_axis, nproj_in=16), **kwargs)
    x, state = random(rng, 3, 4, 16), [random(rng, 3, 32), random(rng, 3, 32)]
    layer(x)
    randomised(layer, rng)
    rnn = keras.layers.RNN(layer.cell, **kwargs)
    results = []
    for function in (layer, rnn):
        with tf.GradientTape() as tape:
            outputs = function(x, initial_state=state)
            loss = sum(tf.reduce_sum(tensor * tensor) for tensor in outputs)
        gradients = tape.gradient(loss, [v.value for v in layer.cell.trainable_variables])
        results.append([np.asarray(tensor) for tensor in (*outputs, *gradients)])
    assert [r.shape for r in results[0]][:3] == [(3, 4, 32), (3, 32), (3, 32)]
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * np.abs(other).max())


def test_the_state_continues_a_sequence(rng):
    layer = MLSTM(config(), return_sequences=True, return_state=True)
    x = random(rng, 3, 6, 16)
    whole, h, c = layer(x)
    randomised(layer, rng)
    whole, h, c = layer(x)
    first, *state = layer(x[:, :2])
    second, h_last, c_last = layer(x[:, 2:], initial_state=state)
    np.testing.assert_allclose(tf.concat([first, second], 1), whole, rtol=0, atol=1e-5)
    np.testing.assert_allclose(h_last, h, rtol=0, atol=1e-5)
    np.testing.assert_allclose(c_last, c, rtol=0, atol=1e-5)


@pytest.mark.parametrize("return_sequences", [False, True])
@pytest.mark.parametrize("return_state", [False, True])
def test_symbolic_shapes(return_sequences, return_state):
    layer = MLSTM(config(), return_sequences=return_sequences, return_state=return_state)
    inputs = keras.Input((5, 16)), keras.Input((32,)), keras.Input((32,))
    outputs = layer(inputs[0], initial_state=list(inputs[1:]))
    shapes = [(None, 5, 32) if return_sequences else (None, 32)]
    shapes += [(None, 32)] * 2 if return_state else []
    assert [tensor.shape for tensor in tf.nest.flatten(outputs)] == shapes
    model = keras.Model(inputs, outputs)
    results = model([tf.zeros([3, *tensor.shape[1:]]) for tensor in inputs])
    assert [(None, *t.shape[1:]) for t in tf.nest.flatten(results)] == shapes


def toy_model(dtype, kind):
    layer = {
        "MLSTM": lambda: MLSTM(config(), dtype=dtype),
        "RNN": lambda: keras.layers.RNN(MLSTMCell(config(), dtype=dtype), dtype=dtype),
        "lstm": lambda: keras.layers.RNN(FusedBasicLSTMCell(16, dtype=dtype), dtype=dtype),
    }[kind]()
    model = keras.Sequential([keras.Input((3, 16)), layer, keras.layers.Dense(1, dtype="float32")])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model


def toy_data(rng):
    x = random(rng, 64, 3, 16)
    return x, x[:, 0, :1] + x[:, 2, 1:2]


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        ("float32", "MLSTM"),
        ("mixed_bfloat16", "MLSTM"),
        ("mixed_float16", "MLSTM"),
        ("float32", "RNN"),
        ("mixed_bfloat16", "lstm"),
    ],
)
def test_training_lowers_the_loss(dtype, kind, rng):
    keras.utils.set_random_seed(1)
    x, y = toy_data(rng)
    losses = toy_model(dtype, kind).fit(x, y, epochs=10, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_keeps_float32_masters(dtype, rng):
    layer = MLSTM(config(), dtype=dtype)
    x = random(rng, 3, 4, 16)
    with tf.GradientTape() as tape:
        y = layer(x)
    assert y.dtype.name == dtype.removeprefix("mixed_")
    values = [variable.value for variable in layer.trainable_variables]
    assert {value.dtype for value in values} == {tf.float32}
    assert {gradient.dtype for gradient in tape.gradient(y, values)} == {tf.float32}


def test_float16_starts_from_zero_without_overflow(rng):
    layer = MLSTM(config(), dtype="mixed_float16")  # b_h0 is 0: two norms of zeros
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(random(rng, 3, 4, 16)))
    for gradient in tape.gradient(loss, [v.value for v in layer.trainable_variables]):
        assert np.all(np.isfinite(gradient))


def test_pure_bfloat16_keeps_float32_gains(rng):
    layer = MLSTM(config(), dtype="bfloat16")
    assert layer(random(rng, 3, 4, 16)).dtype == tf.bfloat16
    assert {(w.name[0], w.dtype) for w in layer.weights} == {
        ("w", "bfloat16"),
        ("g", "float32"),
        ("b", "float32"),
    }


@pytest.mark.parametrize("kind", ["MLSTM", "RNN", "lstm"])
def test_saved_models_load(kind, rng, tmp_path):
    model, (x, _) = randomised(toy_model("float32", kind), rng), toy_data(rng)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_array_equal(loaded(x), model(x))


def test_the_config_saves_all_masks():
    cell = MLSTMCell(config(masks="br_1", nproj_in=16), dtype="mixed_bfloat16", name="mine")
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(cell))
    assert copy.config == cell.config and copy.config.dtype == "bfloat16"
    assert (copy.name, copy.dtype_policy.name) == ("mine", "mixed_bfloat16")
    layer = MLSTM(cell.config, return_sequences=True, return_state=True)
    copy = MLSTM.from_config(layer.get_config())
    assert (copy.return_sequences, copy.return_state) == (True, True)
    assert copy.cell.config == layer.cell.config


def test_weights_start_as_identities():
    layer = MLSTM(config())
    layer.build((None, 4, 16))
    dense = layer.cell.config.layouts["h0"].to_dense(layer.cell.params["w_h0"].numpy())
    np.testing.assert_array_equal(dense, np.eye(32))
    np.testing.assert_array_equal(layer.cell.params["b_f"], 1.0)
    np.testing.assert_array_equal(layer.cell.params["b_i"], 0.0)


def test_errors(rng):
    with pytest.raises(TypeError, match="MLSTMCell: config must be an MLSTMConfig. Received: int"):
        MLSTM(32)
    with pytest.raises(ValueError, match="dtype must be one of .* Received: float64"):
        MLSTMCell(config(), dtype="float64")
    with pytest.raises(ValueError, match=r"must have nembd=16 features .*shape \(3, 4, 8\)"):
        MLSTM(config())(random(rng, 3, 4, 8))
    with pytest.raises(ValueError, match=r"initial_state must be a list \[h, c\]"):
        MLSTM(config())(random(rng, 3, 4, 16), initial_state=random(rng, 3, 32))
    with pytest.raises(ValueError, match="units must be a positive integer. Received: 0"):
        FusedBasicLSTMCell(0)


def test_the_number_of_time_steps_must_be_known():
    model = keras.Sequential([keras.Input((None, 16)), MLSTM(config())])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="number of time steps must be known"):
        tf.function(model, input_signature=[tf.TensorSpec([None, None, 16])])(tf.zeros([3, 4, 16]))


# ---- FusedBasicLSTMCell ----


def test_fused_basic_lstm_cell_is_its_definition(rng):
    layer = keras.layers.RNN(FusedBasicLSTMCell(8, forget_bias=0.5), return_sequences=True)
    x, h, c = random(rng, 3, 4, 6), random(rng, 3, 8), random(rng, 3, 8)
    layer(x)
    kernel, bias = randomised(layer, rng).get_weights()
    outputs = layer(x, initial_state=[h, c])
    for t in range(4):
        gates = np.concatenate([x[:, t], h], 1).astype(np.float64) @ kernel
        c, h = reference.lstm_gates(c, gates, bias, forget_bias=0.5)
        np.testing.assert_allclose(outputs[:, t], h, rtol=0, atol=1e-5)


def test_fused_basic_lstm_cell_has_the_original_s_place_too():
    assert blocksparse.lstm.FusedBasicLSTMCell is FusedBasicLSTMCell
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = blocksparse.lstm.nothing

"""MLSTMConfig, and every error of the mLSTM's functions."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from blocksparse import SparsityLayout, patterns
from blocksparse.mlstm import MLSTMConfig, mlstm_cell, mlstm_inputs, mlstm_sequence, mlstm_weights

SIZES = {"nhidden": 64, "nembd": 16, "isteps": 3, "block_size": 16}


def config(**kwargs):
    return MLSTMConfig(**{**SIZES, **kwargs})


# ---- what it resolves to ----


def test_a_pattern_gives_every_step_a_mask_and_the_gates_one():
    layouts = config(nhidden=256, masks="br_1", seed=3).layouts
    masks = {layouts[name] for name in ("h0", "h1", "h2", "i")}
    assert len(masks) == 4
    assert layouts["i"] == layouts["f"] == layouts["o"] == layouts["u"]
    assert config(nhidden=256, masks="br_1", seed=3).layouts == layouts
    assert config(nhidden=256, masks="br_1", seed=4).layouts != layouts


def test_share_masks_gives_one_mask_and_separate_weights():
    shared = config(masks="br_1", share_masks=True)
    assert len(set(shared.masks)) == 1
    assert {"w_h0", "w_h1", "w_h2", "w_i"} <= set(shared.weight_shapes)


def test_share_isteps_leaves_the_weights_of_the_first_step():
    shared = config(share_isteps=True)
    assert list(shared.layouts) == ["m", "a", "h0", "i", "f", "o", "u"]


def test_one_mask_or_a_dict_of_masks():
    mask = patterns.banded(4, 4, 1)
    assert all(layout == SparsityLayout(mask, 16) for layout in config(masks=mask).masks)
    names = {"h0": mask, "h1": "dense", "h2": mask.tolist(), "gates": np.eye(4)}
    assert [layout.num_blocks for layout in config(masks=names).masks] == [10, 16, 10, 4]


def test_weights_of_inputs_and_of_full_masks_are_matrices():
    names = {"h0": "ba_1", "h1": "dense", "h2": np.ones((4, 4)), "gates": np.eye(4)}
    shapes = config(nproj_in=24, masks=names).weight_shapes
    assert shapes["w_m"] == shapes["w_a"] == (16, 24)
    assert shapes["w_h1"] == shapes["w_h2"] == (64, 64)
    assert shapes["w_i"] == (4, 16, 16)
    assert len(shapes["w_h0"]) == 3


def test_number_of_parameters():
    small = config(masks=np.eye(4), nproj_in=32)
    inputs, hidden = 2 * (16 * 32 + 2 * 32), (3 + 4) * (4 * 16 * 16 + 2 * 64)
    assert small.num_parameters == inputs + hidden
    assert small.num_parameters == sum(int(tf.size(w)) for w in mlstm_weights(small).values())


def test_chosen_features():
    chosen = config(nproj_in=8, mul_features=range(8), add_features=np.arange(0, 64, 8))
    assert chosen.mul_features == tuple(range(8))
    np.testing.assert_array_equal(chosen.add_proj.gather_lut, np.arange(0, 64, 8))
    drawn = config(nproj_in=32)
    assert drawn.mul_features != drawn.add_features
    assert config().mul_proj is None and config(nproj_in=64).add_proj is None


def test_weights_start_as_identities():
    weights = mlstm_weights(config(masks="ba_1", forget_bias=2.0))
    for name, layout in config(masks="ba_1").layouts.items():
        dense = layout.to_dense(weights[f"w_{name}"].numpy())
        expected = np.tile(np.eye(16), 4) if name in "ma" else np.eye(64)
        np.testing.assert_array_equal(dense, expected)
        np.testing.assert_array_equal(weights[f"g_{name}"], 1.0)
        np.testing.assert_array_equal(weights[f"b_{name}"], 2.0 if name == "f" else 0.0)
    assert mlstm_weights(config(), "bfloat16")["w_i"].dtype == tf.bfloat16
    assert mlstm_weights(config(), "bfloat16")["g_i"].dtype == tf.float32


def test_it_is_immutable_hashable_and_equal_by_content():
    first, second = config(masks="ba_1", nproj_in=16), config(masks="ba_1", nproj_in=16)
    assert first == second and hash(first) == hash(second)
    assert first != dataclasses.replace(first, dtype="float16")
    assert dataclasses.replace(first, dtype="float16").masks == first.masks
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.nhidden = 8


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"masks": "br_1", "nproj_in": 24, "seed": 5, "lsteps": 2, "dtype": "bfloat16"},
        {"masks": "br_1", "share_masks": True, "share_isteps": True, "feature_axis": 0},
    ],
)
def test_it_travels_through_json(kwargs):
    original = config(**kwargs)
    text = json.dumps(original.get_config())
    assert MLSTMConfig.from_config(json.loads(text)) == original


# ---- errors ----

ERRORS = {
    "block_size": (17, ValueError, "block_size must be one of 8, 16, 32, 64, 128. Received: 17"),
    "nhidden": (40, ValueError, "nhidden must be a positive multiple of 16. Received: 40"),
    "nembd": (12, ValueError, "nembd must be a positive multiple of 8. Received: 12"),
    "isteps": (1, ValueError, "isteps must be 2 or more. Received: 1"),
    "lsteps": (1.5, TypeError, "lsteps must be an integer. Received: 1.5"),
    "seed": (-1, ValueError, "seed must be 0 or more. Received: -1"),
    "feature_axis": (2, ValueError, "feature_axis must be 1 .features last. or 0"),
    "share_masks": (1, TypeError, "share_masks must be True or False. Received: 1"),
    "share_isteps": ("no", TypeError, "share_isteps must be True or False. Received: no"),
    "forget_bias": (float("nan"), ValueError, "forget_bias must be a finite number. Received: nan"),
    "dtype": ("float64", ValueError, "dtype must be one of float32, .*. Received: float64"),
    "nproj_in": (72, ValueError, "nproj_in must be at most nhidden=64. Received: 72"),
    "masks": (np.ones((2, 4)), ValueError, r"masks must be of \[4, 4\] blocks of 16. Received: "),
    "mul_features": (range(64), ValueError, "mul_features must be None, as nproj_in is nhidden=64"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_config_errors(name):
    value, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        config(**{name: value})


def test_mask_errors():
    layouts = (SparsityLayout(np.eye(4), 16),) * 2
    with pytest.raises(
        ValueError, match="masks must be 4 layouts, for h0, h1, h2, gates. Received: 2"
    ):
        config(masks=layouts)
    with pytest.raises(ValueError, match="masks must be a dict of h0, h1, h2, gates. Received: h0"):
        config(masks={"h0": "dense"})
    different = {"h0": "dense", "h1": "dense", "h2": "dense", "gates": np.eye(4)}
    with pytest.raises(ValueError, match="masks must be one mask or equal ones, with share_masks"):
        config(masks=different, share_masks=True)
    with pytest.raises(ValueError, match="masks must be in z-order"):
        config(masks=SparsityLayout(np.eye(4), 16, z_order=False))
    with pytest.raises(ValueError, match="from_name: the name must be one of"):
        config(masks="spiral")


@pytest.mark.parametrize("chosen", [range(7), [0.5] * 8, [*range(7), 64], [1, 0, *range(2, 8)]])
def test_feature_errors(chosen):
    with pytest.raises(
        ValueError, match=r"add_features must be 8 increasing integers in \[0, 64\)"
    ):
        config(nproj_in=8, add_features=chosen)


def arguments(**kwargs):
    made = config(**kwargs)
    state = tf.zeros([3, 64]), tf.zeros([3, 64])
    return tf.zeros([5, 3, 16]), state, mlstm_weights(made), made


def test_errors_of_weights():
    x, state, weights, made = arguments()
    with pytest.raises(
        TypeError, match="mlstm_sequence: config must be an MLSTMConfig. Received: dict"
    ):
        mlstm_sequence(x, state, weights, {})
    missing = {name: w for name, w in weights.items() if name != "w_i"} | {"w_x": x}
    with pytest.raises(
        ValueError, match=r"must be a dict of .*missing \['w_i'\], unknown \['w_x'\]"
    ):
        mlstm_sequence(x, state, missing, made)
    with pytest.raises(TypeError, match="w_i must be float32. Received: float16"):
        mlstm_sequence(x, state, weights | {"w_i": tf.cast(weights["w_i"], "float16")}, made)
    with pytest.raises(TypeError, match="g_i must be float32. Received: bfloat16"):
        mlstm_sequence(x, state, weights | {"g_i": tf.cast(weights["g_i"], "bfloat16")}, made)
    with pytest.raises(ValueError, match=r"b_i must have shape \[64\]. Received: b_i.shape=\(3,\)"):
        mlstm_sequence(x, state, weights | {"b_i": tf.zeros(3)}, made)


def test_errors_of_activations():
    x, (c, h), weights, made = arguments()
    with pytest.raises(TypeError, match="x must be float32, the config's dtype. Received: float16"):
        mlstm_sequence(tf.cast(x, "float16"), (c, h), weights, made)
    with pytest.raises(
        ValueError, match=r"x must have shape \[T, N, 16\]. Received: .*\(5, 3, 8\)"
    ):
        mlstm_sequence(x[..., :8], (c, h), weights, made)
    with pytest.raises(ValueError, match=r"state must be a pair \(c, h\). Received: list"):
        mlstm_sequence(x, [c], weights, made)
    with pytest.raises(
        ValueError, match=r"c must have shape \[N, 64\]. Received: c.shape=\(64, 3\)"
    ):
        mlstm_cell(None, (tf.transpose(c), h), weights, made)
    with pytest.raises(ValueError, match="the same minibatch. Received: 3, 3, 2"):
        mlstm_sequence(x[:, :2], (c, h), weights, made)
    with pytest.raises(
        ValueError, match=r"a must have shape \[N, 64\]. Received: a.shape=\(3, 32\)"
    ):
        mlstm_cell((c, c[:, :32]), (c, h), weights, made)
    with pytest.raises(TypeError, match="mlstm_inputs: x must be float32"):
        mlstm_inputs(tf.zeros([3, 16], tf.bfloat16), weights, made)
    with pytest.raises(ValueError, match=r"\[16, T, N\]"):
        mlstm_sequence(x, None, weights, config(feature_axis=0))


def test_the_number_of_time_steps_must_be_known():
    x, state, weights, made = arguments()
    with pytest.raises(ValueError, match="number of time steps must be known, 1 or more"):
        mlstm_sequence(x[:0], state, weights, made)
    run = tf.function(
        lambda x: mlstm_sequence(x, state, weights, made)[0],
        input_signature=[tf.TensorSpec([None, 3, 16])],
    )
    with pytest.raises(ValueError, match=r"must be known, .*x.shape=\(None, 3, 16\)"):
        run(x)


def test_the_minibatch_may_be_unknown():
    x, _, weights, made = arguments()
    run = tf.function(
        lambda x: mlstm_sequence(x, None, weights, made)[0],
        input_signature=[tf.TensorSpec([5, None, 16])],
    )
    assert run(x).shape == (5, 3, 64)

"""The LSTM example's optimizer: schedule, Adam, clipping and loss scaling against references."""

import math
import pathlib
import sys

import numpy as np
import pytest
import tensorflow as tf

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples/lstm"))
import optimizer
import settings
from optimizer import Adam, learning_rate


def flags_of(**values):
    return settings.with_defaults({k.replace("_", "-"): v for k, v in values.items()},
                                  settings.STORED)  # fmt: skip


# ---- the schedule ----


@pytest.mark.parametrize("decay", ["cosine", "linear", "none"])
def test_the_rate_rises_in_the_warmup_and_falls_to_a_twentieth(decay):
    flags = flags_of(rate=0.4, warmup=10, decay=decay)
    rates = [learning_rate(step, 110, flags) for step in range(111)]
    np.testing.assert_allclose(rates[:10], 0.04 * np.arange(1, 11))
    half = {"cosine": 0.5, "linear": 0.5, "none": 1}[decay]
    assert rates[10] == pytest.approx(0.4)
    assert rates[60] == pytest.approx(0.4 * (0.05 + 0.95 * half))
    assert rates[110] == pytest.approx(0.4 if decay == "none" else 0.02)
    assert all(np.diff(rates[9:]) <= 0)
    quarter = {"cosine": (1 + math.cos(math.pi / 4)) / 2, "linear": 0.75, "none": 1}[decay]
    assert rates[35] == pytest.approx(0.4 * (0.05 + 0.95 * quarter))


def test_schedules_of_one_step_and_of_warmup_alone():
    assert learning_rate(0, 1, flags_of(rate=0.5, warmup=0)) == 0.5
    flags = flags_of(rate=0.5, warmup=100)
    assert learning_rate(4, 5, flags) == pytest.approx(0.025)


def test_tokens_are_rounded_up_to_steps():
    assert settings.num_steps(flags_of()) == settings.DEFAULT_STEPS
    assert settings.num_steps(flags_of(steps=7)) == 7
    for tokens, steps in ((1, 1), (320, 1), (321, 2), (640, 2)):
        assert settings.num_steps(flags_of(tokens=tokens, batch=8, window=40)) == steps


# ---- Adam ----

SHAPES = {"w": (3, 4), "b": (5,)}


def variables_of(rng):
    return {name: tf.Variable(rng.standard_normal(shape), dtype=tf.float32)
            for name, shape in SHAPES.items()}  # fmt: skip


def gradients_of(rng):
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def adam_in_numpy(values, steps, beta2, clip):
    """float64, by the paper; steps: [(gradients, rate)]. Yields the gradients' norm and values."""
    values = {name: np.float64(value) for name, value in values.items()}
    mean = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    variance = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for number, (gradients, rate) in enumerate(steps, 1):
        norm = math.sqrt(sum((np.float64(g) ** 2).sum() for g in gradients.values()))
        for name, gradient in gradients.items():
            gradient = np.float64(gradient) * min(1, clip / norm)
            mean[name] = 0.9 * mean[name] + 0.1 * gradient
            variance[name] = beta2 * variance[name] + (1 - beta2) * gradient**2
            unbiased = mean[name] / (1 - 0.9**number)
            root = np.sqrt(variance[name] / (1 - beta2**number))
            values[name] = values[name] - rate * unbiased / (root + 1e-8)
        yield norm, dict(values)


@pytest.mark.parametrize("clip", [2.0, 1e6])
def test_adam_follows_the_paper_with_clipped_gradients(rng, clip):
    variables = variables_of(rng)
    adam = Adam(variables, flags_of(beta2=0.97, clip=clip))
    steps = [(gradients_of(rng), rate) for rate in (0.1, 0.2, 0.05, 0.05, 0.1)]
    expected = adam_in_numpy(variables, steps, 0.97, clip)
    step = tf.function(adam.apply, autograph=False)
    for (gradients, rate), (norm, values) in zip(steps, expected, strict=True):
        found = step({k: tf.constant(g) for k, g in gradients.items()}, tf.constant(rate))
        assert float(found) == pytest.approx(norm, rel=1e-5)
        for name, value in values.items():
            np.testing.assert_allclose(variables[name], value, rtol=1e-5, atol=1e-6)
    assert int(adam.state["updates"]) == 5


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_gradient_that_is_not_finite_changes_no_parameter(rng, dtype):
    variables = variables_of(rng)
    adam = Adam(variables, flags_of(dtype=dtype))
    gradients = gradients_of(rng)
    adam.apply(gradients, 0.1)
    before = {name: variable.numpy() for name, variable in variables.items()}
    state = {name: variable.numpy() for name, variable in adam.state.items()}
    gradients["w"][1, 2] = np.inf
    assert not np.isfinite(adam.apply(gradients, 0.1))
    for name, value in before.items():
        np.testing.assert_array_equal(variables[name], value)
    assert int(adam.state["updates"]) == 1
    if dtype == "float16":
        assert adam.state.pop("loss_scale") == state.pop("loss_scale") / 2
        assert adam.state.pop("good_steps") == 0 and state.pop("good_steps") == 1
    for name, value in state.items():
        np.testing.assert_array_equal(adam.state[name], value)


def test_a_scaled_loss_gives_the_same_updates(rng):
    variables, twins = variables_of(rng), {}
    for name, variable in variables.items():
        twins[name] = tf.Variable(variable)
    plain, scaled = Adam(variables, flags_of()), Adam(twins, flags_of(dtype="float16"))
    for _ in range(3):
        gradients = gradients_of(rng)
        scale = float(scaled.scaled(tf.constant(1.0)))
        assert scale == optimizer.LARGEST_SCALE and float(plain.scaled(tf.constant(1.0))) == 1
        norm = plain.apply(gradients, 0.1)
        assert norm == scaled.apply({k: scale * g for k, g in gradients.items()}, 0.1)
        for name, variable in variables.items():  # a power of two changes no bit
            np.testing.assert_array_equal(variable, twins[name])


def test_the_scale_of_the_loss_halves_at_overflows_and_doubles_after_good_steps(rng, monkeypatch):
    monkeypatch.setattr(optimizer, "GROWTH_STEPS", 3)
    adam = Adam(variables_of(rng), flags_of(dtype="float16"))
    good = gradients_of(rng)
    bad = {**good, "b": np.full(5, np.nan, np.float32)}
    largest, scales = optimizer.LARGEST_SCALE, []
    for gradients in [good] * 3 + [bad] * 2 + [good] * 2 + [bad] + [good] * 7 + [bad] * 20:
        adam.apply(gradients, 0.1)
        scales.append(float(adam.state["loss_scale"]) / largest)
    halves = [1, 1, 1, 1 / 2, 1 / 4, 1 / 4, 1 / 4, 1 / 8, 1 / 8, 1 / 8, 1 / 4, 1 / 4, 1 / 4, 1 / 2]
    assert scales[:15] == [*halves, 1 / 2]
    assert scales[-1] * largest == 1

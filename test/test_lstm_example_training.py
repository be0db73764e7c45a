"""The LSTM example's model and training step: state, precision, dropout, sizes, text it writes."""

import itertools
import pathlib
import sys

import numpy as np
import pytest
import tensorflow as tf

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples/lstm"))
import corpus
import model
import settings
from errors import UserError
from sample import sample
from training import Evaluator, Trainer

SMALL = {"hidden": 32, "embedding": 8, "block-size": 8, "internal-steps": 2, "density": 0.5,
         "batch": 4, "window": 4, "rate": 3e-3, "warmup": 1}  # fmt: skip


def flags_of(**values):
    values = {name.replace("_", "-"): value for name, value in values.items()}
    return settings.with_defaults({**SMALL, **values}, settings.STORED)


def trainer_of(**values):
    flags = flags_of(**values)
    return Trainer(model.config_of(flags), flags)


def losses_of(trainer, batches, steps, rate=3e-3):
    return [float(trainer.step(step, *batches(step), rate)[0]) for step in steps]


@pytest.fixture
def batches(tmp_path):
    (tmp_path / "text").write_bytes(b"the quick brown fox jumps over the lazy dog. " * 12)
    text = corpus.open_text(tmp_path / "text")
    return corpus.Batches(text, 0, len(text), SMALL["batch"], SMALL["window"])


# ---- the step ----


@pytest.mark.parametrize("feature_axis", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_training_learns_in_every_precision(batches, dtype, feature_axis):
    trainer = trainer_of(dtype=dtype, feature_axis=feature_axis)
    losses = losses_of(trainer, batches, range(40), 1e-2)
    assert 7 < losses[0] < 10  # an untrained model knows nothing: 8
    assert np.mean(losses[-5:]) < 4.5
    assert {v.dtype for v in trainer.model.parameters.values()} == {tf.float32}
    skipped = 40 - trainer.arrays()["adam/updates"]
    assert skipped == 0 or dtype == "float16" and skipped < 5  # until the loss has its scale


def test_both_feature_axes_are_the_same_model(batches):
    first, last = (losses_of(trainer_of(feature_axis=axis), batches, range(3)) for axis in (0, 1))
    np.testing.assert_allclose(first, last, rtol=1e-4)


def test_the_first_loss_is_that_of_single_steps_with_carried_state(batches):
    trainer = trainer_of(rate=1e-30)
    state, expected = trainer.model.initial_state(4), []
    for number in range(2):
        x, y, _ = batches(number)
        losses = []
        for at in range(len(x)):
            logits, state = trainer.model.step(tf.constant(x[at]), state)
            log = tf.nn.log_softmax(logits).numpy()
            losses.append(-np.take_along_axis(log, y[at, :, None].astype(int), axis=1))
        expected.append(np.mean(losses) / np.log(2))
    found = [float(trainer.step(step, *batches(step), 1e-30)[0]) for step in range(2)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_an_epoch_begins_with_a_state_of_zeros(batches):
    trainer = trainer_of()
    first = float(trainer.step(0, *batches(0), 0.0)[0])
    trainer.step(1, *batches(1), 0.0)
    x, y, is_first = batches(0)
    assert is_first
    assert float(trainer.step(2, x, y, False, 0.0)[0]) != first
    assert float(trainer.step(3, x, y, True, 0.0)[0]) == first


def test_restored_arrays_give_the_same_losses_bit_for_bit(batches):
    options = {"dtype": "float16", "dropout": 0.1, "update_dropout": 0.2}
    trainer = trainer_of(**options)
    losses_of(trainer, batches, range(3))
    arrays = trainer.arrays()
    expected = losses_of(trainer, batches, range(3, 8))
    other = trainer_of(**options)
    losses_of(other, batches, range(1))
    other.restore(arrays, "they")
    assert losses_of(other, batches, range(3, 8)) == expected
    del arrays["model/g_i"]
    message = "they does not fit .*: model/g_i has shape None instead of \\(32,\\)"
    with pytest.raises(UserError, match=message):
        other.restore(arrays, "they")


def test_dropout_is_drawn_for_each_step_and_seed_and_not_in_evaluation(batches):
    def first_losses(**options):
        trainer = trainer_of(**options)
        x, y, _ = batches(0)
        return [float(trainer.step(step, x, y, True, 0.0)[0]) for step in (0, 0, 1)]

    plain = first_losses()
    assert len(set(plain)) == 1
    for options in ({"dropout": 0.5}, {"update_dropout": 0.5}):
        one, again, other = first_losses(**options)
        assert one == again != other and one != plain[0]
    trainers = trainer_of(dropout=0.5, update_dropout=0.5), trainer_of()
    part = list(corpus.evaluation_batches(batches.text, 0, 100, 4, 4))
    assert trainers[0].evaluate(part) == trainers[1].evaluate(part)


def test_recomputing_changes_nothing_but_roundings(batches):
    expected = losses_of(trainer_of(update_dropout=0.1), batches, range(6))
    found = losses_of(trainer_of(update_dropout=0.1, recompute=4), batches, range(6))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert found[0] == expected[0]


def test_evaluation_is_the_mean_over_all_bytes(batches):
    trainer = trainer_of()
    losses_of(trainer, batches, range(10))
    text, begin, end = batches.text, 3, 40
    rows = text.read(begin - 1, end - begin + 1)
    state, nats = trainer.model.initial_state(1), 0.0
    for before, after in itertools.pairwise(rows.tolist()):
        logits, state = trainer.model.step(tf.constant([before]), state)
        nats -= float(tf.nn.log_softmax(logits)[0, after])
    parts = corpus.evaluation_batches(text, begin, end, 1, 8)
    found = Evaluator(trainer.model)(parts)
    assert found == pytest.approx(nats / np.log(2) / (end - begin), rel=1e-5)


# ---- sizes ----


@pytest.mark.parametrize(
    "layout", ["barabasi_albert", "watts_strogatz", "balanced_random", "dense"]
)
@pytest.mark.parametrize("wanted", [50_000, 400_000])
def test_parameters_finds_the_number_of_features(layout, wanted):
    flags = flags_of(hidden=None, parameters=wanted, layout=layout, density=0.2)
    config = model.config_of(flags)
    count = model.num_parameters(config)
    assert model.LanguageModel(config).num_parameters == count
    assert abs(count - wanted) < 0.15 * wanted
    for other in (config.nhidden - 8, config.nhidden + 8):
        near = model.num_parameters(model.config_of({**flags, "hidden": other, "parameters": None}))
        assert abs(near - wanted) >= abs(count - wanted)


def test_flags_become_the_config():
    flags = flags_of(hidden=64, layout="ws_2_50", updates=2, inputs=16, share_masks=True)
    config = model.config_of(flags)
    assert (config.nhidden, config.nembd, config.isteps, config.lsteps) == (64, 8, 2, 2)
    assert config.nproj_in == 16 and len(set(config.masks)) == 1
    assert len(set(model.config_of(flags_of(hidden=64, density=0.3)).masks)) > 1
    assert model.config_of(flags_of(hidden=None)).nhidden == model.DEFAULT_HIDDEN


@pytest.mark.parametrize(
    "values, message",
    [
        ({"hidden": 36}, "--hidden must be a multiple of --block-size=8. Received: 36"),
        ({"layout": "nonsense"}, "no such model: .*nonsense"),
        ({"layout": "ba_99"}, "no such model: "),
        ({"embedding": 12}, "no such model: .*nembd must be a positive multiple of 8"),
        ({"internal-steps": 1}, "no such model: .*isteps must be 2 or more"),
    ],
)
def test_models_that_cannot_be_are_errors(values, message):
    with pytest.raises(UserError, match=message):
        model.config_of(flags_of(**values))


# ---- samples ----


def test_a_sample_at_temperature_0_is_the_likeliest_bytes(batches):
    trainer = trainer_of()
    losses_of(trainer, batches, range(60), 1e-2)
    state, written = trainer.model.initial_state(1), []
    x = list(b"the qu")
    while len(written) < 20:
        logits, state = trainer.model.step(tf.constant(x[:1]), state)
        x = x[1:]
        if not x:
            x = [int(tf.argmax(logits[0]))]
            written += x
    assert sample(trainer.model, b"the qu", 20, temperature=0) == bytes(written)


def test_samples_repeat_with_their_seed_and_follow_the_probabilities():
    drawn = model.LanguageModel(model.config_of(flags_of()))
    drawn.parameters["softmax_w"].assign(tf.zeros_like(drawn.parameters["softmax_w"]))
    logits = np.full(256, -1e9)
    logits[[65, 66]] = np.log([0.8, 0.2])
    drawn.parameters["softmax_b"].assign(logits)
    text = sample(drawn, b"x", 1000, seed=3)
    assert text == sample(drawn, b"x", 1000, seed=3) != sample(drawn, b"x", 1000, seed=4)
    assert set(text) == set(b"AB") and 750 < text.count(b"A") < 850
    # at half the temperature, probabilities are as their squares: 16 to 1
    assert 905 < sample(drawn, b"x", 1000, temperature=0.5).count(b"A") < 975

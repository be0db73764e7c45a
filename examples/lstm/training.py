"""Training state, the step that changes it, and evaluation."""

import math

import checkpoint
import numpy as np
import tensorflow as tf
from errors import UserError
from model import LanguageModel, stored_config
from optimizer import Adam

NATS_PER_BIT = math.log(2)


class Trainer:
    """A model, its optimizer and the carried state of its streams.

    Args:
      config: MLSTMConfig.
      flags: of `settings`.
    Attributes:
      model: LanguageModel.
      num_parameters.
    """

    def __init__(self, config, flags):
        self.model = LanguageModel(config, flags["seed"])
        self._flags = flags
        self._optimizer = Adam(self.model.parameters, flags)
        self._state = [
            tf.Variable(tensor, name=name)
            for name, tensor in zip("ch", self.model.initial_state(flags["batch"]), strict=True)
        ]
        self._step = tf.function(self._train_step, autograph=False)
        self.evaluate = Evaluator(self.model)

    num_parameters = property(lambda self: self.model.num_parameters)

    def step(self, number, x, y, is_first, rate):
        """One training step.

        Args:
          number: of the step.
          x, y, is_first: what `corpus.Batches` gives for it.
          rate: learning rate.
        Returns:
          (loss, norm): float32 tensors, bits per character and the gradients' norm. Not waited for.
        """
        keep = tf.constant(0.0 if is_first else 1.0)
        return self._step(
            tf.constant(x), tf.constant(y), keep, tf.constant(number, tf.int64), tf.constant(rate)
        )

    # ---- as arrays ----

    def arrays(self):
        """All variables, as numpy by name; 16-bit state as float32, which holds it exactly."""
        return {
            name: np.asarray(tf.cast(v, tf.float32) if v.dtype.size == 2 else v)
            for name, v in self._variables().items()
        }

    def restore(self, arrays, where):
        """Assigns what `arrays` returned; UserError if these are not the arrays of this model."""
        _assign(self._variables(), arrays, where)

    def _variables(self):
        return {
            **{f"model/{name}": v for name, v in self.model.parameters.items()},
            **{f"adam/{name}": v for name, v in self._optimizer.state.items()},
            **{f"state/{v.name[0]}": v for v in self._state},
        }

    # ---- graphs ----

    def _train_step(self, x, y, keep, number, rate):
        state = [variable * tf.cast(keep, variable.dtype) for variable in self._state]
        parameters = self.model.parameters
        seed = tf.stack([tf.constant(self._flags["seed"], tf.int64), number])
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(list(parameters.values()))
            losses, state = self.model.loss(
                x,
                y,
                state,
                dropout=self._flags["dropout"],
                update_dropout=self._flags["update-dropout"],
                seed=seed,
                recompute=self._flags["recompute"],
            )
            loss = tf.reduce_mean(losses)
            scaled = self._optimizer.scaled(loss)
        gradients = tape.gradient(scaled, parameters)
        norm = self._optimizer.apply(gradients, rate)
        for variable, value in zip(self._state, state, strict=True):
            variable.assign(value)
        return loss / NATS_PER_BIT, norm


class Evaluator:
    """Bits per character of a model: called on `corpus.evaluation_batches`."""

    def __init__(self, model):
        self._model = model
        self._step = tf.function(self._losses, autograph=False)

    def __call__(self, batches):
        """The mean over all bytes, from a state of zeros."""
        state, losses, count = None, 0.0, 0.0
        for x, y, weights in batches:
            if state is None:
                state = self._model.initial_state(x.shape[1])
            loss, state = self._step(*(tf.constant(array) for array in (x, y, weights)), state)
            losses += float(loss)
            count += float(weights.sum())
        return losses / count / NATS_PER_BIT

    def _losses(self, x, y, weights, state):
        losses, state = self._model.loss(x, y, state)
        return tf.reduce_sum(losses * weights), state


def load_model(path):
    """(LanguageModel, about) of a checkpoint file, or of the newest in a folder.

    Raises:
      UserError: there is none, or it is damaged.
    """
    arrays, about = checkpoint.load(path)
    model = LanguageModel(stored_config(about))
    prefix = "model/"
    parameters = {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
    _assign(model.parameters, parameters, f"the checkpoint {path}")
    return model, about


def _assign(variables, arrays, where):
    expected = {name: tuple(variable.shape) for name, variable in variables.items()}
    found = {name: array.shape for name, array in arrays.items()}
    for name in {**expected, **found}:
        if expected.get(name) != found.get(name):
            raise UserError(
                f"{where} does not fit the model that it describes: {name} has shape "
                f"{found.get(name)} instead of {expected.get(name)}"
            )
    for name, variable in variables.items():
        variable.assign(tf.cast(arrays[name], variable.dtype))

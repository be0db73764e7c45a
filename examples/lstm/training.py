"""Training state, the step that changes it, and evaluation."""

import math

import checkpoint
import numpy as np
import tensorflow as tf
from errors import UserError
from model import LanguageModel, stored_config
from optimizer import Adam
from replicas import Replicas, average, gather, replica_number

NATS_PER_BIT = math.log(2)


class Trainer:
    """A model, its optimizer and the carried state of its streams.

    Parameters and the optimizer's variables are the same in all replicas; each replica has the
    state of its own streams.

    Args:
      config: MLSTMConfig.
      flags: of `settings`.
      replicas: Replicas; by default one.
    Attributes:
      model: LanguageModel.
      num_parameters.
    """

    def __init__(self, config, flags, replicas=None):
        self._flags = flags
        self._replicas = replicas or Replicas()
        with self._replicas.strategy.scope():
            self.model = LanguageModel(config, flags["seed"])
            self._optimizer = Adam(self.model.parameters, flags)
            state = self.model.initial_state(flags["batch"] // self._replicas.count)
            self._state = {
                f"state/{name}": tf.Variable(
                    tensor,
                    name=name,
                    synchronization=tf.VariableSynchronization.ON_READ,
                    aggregation=tf.VariableAggregation.NONE,
                )
                for name, tensor in zip("ch", state, strict=True)
            }
        self._step = self._replicas.function(self._train_step)
        self._gather_state = self._replicas.function(self._gathered)
        self._assign_state = self._replicas.function(self._assign_parts)
        self.evaluate = Evaluator(self.model, self._replicas)

    num_parameters = property(lambda self: self.model.num_parameters)

    def step(self, number, x, y, is_first, rate):
        """One training step.

        Args:
          number: of the step.
          x, y, is_first: what `corpus.Batches` gives for it, of this process's streams.
          rate: learning rate.
        Returns:
          (loss, norm): float32 tensors, bits per character and the gradients' norm, of all
          replicas together. Not waited for.
        """
        x, y = map(self._replicas.split, (x, y))
        keep = tf.constant(0.0 if is_first else 1.0)
        results = self._step(x, y, keep, tf.constant(number, tf.int64), tf.constant(rate))
        return tuple(map(self._replicas.first, results))

    # ---- as arrays ----

    def arrays(self):
        """All variables, as numpy by name; 16-bit state as float32, which holds it exactly.

        The state is that of all streams, whatever the number of replicas. To be called by all
        processes that train together.
        """
        state = map(self._replicas.first, self._gather_state())
        return {
            **{name: variable.numpy() for name, variable in self._variables().items()},
            **{name: value.numpy() for name, value in zip(self._state, state, strict=True)},
        }

    def restore(self, arrays, where):
        """Assigns what `arrays` returned; UserError if these are not the arrays of this model."""
        variables = self._variables()
        state = zip(self._state, self.model.initial_state(self._flags["batch"]), strict=True)
        _check_shapes(_shapes({**variables, **dict(state)}), arrays, where)
        _assign(variables, arrays)
        streams = self._replicas.streams(self._flags["batch"])
        axis = self._stream_axis
        parts = (np.take(arrays[name], streams, axis) for name in self._state)
        self._assign_state(*(self._replicas.split(part, axis) for part in parts))

    @property
    def _stream_axis(self):
        return 0 if self.model.config.feature_axis == 1 else 1

    def _variables(self):
        return {
            **{f"model/{name}": v for name, v in self.model.parameters.items()},
            **{f"adam/{name}": v for name, v in self._optimizer.state.items()},
        }

    # ---- graphs, of one replica ----

    def _gathered(self):
        state = (tf.cast(variable, tf.float32) for variable in self._state.values())
        return tuple(gather(value, self._stream_axis) for value in state)

    def _assign_parts(self, *parts):
        for variable, part in zip(self._state.values(), parts, strict=True):
            variable.assign(tf.cast(part, variable.dtype))

    def _train_step(self, x, y, keep, number, rate):
        state = [variable * tf.cast(keep, variable.dtype) for variable in self._state.values()]
        parameters = self.model.parameters
        seed = tf.stack([tf.constant(self._flags["seed"], tf.int64), number])
        if self._replicas.count > 1:
            seed = tf.random.fold_in(seed, replica_number())
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
        # Replicas have equally many streams, so that these are the means over all of them.
        loss, gradients = average((loss, gradients))
        norm = self._optimizer.apply(gradients, rate)
        for variable, value in zip(self._state.values(), state, strict=True):
            variable.assign(value)
        return loss / NATS_PER_BIT, norm


class Evaluator:
    """Bits per character of a model: called on `corpus.evaluation_batches`.

    Args:
      model: LanguageModel.
      replicas: Replicas that have it; by default one.
    """

    def __init__(self, model, replicas=None):
        self._model = model
        self._replicas = replicas or Replicas()
        self._begin = self._replicas.function(self._zeros)
        self._step = self._replicas.function(self._add)

    def __call__(self, batches):
        """The mean over all bytes, those of other processes too, from a state of zeros."""
        carried = None
        for arrays in batches:
            parts = tuple(map(self._replicas.split, arrays))
            carried = self._step(*parts, *(carried or self._begin(parts[0])))
        *_, losses, count = carried
        return self._replicas.sum(losses) / self._replicas.sum(count) / NATS_PER_BIT

    def _zeros(self, x):
        zero = tf.zeros([], tf.float64)
        return *self._model.initial_state(x.shape[1]), zero, zero

    def _add(self, x, y, weights, c, h, losses, count):
        """(c, h) after the window, and the sums with those of the window added."""
        window_losses, (c, h) = self._model.loss(x, y, (c, h))
        losses += tf.cast(tf.reduce_sum(window_losses * weights), tf.float64)
        return c, h, losses, count + tf.cast(tf.reduce_sum(weights), tf.float64)


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
    _check_shapes(_shapes(model.parameters), parameters, f"the checkpoint {path}")
    _assign(model.parameters, parameters)
    return model, about


def _shapes(variables):
    return {name: tuple(variable.shape) for name, variable in variables.items()}


def _check_shapes(expected, arrays, where):
    found = {name: array.shape for name, array in arrays.items()}
    for name in {**expected, **found}:
        if expected.get(name) != found.get(name):
            raise UserError(
                f"{where} does not fit the model that it describes: {name} has shape "
                f"{found.get(name)} instead of {expected.get(name)}"
            )


def _assign(variables, arrays):
    for name, variable in variables.items():
        variable.assign(tf.cast(arrays[name], variable.dtype))

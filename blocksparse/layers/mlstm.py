"""The multiplicative LSTM of `blocksparse/mlstm.py` as Keras layers."""

import dataclasses

import keras
import tensorflow as tf

from blocksparse.mlstm import (
    MLSTMConfig,
    mlstm_cell,
    mlstm_initializer,
    mlstm_inputs,
    mlstm_sequence,
)


@keras.saving.register_keras_serializable(package="blocksparse")
class MLSTMCell(keras.layers.Layer):
    """One step of the multiplicative LSTM, for `keras.layers.RNN`; it holds the weights.

    `MLSTM` computes the same over sequences, faster.

    Args:
      config: MLSTMConfig. Its dtype is replaced by the compute dtype of this layer's policy. Saved
        with the layer, with all masks.
      dropout: share of the update u that is dropped in training, in [0, 1), other elements in each
        step.
      seed: of the dropped elements, an integer; None for a random one.
      **kwargs: of `keras.layers.Layer`: name, dtype (a policy, such as "mixed_bfloat16"), ...
    Attributes:
      config, state_size, output_size.
    Raises:
      TypeError: config is not an MLSTMConfig.
      ValueError: the policy's compute dtype is not supported; the input has not nembd features;
        dropout is out of range.
    Example:
      >>> cell = MLSTMCell(MLSTMConfig(nhidden=32, nembd=16, isteps=2, block_size=8))
      >>> keras.layers.RNN(cell)(tf.ones([4, 6, 16])).shape.as_list()
      [4, 32]
    """

    def __init__(self, config, dropout=0.0, seed=None, **kwargs):
        if not isinstance(config, MLSTMConfig):
            raise TypeError(
                f"MLSTMCell: config must be an MLSTMConfig. Received: {type(config).__name__}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"MLSTMCell: dropout must be in [0, 1). Received: {dropout}")
        super().__init__(**kwargs)
        self.supports_jit = False  # XLA does not know custom ops
        self.dropout, self.seed = dropout, seed
        self.seed_generator = keras.random.SeedGenerator(seed) if dropout else None
        self.config = dataclasses.replace(config, dtype=self.compute_dtype)
        self.state_size = [config.nhidden, config.nhidden]
        self.output_size = config.nhidden

    def build(self, input_shape):
        if input_shape[-1] != self.config.nembd:
            raise ValueError(
                f"MLSTMCell: the input must have nembd={self.config.nembd} features on the last "
                f"axis. Received: shape {tuple(input_shape)}"
            )
        self.params = {
            name: self.add_weight(
                name=name,
                shape=shape,
                initializer=mlstm_initializer(name, self.config),
                dtype=None if name.startswith("w_") else "float32",
                autocast=False,  # the products round them, so that the gradients are float32
            )
            for name, shape in self.config.weight_shapes.items()
        }

    def call(self, inputs, states, training=None):
        """(h, [h, c]) from inputs [N, nembd] and states [h, c], [N, nhidden] each."""
        x, h, c = (_turned(tensor, self.config) for tensor in (inputs, *states))
        x_proj = mlstm_inputs(x, self.params, self.config)
        state = mlstm_cell(x_proj, (c, h), self.params, self.config, **self.dropping(training))
        c, h = (_turned(tensor, self.config) for tensor in state)
        return h, [h, c]

    def dropping(self, training):
        """What the functions need to know of this call's dropout: nothing, or a new seed."""
        if not (training and self.dropout):
            return {}
        return {"keep_prob": 1 - self.dropout, "seed": tf.cast(self.seed_generator.next(), "int64")}

    def get_initial_state(self, batch_size=None):
        """Zeros [h, c]."""
        return [tf.zeros([batch_size, size], self.compute_dtype) for size in self.state_size]

    def get_config(self):
        return {
            **super().get_config(),
            "config": self.config.get_config(),
            "dropout": self.dropout,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "config": MLSTMConfig.from_config(config["config"])})


@keras.saving.register_keras_serializable(package="blocksparse")
class MLSTM(keras.layers.Layer):
    """A multiplicative LSTM over whole sequences; each weight's gradient is computed once.

    Called on sequences [N, T, nembd], with a known number T of time steps, and optionally
    initial_state=[h, c], [N, nhidden] each; zeros by default. To carry the state from one call to
    the next, pass what `return_state` returned.

    Args:
      config, dropout, seed: as of `MLSTMCell`.
      return_sequences: True returns h of all steps, [N, T, nhidden], False of the last, [N,
        nhidden].
      return_state: True returns (that, h, c), with the last state.
      recompute: as of `mlstm_sequence`: how many steps are computed twice at a time, to save memory
        in training; 0 for none.
      **kwargs: of `keras.layers.Layer`.
    Attributes:
      cell: the `MLSTMCell` with the weights.
    Raises:
      TypeError, ValueError: as `MLSTMCell`; T is unknown.
    Example:
      >>> layer = MLSTM(MLSTMConfig(nhidden=32, nembd=16, isteps=2, block_size=8))
      >>> layer(tf.ones([4, 6, 16])).shape.as_list()
      [4, 32]
    """

    def __init__(
        self,
        config,
        return_sequences=False,
        return_state=False,
        dropout=0.0,
        seed=None,
        recompute=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_jit = False
        self.cell = MLSTMCell(config, dropout, seed, dtype=self.dtype_policy, name="cell")
        self.recompute = recompute
        self.return_sequences = return_sequences
        self.return_state = return_state

    def build(self, sequences_shape, initial_state_shape=None):
        self.cell.build(sequences_shape)

    def call(self, sequences, initial_state=None, training=None):
        config = self.cell.config
        # [N, T, features] to [T, N, features] or [features, T, N], and back
        there, back = ([1, 0, 2], [1, 0, 2]) if config.feature_axis == 1 else ([2, 1, 0],) * 2
        state = None
        if initial_state is not None:
            if not isinstance(initial_state, list | tuple) or len(initial_state) != 2:
                raise ValueError(
                    "MLSTM: initial_state must be a list [h, c]. Received: "
                    f"{type(initial_state).__name__}"
                )
            h, c = (_turned(tensor, config) for tensor in initial_state)
            state = c, h
        x = tf.transpose(tf.cast(sequences, config.dtype), there)
        dropping = self.cell.dropping(training)
        outputs, state = mlstm_sequence(
            x, state, self.cell.params, config, **dropping, recompute=self.recompute
        )
        c, h = (_turned(tensor, config) for tensor in state)
        result = tf.transpose(outputs, back) if self.return_sequences else h
        return (result, h, c) if self.return_state else result

    def compute_output_shape(self, sequences_shape, initial_state_shape=None):
        batch, time, _ = sequences_shape
        last = (batch, self.cell.output_size)
        result = (batch, time, self.cell.output_size) if self.return_sequences else last
        return (result, last, last) if self.return_state else result

    def get_config(self):
        return {
            **super().get_config(),
            "config": self.cell.config.get_config(),
            "return_sequences": self.return_sequences,
            "return_state": self.return_state,
            "dropout": self.cell.dropout,
            "seed": self.cell.seed,
            "recompute": self.recompute,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "config": MLSTMConfig.from_config(config["config"])})


def _turned(tensor, config):
    """[N, features] to where the config has the features, and back; in the compute dtype."""
    tensor = tf.cast(tensor, config.dtype)
    return tensor if config.feature_axis == 1 else tf.transpose(tensor)

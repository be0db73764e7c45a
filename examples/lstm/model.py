"""The language model: an embedding of bytes, a multiplicative LSTM, a softmax over bytes.

Parameters are float32, by name in `LanguageModel.parameters`; activations and products have the
config's dtype, the softmax is float32.
"""

import math

import numpy as np
import tensorflow as tf
from errors import UserError

from blocksparse import (
    MLSTMConfig,
    embedding_lookup,
    ewops,
    mlstm_cell,
    mlstm_inputs,
    mlstm_sequence,
    mlstm_weights,
    patterns,
    softmax_cross_entropy,
)

VOCABULARY = 256
DEFAULT_HIDDEN = 1024


class LanguageModel(tf.Module):
    """A byte-level language model.

    Args:
      config: MLSTMConfig.
      seed: of the initial embedding and softmax.
    Attributes:
      parameters: dict of float32 `tf.Variable` by name: embedding, the weights of the mLSTM, and
        softmax_w, softmax_b.
    """

    def __init__(self, config, seed=0):
        super().__init__(name="language_model")
        self.config = config
        rng = np.random.default_rng([seed, 2])
        embedding = rng.standard_normal((VOCABULARY, config.nembd))
        softmax_w = rng.standard_normal((config.nhidden, VOCABULARY)) / math.sqrt(config.nhidden)
        values = {
            "embedding": embedding,
            **mlstm_weights(config),
            "softmax_w": softmax_w,
            "softmax_b": np.zeros(VOCABULARY),
        }
        self.parameters = {
            name: tf.Variable(tf.cast(value, tf.float32), name=name)
            for name, value in values.items()
        }

    @property
    def num_parameters(self):
        return sum(math.prod(variable.shape) for variable in self.parameters.values())

    def initial_state(self, batch):
        """(c, h): zeros of config.dtype[N, nhidden], or [nhidden, N]."""
        shape = [batch, self.config.nhidden][:: 1 if self.config.feature_axis == 1 else -1]
        return tf.zeros(shape, self.config.dtype), tf.zeros(shape, self.config.dtype)

    def __call__(self, x, state, dropout=0.0, update_dropout=0.0, seed=None, recompute=0):
        """What follows each byte of a window.

        Args:
          x: integers[T, N], bytes.
          state: (c, h), as `initial_state`.
          dropout, update_dropout: shares of the outputs, and of the cell's updates, set to zero.
          seed: of dropout, two integers; needed if there is any.
          recompute: as in `mlstm_sequence`.
        Returns:
          (logits, state): float32[T, N, 256], and the state after the window.
        """
        outputs, state = mlstm_sequence(
            self._embed(x), state, self._cells(), self.config, 1 - update_dropout, seed, recompute
        )
        if dropout > 0:  # the steps have the seeds with 0 to T - 1 folded in
            seed = tf.random.experimental.stateless_fold_in(seed, x.shape[0])
            outputs, _ = ewops.dropout(outputs, 1 - dropout, seed=seed)
        return self._logits(outputs), state

    def loss(self, x, y, state, **options):
        """(float32[T, N], state): the cross entropies, in nats, of y after the bytes up to x."""
        logits, state = self(x, state, **options)
        return softmax_cross_entropy(logits, y), state

    def step(self, x, state):
        """One byte in each of N streams: (float32[N, 256], state) from integers[N]."""
        weights = self._cells()
        inputs = mlstm_inputs(self._embed(x), weights, self.config)
        state = mlstm_cell(inputs, state, weights, self.config)
        return self._logits(state[1]), state

    def _cells(self):
        return {name: self.parameters[name] for name in self.config.weight_shapes}

    def _embed(self, x):
        table = tf.cast(self.parameters["embedding"], self.config.dtype)
        e = embedding_lookup(table, x)
        if self.config.feature_axis == 1:
            return e
        last = e.shape.rank - 1
        return tf.transpose(e, [last, *range(last)])

    def _logits(self, outputs):
        w, b = self.parameters["softmax_w"], self.parameters["softmax_b"]
        first = self.config.feature_axis == 0
        others = tf.shape(outputs)[1:] if first else tf.shape(outputs)[:-1]
        outputs = tf.reshape(outputs, [-1, w.shape[0]][:: -1 if first else 1])
        logits = tf.matmul(tf.cast(outputs, tf.float32), w, transpose_a=first) + b
        return tf.reshape(logits, tf.concat([others, [VOCABULARY]], axis=0))


# ---- from flags ----


def config_of(flags):
    """The MLSTMConfig of a run's flags (`settings.MODEL`).

    Raises:
      UserError: a flag is wrong, or contradicts another.
    """
    try:
        return _config(flags, flags["hidden"] or _hidden_of(flags))
    except (TypeError, ValueError) as error:
        raise UserError(f"no such model: {error}") from error


def _config(flags, hidden):
    if hidden % flags["block-size"]:
        raise UserError(
            f"--hidden must be a multiple of --block-size={flags['block-size']}. Received: {hidden}"
        )
    return MLSTMConfig(
        nhidden=hidden,
        nembd=flags["embedding"],
        isteps=flags["internal-steps"],
        lsteps=flags["updates"],
        block_size=flags["block-size"],
        feature_axis=flags["feature-axis"],
        masks=_masks(flags, hidden // flags["block-size"]),
        seed=flags["seed"],
        nproj_in=flags["inputs"],
        share_masks=flags["share-masks"],
        share_isteps=flags["share-steps"],
        forget_bias=flags["forget-bias"],
        dtype=flags["dtype"],
    )


def _masks(flags, num_nodes):
    layout = flags["layout"]
    if layout == "dense" or "_" in layout and layout[-1].isdigit():
        return layout
    names = [f"h{step}" for step in range(1 if flags["share-steps"] else flags["internal-steps"])]
    seeds = np.random.default_rng([flags["seed"], 3]).integers(2**31, size=len(names) + 1)
    masks = {}
    for name, seed in zip((*names, "gates"), seeds, strict=True):
        masks[name], _ = patterns.find_parameter(
            layout,
            num_nodes,
            num_nodes,
            int(seeds[0] if flags["share-masks"] else seed),
            density=min(flags["density"], 1.0),
            rewire_probability=flags["rewire"],
        )
    return masks


def num_parameters(config):
    """Of a `LanguageModel`, without making one."""
    return config.num_parameters + VOCABULARY * (config.nembd + config.nhidden + 1)


def _hidden_of(flags):
    """The number of features whose model comes nearest to --parameters."""
    if flags["parameters"] is None:
        return DEFAULT_HIDDEN
    block, wanted = flags["block-size"], flags["parameters"]
    low, high = 1, 2

    def size(blocks):
        return num_parameters(_config(flags, blocks * block))

    while size(high) < wanted:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) < wanted else (low, middle)
    return block * min(low, high, key=lambda blocks: abs(size(blocks) - wanted))


def stored_config(about):
    """The MLSTMConfig that a checkpoint describes, or None for a run without one."""
    return MLSTMConfig.from_config(about["model"]) if "model" in about else None

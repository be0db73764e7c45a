"""What bench_rooms.py times: each room's calls, their rivals, and the bytes that must be moved."""

import dataclasses
import functools

import numpy as np
import tensorflow as tf

import blocksparse as bs
from blocksparse.testing import layouts

EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class Case:
    """One use of a room, at one size.

    Attributes:
      room, name, sizes: what it is called.
      variables: (shape, dtype) of the tensors that have gradients; None stands for the dtype that
        is timed.
      indices: (shape, limit) of int64 tensors of numbers below limit.
      ours, theirs: functions of the variables and indices, which return a tuple of tensors: the
        room, and the same in TensorFlow's own ops, with arithmetic in float32 where a user would
        want it.
      forward, backward: values of the timed dtype that must be read and written, each once, by one
        call and by its gradients, which read the inputs of the call again.
    """

    room: str
    name: str
    sizes: str
    variables: tuple
    ours: object
    theirs: object
    forward: int
    backward: int
    indices: tuple = ()

    def __str__(self):
        return f"{self.room} {self.name} {self.sizes}"


def cases(device):
    """The list of cases for "CPU" or "GPU"."""
    # Minibatch and features of a step of the multiplicative LSTM, and of a batch of sequences.
    step, sequence = {"GPU": ((128, 18432), (8192, 4096)), "CPU": ((64, 4096), (2048, 1024))}[
        device
    ]
    # Rows and vocabulary; rows, features and indices; features and density of weights.
    losses = {"GPU": ((8192, 256), (2048, 50257)), "CPU": ((4096, 256), (64, 50257))}[device]
    tables = {
        "GPU": ((256, 1024, 8192), (50257, 1024, 16384)),
        "CPU": ((256, 512, 4096), (50257, 256, 4096)),
    }[device]
    weights = {"GPU": (18432, 0.03), "CPU": (4096, 0.1)}[device]
    return [
        *(layer_norm("step", *step, axis) for axis in (1, 0)),
        *(layer_norm("sequence", *sequence, axis) for axis in (1, 0)),
        *(layer_norm("four segments", *sequence, axis, 4) for axis in (1, 0)),
        *(lstm_gates(name, *sizes) for name, sizes in (("step", step), ("sequence", sequence))),
        lstm_gates("step, four tensors", *step, is_joined=False),
        *(cross_entropy(n, *sizes) for n, sizes in zip(("bytes", "words"), losses, strict=True)),
        *(embedding(n, *sizes) for n, sizes in zip(("bytes", "words"), tables, strict=True)),
        *(l2_norm(f"blocks of {size}", *weights, size) for size in (8, 32)),
    ]


def layer_norm(name, n, k, axis, segments=1):
    """Over the features of [N, K] or [K, N]."""
    shape = (n, k) if axis == 1 else (k, n)
    parts = [n, segments, -1] if axis == 1 else [segments, -1, n]
    gains = [segments, -1, *[1] * (1 - axis)]

    def theirs(x, g, b):
        wide = tf.reshape(tf.cast(x, tf.float32), parts)
        mean, variance = tf.nn.moments(wide, 1 + axis, keepdims=True)
        y = tf.nn.batch_normalization(
            wide, mean, variance, tf.reshape(b, gains), tf.reshape(g, gains), EPSILON
        )
        return (tf.cast(tf.reshape(y, shape), x.dtype),)

    return Case(
        "layer_norm",
        f"{name}, axis {axis}",
        f"{n}x{k}",
        variables=((shape, None), ((k,), "float32"), ((k,), "float32")),
        ours=lambda x, g, b: (
            bs.layer_norm(x, g, b, axis=axis, segments=segments, epsilon=EPSILON),
        ),
        theirs=theirs,
        forward=2 * n * k,  # x, y
        backward=3 * n * k,  # dy, x, dx
    )


def lstm_gates(name, n, k, is_joined=True):
    """One tensor of gates [N, 4 K] with a bias, or four tensors without."""

    def theirs(c, *gates):
        if is_joined:
            gates, bias = gates
            gates = tf.split(gates + tf.cast(bias, c.dtype), 4, axis=1)
        i, u, f, o = gates
        c_next = tf.sigmoid(f + 1) * c + tf.sigmoid(i) * tf.tanh(u)
        return c_next, tf.sigmoid(o) * tf.tanh(c_next)

    def ours(c, *gates):
        if is_joined:
            return bs.fused_lstm_gates(c, gates[0], bias=gates[1])
        return bs.fused_lstm_gates(c, *gates)

    gates = [((n, 4 * k), None), ((4 * k,), "float32")] if is_joined else [((n, k), None)] * 4
    return Case(
        "lstm_gates",
        name,
        f"{n}x{k}",
        variables=(((n, k), None), *gates),
        ours=ours,
        theirs=theirs,
        forward=7 * n * k,  # c and four gates; two results
        backward=12 * n * k,  # the same five and two gradients; five gradients
    )


def cross_entropy(name, n, v):
    """Of one label for each of N rows of V logits."""
    return Case(
        "cross_entropy",
        name,
        f"{n}x{v}",
        variables=(((n, v), None),),
        indices=(((n,), v),),
        ours=lambda logits, labels: (bs.softmax_cross_entropy(logits, labels),),
        theirs=lambda logits, labels: (
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits),
        ),
        forward=n * v,
        backward=2 * n * v,
    )


def embedding(name, rows, k, n):
    """N of the rows of [rows, K]."""
    distinct = int(rows * (1 - (1 - 1 / rows) ** n))  # expected, of N drawn at random
    return Case(
        "embedding",
        name,
        f"{rows}x{k}, {n}",
        variables=(((rows, k), None),),
        indices=(((n,), rows),),
        ours=lambda emb, idx: (bs.embedding_lookup(emb, idx),),
        theirs=lambda emb, idx: (tf.nn.embedding_lookup(emb, idx),),
        forward=(distinct + n) * k,
        backward=(n + rows) * k,
    )


def l2_norm(name, features, density, block_size):
    """Of square weights, with a gain."""
    layout = _layout(features // block_size, density, block_size)
    columns = layout.coordinates[:, 1]
    num_columns = layout.out_blocks

    def theirs(w, gain):
        wide = tf.cast(w, tf.float32)
        sums = tf.math.unsorted_segment_sum(tf.reduce_sum(wide**2, axis=1), columns, num_columns)
        scale = tf.reshape(gain, sums.shape) * tf.math.rsqrt(tf.maximum(sums, EPSILON))
        return (tf.cast(wide * tf.gather(scale, columns)[:, None, :], w.dtype),)

    size = int(np.prod(layout.w_shape))
    return Case(
        "l2_norm",
        name,
        f"{features}x{features}, {density:.0%}",
        variables=((tuple(layout.w_shape), None), ((features,), "float32")),
        ours=lambda w, gain: (
            bs.l2_normalize(w, layout, gain=gain, epsilon=EPSILON, dtype=w.dtype),
        ),
        theirs=theirs,
        forward=2 * size,
        backward=3 * size,
    )


@functools.cache
def _layout(num_blocks, density, block_size):
    mask = layouts.random(np.random.default_rng(0), num_blocks, num_blocks, density)
    return bs.SparsityLayout(mask, block_size)

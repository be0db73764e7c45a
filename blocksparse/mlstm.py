"""A multiplicative LSTM with internal steps, its products block-sparse: the sentiment neuron's.

With linear(p, x) = layer_norm(W_p x; g_p, b_p), an input e and a state (c, h):

    m = linear(m, e), a = linear(a, e)
    h = linear(h0, h) * m
    h = relu(linear(h1, h) + a)
    h = relu(linear(hs, h))                            s = 2, ..., isteps - 1
    i, f, o, u = linear(i, h), ..., linear(u, h)
    c' = sigmoid(f) c + sigmoid(i) tanh(u)
    h' = sigmoid(o) tanh(c')

The weights start as identities, the gains as 1, the biases as 0 but for b_f, which starts as
forget_bias. A few steps through a small-world mask connect every feature with every other.
"""

import numpy as np
import tensorflow as tf

from blocksparse import _checks
from blocksparse._step_products import run_steps
from blocksparse.ewops import dropout
from blocksparse.layer_norm import layer_norm
from blocksparse.lstm_gates import fused_lstm_gates
from blocksparse.matmul_init import IdentityInit
from blocksparse.matmul_ops import matmul, matmul_dw
from blocksparse.mlstm_config import GATES, DenseLayout, MLSTMConfig

__all__ = [
    "MLSTMConfig",
    "mlstm_cell",
    "mlstm_initializer",
    "mlstm_inputs",
    "mlstm_sequence",
    "mlstm_weights",
]


def mlstm_weights(config, dtype="float32"):
    """The weights that training starts from.

    Args:
      config: MLSTMConfig.
      dtype: of the w_*: float32, float16 or bfloat16. The g_* and b_* are float32.
    Returns:
      dict of tensors with the names and shapes of `config.weight_shapes`.
    Source: openai/blocksparse `examples/lstm/layers.py`.
    Example:
      >>> weights = mlstm_weights(MLSTMConfig(nhidden=32, nembd=16, isteps=2, block_size=8))
      >>> list(weights)[:6]
      ['w_m', 'g_m', 'b_m', 'w_a', 'g_a', 'b_a']
    """
    return {
        name: tf.convert_to_tensor(
            mlstm_initializer(name, config)(shape, dtype if name[0] == "w" else "float32")
        )
        for name, shape in config.weight_shapes.items()
    }


def mlstm_initializer(name, config):
    """The initialiser (shape, dtype) of one of `config.weight_shapes`."""
    if name.startswith("w_"):
        layout = config.layouts[name[2:]]
        return _dense_identity if isinstance(layout, DenseLayout) else IdentityInit(layout)
    value = {"g": 1.0, "b": config.forget_bias if name == "b_f" else 0.0}[name[0]]
    return lambda shape, dtype="float32", **_: tf.fill(shape, tf.constant(value, dtype))


def _dense_identity(shape, dtype="float32", **_):
    """As `IdentityInit`: the identity, repeated along the longer dimension."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return tf.cast(rows % shape[1] == columns % shape[0], dtype)


def mlstm_inputs(x, weights, config):
    """m and a of the inputs of one or many time steps, in one product each.

    Args:
      x: config.dtype[..., nembd], or [nembd, ...] with feature_axis 0.
      weights, config: as in `mlstm_sequence`.
    Returns:
      (m, a): config.dtype[..., nproj_in] or [nproj_in, ...].
    Raises:
      TypeError, ValueError: as `mlstm_sequence`.
    """
    weights = _check_weights("mlstm_inputs", weights, config)
    x = _check_tensor("mlstm_inputs", "x", x, config)
    linear = _linear(_product(weights, config), weights, config)
    return linear("m", x), linear("a", x)


def mlstm_cell(x_proj, state, weights, config, keep_prob=1.0, seed=None):
    """One time step: all internal steps and the gates, `config.lsteps` times.

    A function of tensors that any tape may see through. Training over a sequence is faster with
    `mlstm_sequence`; this is for generating, and for other loops.

    Args:
      x_proj: (m, a) of this step, as `mlstm_inputs` returns them; None for a step without input.
      state: (c, h): config.dtype[N, nhidden] each, or [nhidden, N] with feature_axis 0.
      weights: dict of tensors or variables: w_* float32 or config.dtype (and rounded to
        config.dtype), g_* and b_* float32, with the shapes of `config.weight_shapes`.
      config: MLSTMConfig.
      keep_prob: of dropout of the update u, before its tanh, in training: a number in (0, 1]. 1
        leaves it out.
      seed: int32|int64[2], what the dropped elements depend on; needed if keep_prob is not 1.
    Returns:
      (c, h): the next state, dtype and shape of the old. h is the output.
    Raises:
      TypeError: a dtype is not as above.
      ValueError: a shape is not as above, weights are missing, keep_prob is out of range, or the
        seed is missing.
    Source: openai/blocksparse `examples/lstm/layers.py` `LSTM_scott.cell`.
    Example:
      >>> config = MLSTMConfig(nhidden=32, nembd=16, isteps=2, block_size=8)
      >>> weights = mlstm_weights(config)
      >>> state = tf.zeros([4, 32]), tf.zeros([4, 32])
      >>> c, h = mlstm_cell(mlstm_inputs(tf.ones([4, 16]), weights, config), state, weights, config)
      >>> h.shape.as_list()
      [4, 32]
    """
    who = "mlstm_cell"
    weights = _check_weights(who, weights, config)
    state = _check_state(who, state, config)
    if x_proj is not None:
        m, a = x_proj
        x_proj = [
            _check_tensor(who, name, tensor, config, config.nproj_in, rank=2)
            for name, tensor in (("m", m), ("a", a))
        ]
    seed = _check_dropout(who, keep_prob, seed)
    linear = _linear(_product(weights, config), weights, config)
    return _step(linear, x_proj, *state, config, _dropping(keep_prob, seed))


def mlstm_sequence(x, state, weights, config, keep_prob=1.0, seed=None, recompute=0):
    """A whole sequence; each weight's gradient is computed once, over all time steps.

    Args:
      x: config.dtype[T, N, nembd], or [nembd, T, N] with feature_axis 0. T, 1 or more, is known
        when a graph is built: the loop is unrolled.
      state: (c, h) before the sequence, as in `mlstm_cell`; None for zeros. The norm of zeros has a
        gradient of 1 / sqrt(epsilon) = 1000, and for W_h0 zeros times that: None leaves this
        product out, as float16 may overflow in it.
      weights, config, keep_prob: as in `mlstm_cell`.
      seed: as in `mlstm_cell`, for all steps: step t has `tf.random.experimental.stateless_fold_in(
        seed, t)`.
      recompute: 0 keeps the activations of all steps for the gradient. A positive number keeps the
        states after every so many steps, and computes these steps a second time for the gradient:
        about a third more work, and a weight's gradient is a sum over segments, each of the
        weight's dtype.
    Returns:
      (outputs, (c, h)): config.dtype[T, N, nhidden], or [nhidden, T, N], and the last state.
      Everything repeats bit for bit, gradients too, as far as `tf.matmul` does where a product is
      dense. The sums over time steps in the gradients of the w_* are in float32, and these
      gradients have the dtype of the w_*: float32 masters of 16-bit products get unrounded sums,
      but for those of dense products, which `tf.matmul` rounds once. Gradients of gradients are not
      supported. In eager mode activations are kept while the steps run, whether or not a tape is
      there.
    Raises:
      TypeError, ValueError: as `mlstm_cell`; T is unknown or 0.
    Source: openai/blocksparse `examples/lstm/layers.py` `LSTM_scott`, `group_param_grads`.
    Example:
      >>> config = MLSTMConfig(nhidden=32, nembd=16, isteps=2, block_size=8)
      >>> y, (c, h) = mlstm_sequence(tf.ones([6, 4, 16]), None, mlstm_weights(config), config)
      >>> y.shape.as_list(), bool(tf.reduce_all(y[-1] == h))
      ([6, 4, 32], True)
    """
    who = "mlstm_sequence"
    weights = _check_weights(who, weights, config)
    x = _check_tensor(who, "x", x, config, config.nembd, rank=3)
    time_dim = 1 - config.feature_axis
    if not x.shape[time_dim]:
        raise ValueError(
            f"{who}: the number of time steps must be known, 1 or more, as the loop is unrolled. "
            f"Received: x.shape={x.shape}"
        )
    seed = _check_dropout(who, keep_prob, seed)
    if isinstance(recompute, bool) or not isinstance(recompute, int) or recompute < 0:
        raise ValueError(
            f"{who}: recompute must be a number of time steps, 0 or more. Received: {recompute!r}"
        )
    is_zero = state is None
    if is_zero:
        batch = tf.shape(x)[2 - config.feature_axis]
        shape = [batch, config.nhidden] if config.feature_axis == 1 else [config.nhidden, batch]
        state = [tf.zeros(shape, x.dtype)] * 2
    state = _check_state(who, state, config, x)

    num_steps = x.shape[time_dim]
    length = recompute or num_steps
    drops = [_dropping(keep_prob, seed, step) for step in range(num_steps)]
    drops = [drops[first : first + length] for first in range(0, num_steps, length)]
    parts = tf.split(x, [len(steps) for steps in drops], time_dim)
    outputs = []
    for part, steps in zip(parts, drops, strict=True):
        first_of_zero = is_zero and not outputs
        y, state = _segment(part, state, weights, config, steps, first_of_zero, recompute > 0)
        outputs.append(y)
    return tf.concat(outputs, time_dim), state


def _segment(x, state, weights, config, drops, is_zero, recompute):
    """Some time steps of `mlstm_sequence`; is_zero: state is known to be so."""
    time_dim = 1 - config.feature_axis
    names = [name for name in weights if name[0] != "w"]

    def body(product, x, c, h, *gains):
        linear = _linear(product, dict(zip(names, gains, strict=True)), config)
        outputs = []
        for m, a, drop in zip(
            *(tf.unstack(linear(p, x), axis=time_dim) for p in "ma"), drops, strict=True
        ):
            c, h = _step(linear, (m, a), c, h, config, drop, is_zero and not outputs)
            outputs.append(h)
        return [tf.stack(outputs, time_dim), c, h]

    outputs, c, h = run_steps(
        body,
        [x, *state, *(weights[name] for name in names)],
        {name: weights[f"w_{name}"] for name in config.layouts},
        lambda name, x, w: _multiply(name, x, w, config),
        lambda name, xs, dys: _multiply_dw(name, xs, dys, weights[f"w_{name}"].dtype, config),
        recompute,
    )
    return outputs, (c, h)


# ---- one step ----


def _step(linear, x_proj, c, h, config, drop, is_zero=False):
    """config.lsteps updates of the state, the first with x_proj = (m, a), if that is there."""
    for lstep in range(config.lsteps):
        m, a = x_proj if x_proj is not None and lstep == 0 else (None, None)
        for step in range(config.isteps):
            name = "h0" if config.share_isteps else f"h{step}"
            relu = step > 1 or step == 1 and a is None
            h = linear(name, h, relu, is_zero=is_zero and lstep == step == 0)
            if step == 0 and m is not None:
                h = h * m if config.mul_proj is None else config.mul_proj.scatter_mul(h, m)
            elif step == 1 and a is not None:
                h = tf.nn.relu(
                    h + a if config.add_proj is None else config.add_proj.scatter_add(h, a)
                )
        i, f, o, u = (linear(gate, h) for gate in GATES)
        u = drop(u, lstep)
        c, h = fused_lstm_gates(c, i, u, f, o, forget_bias=0.0)  # b_f is the forget bias
    return c, h


def _dropping(keep_prob, seed, step=None):
    """The function of (u, lstep) that drops elements of the update u, if there is a seed."""
    if seed is None:
        return lambda u, lstep: u
    seed = seed if step is None else _fold(seed, step)
    return lambda u, lstep: dropout(u, keep_prob, seed=_fold(seed, lstep))[0]


def _fold(seed, number):
    return tf.random.experimental.stateless_fold_in(seed, number)


def _linear(product, gains, config):
    """linear(p, x) = layer_norm(product(p, x); g_p, b_p), with relu if wanted."""

    def linear(name, x, relu=False, is_zero=False):
        g, b = gains[f"g_{name}"], gains[f"b_{name}"]
        y = tf.zeros_like(x) if is_zero else product(name, x)  # a square product
        return layer_norm(y, g, b, axis=config.feature_axis, relu=relu)

    return linear


def _product(weights, config):
    return lambda name, x: _multiply(name, x, weights[f"w_{name}"], config)


def _multiply(name, x, w, config):
    layout, axis = config.layouts[name], config.feature_axis
    rounded = tf.cast(w, x.dtype)
    if not isinstance(layout, DenseLayout):
        return matmul(x, rounded, layout, feature_axis=axis, dw_dtype=w.dtype)
    if x.shape.rank == 2:
        return tf.matmul(x, rounded) if axis == 1 else tf.matmul(rounded, x, transpose_a=True)
    return tf.tensordot(x, rounded, 1) if axis == 1 else tf.tensordot(rounded, x, [[0], [0]])


def _multiply_dw(name, xs, dys, dtype, config):
    """The gradient of a weight from all its products' x and gradients of y."""
    layout, axis = config.layouts[name], config.feature_axis
    if not isinstance(layout, DenseLayout):
        return matmul_dw(xs, dys, layout, feature_axis=axis, dw_dtype=dtype)
    sizes = layout.in_features, layout.out_features
    shapes = [[-1, size] if axis == 1 else [size, -1] for size in sizes]
    x, dy = (
        tf.concat([tf.reshape(tensor, shape) for tensor in tensors], axis=1 - axis)
        for tensors, shape in zip((xs, dys), shapes, strict=True)
    )
    return tf.cast(tf.matmul(x, dy, transpose_a=axis == 1, transpose_b=axis == 0), dtype)


# ---- checks ----


def _check_weights(who, weights, config):
    """The weights as tensors, in the order of config.weight_shapes."""
    if not isinstance(config, MLSTMConfig):
        raise TypeError(f"{who}: config must be an MLSTMConfig. Received: {type(config).__name__}")
    missing = [name for name in config.weight_shapes if name not in weights]
    unknown = [name for name in weights if name not in config.weight_shapes]
    if missing or unknown:
        raise ValueError(
            f"{who}: weights must be a dict of {', '.join(config.weight_shapes)}. Received: "
            f"missing {missing}, unknown {unknown}"
        )
    tensors = {name: tf.convert_to_tensor(weights[name]) for name in config.weight_shapes}
    for name, tensor in tensors.items():
        supported = {"float32", config.dtype} if name[0] == "w" else {"float32"}
        if tensor.dtype.name not in supported:
            raise TypeError(
                f"{who}: {name} must be {' or '.join(sorted(supported))}. Received: "
                f"{tensor.dtype.name}"
            )
        _checks.check_shape(who, name, tensor, config.weight_shapes[name])
    return tensors


def _check_dropout(who, keep_prob, seed):
    """The seed as a tensor; None where nothing is dropped."""
    if not 0 < keep_prob <= 1:
        raise ValueError(f"{who}: keep_prob must be in (0, 1]. Received: {keep_prob}")
    if keep_prob == 1:
        return None
    seed = None if seed is None else tf.convert_to_tensor(seed)
    if seed is None or seed.dtype not in (tf.int32, tf.int64) or seed.shape != [2]:
        raise ValueError(
            f"{who}: seed must be two integers, if keep_prob is not 1. Received: {seed}"
        )
    return seed


def _check_state(who, state, config, x=None):
    if not isinstance(state, list | tuple) or len(state) != 2:
        raise ValueError(f"{who}: state must be a pair (c, h). Received: {type(state).__name__}")
    c, h = (
        _check_tensor(who, name, tensor, config, config.nhidden, rank=2)
        for name, tensor in zip("ch", state, strict=True)
    )
    batch_dim = 1 - config.feature_axis
    batches = [c.shape[batch_dim], h.shape[batch_dim]]
    if x is not None:
        batches.append(x.shape[2 - config.feature_axis])
    if len(set(batches) - {None}) > 1:
        raise ValueError(
            f"{who}: c, h and x must have the same minibatch. Received: "
            f"{', '.join(map(str, batches))}"
        )
    return c, h


def _check_tensor(who, name, tensor, config, features=None, rank=None):
    """A tensor of config.dtype with so many features; of its shape, what is known is checked."""
    tensor = tf.convert_to_tensor(tensor)
    if tensor.dtype.name != config.dtype:
        raise TypeError(
            f"{who}: {name} must be {config.dtype}, the config's dtype. Received: "
            f"{tensor.dtype.name}"
        )
    if rank is not None:
        others = ["T", "N"][3 - rank :]
        shape = [*others, features] if config.feature_axis == 1 else [features, *others]
        expected = [None if isinstance(size, str) else size for size in shape]
        if tensor.shape.rank is None or not tensor.shape.is_compatible_with(expected):
            raise ValueError(
                f"{who}: {name} must have shape [{', '.join(map(str, shape))}]. Received: "
                f"{name}.shape={tensor.shape}"
            )
    return tensor

"""Dense LSTMs with the fused gates of `lstm_gates.py`: one step, and a sequence with layer norm.

Also `group_lstm_grads`, for LSTMs whose loop is the user's own.

gates = [x, h] W                                   i, u, f, o: four quarters
gates = layer_norm(gates; gain, bias), of each quarter by itself, or gates + bias
c' = sigmoid(f + forget_bias) c + sigmoid(i) tanh(u)
h' = sigmoid(o) tanh(c')
"""

import numpy as np
import tensorflow as tf

from blocksparse import _checks, _graph_sums
from blocksparse._step_products import run_steps
from blocksparse.layer_norm import layer_norm
from blocksparse.lstm_gates import concat4, fused_lstm_gates, sparse_relu, split4
from blocksparse.matmul_grouping import dw_matmul_large_n

__all__ = [
    "FusedBasicLSTMCell",  # noqa: F822 (by __getattr__)
    "basic_lstm_step",
    "concat4",
    "fused_lstm_gates",
    "group_lstm_grads",
    "grouped_lstm",
    "grouped_lstm_weights",
    "sparse_relu",
    "split4",
]


def __getattr__(name):
    if name == "FusedBasicLSTMCell":  # only who asks for it imports Keras
        from blocksparse.layers.lstm import FusedBasicLSTMCell

        return FusedBasicLSTMCell
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def basic_lstm_step(x, state, kernel, bias, forget_bias=1.0):
    """One step of TensorFlow 1's BasicLSTMCell, with the gates in one op.

    Args:
      x: float32|float16|bfloat16[N, C].
      state: (c, h): dtype of x[N, K] each.
      kernel: float32 or dtype of x[C + K, 4 K], columns in the order i, u, f, o.
      bias: float32[4 K].
      forget_bias: a number, added to f.
    Returns:
      (c, h): the next state; h is the output.
    Raises:
      TypeError: a dtype is not supported.
      ValueError: a shape does not fit.
    Source: openai/blocksparse `FusedBasicLSTMCell`.
    Example:
      >>> c, h = basic_lstm_step(
      ...     tf.ones([2, 3]), (tf.zeros([2, 4]),) * 2, tf.ones([7, 16]), tf.zeros(16))
      >>> h.shape.as_list()
      [2, 4]
    """
    c, h = state
    x = tf.convert_to_tensor(x)
    gates = tf.concat([x, h], 1) @ tf.cast(kernel, x.dtype)
    return fused_lstm_gates(c, gates, bias=bias, forget_bias=forget_bias)


def grouped_lstm_weights(in_features, width, seed=0, layernorm=True, dtype="float32"):
    """The weights that training of `grouped_lstm` starts from.

    Args:
      in_features, width: features of input and state.
      seed: of `numpy.random.default_rng`.
      layernorm: whether there is a gain.
      dtype: of the kernel: float32, float16 or bfloat16.
    Returns:
      dict of tensors: kernel, dtype[in_features + width, 4 width], uniform after Glorot; bias,
      float32[4 width], zeros; gain, the same, ones.
    """
    rows, columns = in_features + width, 4 * width
    limit = np.sqrt(6 / (rows + columns))
    kernel = np.random.default_rng(seed).uniform(-limit, limit, [rows, columns])
    weights = {"kernel": tf.cast(tf.constant(kernel), dtype), "bias": tf.zeros(columns)}
    return weights | ({"gain": tf.ones(columns)} if layernorm else {})


def grouped_lstm(inputs, width, weights, initial_state=None, layernorm=True, forget_bias=1.0):
    """An LSTM over a sequence, whose kernel's gradient is one product over all time steps.

    Args:
      inputs: float32|float16|bfloat16[N, T, C], T known, 1 or more; or a list of T tensors [N, C].
      width: K, features of the state.
      weights: dict of tensors or variables, as `grouped_lstm_weights` returns them: kernel, float32
        or dtype of inputs[C + K, 4 K], columns in the order i, u, f, o; bias, float32[4 K]; with
        layernorm gain, float32[4 K].
      initial_state: (c, h): dtype of inputs[N, K] each; None for zeros.
      layernorm: whether each quarter of the gates is normalised, with gain and bias; otherwise the
        bias is added to them.
      forget_bias: a number, added to f.
    Returns:
      (outputs, (c, h)): dtype of inputs[N, T, K], and the last state. The sum over time steps in
      the kernel's gradient is in float32, the gradient has the dtype of the kernel. Gradients of
      gradients are not supported.
    Raises:
      TypeError: a dtype is not supported.
      ValueError: a shape does not fit, T is unknown or 0, or weights are missing.
    Source: openai/blocksparse `grouped_lstm`; weights are an argument here instead of a variable
      scope. `group_lstm_grads` finds nothing left to do here.
    Example:
      >>> outputs, state = grouped_lstm(tf.ones([2, 5, 3]), 8, grouped_lstm_weights(3, 8))
      >>> outputs.shape.as_list()
      [2, 5, 8]
    """
    who = "grouped_lstm"
    inputs = _stacked(who, inputs)
    names = ["kernel", "bias", "gain"] if layernorm else ["kernel", "bias"]
    if not all(name in weights for name in names):
        raise ValueError(
            f"{who}: weights must be a dict of {', '.join(names)}. Received: {', '.join(weights)}"
        )
    kernel, *gains = (tf.convert_to_tensor(weights[name]) for name in names)
    if kernel.dtype not in (tf.float32, inputs.dtype):
        raise TypeError(
            f"{who}: kernel must be float32, or {inputs.dtype.name} as inputs. Received: "
            f"{kernel.dtype.name}"
        )
    _checks.check_shape(who, "kernel", kernel, [inputs.shape[2] + width, 4 * width])
    if initial_state is None:
        initial_state = [tf.zeros([tf.shape(inputs)[0], width], inputs.dtype)] * 2
    state = [tf.convert_to_tensor(tensor) for tensor in initial_state]
    for name, tensor in zip("ch", state, strict=True):
        _checks.check_dtype(who, name, tensor.dtype, inputs.dtype, " as inputs")
        _checks.check_shape(who, name, tensor, [inputs.shape[0], width])

    def body(product, inputs, c, h, bias, gain=None):
        outputs = []
        for x in tf.unstack(inputs, axis=1):
            gates = product("kernel", tf.concat([x, h], 1))
            if layernorm:
                gates = layer_norm(gates, gain, bias, segments=4)
            bias_left = None if layernorm else bias
            c, h = fused_lstm_gates(c, gates, bias=bias_left, forget_bias=forget_bias)
            outputs.append(h)
        return [tf.stack(outputs, 1), c, h]

    def kernel_gradient(_, xs, dys):
        dw = dw_matmul_large_n(tf.concat(xs, 0), tf.concat(dys, 0))
        return tf.cast(dw, kernel.dtype)

    outputs, c, h = run_steps(
        body, [inputs, *state, *gains], {"kernel": kernel}, lambda _, x, w: x @ w, kernel_gradient
    )
    return outputs, (c, h)


def group_lstm_grads(grads, params, scope="grouped_lstm", group_size=None):
    """Replaces the products of many time steps in the gradients of dense kernels by one each.

    dW = sum_t x_t^T dy_t = [x_1; x_2; ...]^T [dy_1; dy_2; ...]

    For loops that are unrolled in a graph, around `basic_lstm_step`, `FusedBasicLSTMCell` or any
    other cell that multiplies [N, C] by its kernel in every step. The graph's ops are not changed,
    and those no longer needed are never run. `grouped_lstm` needs none of this, also in eager code.

    Args:
      grads: list of symbolic gradients of params, as `tf.gradients` or a tape inside `tf.function`
        returns them. Entries are replaced in the list.
      params: list of variables or tensors.
      scope: of the params whose names hold both this and "kernel". None: all params, whatever their
        names.
      group_size: time steps in one product; None for all.
    Returns:
      grads, the same list. Sums over the steps of a group are in float32, for 16-bit products too.
      Gradients of fewer than two products, and None, stay as they are.
    Raises:
      TypeError: grads is not a list, or a gradient is eager.
      ValueError: group_size is not positive, grads and params differ in length, or no name holds
        scope and "kernel".
    Source: openai/blocksparse `group_lstm_grads`, which took the first such kernel alone.
    Example:
      >>> @tf.function
      ... def gradients(xs, kernel):
      ...     c = h = tf.zeros([2, 4])
      ...     for x in tf.unstack(xs):
      ...         c, h = basic_lstm_step(x, (c, h), kernel, tf.zeros(16))
      ...     return group_lstm_grads(tf.gradients(h, [kernel]), [kernel], scope=None)
      >>> gradients(tf.ones([5, 2, 3]), tf.ones([7, 16]))[0].shape.as_list()
      [7, 16]
    """
    who = "group_lstm_grads"
    if not isinstance(grads, list):
        raise TypeError(
            f"{who}: grads must be a list, whose entries are replaced. Received: "
            f"{type(grads).__name__}"
        )
    if group_size is not None and group_size < 1:
        raise ValueError(f"{who}: group_size must be 1 or more, or None. Received: {group_size}")
    if len(grads) != len(params):
        raise ValueError(
            f"{who}: grads and params must be of the same length. Received: {len(grads)} and "
            f"{len(params)}"
        )
    chosen = range(len(params))
    if scope is not None:
        names = [getattr(param, "path", None) or param.name for param in params]
        chosen = [i for i in chosen if scope in names[i] and "kernel" in names[i]]
        if not chosen:
            raise ValueError(
                f"{who}: a param must have {scope!r} and 'kernel' in its name, or scope be None. "
                f"Received: {', '.join(names)}"
            )
    for i in chosen:
        if grads[i] is not None:
            _graph_sums.check_symbolic(who, grads[i], "eager code calls grouped_lstm")
            grads[i] = _graph_sums.regrouped(grads[i], "MatMul", _add_products, group_size)
    return grads


def _add_products(products, group_size, dtype):
    """Sums of MatMul ops, those of one form together: their inputs joined where they are summed."""
    alike = {}
    for product in products:
        form = tuple(product.get_attr(name) for name in ("transpose_a", "transpose_b", "T"))
        alike.setdefault(form, []).append(product)
    sums = []
    for (transpose_a, transpose_b, _), found in alike.items():
        for first in range(0, len(found), group_size or len(found)):
            group = found[first : first + (group_size or len(found))]
            if len(group) == 1:
                sums.append(group[0].outputs[0])
                continue
            a = tf.concat([op.inputs[0] for op in group], 0 if transpose_a else 1)
            b = tf.concat([op.inputs[1] for op in group], 1 if transpose_b else 0)
            if a.dtype in _checks.DTYPES:
                a, b = (tf.cast(tensor, tf.float32) for tensor in (a, b))
            y = tf.matmul(a, b, transpose_a=transpose_a, transpose_b=transpose_b)
            sums.append(tf.cast(y, dtype))
    return sums


def _stacked(who, inputs):
    """The inputs as one tensor [N, T, C] of known T and C."""
    if isinstance(inputs, list | tuple):
        if not inputs:
            raise ValueError(
                f"{who}: inputs must hold 1 time step or more. Received: an empty list"
            )
        inputs = tf.stack(inputs, axis=1)
    inputs = tf.convert_to_tensor(inputs)
    _checks.check_dtype(who, "inputs", inputs.dtype)
    shape = inputs.shape
    if shape.rank != 3 or not shape[1] or not shape[2]:
        raise ValueError(
            f"{who}: inputs must have shape [N, T, C], with T and C known and 1 or more, or be a "
            f"list of T tensors [N, C]. Received: inputs.shape={shape}"
        )
    return inputs

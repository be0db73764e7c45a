"""The elementwise half of an LSTM step, fused, and the small functions that go with it."""

import tensorflow as tf

from blocksparse import _checks
from blocksparse._ops import ops


def fused_lstm_gates(c, *args, bias=None, forget_bias=1.0, name=None):
    """The next state of an LSTM from its gates before their activation functions, in one pass.

    c_next = sigmoid(f + forget_bias) c + sigmoid(i) tanh(u)
    h_next = sigmoid(o) tanh(c_next)

    Args:
      c: float32|float16|bfloat16[N, K]; more or fewer dimensions before the last one are welcome.
      *args: either one tensor, dtype of c[N, 4 K], whose quarters are i, u, f and o in this order;
        or these four, each of the dtype and shape of c. As four tensors they may have any shape,
        features first too.
      bias: optional float32[4 K], added to the gates; with a single tensor of gates only. Has a
        gradient, the sum over N in float32, in a fixed order.
      forget_bias: a number, added to f.
      name: optional name of the op.
    Returns:
      (c_next, h_next): dtype and shape of c. Arithmetic in float32; h_next comes from c_next before
      that is rounded. Both have gradients, as one op of which nothing is kept but its inputs;
      gradients of gradients are not supported.
    Raises:
      TypeError: a dtype is not supported, or not that of c.
      ValueError: neither one nor four tensors; bias with four; a shape does not fit.
      tf.errors.InvalidArgumentError: the same, found when the graph runs.
    Source: openai/blocksparse `fused_lstm_gates`.
    Example:
      >>> c, gates = tf.ones([2, 3]), tf.zeros([2, 12])
      >>> c_next, h_next = fused_lstm_gates(c, gates, forget_bias=0.0)
      >>> round(float(c_next[0, 0]), 6), round(float(h_next[0, 0]), 6)
      (0.5, 0.231059)
    """
    who = name or "BlocksparseLstmGates"
    if len(args) not in (1, 4):
        raise ValueError(
            f"{who}: the gates must be one tensor [N, 4 K] or four (i, u, f, o). Received: "
            f"{len(args)} tensors"
        )
    c = tf.convert_to_tensor(c)
    _checks.check_dtype(who, "c", c.dtype)
    gates = [tf.convert_to_tensor(gate, dtype_hint=c.dtype) for gate in args]
    for gate in gates:
        _checks.check_dtype(who, "gates", gate.dtype, c.dtype, " as c")
    biases = []
    if bias is not None:
        if len(gates) == 4:
            raise ValueError(
                f"{who}: bias is supported with a single tensor of gates only; add it to i, u, f "
                "and o. Received: 4 tensors and a bias"
            )
        biases = [tf.convert_to_tensor(bias)]
        if biases[0].dtype != tf.float32:
            raise TypeError(f"{who}: bias must be float32. Received: {biases[0].dtype.name}.")
    _check_shapes(who, c, gates, biases)
    return tuple(
        ops.blocksparse_lstm_gates(
            c=c, gates=gates, bias=biases, forget_bias=forget_bias, name=name
        )
    )


def _check_shapes(who, c, gates, biases):
    if c.shape.rank is None:
        return
    expected = c.shape
    if len(gates) == 1:
        if c.shape.rank < 1:
            raise ValueError(f"{who}: c must have rank 1 or more. Received: c.shape={c.shape}")
        size = None if c.shape[-1] is None else 4 * c.shape[-1]
        expected = c.shape[:-1].concatenate([size])
    for gate in gates:
        _checks.check_shape(who, "gates", gate, expected)
    for bias in biases:
        _checks.check_shape(who, "bias", bias, expected[-1:])


@tf.RegisterGradient("BlocksparseLstmGates")
def _lstm_gates_gradients(op, dc_next, dh_next):
    num_gates = op.get_attr("num_gates")
    c, inputs = op.inputs[0], list(op.inputs[1:])
    dc, dgates, dbiases = ops.blocksparse_lstm_gates_grad(
        c=c,
        gates=inputs[:num_gates],
        bias=inputs[num_gates:],
        dc_next=[] if dc_next is None else [dc_next],
        dh_next=[] if dh_next is None else [dh_next],
        forget_bias=op.get_attr("forget_bias"),
    )
    return dc, *dgates, *dbiases


def split4(x):
    """The four quarters of the last axis, as the gates i, u, f and o lie in it.

    `tf.split`, whose gradient is `concat4`.

    Args:
      x: any dtype[N, 4 K].
    Returns:
      Four tensors, dtype of x[N, K].
    Raises:
      ValueError: x has not rank 2, or its last axis is not a multiple of 4.
    Source: openai/blocksparse `split4`.
    Example:
      >>> [part.numpy().tolist() for part in split4(tf.constant([[1, 2, 3, 4]]))]
      [[[1]], [[2]], [[3]], [[4]]]
    """
    x = tf.convert_to_tensor(x)
    size = x.shape[-1] if x.shape.rank == 2 else None
    if x.shape.rank not in (None, 2) or (size is not None and size % 4):
        raise ValueError(f"split4: x must have shape [N, 4 K]. Received: x.shape={x.shape}")
    return tf.split(x, 4, axis=-1)


def concat4(x0, x1, x2, x3):
    """Joins four tensors on the last axis: the reverse of `split4`.

    `tf.concat`, whose gradient is `split4`.

    Args:
      x0, x1, x2, x3: any dtype[N, K], all alike.
    Returns:
      dtype of x0[N, 4 K].
    Raises:
      ValueError: they do not have one shape of rank 2.
    Source: openai/blocksparse `concat4`.
    Example:
      >>> concat4([[1]], [[2]], [[3]], [[4]]).numpy().tolist()
      [[1, 2, 3, 4]]
    """
    parts = [tf.convert_to_tensor(x) for x in (x0, x1, x2, x3)]
    shapes = [x.shape for x in parts]
    if any(not s.is_compatible_with(shapes[0]) or s.rank not in (None, 2) for s in shapes):
        raise ValueError(
            "concat4: x0 to x3 must have one shape [N, K]. Received: "
            + ", ".join(str(shape) for shape in shapes)
        )
    return tf.concat(parts, axis=-1)


def sparse_relu(x, alpha=1.0):
    """A rectifier that lets through only what stands out of its row.

    y = max(x - cut, 0), cut = mean(x) + alpha std(x) over the last axis.

    The gradient is that of a rectifier, dx = dy where y > 0: the cut-off counts as a constant, as
    the original's kernel had it, and not as the function of x that it is.

    Args:
      x: float32|float16|bfloat16[..., K].
      alpha: a number.
    Returns:
      y: dtype and shape of x. Computed in float32 by TensorFlow's ops. std is that of the whole
      row (sum divided by K), and the number of nonzero elements falls as alpha grows.
    Raises:
      TypeError: the dtype of x is not supported.
      ValueError: x is a scalar.
    Source: openai/blocksparse `sparse_relu`.
    Example:
      >>> sparse_relu(tf.constant([[0.0, 0.0, 0.0, 4.0]]), alpha=0.0).numpy().tolist()
      [[0.0, 0.0, 0.0, 3.0]]
    """
    x = tf.convert_to_tensor(x)
    _checks.check_dtype("sparse_relu", "x", x.dtype)
    if x.shape.rank == 0:
        raise ValueError("sparse_relu: x must have rank 1 or more. Received: a scalar")
    wide = tf.cast(x, tf.float32)
    mean = tf.reduce_mean(wide, axis=-1, keepdims=True)
    cut = mean + alpha * tf.math.reduce_std(wide, axis=-1, keepdims=True)
    return tf.cast(tf.nn.relu(wide - tf.stop_gradient(cut)), x.dtype)

"""Layer normalisation, whole or of segments of the features, with a fused relu."""

import tensorflow as tf

from blocksparse import _checks
from blocksparse._ops import ops


def layer_norm(x, g, b, axis=1, segments=1, epsilon=1e-6, relu=False, name=None):
    """Gives the features of each sample mean 0 and variance 1, then the gain g and the bias b.

    y[n, k] = g[k] (x[n, k] - mean[n]) / sqrt(var[n] + epsilon) + b[k], or the greater of that and
    0. mean[n] and var[n] are of the features of sample n: of all K, or of those K / segments
    neighbours that are in the segment of feature k (the four gates of an LSTM, say).

    Args:
      x: float32|float16|bfloat16[..., K], or [K, ...] with axis 0; rank 2 or more. The other
        dimensions are the minibatch.
      g: float32[K].
      b: float32[K].
      axis: where the features are: 1, -1 or rank - 1 for the last axis, 0 for the first.
      segments: number of equal chunks of the features, each normalised by itself; divides K.
      epsilon: added to the variance; 0 or more.
      relu: whether negative results become 0.
      name: optional name of the op.
    Returns:
      y: dtype and shape of x. The mean and the variance are float32 and safe against cancellation:
      x may be far from 0. All gradients, those of g and b too, repeat bit for bit.
      Gradients of gradients exist to any order; those beyond the first are made of TensorFlow's
      own ops, which keep several temporaries of the size of x.
    Raises:
      TypeError: a dtype is not supported.
      ValueError: an argument or a shape is wrong.
      tf.errors.InvalidArgumentError: a shape is wrong, found when the graph runs.
    Source: openai/blocksparse `layer_norm`, without its arguments atomics (always as with False:
      deterministic), use_tf (this runs on CPUs too) and bench.
    Example:
      >>> layer_norm([[1.0, 3.0, 10.0, 30.0]], tf.ones(4), tf.zeros(4), segments=2).numpy().round(3)
      array([[-1.,  1., -1.,  1.]], dtype=float32)
    """
    who = name or "BlocksparseLayerNorm"
    x, g, b = (tf.convert_to_tensor(tensor) for tensor in (x, g, b))
    _checks.check_dtype(who, "x", x.dtype)
    for label, tensor in (("g", g), ("b", b)):
        if tensor.dtype != tf.float32:
            raise TypeError(f"{who}: {label} must be float32. Received: {tensor.dtype.name}.")
    feature_axis = _feature_axis(who, x.shape, axis)
    _check_numbers(who, segments, epsilon)
    features = None if x.shape.rank is None else x.shape[-1 if feature_axis == 1 else 0]
    if features is not None and (features < 1 or features % segments):
        raise ValueError(
            f"{who}: the number of features on {'the last axis' if feature_axis == 1 else 'axis 0'}"
            f" of x must be a positive multiple of segments={segments}. Received: "
            f"x.shape={x.shape}"
        )
    _checks.check_shape(who, "g", g, [features])
    _checks.check_shape(who, "b", b, [features])
    y, _, _ = ops.blocksparse_layer_norm(
        x=x,
        g=g,
        b=b,
        feature_axis=feature_axis,
        segments=segments,
        epsilon=epsilon,
        relu=bool(relu),
        name=name,
    )
    return y


def _feature_axis(who, shape, axis):
    """1 (features last) or 0 (features first)."""
    rank = shape.rank
    if rank is not None and rank < 2:
        raise ValueError(
            f"{who}: x must have rank 2 or more (features and minibatch). Received: x.shape={shape}"
        )
    if _is_integer(axis):
        if axis in (1, -1) or rank is not None and axis == rank - 1:
            return 1
        if axis == 0 or rank is not None and axis == -rank:
            return 0
    raise ValueError(
        f"{who}: axis must be 1, -1 or rank - 1 (features last) or 0 (features first). Received: "
        f"axis={axis!r}, x.shape={shape}"
    )


def _is_integer(value):
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _check_numbers(who, segments, epsilon):
    if not _is_integer(segments) or segments < 1:
        raise ValueError(f"{who}: segments must be a positive integer. Received: {segments!r}")
    if not epsilon >= 0:  # nor NaN
        raise ValueError(f"{who}: epsilon must be 0 or more. Received: {epsilon!r}")


@tf.RegisterGradient("BlocksparseLayerNorm")
def _layer_norm_gradients(op, dy, *_):
    attributes = ("feature_axis", "segments", "epsilon", "relu")
    return ops.blocksparse_layer_norm_grad(
        dy, *op.inputs, *op.outputs[1:], **{key: op.get_attr(key) for key in attributes}
    )


@tf.RegisterGradient("BlocksparseLayerNormGrad")
def _layer_norm_second_gradients(op, *gradients):
    """The gradients of dx, dg and db, by TensorFlow's own ops.

    The mean and rstd that the op was given are functions of x; _plain_gradients computes them from
    x again, so that x gets their share and they get none.
    """
    dy, x, g, b, _, _ = op.inputs
    with tf.GradientTape() as tape:
        tape.watch([dy, x, g])
        results = _plain_gradients(op, dy, x, g, b)
    # The gradient of b is zero where it exists: b decides about relu alone.
    return *tape.gradient(results, [dy, x, g], gradients), None, None, None


def _plain_gradients(op, dy, x, g, b):
    """What BlocksparseLayerNormGrad computes, from the same inputs."""
    is_last = op.get_attr("feature_axis") == 1
    segments = op.get_attr("segments")
    size = tf.size(g) // segments
    shape, feature_dim, batch_dim = (
        ([-1, segments, size], 2, 0) if is_last else ([segments, size, -1], 1, 2)
    )
    g, b = (tf.reshape(tensor, [segments, size] + [1] * (not is_last)) for tensor in (g, b))
    values, d = (tf.cast(tf.reshape(tensor, shape), tf.float32) for tensor in (x, dy))

    def mean(tensor):
        return tf.reduce_mean(tensor, feature_dim, keepdims=True)

    deviations = values - mean(values)
    rstd = tf.math.rsqrt(mean(deviations**2) + op.get_attr("epsilon"))
    xhat = deviations * rstd
    if op.get_attr("relu"):
        d = tf.where(xhat * g + b > 0, d, 0.0)
    t = g * d
    dx = (t - (xhat * mean(t * xhat) + mean(t))) * rstd
    dg, db = (tf.reshape(tf.reduce_sum(e, batch_dim), [-1]) for e in (d * xhat, d))
    return tf.cast(tf.reshape(dx, tf.shape(x)), x.dtype), dg, db

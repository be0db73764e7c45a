"""Elementwise functions with the gradients and the arithmetic that 16-bit training wants.

All of them are made of TensorFlow's ops. Arithmetic is in float32 with one rounding at the end; for
16-bit tensors that means float32 copies on the way, which a fused kernel would not write. What a
gradient keeps is said of graphs and `tf.function`; eagerly, TensorFlow's tape keeps all inputs.
"""

import tensorflow as tf

from blocksparse import _checks

GELU_SLOPE = 1.702
ADD_N_GROUP = 8  # float32 copies of 16-bit inputs that exist at a time


def float_cast(x, dtype, dx_dtype=None, name=None):
    """Casts `x`, and its gradient to a dtype of its own.

    `tf.cast`, which is one pass over memory and exact or rounded to nearest.

    Args:
      x: float32|float16|bfloat16[...].
      dtype: of the result: float32, float16 or bfloat16.
      dx_dtype: of the gradient of x; by default that of x, as calculus has it. With another one,
        what computed x must accept a gradient of that dtype.
      name: optional name of the scope.
    Returns:
      dtype[...]; x itself where nothing is to be cast.
    Raises:
      TypeError: a dtype is not supported.
    Source: openai/blocksparse `float_cast`.
    Example:
      >>> float_cast(tf.constant([1.5]), tf.bfloat16).dtype.name
      'bfloat16'
    """
    who = name or "float_cast"
    x, dtype = tf.convert_to_tensor(x), tf.as_dtype(dtype)
    dx_dtype = x.dtype if dx_dtype is None else tf.as_dtype(dx_dtype)
    _checks.check_dtype(who, "x", x.dtype)
    _checks.check_dtype(who, "the result", dtype)
    _checks.check_dtype(who, "the gradient", dx_dtype)
    if x.dtype == dtype == dx_dtype:
        return x

    @tf.custom_gradient
    def function(x):
        return tf.cast(x, dtype), lambda dy: tf.cast(dy, dx_dtype)

    with tf.name_scope(who):
        return function(x)


def add_n(xs, name=None):
    """Adds tensors, in float32 and with one rounding.

    `tf.add_n`, in groups of 8 and on float32 copies where the inputs have 16 bits, whose sums it
    would round each time.

    Args:
      xs: sequence of one or more tensors, float32|float16|bfloat16[...], all of one dtype and
        shape; it is not modified.
      name: optional name of the scope.
    Returns:
      Their sum, dtype and shape of each; a single tensor is returned as it is. Its gradient is
      passed to each of them, uncopied.
    Raises:
      TypeError: the dtype is not supported, or they differ.
      ValueError: there is none, or the shapes differ.
    Source: openai/blocksparse `add_n`, which emptied the list.
    Example:
      >>> xs = [tf.constant([256.0, 1.0], tf.bfloat16)] + 8 * [tf.ones([2], tf.bfloat16)]
      >>> add_n(xs).numpy().tolist()  # one by one, 256 + 1 is 256 in bfloat16
      [264.0, 9.0]
    """
    who = name or "add_n"
    xs = [tf.convert_to_tensor(x) for x in xs]
    if not xs:
        raise ValueError(f"{who}: there must be one tensor or more. Received: none")
    for x in xs:
        _checks.check_dtype(who, "a tensor", x.dtype, xs[0].dtype, " as the first")
        if not x.shape.is_compatible_with(xs[0].shape):
            raise ValueError(
                f"{who}: all tensors must have one shape. Received: {xs[0].shape} and {x.shape}"
            )
    count = len(xs)  # all that the gradient keeps
    if count == 1:
        return xs[0]

    @tf.custom_gradient
    def function(*xs):
        total = []
        for first in range(0, len(xs), ADD_N_GROUP):
            group = [tf.cast(x, tf.float32) for x in xs[first : first + ADD_N_GROUP]]
            total = [tf.add_n(total + group)]
        return tf.cast(total[0], xs[0].dtype), lambda dy: [dy] * count

    with tf.name_scope(who):
        return function(*xs)


def add_n8(xs, name=None):
    """`add_n` under the name of the original's kernel, which took 9 tensors at most.

    Example:
      >>> add_n8([tf.constant(1.0), tf.constant(2.0)]).numpy().item()
      3.0
    """
    return add_n(xs, name or "add_n8")


def bias_relu(x, b, axis=-1, relu=False, fast_gelu=False, name=None):
    """Adds a bias for each feature, and applies an activation function.

    y = act(x + b), where act is the identity, max(z, 0), or z sigmoid(1.702 z)

    TensorFlow's ops; as fast for float32 without activation, and several passes over memory more
    than a fused kernel otherwise.

    Args:
      x: float32|float16|bfloat16[..., K], or [K, ...] with axis=0.
      b: float32[K].
      axis: where the features are: -1 (or the last axis' number) or 0.
      relu: act is the rectifier. Only y is kept for the gradient, and tells where it is nonzero.
      fast_gelu: act is the fast approximation of gelu. x and b are kept.
      name: optional name of the scope.
    Returns:
      y: dtype and shape of x. The gradient of b is float32, a sum over all samples in float32, by
      `tf.reduce_sum`, which uses no atomics.
    Raises:
      TypeError: the dtype of x is not supported, or b is not float32.
      ValueError: axis is neither the first nor the last, b does not fit, or both activation
        functions are wanted.
    Source: openai/blocksparse `bias_relu`.
    Example:
      >>> bias_relu([[1.0, 2.0]], [-3.0, 4.0], relu=True).numpy().tolist()
      [[0.0, 6.0]]
    """
    who = name or "bias_relu"
    x, b = tf.convert_to_tensor(x), tf.convert_to_tensor(b)
    _checks.check_dtype(who, "x", x.dtype)
    if b.dtype != tf.float32:
        raise TypeError(f"{who}: b must be float32. Received: {b.dtype.name}.")
    if relu and fast_gelu:
        raise ValueError(f"{who}: one activation function at most. Received: relu and fast_gelu")
    rank = x.shape.rank
    if rank == 0 or axis not in (0, -1) and (rank is None or axis != rank - 1):
        raise ValueError(
            f"{who}: axis must be the first or the last of x. Received: axis={axis}, "
            f"x.shape={x.shape}"
        )
    is_last = axis != 0 or rank == 1
    _checks.check_shape(who, "b", b, [None if rank is None else x.shape[-1 if is_last else 0]])

    @tf.custom_gradient
    def function(x, b):
        z = _biased(x, b, is_last)
        if relu:
            z = tf.nn.relu(z)
        elif fast_gelu:
            z *= tf.sigmoid(GELU_SLOPE * z)
        y = tf.cast(z, x.dtype)
        if fast_gelu:
            return y, _fast_gelu_gradient(x, b, is_last)
        return y, _relu_gradient(y if relu else None, is_last)

    with tf.name_scope(who):
        return function(x, b)


# Functions that make a gradient are apart, so that it keeps nothing but their arguments.


def _biased(x, b, is_last):
    if not is_last:
        b = tf.reshape(b, tf.concat([[-1], tf.ones([tf.rank(x) - 1], tf.int32)], axis=0))
    return tf.cast(x, tf.float32) + b


def _sum_of_samples(dz, is_last):
    rank = tf.rank(dz)
    axes = tf.range(rank - 1) if is_last else tf.range(1, rank)
    return tf.reduce_sum(tf.cast(dz, tf.float32), axis=axes)


def _relu_gradient(y, is_last):
    def gradient(dy):
        dx = dy if y is None else tf.where(y > 0, dy, tf.zeros([], dy.dtype))
        return dx, _sum_of_samples(dx, is_last)

    return gradient


def _fast_gelu_gradient(x, b, is_last):
    def gradient(dy):
        z = _biased(x, b, is_last)
        s = tf.sigmoid(GELU_SLOPE * z)
        dz = tf.cast(dy, tf.float32) * (s + GELU_SLOPE * z * s * (1 - s))
        return tf.cast(dz, x.dtype), _sum_of_samples(dz, is_last)

    return gradient


def dropout(x, keep_prob, mask=None, mask_shape=None, seed=None, name=None):
    """Sets elements of `x` to zero at random, and enlarges the others.

    y = x / keep_prob where mask, else 0

    Args:
      x: float32|float16|bfloat16[...].
      keep_prob: probability of keeping an element, in (0, 1]: a number, or a scalar tensor, whose
        value is not checked and which has no gradient.
      mask: bool tensor from an earlier call, or of your own, that can be broadcast to x; True keeps
        an element. It must be given where a forward pass is repeated to save memory.
      mask_shape: shape of the mask that is drawn, by default that of x; a 1 makes an axis share its
        fate.
      seed: what a mask is drawn from: two integers (or int32|int64[2]), which give the same mask in
        every call and on every device, or a `tf.random.Generator`, which goes on to the next.
      name: optional name of the scope.
    Returns:
      (y, mask): dtype and shape of x, and bool[mask_shape], a byte for an element. The gradient of
      x is dropout of dy with the same mask, for which only the mask is kept. Elements that are
      dropped become 0 even where x is not finite.
    Raises:
      TypeError: the dtype of x, mask or seed is not supported.
      ValueError: keep_prob is out of range or no scalar; neither a mask nor a seed is given, or a
        mask with the wherewithal to draw one; a shape does not fit.
    Source: openai/blocksparse `dropout`, whose masks came from a hidden state and were packed bits.
    Example:
      >>> x = tf.ones([1000])
      >>> y, mask = dropout(x, keep_prob=0.5, seed=(1, 2))
      >>> sorted(set(y.numpy().tolist()))
      [0.0, 2.0]
      >>> again, _ = dropout(x, keep_prob=0.5, mask=mask)
      >>> bool(tf.reduce_all(y == again))
      True
    """
    who = name or "dropout"
    x = tf.convert_to_tensor(x)
    _checks.check_dtype(who, "x", x.dtype)
    if not tf.is_tensor(keep_prob) and not 0 < keep_prob <= 1:
        raise ValueError(f"{who}: keep_prob must be in (0, 1]. Received: {keep_prob}")
    keep_prob = tf.cast(keep_prob, tf.float32)
    _checks.check_shape(who, "keep_prob", keep_prob, [])
    if (mask is None) == (seed is None) or mask is not None and mask_shape is not None:
        given = {"mask": mask, "mask_shape": mask_shape, "seed": seed}
        raise ValueError(
            f"{who}: either mask, or seed and perhaps mask_shape, must be given. Received: "
            + (", ".join(key for key, value in given.items() if value is not None) or "none")
        )

    with tf.name_scope(who):
        if mask is None:
            shape = tf.shape(x) if mask_shape is None else mask_shape
            mask = _uniform(who, shape, seed) < keep_prob
            if mask_shape is None:
                mask = tf.ensure_shape(mask, x.shape)
        mask = tf.convert_to_tensor(mask)
        if mask.dtype != tf.bool:
            raise TypeError(f"{who}: mask must be bool. Received: {mask.dtype.name}.")
        _check_broadcast(who, x.shape, mask.shape)

        @tf.custom_gradient
        def function(x):
            kept = tf.cast(tf.cast(x, tf.float32) / keep_prob, x.dtype)
            return tf.where(mask, kept, tf.zeros([], x.dtype)), function

        return function(x), mask


def _uniform(who, shape, seed):
    """Random float32 numbers in [0, 1)."""
    if isinstance(seed, tf.random.Generator):
        return seed.uniform(shape)
    seed = tf.convert_to_tensor(seed)
    if seed.dtype not in (tf.int32, tf.int64):
        raise TypeError(
            f"{who}: seed must be two integers or a tf.random.Generator. Received: "
            f"{seed.dtype.name}."
        )
    _checks.check_shape(who, "seed", seed, [2])
    return tf.random.stateless_uniform(shape, seed)


def _check_broadcast(who, shape, mask):
    """The mask's shape can be broadcast to x's without enlarging it."""
    if shape.rank is None or mask.rank is None:
        return
    fits = mask.rank <= shape.rank and all(
        size in (1, None) or size == of_x or of_x is None
        for size, of_x in zip(mask[::-1], shape[::-1], strict=False)
    )
    if not fits:
        raise ValueError(
            f"{who}: mask must have a shape that can be broadcast to that of x. Received: "
            f"mask.shape={mask}, x.shape={shape}"
        )

"""The norm of all gradients together, and by what to scale them so that it is bounded.

Made of TensorFlow's ops: for float32 gradients `tf.nn.l2_loss` reads each once and writes nothing.
16-bit gradients are copied to float32 first, because it would add their squares in 16 bits; and
each of the options that change elements is a pass over memory more.
"""

import tensorflow as tf

from blocksparse import _checks


def clip_by_global_norm(
    grads, clip_norm=1.0, grad_scale=1.0, saturate=0.0, zero_infs=False, zero_nans=False, name=None
):
    """The global norm of gradients, and the factor that clips them to `clip_norm`.

    global_norm = sqrt(sum of (grad_scale g)^2 over all elements g of all gradients)
    norm_scale  = clip_norm / max(global_norm, clip_norm), or 0 where global_norm is not finite

    The gradients are not changed: multiply them with grad_scale norm_scale, or pass both factors to
    an optimizer. A norm_scale of 0 says that the step is to be skipped; do not multiply then, since
    infinity times 0 is not a number.

    Args:
      grads: sequence of float32|float16|bfloat16[...], dtypes mixed at will; None is skipped.
      clip_norm: a positive number, or a scalar tensor.
      grad_scale: a number, or a scalar tensor: what a loss that was scaled is to be scaled back by.
      saturate: bound of the elements' magnitude, before grad_scale, or 0 for none; infinity becomes
        the bound, and NaN stays.
      zero_infs: infinite elements count as 0.
      zero_nans: elements that are not numbers count as 0.
      name: optional name of the scope.
    Returns:
      (global_norm, norm_scale): float32 scalars. Squares are added in float32, so that a norm from
      1.8e19 on counts as infinite.
    Raises:
      TypeError: the dtype of a gradient is not supported.
      ValueError: clip_norm is not positive, or saturate is negative.
    Source: openai/blocksparse `clip_by_global_norm`. (`tf.clip_by_global_norm` returns the clipped
    gradients instead.)
    Example:
      >>> norm, scale = clip_by_global_norm([tf.constant([3.0]), tf.constant([[4.0]])])
      >>> round(float(norm), 6), round(float(scale), 6)
      (5.0, 0.2)
    """
    who = name or "clip_by_global_norm"
    if not tf.is_tensor(clip_norm) and not clip_norm > 0:
        raise ValueError(f"{who}: clip_norm must be positive. Received: {clip_norm}")
    with tf.name_scope(who):
        norm = global_norm(grads, grad_scale, saturate, zero_infs, zero_nans, name)
        clip_norm = tf.cast(clip_norm, tf.float32)
        scale = clip_norm / tf.maximum(norm, clip_norm)
        return norm, tf.where(tf.math.is_finite(norm), scale, 0.0)


def global_norm(grads, grad_scale=1.0, saturate=0.0, zero_infs=False, zero_nans=False, name=None):
    """The first result of `clip_by_global_norm`.

    Args:
      See `clip_by_global_norm`.
    Returns:
      float32 scalar; 0 without gradients.
    Raises:
      TypeError: the dtype of a gradient is not supported.
      ValueError: saturate is negative.
    Source: openai/blocksparse `global_norm`.
    Example:
      >>> float(global_norm([tf.constant([3.0, -4.0]), None], grad_scale=2.0))
      10.0
    """
    who = name or "global_norm"
    if saturate < 0:
        raise ValueError(f"{who}: saturate must not be negative. Received: {saturate}")
    grads = [tf.convert_to_tensor(grad) for grad in grads if grad is not None]
    for grad in grads:
        _checks.check_dtype(who, "a gradient", grad.dtype)
    with tf.name_scope(who):
        halves = [tf.zeros([])]
        for grad in grads:
            grad = _filtered(tf.cast(grad, tf.float32), saturate, zero_infs, zero_nans)
            if tf.is_tensor(grad_scale) or grad_scale != 1:
                grad *= tf.cast(grad_scale, tf.float32)
            halves.append(tf.nn.l2_loss(grad))
        return tf.sqrt(2 * tf.add_n(halves))


def _filtered(x, saturate, zero_infs, zero_nans):
    """x without the elements that do not count, in the order of the original: infinite ones, those
    that are not numbers, then the bound.
    """
    if zero_infs:
        x = tf.where(tf.math.is_inf(x), 0.0, x)
    if zero_nans:
        x = tf.where(tf.math.is_nan(x), 0.0, x)
    if saturate:
        # Comparisons leave NaN as it is; what minimum and maximum do with it is not documented.
        x = tf.where(tf.abs(x) > saturate, tf.sign(x) * saturate, x)
    return x

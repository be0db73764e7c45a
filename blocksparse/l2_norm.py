"""Weight normalisation: every output feature of block-sparse weights gets the same length."""

import tensorflow as tf

from blocksparse import _checks
from blocksparse._ops import ops
from blocksparse._tables import layout_tensors


def l2_normalize(w, layout, *, gain=None, epsilon=1e-12, dtype=tf.float32, name=None):
    """Divides the weights of each output feature by their Euclidean length.

    y[b, i, j] = gain[k] w[b, i, j] / sqrt(max(s[k], epsilon)), where k is the output feature of
    (b, j) and s[k] the sum of squares of all its weights.

    Args:
      w: float32|float16|bfloat16[num_blocks, B, B].
      layout: SparsityLayout.
      gain: optional float32[K]; has a gradient.
      epsilon: lower bound of s.
      dtype: dtype of the result: float32, float16 or bfloat16.
      name: optional name of the op.
    Returns:
      y: dtype[num_blocks, B, B]. Sums in float32, in a fixed order.
    Raises:
      TypeError: a dtype is not supported.
      ValueError: a shape does not fit the layout.
      tf.errors.InvalidArgumentError: the same, found when the graph runs.
    Source: openai/blocksparse `BlocksparseMatMul.l2_normalize`.
    Example:
      >>> layout = SparsityLayout([[1]], block_size=8)
      >>> round(float(l2_normalize(3 * tf.ones([1, 8, 8]), layout)[0, 0, 0]), 6)
      0.353553
    """
    who = name or "BlocksparseL2Normalize"
    w = tf.convert_to_tensor(w)
    dtype = tf.as_dtype(dtype)
    _checks.check_dtype(who, "w", w.dtype)
    _checks.check_dtype(who, "the result", dtype)
    _checks.check_shape(who, "w", w, layout.w_shape)
    gains = []
    if gain is not None:
        gains = [tf.convert_to_tensor(gain)]
        if gains[0].dtype != tf.float32:
            raise TypeError(f"{who}: gain must be float32. Received: {gains[0].dtype.name}.")
        _checks.check_shape(who, "gain", gains[0], [layout.out_features])
    lut, plan = layout_tensors(layout, w)
    y, _ = ops.blocksparse_l2_normalize(
        x=w,
        gain=gains,
        lut=lut,
        plan=plan,
        TY=dtype,
        epsilon=epsilon,
        block_size=layout.block_size,
        in_blocks=layout.in_blocks,
        out_blocks=layout.out_blocks,
        name=name,
    )
    return y


@tf.RegisterGradient("BlocksparseL2Normalize")
def _l2_normalize_gradients(op, dy, _):
    x, *gains, lut, plan = op.inputs
    sizes = ("epsilon", "block_size", "in_blocks", "out_blocks")
    dx, dgains = ops.blocksparse_l2_normalize_grad(
        dy=dy,
        x=x,
        gain=gains,
        sum_sqr=op.outputs[1],
        lut=lut,
        plan=plan,
        **{key: op.get_attr(key) for key in sizes},
    )
    return dx, *dgains, None, None

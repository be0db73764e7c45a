"""Block-sparse matrix products as functions of tensors, and their gradients.

    matmul     y[n, k]     = sum_c W[c, k] x[n, c]      W: `w` at its blocks, else zero
    matmul_dx  dx[n, c]    = sum_k W[c, k] dy[n, k]
    matmul_dw  dw[b, i, j] = sum_n x[n, c B + i] dy[n, k B + j]    (c, k) = layout.coordinates[b]

Every function is differentiable any number of times: each product's gradients are the other two.
"""

import tensorflow as tf

from blocksparse import _checks
from blocksparse._ops import ops
from blocksparse._tables import layout_tensors

# The pairs that one BlocksparseMatmulDW takes; see kMaxMatmulPairs in src/kernels/matmul.h.
MAX_PAIRS = 128


def matmul(
    x,
    w,
    layout,
    *,
    feature_axis=1,
    gate=None,
    gate_grad=False,
    dw_gated=False,
    dw_dtype=None,
    name=None,
):
    """Multiplies `x` by block-sparse weights.

    y[n, k] = sum_c g W[c, k] x[n, c], where W is `w` placed at the blocks of `layout` and zero
    elsewhere, and g the gate of the block.

    Args:
      x: float32|float16|bfloat16[..., C] if feature_axis is 1, [C, ...] if it is 0; rank 2 or more.
        All other dimensions are the minibatch. C = layout.in_features.
      w: dtype of x[num_blocks, B, B]; block i sits at `layout.coordinates[i]`.
      layout: SparsityLayout.
      feature_axis: 1 for features last, 0 for features first.
      gate: optional float32[num_blocks]. Block i is scaled by gate[i], and skipped where that is 0:
        what is not finite there does not spread. The scaled weight is rounded to the dtype of x.
      gate_grad: True gives gate its gradient and scales that of w by it, as calculus has it. False,
        the original's default, gives gate none and leaves the gradient of w unscaled.
      dw_gated: True leaves out the gradient of blocks whose gate is 0.
      dw_dtype: dtype of the gradient of w, by default that of x; float32 keeps the sums' precision.
      name: optional name of the op.
    Returns:
      y: dtype of x, [..., K] or [K, ...], K = layout.out_features. Summed in float32, each element
      in a fixed order. float32 on a GPU follows
      `tf.config.experimental.enable_tensor_float_32_execution`.
    Raises:
      TypeError: a dtype is not supported or does not match.
      ValueError: a shape does not fit the layout, or feature_axis is neither 0 nor 1.
      tf.errors.InvalidArgumentError: the same, found when the graph runs, for shapes unknown
      before.
    Source: semantics of openai/blocksparse `BlocksparseMatMul.matmul`.
    Example:
      >>> layout = SparsityLayout([[1, 0], [1, 1]], block_size=8)
      >>> matmul(tf.ones([4, 16]), tf.ones(layout.w_shape), layout)[0].numpy().tolist()
      [16.0, 16.0, 16.0, 16.0, 16.0, 16.0, 16.0, 16.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0]
    """
    who = name or "BlocksparseMatmul"
    _checks.check_feature_axis(who, feature_axis)
    x, w = _as_tensor(x), _as_tensor(w)
    gates = _check_gate(who, gate, layout)
    dw_dtype = x.dtype if dw_dtype is None else _check_dw_dtype(who, dw_dtype, x.dtype)
    if gate_grad and not gates:
        raise ValueError(f"{who}: gate_grad needs a gate. Received: gate=None")

    def product():
        lut, plan = layout_tensors(layout, w)
        return ops.blocksparse_matmul(
            x=x,
            w=w,
            gate=gates,
            lut=lut,
            plan=plan,
            dw_dtype=dw_dtype,
            gate_grad=gate_grad,
            dw_gated=dw_gated,
            name=name,
            **_layout_attrs(layout, feature_axis),
        )

    return _checked(product, who, "x", x, w, layout, layout.in_blocks, feature_axis)


def matmul_dx(dy, w, layout, *, feature_axis=1, gate=None, name=None):
    """The gradient of `matmul` with respect to x: dx = dy W^T.

    Args:
      dy: float32|float16|bfloat16[..., K] or [K, ...]; rank 2 or more.
      w, layout, feature_axis, gate, name: as in `matmul`.
    Returns:
      dx: dtype of dy, [..., C] or [C, ...].
    Raises:
      TypeError, ValueError, tf.errors.InvalidArgumentError: as `matmul`.
    Source: openai/blocksparse `BlocksparseMatmulDX`.
    """
    who = name or "BlocksparseMatmulDX"
    _checks.check_feature_axis(who, feature_axis)
    dy, w = _as_tensor(dy), _as_tensor(w)
    gates = _check_gate(who, gate, layout)

    def product():
        lut, plan = layout_tensors(layout, w)
        return ops.blocksparse_matmul_dx(
            dy=dy,
            w=w,
            gate=gates,
            lut=lut,
            plan=plan,
            dw_dtype=dy.dtype,
            name=name,
            **_layout_attrs(layout, feature_axis),
        )

    return _checked(product, who, "dy", dy, w, layout, layout.out_blocks, feature_axis)


def matmul_dw(x, dy, layout, *, feature_axis=1, gate=None, dw_dtype=None, name=None):
    """The gradient of `matmul` with respect to w, summed over one or many pairs of x and dy.

    A weight that is used at many time steps gets its whole gradient from one call: the sum over the
    steps stays in float32, and w's blocks are written once.

    Args:
      x: one tensor as in `matmul`, or a list of them; each may have its own minibatch.
      dy: as many tensors [..., K] or [K, ...], each with the minibatch of its x.
      layout, feature_axis, name: as in `matmul`.
      gate: optional float32[num_blocks]; blocks with gate 0 get zeros and cost nothing. Others are
        not scaled.
      dw_dtype: dtype of the result, that of x (default) or float32.
    Returns:
      dw: dw_dtype[num_blocks, B, B].
    Raises:
      TypeError, ValueError, tf.errors.InvalidArgumentError: as `matmul`; ValueError also if the
      lists are empty or differ in length.
    Source: openai/blocksparse `BlocksparseMatmulDW` and `group_param_grads`.
    Example:
      >>> layout = SparsityLayout([[1]], block_size=8)
      >>> steps = [tf.ones([4, 8])] * 3
      >>> float(matmul_dw(steps, steps, layout)[0, 0, 0])
      12.0
    """
    who = name or "BlocksparseMatmulDW"
    _checks.check_feature_axis(who, feature_axis)
    xs, dys = _as_list(x), _as_list(dy)
    if len(xs) != len(dys) or not xs:
        raise ValueError(
            f"{who}: x and dy must be lists of the same length, at least 1. "
            f"Received: {len(xs)} and {len(dys)}"
        )
    dtype = xs[0].dtype
    for x, dy in zip(xs, dys, strict=True):
        _checks.check_dtype(who, "x", x.dtype, dtype, " as the first x")
        _checks.check_dtype(who, "dy", dy.dtype, dtype, " as x")
        _checks.check_activation(who, "x", x, layout, layout.in_blocks, feature_axis)
        _checks.check_activation(who, "dy", dy, layout, layout.out_blocks, feature_axis)
        _checks.check_same_batch(who, x, dy, layout)
    dw_dtype = _check_dw_dtype(who, dtype if dw_dtype is None else dw_dtype, dtype)
    gates = _check_gate(who, gate, layout)
    attrs = _layout_attrs(layout, feature_axis)
    lut, plan = layout_tensors(layout, xs[0])
    return sum_products(xs, dys, gates, lut, plan, dw_dtype, attrs, name)


def sum_products(xs, dys, gates, lut, plan, dw_dtype, attrs, name=None):
    """`matmul_dw` on checked tensors; over MAX_PAIRS pairs in several ops, added in float32."""

    def product(first, dtype):
        pairs = slice(first, first + MAX_PAIRS)
        return ops.blocksparse_matmul_dw(
            x=xs[pairs],
            dy=dys[pairs],
            gate=gates,
            lut=lut,
            plan=plan,
            dw_dtype=dtype,
            name=name,
            **attrs,
        )

    if len(xs) <= MAX_PAIRS:
        return product(0, dw_dtype)
    parts = [product(first, tf.float32) for first in range(0, len(xs), MAX_PAIRS)]
    return tf.cast(tf.add_n(parts), dw_dtype)


# ---- gradients ----

LAYOUT_ATTRS = ("feature_axis", "block_size", "in_blocks", "out_blocks")


def op_attrs(op):
    """The layout's attributes of a product's op, as keyword arguments for another one."""
    return {key: op.get_attr(key) for key in LAYOUT_ATTRS}


def _gradients(op, product_of_input, x, dy, w, gates):
    """Gradients of y = x W or dx = dy W^T: (first input, w, *gates, lut, plan)."""
    skipped = getattr(op, "skip_input_indices", None) or ()
    lut, plan = op.inputs[-2:]
    attrs = op_attrs(op)
    dw_dtype = tf.as_dtype(op.get_attr("dw_dtype"))
    gate_grad, dw_gated = op.get_attr("gate_grad"), op.get_attr("dw_gated")
    d_input = None
    if 0 not in skipped:
        d_input = product_of_input(
            gate=gates,
            lut=lut,
            plan=plan,
            dw_dtype=dw_dtype,
            gate_grad=gate_grad,
            dw_gated=dw_gated,
            **attrs,
        )
    if 1 in skipped and (not gate_grad or 2 in skipped):
        return d_input, None, *[None] * len(gates), None, None
    dw = sum_products([x], [dy], gates if dw_gated else [], lut, plan, dw_dtype, attrs)
    if not gate_grad:
        return d_input, dw, *[None] * len(gates), None, None
    dw, dgate = ops.blocksparse_matmul_dg(dw=dw, w=w, gate=gates[0])
    return d_input, dw, dgate, None, None


@tf.RegisterGradient("BlocksparseMatmul")
def _matmul_gradients(op, dy):
    x, w, *gates, _, _ = op.inputs
    return _gradients(
        op, lambda **kwargs: ops.blocksparse_matmul_dx(dy=dy, w=w, **kwargs), x, dy, w, gates
    )


@tf.RegisterGradient("BlocksparseMatmulDX")
def _matmul_dx_gradients(op, grad):
    dy, w, *gates, _, _ = op.inputs
    return _gradients(
        op, lambda **kwargs: ops.blocksparse_matmul(x=grad, w=w, **kwargs), grad, dy, w, gates
    )


@tf.RegisterGradient("BlocksparseMatmulDW")
def _matmul_dw_gradients(op, grad):
    num_pairs = op.get_attr("num_pairs")
    xs, dys = op.inputs[:num_pairs], op.inputs[num_pairs : 2 * num_pairs]
    *gates, lut, plan = op.inputs[2 * num_pairs :]
    w = tf.cast(grad, xs[0].dtype)
    if gates:  # blocks with gate 0 are constant zeros
        w = tf.where(gates[0][:, None, None] != 0, w, tf.zeros([], w.dtype))
    kwargs = {"w": w, "gate": [], "lut": lut, "plan": plan, "dw_dtype": w.dtype, **op_attrs(op)}
    return [
        *[ops.blocksparse_matmul_dx(dy=dy, **kwargs) for dy in dys],
        *[ops.blocksparse_matmul(x=x, **kwargs) for x in xs],
        *[None] * len(gates),
        None,
        None,
    ]


@tf.RegisterGradient("BlocksparseMatmulDG")
def _matmul_dg_gradients(op, grad_dw, grad_dg):
    dw, w, gate = op.inputs
    gate, grad_dg = gate[:, None, None], grad_dg[:, None, None]
    grad_dw32, dw32, w32 = (tf.cast(tensor, tf.float32) for tensor in (grad_dw, dw, w))
    return (
        tf.cast(gate * grad_dw32 + grad_dg * w32, dw.dtype),
        tf.cast(grad_dg * dw32, w.dtype),
        tf.reduce_sum(grad_dw32 * dw32, axis=[1, 2]),
    )


# ---- checks ----


def _as_list(tensors):
    tensors = tensors if isinstance(tensors, list | tuple) else [tensors]
    return [_as_tensor(tensor) for tensor in tensors]


def _layout_attrs(layout, feature_axis):
    return {
        "feature_axis": feature_axis,
        "block_size": layout.block_size,
        "in_blocks": layout.in_blocks,
        "out_blocks": layout.out_blocks,
    }


def _as_tensor(value):
    return value if isinstance(value, tf.Tensor) else tf.convert_to_tensor(value)


def _checked(product, who, name, x, w, layout, num_blocks, feature_axis):
    """`product()`, which is called before the checks in eager mode: the op checks the same in less
    time, and Python's checks only find the words for what is wrong."""
    failure = None
    if tf.executing_eagerly():
        try:
            return product()
        except tf.errors.InvalidArgumentError as error:
            failure = error
    _checks.check_dtype(who, name, x.dtype)
    _checks.check_dtype(who, "w", w.dtype, x.dtype, f" as {name}")
    _checks.check_activation(who, name, x, layout, num_blocks, feature_axis)
    _checks.check_shape(who, "w", w, layout.w_shape)
    if failure is not None:
        raise failure
    return product()


def _check_gate(who, gate, layout):
    if gate is None:
        return []
    gate = tf.convert_to_tensor(gate)
    if gate.dtype != tf.float32:
        raise TypeError(f"{who}: gate must be float32. Received: {gate.dtype.name}.")
    _checks.check_shape(who, "gate", gate, [layout.num_blocks])
    return [gate]


def _check_dw_dtype(who, dw_dtype, dtype):
    dw_dtype = tf.as_dtype(dw_dtype)
    if dw_dtype not in (dtype, tf.float32):
        raise TypeError(
            f"{who}: dw_dtype must be float32 or the dtype of x, {dtype.name}. "
            f"Received: {dw_dtype.name}."
        )
    return dw_dtype

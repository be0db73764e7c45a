"""Weight gradients of shared weights, found in a graph and computed together.

A weight used at T time steps has T products `x_t^T dy_t` in its gradient, each of which writes all
of w. The functions here find them behind a gradient tensor, in a TF1 graph or inside `tf.function`,
and return new tensors; the graph's existing ops are not changed, and those no longer needed are
never run.

Eager code has no graph to search: keep the pairs and call `matmul_ops.matmul_dw` or
`reduced_full_dw`.
"""

import tensorflow as tf

from blocksparse import _checks
from blocksparse.matmul_ops import matmul_dw, op_attrs, sum_products

_SUMS = ("AddN", "AddV2", "Add")
# Ops of one gradient input through which a sum of products may pass on its way to the parameter.
_LINEAR = ("Cast", "Identity", "BlocksparseL2NormalizeGrad")


def group_param_grads(param_grad, group_size=8):
    """Replaces the many products in a weight's gradient by few over lists of (x, dy) pairs.

    Args:
      param_grad: symbolic gradient of block-sparse weights, as `tf.gradients` or a tape inside
        `tf.function` returns it.
      group_size: pairs in one product, at most 128.
    Returns:
      The same gradient, summed in float32 within each group, or `param_grad` itself if it holds
      fewer than two products. Gated products are grouped by gate; with gate_grad the gate's own
      gradient keeps its separate products.
    Raises:
      TypeError: param_grad is eager.
      ValueError: group_size is out of range.
    Source: openai/blocksparse `group_param_grads`, which rewrote the graph in place.
    """
    who = "group_param_grads"
    if not 1 <= group_size <= 128:
        raise ValueError(f"{who}: group_size must be 1 to 128. Received: {group_size}")
    if len(_find_products(who, param_grad)) < 2:
        return param_grad
    return _rebuild(param_grad, group_size)


def get_bsmm_dx_ops(param_grad):
    """The BlocksparseMatmulDX ops that share their dy with the products in a weight's gradient.

    Returns:
      A list of `tf.Operation` in the order of the products, for instance for control dependencies.
    Source: openai/blocksparse `get_bsmm_dx_ops`.
    """
    found = []
    for product in _find_products("get_bsmm_dx_ops", param_grad):
        _, dys, _, lut, _ = _inputs(product)
        for dy in dys:
            found += [
                op
                for op in dy.consumers()
                if op.type == "BlocksparseMatmulDX"
                and op.inputs[-2] is lut
                and op.inputs[0] is dy
                and op not in found
            ]
    return found


def block_reduced_full_dw(param_grad, scale=1.0, norm="max", group_size=8):
    """Scores every block of the full [CB, KB] grid, stored or not, by its would-be weight gradient.

    Args:
      param_grad: symbolic gradient of block-sparse weights.
      scale, norm: as in `reduced_full_dw`.
      group_size: accepted for callers of the original; all pairs make one product here.
    Returns:
      float32[in_blocks, out_blocks].
    Raises:
      TypeError: param_grad is eager.
      ValueError: no block-sparse product is found behind param_grad.
    Source: openai/blocksparse `block_reduced_full_dw`.
    """
    del group_size
    products = _find_products("block_reduced_full_dw", param_grad)
    if not products:
        raise ValueError(
            "block_reduced_full_dw: a gradient of block-sparse weights is needed. "
            f"Received: {param_grad.name}, behind which there is no BlocksparseMatmulDW"
        )
    xs = [x for product in products for x in _inputs(product)[0]]
    dys = [dy for product in products for dy in _inputs(product)[1]]
    attrs = op_attrs(products[0])
    return reduced_full_dw(xs, dys, attrs["block_size"], attrs["feature_axis"], scale, norm)


def reduced_full_dw(x, dy, block_size, feature_axis=1, scale=1.0, norm="max"):
    """The score of `block_reduced_full_dw` from the pairs themselves, in eager mode too.

    score[cb, kb] = scale sum_pairs sum_n |x[n, cb]| |dy[n, kb]|, where |.| reduces the features of
    a block to their largest magnitude (norm="max") or Euclidean length ("l2"). Infinities and NaNs
    count as 0.

    Args:
      x, dy: a tensor or a list of tensors each, [..., features] or [features, ...].
      block_size: features in a block.
      feature_axis: 1 or 0.
      scale: factor of the result.
      norm: "max" or "l2".
    Returns:
      float32[in_blocks, out_blocks].
    Raises:
      ValueError: norm or feature_axis is unknown, or the lists differ in length.
    """
    who = "reduced_full_dw"
    _checks.check_feature_axis(who, feature_axis)
    if norm not in ("max", "l2"):
        raise ValueError(f"{who}: norm must be 'max' or 'l2'. Received: {norm!r}")
    xs, dys = (t if isinstance(t, list | tuple) else [t] for t in (x, dy))
    if len(xs) != len(dys) or not xs:
        raise ValueError(
            f"{who}: x and dy must be lists of the same length, at least 1. "
            f"Received: {len(xs)} and {len(dys)}"
        )

    def reduced(tensor):
        tensor = tf.convert_to_tensor(tensor)
        features = tensor.shape[-1 if feature_axis == 1 else 0]
        shape = [-1, features // block_size, block_size]
        blocks = tf.reshape(tensor, shape if feature_axis == 1 else [*shape[1:], -1])
        axis = 2 if feature_axis == 1 else 1
        blocks = tf.cast(blocks, tf.float32)
        blocks = tf.where(tf.math.is_finite(blocks), blocks, 0.0)
        if norm == "max":
            return tf.reduce_max(tf.abs(blocks), axis=axis)
        return tf.sqrt(tf.reduce_sum(tf.square(blocks), axis=axis))

    transpose = {"transpose_a": feature_axis == 1, "transpose_b": feature_axis == 0}
    scores = [
        tf.matmul(reduced(x), reduced(dy), **transpose) for x, dy in zip(xs, dys, strict=True)
    ]
    return scale * tf.add_n(scores)


def dw_matmul_large_n(x, dy):
    """x^T dy over all leading dimensions, in float32: a dense weight gradient for a long minibatch.

    Args:
      x: float32|float16|bfloat16[..., C].
      dy: the same dtype [..., K].
    Returns:
      float32[C, K]. (TensorFlow's own product: it is as fast, and exact for 16-bit inputs in
      float32.)
    Source: openai/blocksparse `dw_matmul_large_n`.
    """
    x, dy = (
        tf.cast(tf.reshape(t, [-1, t.shape[-1]]), tf.float32)
        for t in (tf.convert_to_tensor(x), tf.convert_to_tensor(dy))
    )
    return tf.matmul(x, dy, transpose_a=True)


# ---- searching and rebuilding ----


def _inputs(product):
    """(xs, dys, gates, lut, plan) of a BlocksparseMatmulDW op."""
    num_pairs = product.get_attr("num_pairs")
    inputs = list(product.inputs)
    gates = inputs[2 * num_pairs : -2]
    return inputs[:num_pairs], inputs[num_pairs : 2 * num_pairs], gates, inputs[-2], inputs[-1]


def _find_products(who, tensor):
    """The BlocksparseMatmulDW ops whose sum `tensor` is, up to linear ops."""
    if not hasattr(tensor, "op") or tf.executing_eagerly():
        raise TypeError(
            f"{who}: a symbolic tensor is needed (a TF1 graph, or inside tf.function); eager code "
            f"calls matmul_dw with lists of x and dy. Received: {type(tensor).__name__}"
        )
    op = tensor.op
    if op.type == "BlocksparseMatmulDW":
        return [op]
    if op.type in _SUMS:
        return [product for term in op.inputs for product in _find_products(who, term)]
    if op.type in _LINEAR:
        return _find_products(who, op.inputs[0])
    return []


def _rebuild(tensor, group_size):
    """`tensor` with the sums of products in it grouped."""
    op = tensor.op
    if op.type in _LINEAR:
        inputs = [_rebuild(op.inputs[0], group_size), *op.inputs[1:]]
        copy = op.graph.create_op(
            op.type,
            inputs,
            [output.dtype for output in op.outputs],
            attrs=_attrs(op),
            name=f"{op.name}/grouped",
        )
        return copy.outputs[tensor.value_index]
    terms = _terms(tensor)
    products = [term.op for term in terms if term.op.type == "BlocksparseMatmulDW"]
    if len(products) < 2:
        return tensor
    others = [_rebuild(term, group_size) for term in terms if term.op not in products]
    return tf.add_n(_group(products, group_size) + others)


def _terms(tensor):
    """The terms of nested sums."""
    if tensor.op.type not in _SUMS:
        return [tensor]
    return [term for summand in tensor.op.inputs for term in _terms(summand)]


def _group(products, group_size):
    """Sums the products, those of one gate and layout together, as few terms."""
    alike = {}
    for product in products:
        xs, dys, gates, lut, plan = _inputs(product)
        key = lut.ref(), tuple(gate.ref() for gate in gates), product.get_attr("dw_dtype")
        alike.setdefault(key, (product, []))[1].extend(zip(xs, dys, strict=True))
    sums = []
    for product, pairs in alike.values():
        _, _, gates, lut, plan = _inputs(product)
        for first in range(0, len(pairs), group_size):
            xs, dys = zip(*pairs[first : first + group_size], strict=True)
            sums.append(
                sum_products(
                    list(xs),
                    list(dys),
                    gates,
                    lut,
                    plan,
                    product.get_attr("dw_dtype"),
                    op_attrs(product),
                )
            )
    return sums


def _attrs(op):
    return {name: op.node_def.attr[name] for name in op.node_def.attr if not name.startswith("_")}


__all__ = [
    "block_reduced_full_dw",
    "dw_matmul_large_n",
    "get_bsmm_dx_ops",
    "group_param_grads",
    "matmul_dw",
    "reduced_full_dw",
]

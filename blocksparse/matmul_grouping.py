"""Weight gradients of shared weights, found in a graph and computed together.

A weight used at T time steps has T products `x_t^T dy_t` in its gradient, each of which writes all
of w. The functions here find them behind a gradient tensor, in a TF1 graph or inside `tf.function`,
and return new tensors; the graph's existing ops are not changed, and those no longer needed are
never run.

Eager code has no graph to search: keep the pairs and call `matmul_ops.matmul_dw` or
`reduced_full_dw`.
"""

import tensorflow as tf

from blocksparse import _checks, _graph_sums
from blocksparse.matmul_ops import matmul_dw, op_attrs, sum_products

_PRODUCT = "BlocksparseMatmulDW"


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
    Source: openai/blocksparse `group_param_grads`, which rewrote the graph in place. For dense
      weights see `lstm.group_lstm_grads`.
    """
    who = "group_param_grads"
    if not 1 <= group_size <= 128:
        raise ValueError(f"{who}: group_size must be 1 to 128. Received: {group_size}")
    _check_symbolic(who, param_grad)
    return _graph_sums.regrouped(param_grad, _PRODUCT, _add_products, group_size)


def get_bsmm_dx_ops(param_grad):
    """The BlocksparseMatmulDX ops of the same steps as the products in a weight's gradient.

    Returns:
      A list of `tf.Operation` in the order of the products, for instance for control dependencies.
    Source: openai/blocksparse `get_bsmm_dx_ops`.
    """
    _check_symbolic("get_bsmm_dx_ops", param_grad)
    found = []
    for product in _graph_sums.find_products(param_grad, _PRODUCT):
        _, dys, _, lut, plan = _inputs(product)
        for dy in dys:
            candidates = [
                op
                for op in dy.consumers()
                if op.type == "BlocksparseMatmulDX"
                and op.inputs[-2] is lut
                and op.inputs[0] is dy
                and op not in found
            ]
            # Another weight's DX may have the same dy and lut. But each product in a graph has a
            # plan of its own, which its gradients share.
            found += [op for op in candidates if op.inputs[-1] is plan] or candidates
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
    _check_symbolic("block_reduced_full_dw", param_grad)
    products = _graph_sums.find_products(param_grad, _PRODUCT)
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
      ValueError: norm or feature_axis is unknown, the lists differ in length, or the features are
        not whole blocks.
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

    def reduced(name, tensor):
        tensor = tf.convert_to_tensor(tensor)
        dim = -1 if feature_axis == 1 else 0
        if tensor.shape.rank is not None and (tensor.shape[dim] or 0) % block_size:
            raise ValueError(
                f"{who}: {name} must have a multiple of {block_size} features, feature_axis="
                f"{feature_axis}. Received: {name}.shape={tensor.shape}"
            )
        shape = [-1, tf.shape(tensor)[dim] // block_size, block_size]
        blocks = tf.reshape(tensor, shape if feature_axis == 1 else [*shape[1:], -1])
        axis = 2 if feature_axis == 1 else 1
        blocks = tf.cast(blocks, tf.float32)
        blocks = tf.where(tf.math.is_finite(blocks), blocks, 0.0)
        if norm == "max":
            return tf.reduce_max(tf.abs(blocks), axis=axis)
        return tf.sqrt(tf.reduce_sum(tf.square(blocks), axis=axis))

    transpose = {"transpose_a": feature_axis == 1, "transpose_b": feature_axis == 0}
    scores = [
        tf.matmul(reduced("x", x), reduced("dy", dy), **transpose)
        for x, dy in zip(xs, dys, strict=True)
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
        tf.cast(tf.reshape(t, [-1, tf.shape(t)[-1]]), tf.float32)
        for t in (tf.convert_to_tensor(x), tf.convert_to_tensor(dy))
    )
    return tf.matmul(x, dy, transpose_a=True)


# ---- searching and rebuilding ----


def _check_symbolic(who, tensor):
    _graph_sums.check_symbolic(who, tensor, "eager code calls matmul_dw with lists of x and dy")


def _inputs(product):
    """(xs, dys, gates, lut, plan) of a BlocksparseMatmulDW op."""
    num_pairs = product.get_attr("num_pairs")
    inputs = list(product.inputs)
    gates = inputs[2 * num_pairs : -2]
    return inputs[:num_pairs], inputs[num_pairs : 2 * num_pairs], gates, inputs[-2], inputs[-1]


def _add_products(products, group_size, dtype):
    """Sums of the products, those of one form and gate together."""
    alike = {}
    for product in products:
        xs, dys, gates, lut, _ = _inputs(product)
        key = (
            lut.ref(),
            tuple(gate.ref() for gate in gates),
            product.get_attr("T"),
            *op_attrs(product).values(),
        )
        alike.setdefault(key, (product, []))[1].extend(zip(xs, dys, strict=True))
    sums = []
    for product, pairs in alike.values():
        _, _, gates, lut, plan = _inputs(product)
        if len(pairs) == 1:
            sums.append(product.outputs[0])
            continue
        for first in range(0, len(pairs), group_size):
            xs, dys = zip(*pairs[first : first + group_size], strict=True)
            attrs = op_attrs(product)
            sums.append(sum_products(list(xs), list(dys), gates, lut, plan, dtype, attrs))
    return sums


__all__ = [
    "block_reduced_full_dw",
    "dw_matmul_large_n",
    "get_bsmm_dx_ops",
    "group_param_grads",
    "matmul_dw",
    "reduced_full_dw",
]

"""Rows of a table chosen by indices, with a dense gradient whose sums are the same in every run."""

import tensorflow as tf

from blocksparse import _checks
from blocksparse._ops import ops

INDEX_DTYPES = (tf.uint8, tf.uint16, tf.int32, tf.int64)


def embedding_lookup(emb, idx, demb_dtype=None, name=None):
    """Picks a row of `emb` for each index.

    y[..., k] = emb[idx[...], k]

    Args:
      emb: float32|float16|bfloat16[C, K].
      idx: uint8|uint16|int32|int64[...], any shape, each in [0, C).
      demb_dtype: dtype of the gradient of emb, by default that of emb; float32 keeps the sums'
        precision.
      name: optional name of the op.
    Returns:
      y: dtype of emb[..., K]. Has a gradient with respect to emb, dense [C, K]: the sum of dy over
      all indices that chose a row, in float32 and rounded once, in a fixed order and without
      atomics. That gradient has gradients in turn.
    Raises:
      TypeError: a dtype is not supported.
      ValueError: emb has not rank 2.
      tf.errors.InvalidArgumentError: the same, found when the graph runs. On a CPU also where an
        index is out of range; the message names the first. On a GPU such an index gives zeros and
        adds to no gradient instead.
      tf.errors.UnimplementedError: the gradient of more than 2^31 - 1 rows or indices on a GPU.
    Source: openai/blocksparse `embedding_lookup`, whose gradient was added up with atomics.
    Example:
      >>> emb = tf.constant([[1.0, 2.0], [3.0, 4.0]])
      >>> embedding_lookup(emb, [1, 0, 1]).numpy().tolist()
      [[3.0, 4.0], [1.0, 2.0], [3.0, 4.0]]
    """
    who = name or "BlocksparseEmbeddingLookup"
    emb, idx = tf.convert_to_tensor(emb), tf.convert_to_tensor(idx)
    _checks.check_dtype(who, "emb", emb.dtype)
    if idx.dtype not in INDEX_DTYPES:
        raise TypeError(
            f"{who}: idx has an unsupported dtype. Received: {idx.dtype.name}. Supported: "
            f"{_checks.names(INDEX_DTYPES)}."
        )
    demb_dtype = emb.dtype if demb_dtype is None else tf.as_dtype(demb_dtype)
    if demb_dtype not in (emb.dtype, tf.float32):
        raise TypeError(
            f"{who}: demb_dtype must be that of emb ({emb.dtype.name}) or float32. Received: "
            f"{demb_dtype.name}."
        )
    if emb.shape.rank not in (None, 2):
        raise ValueError(f"{who}: emb must have rank 2. Received: emb.shape={emb.shape}")
    return ops.blocksparse_embedding_lookup(emb=emb, idx=idx, demb_dtype=demb_dtype, name=name)


@tf.RegisterGradient("BlocksparseEmbeddingLookup")
def _embedding_lookup_gradients(op, dy):
    emb, idx = op.inputs
    demb = ops.blocksparse_embedding_lookup_grad(
        dy=dy, idx=idx, emb=emb, demb_dtype=op.get_attr("demb_dtype")
    )
    return demb, None


@tf.RegisterGradient("BlocksparseEmbeddingLookupGrad")
def _embedding_lookup_grad_gradients(op, ddemb):
    dy, idx, _ = op.inputs
    return tf.cast(embedding_lookup(ddemb, idx), dy.dtype), None, None

"""Softmax cross entropy in one pass over the logits, without stored probabilities."""

import tensorflow as tf

from blocksparse import _checks
from blocksparse._ops import ops

LABEL_DTYPES = (tf.uint8, tf.uint16, tf.int32, tf.int64)


def softmax_cross_entropy(logits, labels, name=None):
    """The cross entropy of one label for each row of logits.

    loss = log(sum_j exp(logits[j])) - logits[label]

    Args:
      logits: float32|float16|bfloat16[..., V], V >= 1. Entries of -infinity are classes that cannot
        be.
      labels: uint8|uint16|int32|int64[...], each in [0, V).
      name: optional name of the op.
    Returns:
      loss: float32[...]. Arithmetic in float32, from one read of the logits, and in a fixed order.
      Has a gradient with respect to logits, in their dtype: dloss (softmax - onehot), computed from
      the logits and two numbers for each row; gradients of gradients are not supported. A row with
      NaN or infinity, or with -infinity alone, has a loss of NaN.
    Raises:
      TypeError: a dtype is not supported.
      ValueError: the shapes do not fit, or there is no class.
      tf.errors.InvalidArgumentError: the same, found when the graph runs. On a CPU also where a
        label is out of range; the message names the first. On a GPU such a row has a loss of NaN
        and a gradient of zero instead.
    Source: openai/blocksparse `softmax_cross_entropy`, which took float16 alone and clipped
      probabilities at 2^-24; here nothing is clipped.
    Example:
      >>> loss = softmax_cross_entropy(tf.zeros([2, 4]), [0, 3])
      >>> [round(float(x), 6) for x in loss]
      [1.386294, 1.386294]
    """
    who = name or "BlocksparseSoftmaxCrossEntropy"
    logits, labels = tf.convert_to_tensor(logits), tf.convert_to_tensor(labels)
    _checks.check_dtype(who, "logits", logits.dtype)
    if labels.dtype not in LABEL_DTYPES:
        raise TypeError(
            f"{who}: labels have an unsupported dtype. Received: {labels.dtype.name}. Supported: "
            f"{_checks.names(LABEL_DTYPES)}."
        )
    shape = logits.shape
    if shape.rank is not None:
        if shape.rank < 1 or shape[-1] == 0:
            raise ValueError(
                f"{who}: logits must have rank 1 or more and at least one class on the last axis. "
                f"Received: logits.shape={shape}"
            )
        _checks.check_shape(who, "labels", labels, shape[:-1])
    loss, _, _ = ops.blocksparse_softmax_cross_entropy(logits=logits, labels=labels, name=name)
    return loss


@tf.RegisterGradient("BlocksparseSoftmaxCrossEntropy")
def _softmax_cross_entropy_gradients(op, dloss, *_):
    logits, labels = op.inputs
    _, row_max, log_sum = op.outputs
    dlogits = ops.blocksparse_softmax_cross_entropy_grad(
        dloss=dloss, logits=logits, labels=labels, row_max=row_max, log_sum=log_sum
    )
    return dlogits, None

"""Checks of arguments, with what Python can see: dtypes, and shapes as far as they are known.

The ops check the same again where Python cannot see (unknown shapes), in `src/ops/layout_inputs.h`.
"""

import numpy as np
import tensorflow as tf

DTYPES = (tf.float32, tf.float16, tf.bfloat16)
FEATURE_AXES = (0, 1)


def names(dtypes):
    return ", ".join(tf.as_dtype(dtype).name for dtype in dtypes)


def check_feature_axis(who, feature_axis):
    is_integer = isinstance(feature_axis, int | np.integer) and not isinstance(feature_axis, bool)
    if not is_integer or feature_axis not in FEATURE_AXES:
        raise ValueError(
            f"{who}: feature_axis must be 1 (features last) or 0 (features first). Received: "
            f"{feature_axis!r}"
        )


def check_dtype(who, name, dtype, expected=None, why=""):
    """`dtype` is one of DTYPES, and `expected` if that is given."""
    if dtype not in DTYPES:
        raise TypeError(
            f"{who}: {name} has an unsupported dtype. Received: {dtype.name}. Supported: "
            f"{names(DTYPES)}."
        )
    if expected is not None and dtype != expected:
        raise TypeError(f"{who}: {name} must be {expected.name}{why}. Received: {dtype.name}.")


def check_activation(who, name, tensor, layout, num_blocks, feature_axis):
    """`tensor` has num_blocks blocks of features on the feature axis."""
    shape = tensor.shape
    if shape.rank is None:
        return
    if shape.rank < 2:
        raise ValueError(
            f"{who}: {name} must have rank 2 or more (features and minibatch). Received: "
            f"{name}.shape={shape}"
        )
    features = shape[-1 if feature_axis == 1 else 0]
    expected = num_blocks * layout.block_size
    if features is not None and features != expected:
        axis = "the last axis" if feature_axis == 1 else "axis 0"
        raise ValueError(
            f"{who}: {name} must have {expected} features on {axis} "
            f"({num_blocks} blocks of {layout.block_size}, "
            f"feature_axis={feature_axis}). Received: {name}.shape={shape}"
        )


def check_same_batch(who, x, dy, layout):
    """`x` and `dy` have equally many samples."""
    if not (x.shape.is_fully_defined() and dy.shape.is_fully_defined()):
        return
    if x.shape.num_elements() * layout.out_features != dy.shape.num_elements() * layout.in_features:
        raise ValueError(
            f"{who}: x and dy must have the same minibatch. Received: x.shape={x.shape}, "
            f"dy.shape={dy.shape}"
        )


def check_shape(who, name, tensor, expected):
    """`tensor` has the shape `expected`."""
    if not tensor.shape.is_compatible_with(expected):
        raise ValueError(
            f"{who}: {name} must have shape {list(expected)}. Received: {name}.shape={tensor.shape}"
        )

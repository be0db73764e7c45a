"""Initialisers of block-sparse weights and gates.

Each is a callable `(shape, dtype=float32)`, which is what `tf.compat.v1.get_variable`, Keras'
`add_weight` and `tf.Variable(initializer(shape, dtype))` take.
"""

import numpy as np
import tensorflow as tf


class _LayoutInitializer:
    """A callable that knows its layout and the one shape that it can fill."""

    def __init__(self, layout):
        self.layout = layout

    def __call__(self, shape, dtype=tf.float32, partition_info=None, **_):
        shape = tuple(tf.TensorShape(shape).as_list())
        if shape != self.shape:
            raise ValueError(
                f"{type(self).__name__}: the variable must have shape {self.shape}. Received: "
                f"{shape}"
            )
        return self.values(tf.as_dtype(dtype))

    @property
    def shape(self):
        return self.layout.w_shape


class IdentityInit(_LayoutInitializer):
    """scale times the identity: the [C, K] matrix has `scale` where c % K == k % C, zero elsewhere.

    For a square layout that is the diagonal; for others the identity repeats along the longer
    dimension. Only stored blocks can hold it.

    Source: openai/blocksparse `BlocksparseMatMul.identity_init`.
    """

    def __init__(self, layout, scale=1.0):
        super().__init__(layout)
        self.scale = scale

    def values(self, dtype):
        in_idx, out_idx = self.layout.coordinates.T
        is_diagonal = in_idx % self.layout.out_blocks == out_idx % self.layout.in_blocks
        scales = tf.constant(np.where(is_diagonal, self.scale, 0.0), dtype)
        return scales[:, None, None] * tf.eye(self.layout.block_size, dtype=dtype)


class OrthoInit(_LayoutInitializer):
    """Orthonormal weights: W^T W = I among the output features of each block column.

    A layout with every block stored gets one orthogonal [C, K] matrix (orthonormal columns if C >=
    K, else orthonormal rows).

    Args:
      seed: of `numpy.random.default_rng`; None draws anew.
    Source: openai/blocksparse `BlocksparseMatMul.ortho_init`, which never ran.
    """

    def __init__(self, layout, seed=None):
        super().__init__(layout)
        self.seed = seed

    def values(self, dtype):
        rng = np.random.default_rng(self.seed)
        layout, size = self.layout, self.layout.block_size
        if layout.num_blocks == layout.mask.size:
            w = layout.from_dense(_orthonormal(rng, layout.in_features, layout.out_features))
        else:
            w = np.empty(layout.w_shape)
            out_idx = layout.coordinates[:, 1]
            for column in np.unique(out_idx):
                blocks = np.flatnonzero(out_idx == column)
                w[blocks] = _orthonormal(rng, len(blocks) * size, size).reshape(-1, size, size)
        return tf.constant(w.astype(np.float32), dtype)


class CheckerInit(_LayoutInitializer):
    """A gate vector that opens the blocks where input and output block index have equal parity.

    Source: openai/blocksparse `BlocksparseMatMul.checker_init`.
    """

    @property
    def shape(self):
        return (self.layout.num_blocks,)

    def values(self, dtype):
        in_idx, out_idx = self.layout.coordinates.T
        return tf.constant((in_idx & 1) ^ (out_idx & 1) ^ 1, dtype)


def _orthonormal(rng, rows, cols):
    """A random [rows, cols] matrix whose shorter side's vectors are orthonormal."""
    if rows < cols:
        return _orthonormal(rng, cols, rows).T
    q, r = np.linalg.qr(rng.standard_normal((rows, cols)))
    return q * np.sign(np.diagonal(r))  # without the signs the distribution would not be uniform

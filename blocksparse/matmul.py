"""BlocksparseMatMul: a block-sparse matrix product as an object, with the original's names.

The arithmetic is in `matmul_ops.py`; the object holds a layout and how to call it.
"""

import numpy as np

from blocksparse import _checks
from blocksparse.advice import advise
from blocksparse.l2_norm import l2_normalize
from blocksparse.layout import SparsityLayout
from blocksparse.matmul_grouping import (
    block_reduced_full_dw,
    dw_matmul_large_n,
    get_bsmm_dx_ops,
    group_param_grads,
    reduced_full_dw,
)
from blocksparse.matmul_init import CheckerInit, IdentityInit, OrthoInit
from blocksparse.matmul_ops import matmul, matmul_dw, matmul_dx
from blocksparse.sparse_proj import SparseProj
from blocksparse.testing import reference

__all__ = [
    "BlocksparseMatMul",
    "SparseProj",
    "block_reduced_full_dw",
    "dw_matmul_large_n",
    "get_bsmm_dx_ops",
    "group_param_grads",
    "largest_block",
    "matmul",
    "matmul_dw",
    "matmul_dx",
    "reduced_full_dw",
]


class BlocksparseMatMul:
    """A block-sparse matrix product, called on (x, w).

    Immutable, hashable and equal by content; two objects of one mask share nothing but may be
    exchanged. Pickles to its arguments.

    Args:
      layout: bool, integer or float [in_blocks, out_blocks], nonzero where a block is stored; or a
        `SparsityLayout`, which then brings its own block_size and z_order.
      block_size: 8, 16, 32, 64 or 128.
      feature_axis: 1 for activations [..., features], 0 for [features, ...].
      z_order: storage order of the blocks, see `SparsityLayout`.
      name: prefix of the ops' names.
    Attributes:
      sparsity_layout: the `SparsityLayout`.
      layout: bool[in_blocks, out_blocks], read-only.
      w_shape: (num_blocks, block_size, block_size), the shape of w.
      g_shape: (num_blocks,), the shape of a gate.
      flops: floating-point operations of one product for one sample.
      sparsity: the share of blocks that are stored, rounded to three digits: a density, in spite of
        its name, which is the original's.
      axis, bsize, CB, KB, C, K, blocks, z_order, name: the original's names for feature_axis,
        block_size, blocks and features of input (C) and output (K), and the number of stored
        blocks.
    Raises:
      TypeError, ValueError: as `SparsityLayout`; feature_axis is neither 0 nor 1.
    Source: openai/blocksparse `matmul.py`.
    Example:
      >>> bsmm = BlocksparseMatMul([[1, 0], [1, 1]], block_size=8)
      >>> w = tf.Variable(tf.ones(bsmm.w_shape))
      >>> bsmm(tf.ones([4, 16]), w).shape.as_list()
      [4, 16]
    """

    def __init__(self, layout, block_size=32, feature_axis=1, z_order=True, name=None):
        _checks.check_feature_axis("BlocksparseMatMul", feature_axis)
        if not isinstance(layout, SparsityLayout):
            layout = SparsityLayout(layout, block_size, z_order)
        self.sparsity_layout = layout
        self.axis = feature_axis
        self.name = name or "BlocksparseMatMul"

    def __call__(self, x, w, gate=None, gate_grad=False, dw_gated=False, name=None, dw_dtype=None):
        """y = x W; see `blocksparse.matmul.matmul` for arguments, result and errors."""
        return matmul(
            x,
            w,
            self.sparsity_layout,
            feature_axis=self.axis,
            gate=gate,
            gate_grad=gate_grad,
            dw_gated=dw_gated,
            dw_dtype=dw_dtype,
            name=name or self.name,
        )

    matmul = __call__

    # ---- sizes ----

    layout = property(lambda self: self.sparsity_layout.mask)
    bsize = property(lambda self: self.sparsity_layout.block_size)
    z_order = property(lambda self: self.sparsity_layout.z_order)
    CB = property(lambda self: self.sparsity_layout.in_blocks)
    KB = property(lambda self: self.sparsity_layout.out_blocks)
    C = property(lambda self: self.sparsity_layout.in_features)
    K = property(lambda self: self.sparsity_layout.out_features)
    blocks = property(lambda self: self.sparsity_layout.num_blocks)
    w_shape = property(lambda self: self.sparsity_layout.w_shape)
    g_shape = property(lambda self: (self.blocks,))
    flops = property(lambda self: 2 * self.blocks * self.bsize**2)
    sparsity = property(lambda self: round(self.sparsity_layout.density, 3))

    def i_shape(self, n):
        """Shape of an input of n samples."""
        return (n, self.C) if self.axis == 1 else (self.C, n)

    def o_shape(self, n):
        """Shape of an output of n samples."""
        return (n, self.K) if self.axis == 1 else (self.K, n)

    def block_coord(self, block):
        """(input block, output block) of a stored block."""
        if not 0 <= block < self.blocks:
            raise IndexError(
                f"BlocksparseMatMul.block_coord: block must be 0 to {self.blocks - 1}. Received: "
                f"{block}"
            )
        return tuple(self.sparsity_layout.coordinates[block].tolist())

    def advise(self, n, dtype="bfloat16", device="NVIDIA H200"):
        """What fprop, dx and dw of n samples will cost beside dense products, without a device.

        Times are interpolated between measurements of random layouts on an otherwise idle device.

        Args:
          n: samples of a minibatch.
          dtype: "bfloat16" (float16 costs the same), "float32", or "tf32" for float32 with
            TensorFlow's TensorFloat-32 switch on.
          device: that was measured, as `nvidia-smi` names it.
        Returns:
          `blocksparse.advice.Advice`: an estimate of each product, `speedup` over the dense
          products; printed, a table.
        Raises:
          ValueError: n is not a positive integer; dtype or device was not measured.
        Example:
          >>> BlocksparseMatMul(np.eye(64), block_size=64).advise(8192).speedup > 1
          True
        """
        return advise(self.sparsity_layout, n, dtype, device)

    # ---- weights ----

    def identity_init(self, scale=1.0):
        """An initialiser: `scale` times the identity. With layer norm it is all that is needed."""
        return IdentityInit(self.sparsity_layout, scale)

    def ortho_init(self, seed=None):
        """An initialiser: orthonormal output features within each block column."""
        return OrthoInit(self.sparsity_layout, seed)

    def checker_init(self):
        """An initialiser of a gate vector (`g_shape`): a checkerboard."""
        return CheckerInit(self.sparsity_layout)

    def l2_normalize(self, w, gain=None, epsilon=1e-12, dtype="float32"):
        """Weights whose output features have the same length; see `blocksparse.l2_normalize`."""
        return l2_normalize(w, self.sparsity_layout, gain=gain, epsilon=epsilon, dtype=dtype)

    def prune(self, param, gate):
        """The weights that remain when the blocks with gate 0 are dropped, and a gate for them.

        Works on anything shaped like w: weights, or an optimizer's slots. `pruned(gate)` is the
        product over the remaining blocks; this object stays as it is.

        Args:
          param: numpy array or eager tensor [num_blocks, ...].
          gate: the same [num_blocks].
        Returns:
          (param, gate): numpy arrays of the remaining blocks in their storage order; the new gate
          is all ones.
        Raises:
          ValueError: a shape does not fit, or no block would remain.
        """
        param, gate = np.asarray(param), self._check_prune_gate(gate)
        if param.shape[:1] != self.g_shape:
            raise ValueError(
                f"BlocksparseMatMul.prune: param must have {self.blocks} blocks. "
                f"Received: shape {param.shape}"
            )
        keep = gate != 0
        return param[keep], np.ones(keep.sum(), gate.dtype)

    def pruned(self, gate, quick_plan=True):
        """The BlocksparseMatMul over the blocks whose gate is not 0. Raises as `prune`.

        quick_plan: as of `SparsityLayout`: the result is wanted at once, and will be pruned again.
        """
        keep = self._check_prune_gate(gate) != 0
        mask = np.zeros_like(self.layout)
        mask[tuple(self.sparsity_layout.coordinates[keep].T)] = True
        layout = SparsityLayout(mask, self.bsize, self.z_order, quick_plan)
        return BlocksparseMatMul(layout, feature_axis=self.axis, name=self.name)

    def _check_prune_gate(self, gate):
        gate = np.asarray(gate)
        if gate.shape != self.g_shape or not np.any(gate != 0):
            raise ValueError(
                f"BlocksparseMatMul.prune: gate must have shape {self.g_shape} and a nonzero "
                "element. "
                f"Received: shape {gate.shape}, {np.count_nonzero(gate)} nonzero"
            )
        return gate

    # ---- references in float64, for tests ----

    def fprop_test(self, x, w, gate=None):
        """y in float64 numpy, from the dense matrix."""
        return reference.matmul(x, w, self.sparsity_layout, self.axis, gate)

    def bprop_test(self, dy, w, gate=None):
        """dx in float64 numpy, from the dense matrix."""
        return reference.matmul_dx(dy, w, self.sparsity_layout, self.axis, gate)

    def updat_test(self, x, dy, gate=None, dw_gated=False):
        """dw in float64 numpy, from the dense matrix."""
        return reference.matmul_dw(
            x, dy, self.sparsity_layout, self.axis, gate if dw_gated else None
        )

    def l2_normalize_test(self, w, epsilon=1e-12):
        """`l2_normalize` in float64 numpy."""
        return reference.l2_normalize(w, self.sparsity_layout, epsilon=epsilon)

    def l2_normalize_grad_test(self, w, dy, epsilon=1e-12):
        """The gradient of `l2_normalize` with respect to w in float64 numpy."""
        return reference.l2_normalize_grad(w, dy, self.sparsity_layout, epsilon=epsilon)[0]

    # ---- identity ----

    def __getstate__(self):
        return self.sparsity_layout, self.axis, self.name

    def __setstate__(self, state):
        self.sparsity_layout, self.axis, self.name = state

    def __eq__(self, other):
        return isinstance(other, BlocksparseMatMul) and self._content == other._content

    def __hash__(self):
        return hash(self._content)

    _content = property(lambda self: (self.sparsity_layout, self.axis))

    def __repr__(self):
        return f"{self.name}({self.sparsity_layout!r}, feature_axis={self.axis})"


def largest_block(dim):
    """The largest of the block sizes 32, 16 and 8 that divides dim, and how many such blocks it
    has.

    Raises:
      ValueError: dim is not a multiple of 8.
    """
    for size in (32, 16, 8):
        if dim > 0 and dim % size == 0:
            return size, dim // size
    raise ValueError(
        f"largest_block: the dimension must be a positive multiple of 8. Received: {dim}"
    )

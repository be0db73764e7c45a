"""Block-sparse matrix products for TensorFlow, on CPU and GPU."""

from blocksparse.l2_norm import l2_normalize
from blocksparse.layer_norm import layer_norm
from blocksparse.layout import SparsityLayout
from blocksparse.matmul import (
    BlocksparseMatMul,
    SparseProj,
    block_reduced_full_dw,
    dw_matmul_large_n,
    get_bsmm_dx_ops,
    group_param_grads,
    largest_block,
    matmul_dw,
    matmul_dx,
    reduced_full_dw,
)

__version__ = "0.1.0"

__all__ = [
    # matmul
    "BlocksparseMatMul",
    "SparsityLayout",
    "largest_block",
    "matmul_dw",
    "matmul_dx",
    "block_reduced_full_dw",
    "dw_matmul_large_n",
    "get_bsmm_dx_ops",
    "group_param_grads",
    "reduced_full_dw",
    # l2_norm
    "l2_normalize",
    # layer_norm
    "layer_norm",
    # sparse_proj
    "SparseProj",
]

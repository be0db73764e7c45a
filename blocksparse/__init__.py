"""Block-sparse matrix products for TensorFlow, on CPU and GPU."""

from blocksparse import patterns
from blocksparse.clip import clip_by_global_norm, global_norm
from blocksparse.cross_entropy import softmax_cross_entropy
from blocksparse.embedding import embedding_lookup
from blocksparse.ewops import add_n, add_n8, bias_relu, dropout, float_cast
from blocksparse.l2_norm import l2_normalize
from blocksparse.layer_norm import layer_norm
from blocksparse.layout import SparsityLayout
from blocksparse.lstm import basic_lstm_step, group_lstm_grads, grouped_lstm, grouped_lstm_weights
from blocksparse.lstm_gates import concat4, fused_lstm_gates, sparse_relu, split4
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
from blocksparse.mlstm import MLSTMConfig, mlstm_cell, mlstm_inputs, mlstm_sequence, mlstm_weights

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
    # lstm_gates
    "concat4",
    "fused_lstm_gates",
    "sparse_relu",
    "split4",
    # cross_entropy
    "softmax_cross_entropy",
    # embedding
    "embedding_lookup",
    # ewops
    "add_n",
    "add_n8",
    "bias_relu",
    "dropout",
    "float_cast",
    # clip
    "clip_by_global_norm",
    "global_norm",
    # layer_norm
    "layer_norm",
    # sparse_proj
    "SparseProj",
    # lstm
    "basic_lstm_step",
    "group_lstm_grads",
    "grouped_lstm",
    "grouped_lstm_weights",
    # mlstm; Keras layers are in blocksparse.layers
    "MLSTMConfig",
    "mlstm_cell",
    "mlstm_inputs",
    "mlstm_sequence",
    "mlstm_weights",
    # masks: random, small-world, banded, ...
    "patterns",
]

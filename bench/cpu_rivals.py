"""Other people's sparse products on CPUs: y = x W in float32, each in the layout that suits it."""

import numpy as np
import tensorflow as tf

try:
    import torch
except ImportError:
    torch = None


def csr(layout, w, x):
    """TensorFlow's CSRSparseMatrix, features first; the sparse matrix is made beforehand."""
    matrix = layout.to_bsr(w).T.tocoo()
    indices = tf.constant(np.stack([matrix.row, matrix.col], axis=1), tf.int64)
    sparse = tf.sparse.reorder(tf.SparseTensor(indices, matrix.data, matrix.shape))
    a = tf.raw_ops.SparseTensorToCSRSparseMatrix(
        indices=sparse.indices, values=sparse.values, dense_shape=sparse.dense_shape
    )
    b = tf.constant(np.ascontiguousarray(x.T))

    def call():
        return tf.raw_ops.SparseMatrixMatMul(a=a, b=b)

    return lambda: call().numpy().T, call


def scipy_bsr(layout, w, x):
    """scipy's BSR, features first, on one thread."""
    matrix = layout.to_bsr(w).T.tobsr(blocksize=(layout.block_size,) * 2)
    b = np.ascontiguousarray(x.T)
    return lambda: (matrix @ b).T, lambda: matrix @ b


def torch_bsr(layout, w, x):
    """torch's BSR, features first; None where torch is not installed."""
    if torch is None:
        return None
    torch.set_num_threads(tf.config.threading.get_intra_op_parallelism_threads())
    matrix = layout.to_bsr(w).T.tobsr(blocksize=(layout.block_size,) * 2)
    pointers, indices = (
        torch.from_numpy(i.astype(np.int64)) for i in (matrix.indptr, matrix.indices)
    )
    a = torch.sparse_bsr_tensor(pointers, indices, torch.from_numpy(matrix.data), matrix.shape)
    b = torch.from_numpy(np.ascontiguousarray(x.T))
    return lambda: (a @ b).numpy().T, lambda: a @ b


RIVALS = {"csr": csr, "scipy": scipy_bsr, "torch": torch_bsr}

"""The announcement's example on TensorFlow 2: a block-sparse product and its gradients."""

import numpy as np
import tensorflow as tf

from blocksparse.matmul import BlocksparseMatMul

hidden_size = 4096
block_size = 32
minibatch_size = 64

# Create a (random) sparsity pattern
sparsity = np.random.randint(2, size=(hidden_size // block_size, hidden_size // block_size))

# Initialize the sparse matrix multiplication object
bsmm = BlocksparseMatMul(sparsity, block_size=block_size)

# Initialize block-sparse weights
w = tf.Variable(tf.random.normal(bsmm.w_shape, stddev=0.02))

# Block-sparse matrix multiplication
x = tf.ones([minibatch_size, hidden_size])
with tf.GradientTape() as tape:
    tape.watch(x)
    y = bsmm(x, w)
    loss = tf.reduce_mean(y**2)
dx, dw = tape.gradient(loss, [x, w])

print(bsmm)
print("y ", y.shape, y[0, :4].numpy())
print("dx", dx.shape, "dw", dw.shape)
error = np.abs(y - bsmm.fprop_test(x, w)).max()
print(f"largest difference from the dense product in float64: {error:.1e}")

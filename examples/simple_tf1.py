"""The announcement's example, on TensorFlow 1's interface."""

import numpy as np
import tensorflow.compat.v1 as tf

from blocksparse.matmul import BlocksparseMatMul

tf.disable_v2_behavior()

hidden_size = 4096
block_size = 32
minibatch_size = 64

# Create a (random) sparsity pattern
sparsity = np.random.randint(2, size=(hidden_size // block_size, hidden_size // block_size))

# Initialize the sparse matrix multiplication object
bsmm = BlocksparseMatMul(sparsity, block_size=block_size)

# Input to graph
x = tf.placeholder(tf.float32, shape=[None, hidden_size])

# Initialize block-sparse weights
w = tf.get_variable("w", bsmm.w_shape, dtype=tf.float32)

# Block-sparse matrix multiplication
y = bsmm(x, w)

# Run
sess = tf.InteractiveSession()
sess.run(tf.global_variables_initializer())
ones = np.ones((minibatch_size, hidden_size), dtype="float32")
result = sess.run([y], feed_dict={x: ones})
print(result)

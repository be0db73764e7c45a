"""Prints TensorFlow's compiler and linker flags as a Makefile fragment.

-isystem instead of -I: TensorFlow's own headers warn by the thousand.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

compile_flags = (
    " ".join(tf.sysconfig.get_compile_flags()).replace("-I", "-isystem ").replace("--std=c++17", "")
)
print("TF_CFLAGS :=", compile_flags)
print("TF_LFLAGS :=", " ".join(tf.sysconfig.get_link_flags()))

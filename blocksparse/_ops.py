"""Loads the shared library on import: a SavedModel needs its ops registered."""

import pathlib

import tensorflow as tf

_LIBRARY = pathlib.Path(__file__).with_name("_blocksparse_ops.so")


def _minor(version):
    return ".".join(version.split(".")[:2])


def _load():
    try:
        from blocksparse import _build_info
    except ImportError:
        raise ImportError(
            f"blocksparse: the shared library {_LIBRARY.name} has not been built. Run `make build` "
            "in the source tree, or install a wheel made by `make wheel`."
        ) from None
    built, found = _build_info.TF_VERSION, tf.__version__
    remedy = (
        f"Install TensorFlow {_minor(built)} (pip install 'tensorflow=={_minor(built)}.*'), "
        f"or rebuild blocksparse under TensorFlow {found}."
    )
    # Under another minor version loading would fail with an undefined symbol, at best.
    if _minor(built) != _minor(found):
        raise ImportError(
            f"blocksparse was built for TensorFlow {built}, but TensorFlow {found} is installed. "
            f"{remedy}"
        )
    try:
        return tf.load_op_library(str(_LIBRARY))
    except tf.errors.NotFoundError as error:
        raise ImportError(
            f"blocksparse, built for TensorFlow {built}, cannot be loaded under TensorFlow "
            f"{found}. {remedy} The loader said: {error.message}"
        ) from error


ops = _load()

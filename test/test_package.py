"""The shared library: what it exports and needs, and what happens when it does not fit."""

import pathlib
import shutil
import subprocess
import sys

import pytest
import tensorflow as tf
from tensorflow.python.framework import kernels as registry  # the registry has no public interface

import blocksparse
from blocksparse import _build_info

PACKAGE = pathlib.Path(blocksparse.__file__).parent
LIBRARY = PACKAGE / "_blocksparse_ops.so"
OPS = (
    "BlocksparseMatmul",
    "BlocksparseMatmulDX",
    "BlocksparseMatmulDW",
    "BlocksparseMatmulDG",
    "BlocksparseL2Normalize",
    "BlocksparseL2NormalizeGrad",
    "BlocksparseLstmGates",
    "BlocksparseLstmGatesGrad",
    "BlocksparseSoftmaxCrossEntropy",
    "BlocksparseSoftmaxCrossEntropyGrad",
    "BlocksparseEmbeddingLookup",
    "BlocksparseEmbeddingLookupGrad",
    "BlocksparseLayerNorm",
    "BlocksparseLayerNormGrad",
)


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_its_kernels(op):
    devices = [kernel.device_type for kernel in registry.get_registered_kernels_for_op(op).kernel]
    assert sorted(devices) == (["CPU", "GPU"] if _build_info.CUDA_VERSION else ["CPU"])


def test_the_library_expects_no_cuda_from_outside():
    if not shutil.which("nm"):
        pytest.skip("nm is not installed")
    command = ["nm", "-D", "--undefined-only", str(LIBRARY)]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert not [s for s in symbols if s.startswith(("cuda", "__cuda", "cuLaunch", "cuMem"))]


def import_copy(folder, build_info, with_library=True):
    """Imports a copy of the package with another _build_info.py; returns the error's last line."""
    copy = folder / "blocksparse"
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "_build_info.py")
    shutil.copytree(PACKAGE, copy, ignore=ignore)
    if build_info is not None:
        (copy / "_build_info.py").write_text(build_info)
    if with_library:
        (copy / LIBRARY.name).symlink_to(LIBRARY)
    command = [sys.executable, "-c", "import sys; sys.path.insert(0, '.'); import blocksparse"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode != 0
    return done.stderr.strip().splitlines()[-1]


def test_another_tensorflow_minor_version_is_an_import_error(tmp_path):
    error = import_copy(tmp_path, 'TF_VERSION = "2.7.1"\nCUDA_VERSION = ""\n')
    assert error == (
        "ImportError: blocksparse was built for TensorFlow 2.7.1, but TensorFlow "
        f"{tf.__version__} is installed. "
        "Install TensorFlow 2.7 (pip install 'tensorflow==2.7.*'), or rebuild blocksparse under "
        "TensorFlow "
        f"{tf.__version__}."
    )


def test_a_library_that_cannot_be_loaded_is_an_import_error(tmp_path):
    build_info = f'TF_VERSION = "{tf.__version__}"\nCUDA_VERSION = ""\n'
    error = import_copy(tmp_path, build_info, with_library=False)
    assert (
        error.startswith("ImportError: blocksparse, built for TensorFlow")
        and "The loader said" in error
    )


def test_a_source_tree_that_was_not_built_is_an_import_error(tmp_path):
    assert "has not been built. Run `make build`" in import_copy(tmp_path, None)

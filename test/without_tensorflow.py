"""For tests of the kernels that run without TensorFlow where BLOCKSPARSE_KERNELS names the library
of `make kernels`: importing this makes the package's half that needs none importable.
"""

import os
import pathlib
import sys
import types

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
ALONE = os.environ.get("BLOCKSPARSE_KERNELS")
if ALONE and "blocksparse" not in sys.modules:
    # The package without its __init__, which imports TensorFlow.
    package = types.ModuleType("blocksparse")
    package.__path__ = [str(ROOT / "blocksparse")]
    sys.modules["blocksparse"] = package


def hopper():
    """torch, where it sees an sm_90 GPU and there is a library to test; else None."""
    try:
        import torch
    except ImportError:
        return None
    has_gpu = ALONE and torch.cuda.is_available()
    return torch if has_gpu and torch.cuda.get_device_capability() == (9, 0) else None


needs_hopper = pytest.mark.skipif(
    hopper() is None, reason="needs torch, an sm_90 GPU and BLOCKSPARSE_KERNELS"
)


def random_layout(size, rows, columns, density, seed=0):
    from blocksparse.layout import SparsityLayout

    rng = np.random.default_rng(seed)
    return SparsityLayout(rng.random((rows, columns)) < density, size)

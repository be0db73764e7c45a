"""write_build_info.py NVCC ARCHS PTX: prints blocksparse/_build_info.py."""

import os
import re
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

nvcc, archs, ptx = sys.argv[1:]
cuda = ""
if nvcc:
    version = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    cuda = re.search(r"release ([\d.]+)", version).group(1)

print('"""What the shared library was built for; written by the build."""')
print(f"TF_VERSION = {tf.__version__!r}")
print(f"CUDA_VERSION = {cuda!r}  # empty: CPU kernels only")
print(f"CUDA_ARCHS = {tuple(archs.split()) if cuda else ()!r}")
print(f"CUDA_PTX = {ptx if cuda else ''!r}")

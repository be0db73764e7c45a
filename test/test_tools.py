"""The build's guards: each is shown the fault that it is there for."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TOOLS = ROOT / "tools"

GOOD_LOG = """\
ptxas info    : Compiling entry function '_ZN11blocksparse11MatmulKernelEv' for 'sm_90a'
ptxas info    : Function properties for _ZN11blocksparse11MatmulKernelEv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 96 registers, used 1 barriers, 24576 bytes smem
"""
SPILL_LOG = GOOD_LOG.replace("0 bytes spill stores", "48 bytes spill stores")
WGMMA_LOG = (
    GOOD_LOG + "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions"
    " are serialized due to function call in the function '_ZN3fooEv'\n"
)


def run(*command, **env):
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **env}
    )


@pytest.mark.parametrize(
    "log, complaint",
    [(GOOD_LOG, ""), (SPILL_LOG, "48 bytes of registers spilled"), (WGMMA_LOG, "serialized")],
    ids=["good", "spill", "wgmma"],
)
def test_check_ptxas_fails_on_spills_and_serialised_wgmma(tmp_path, log, complaint):
    path = tmp_path / "kernel.log"
    path.write_text(log)
    done = run(sys.executable, str(TOOLS / "check_ptxas.py"), str(path))
    assert done.returncode == (1 if complaint else 0)
    assert complaint in done.stderr


@pytest.mark.skipif(not shutil.which("nm"), reason="nm is not installed")
@pytest.mark.parametrize(
    "symbol, is_refused", [("cudaLaunchKernel", True), ("cudada", True), ("sin", False)]
)
def test_check_symbols_refuses_foreign_cuda_symbols(tmp_path, symbol, is_refused):
    source, library = tmp_path / "a.c", tmp_path / "a.so"
    source.write_text(f"extern void {symbol}(void); void f(void) {{ {symbol}(); }}")
    subprocess.run(
        ["gcc", "-w", "-shared", "-fPIC", "-fno-builtin", "-o", library, source], check=True
    )
    done = run("bash", str(TOOLS / "check_symbols.sh"), str(library))
    assert done.returncode == is_refused
    assert library.exists() != is_refused
    assert (symbol in done.stderr) == is_refused


def old_python(folder):
    path = folder / "old_python"
    path.write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.8.1" && exit\nexit 1\n')
    path.chmod(0o755)
    return str(path)


def python_without_venv(folder):
    path = folder / "no_venv"
    path.write_text('#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\nexit 0\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    "python, cxx, sentence",
    [
        (lambda _: "/nowhere/python3", "g++", "python3 is missing; install Python 3.10 or newer"),
        (old_python, "g++", "Python 3.10 or newer is needed, but"),
        (python_without_venv, "g++", "install it (apt-get install python3-venv)"),
        (lambda _: sys.executable, "/nowhere/g++", "install g++ (apt-get install g++)"),
    ],
    ids=["no python", "old python", "no venv", "no compiler"],
)
def test_what_is_missing_is_named_in_one_sentence(tmp_path, python, cxx, sentence):
    done = run(
        "bash", str(TOOLS / "make_venv.sh"), str(tmp_path / "venv"), "tensorflow-cpu",
        PYTHON3=python(tmp_path), CXX=cxx,
    )  # fmt: skip
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and sentence in done.stderr


@pytest.mark.parametrize("target", ["demo", "test", "test-gpu", "sanitize", "build", "wheel"])
def test_make_lists_its_targets(target):
    done = run("make")
    assert done.returncode == 0
    assert f"make {target} " in done.stdout


def test_make_room_lists_the_files_of_a_room():
    done = run("make", "--no-print-directory", "room", "OP=l2_norm")
    for name in ("blocksparse/l2_norm.py", "src/ops/l2_norm_op.cc", "src/kernels/l2_norm.cu"):
        assert name in done.stdout

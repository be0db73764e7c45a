#!/usr/bin/env bash
# make_venv.sh VENV TENSORFLOW: creates the virtual environment with TensorFlow and the development tools.
# What is missing on the machine ends it with one sentence that says what to install.
set -euo pipefail
venv=$1 tensorflow=$2

die() { echo "blocksparse: $*" >&2; exit 1; }

command -v "$PYTHON3" >/dev/null || die "python3 is missing; install Python 3.10 or newer (apt-get install python3)."
"$PYTHON3" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  die "Python 3.10 or newer is needed, but $PYTHON3 is $("$PYTHON3" -V 2>&1); install a newer one and set PYTHON3."
"$PYTHON3" -c 'import venv, ensurepip' 2>/dev/null ||
  die "Python's venv module is missing; install it (apt-get install python3-venv)."
command -v "$CXX" >/dev/null || die "a C++ compiler is missing; install g++ (apt-get install g++)."

"$PYTHON3" -m venv "$venv"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" --upgrade 'pip>=25.1'  # reads [dependency-groups]
"${pip[@]}" "$tensorflow" --group dev
# The source tree is importable from the environment, so that what `make build` builds is what runs.
pwd > "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/blocksparse.pth"

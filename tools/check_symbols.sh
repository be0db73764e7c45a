#!/usr/bin/env bash
# check_symbols.sh LIBRARY: fails if the library expects CUDA symbols from outside. TensorFlow exports stubs of the same
# names, for another CUDA version; a library that binds to them loads and then misbehaves.
set -euo pipefail
symbols=$(nm -D --undefined-only "$1" | grep -E ' (__cuda|cuda|cu[A-Z])' || true)
if [ -n "$symbols" ]; then
  rm -f "$1"
  echo "blocksparse: $1 has undefined CUDA symbols; libcudart_static.a must come before TensorFlow when linking:" >&2
  echo "$symbols" >&2
  exit 1
fi

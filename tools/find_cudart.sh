#!/usr/bin/env bash
# find_cudart.sh NVCC: prints the path of the static CUDA runtime that this nvcc would link.
set -euo pipefail
folders=$("$1" -dryrun -x cu /dev/null -o /dev/null 2>&1 | sed -n 's/^#\$ LIBRARIES=//p' | tr -d '"' | tr ' ' '\n' |
  sed -n 's/^-L//p')
for folder in $folders /usr/lib/x86_64-linux-gnu; do
  if [ -f "$folder/libcudart_static.a" ]; then
    echo "$folder/libcudart_static.a"
    exit 0
  fi
done
echo "blocksparse: libcudart_static.a was not found beside $1; install the CUDA runtime's development files." >&2
exit 1

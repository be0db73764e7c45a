#!/usr/bin/env bash
# sanitize.sh BUILD_FOLDER: the tests under AddressSanitizer and UndefinedBehaviorSanitizer (CPU) and, where there is a
# GPU, under compute-sanitizer's memcheck, racecheck and synccheck.
# PYTHON names the Python to use. Any finding ends it with a non-zero status.
set -euo pipefail
build=$1
tests="-q -s -p no:cacheprovider"  # -s: a finding ends the process, and what it says must not be kept back
export TF_CPP_MIN_LOG_LEVEL=3

echo "== AddressSanitizer and UndefinedBehaviorSanitizer: the CPU kernels through their C interface"
flags="-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
make --no-print-directory -j2 kernels BUILD="$build" NVCC= SANITIZE="$flags" >/dev/null
runtimes="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so) $(g++ -print-file-name=libstdc++.so)"
sanitized() {
  # Python and TensorFlow themselves leak and are not instrumented; what counts is our own code.
  LD_PRELOAD="$runtimes" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 "$@"
}
BLOCKSPARSE_KERNELS="$build/libblocksparse_kernels.so" \
  sanitized "$PYTHON" -m pytest $tests --noconftest test/test_kernels.py test/test_cpu_levels.py -k "not GPU"

if ! command -v compute-sanitizer >/dev/null || ! nvidia-smi >/dev/null 2>&1; then
  echo "No GPU or no compute-sanitizer: the GPU kernels were not checked."
  exit 0
fi

make --no-print-directory -j"$(nproc)" kernels >/dev/null
make --no-print-directory -j"$(nproc)" kernels BUILD="$build-racecheck" NVCC_DEFINES=-DBLOCKSPARSE_RACECHECK >/dev/null
declare -A folder=([memcheck]=build [racecheck]=$build-racecheck [synccheck]=build)
# Without its pool torch gives every tensor an allocation of its own, so that any access outside is seen.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
# racecheck follows every shared memory access and is a hundred times slower: it gets the short minibatches.
short="GPU and not 3001 and not 9112 and not damaged"
declare -A selection=([memcheck]=GPU [racecheck]=$short [synccheck]=$short)
declare -A packed=([memcheck]=GPU [racecheck]=fewest [synccheck]=fewest)
hopper="test/test_kernels_wide.py test/test_kernels_wide_float.py test/test_kernels_region_dw.py"
hopper="$hopper test/test_kernels_stream.py"
declare -A of_hopper=([memcheck]="not damaged" [racecheck]="gate or hubs and 32" [synccheck]="gate or hubs and 32")
# A thread block of the wide kernels has 131 barriers.
declare -A options=([memcheck]="" [racecheck]="" [synccheck]="--num-cuda-barriers 65536")
# The ops under TensorFlow: every room but the products, which the C interface covers.
rooms="test/test_l2_norm.py test/test_layer_norm.py test/test_lstm_gates.py test/test_cross_entropy.py test/test_embedding.py"
declare -A ops=([memcheck]="$rooms test/test_matmul_gate.py" [racecheck]="$rooms -k eager" [synccheck]="$rooms -k eager")
export TF_GPU_ALLOCATOR=cuda_malloc_async  # no pool of TensorFlow's own, for the same reason
for tool in memcheck racecheck synccheck; do
  echo "== compute-sanitizer $tool: the GPU kernels"
  check=(compute-sanitizer --tool "$tool" --kernel-name kns=blocksparse --error-exitcode 9 --print-limit 20
         ${options[$tool]})
  if "$PYTHON" -c 'import torch' 2>/dev/null; then
    export BLOCKSPARSE_KERNELS="${folder[$tool]}/libblocksparse_kernels.so"
    "${check[@]}" "$PYTHON" -m pytest $tests --noconftest test/test_kernels.py -k "${selection[$tool]}"
    "${check[@]}" "$PYTHON" -m pytest $tests --noconftest test/test_matmul_packed.py -k "${packed[$tool]}"
    "${check[@]}" "$PYTHON" -m pytest $tests --noconftest $hopper -k "${of_hopper[$tool]}"
    unset BLOCKSPARSE_KERNELS
  fi
  if "$PYTHON" -c 'import tensorflow' 2>/dev/null; then
    "${check[@]}" "$PYTHON" -m pytest $tests -m gpu ${ops[$tool]}
  fi
done

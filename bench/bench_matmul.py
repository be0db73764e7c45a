"""Times the block-sparse products beside TensorFlow's dense product of the same shape.

    python bench/bench_matmul.py --dtype bfloat16 --block 32 --density 0.1 --shape 4096x4096x8192
    python bench/bench_matmul.py --json bench/results/NAME.json          # the table of cases below

Times are those of an op inside a `tf.function` of CALLS products of different inputs. Each case is
first checked against the dense product. "useful" counts the stored blocks only; "of dense" is the
speed-up times the density: 1.0 means that no time is lost to sparsity. With --kernels, a results
file of bench_kernels.py, "kernel" is what it measured for the same case without TensorFlow.
"""

import argparse
import itertools
import json

import goals
import numpy as np
import tensorflow as tf

import blocksparse as bs
from blocksparse.testing import layouts
from blocksparse.testing.timing import environment, time_call

# (in_features, out_features, minibatch) of the cases, by device.
SHAPES = {"GPU": [(4096, 4096, 8192), (12288, 12288, 32)], "CPU": [(2048, 2048, 64)]}
DTYPES = {"GPU": ["bfloat16", "float32"], "CPU": ["float32"]}
BLOCKS = [8, 16, 32, 64, 128]
DENSITIES = [0.05, 0.1, 0.25, 0.5]
CALLS = 12


def bench_case(shape, dtype, block, density, axis, refcheck):
    """Yields a result for each of fprop, dx and dw."""
    rng = np.random.default_rng(0)
    in_features, out_features, n = shape
    mask = layouts.random(rng, in_features // block, out_features // block, density)
    bsmm = bs.BlocksparseMatMul(mask, block, axis)
    density = bsmm.sparsity_layout.density
    sets = [  # more input than the second-level cache of a GPU holds
        tuple(
            tf.cast(tf.random.stateless_normal(s, [i, j]), dtype)
            for j, s in enumerate((bsmm.i_shape(n), bsmm.w_shape, bsmm.o_shape(n)))
        )
        for i in range(CALLS)
    ]
    dense_w = tf.cast(bsmm.sparsity_layout.to_dense(sets[0][1].numpy().astype(np.float32)), dtype)
    first = axis == 0
    calls = {
        "fprop": (
            lambda x, w, dy: bsmm(x, w),
            lambda x, w, dy: (
                tf.matmul(dense_w, x, transpose_a=True) if first else tf.matmul(x, dense_w)
            ),
        ),
        "dx": (
            lambda x, w, dy: bs.matmul_dx(dy, w, bsmm.sparsity_layout, feature_axis=axis),
            lambda x, w, dy: (
                tf.matmul(dense_w, dy) if first else tf.matmul(dy, dense_w, transpose_b=True)
            ),
        ),
        "dw": (
            lambda x, w, dy: bs.matmul_dw(x, dy, bsmm.sparsity_layout, feature_axis=axis),
            lambda x, w, dy: tf.matmul(x, dy, transpose_a=not first, transpose_b=first),
        ),
    }
    for product, (sparse, dense) in calls.items():
        if refcheck:
            check(product, bsmm, sparse(*sets[0]), dense(*sets[0]))
        ours, theirs = (time_op(function, sets) for function in (sparse, dense))
        yield {
            "product": product,
            "shape": shape,
            "dtype": dtype,
            "block": block,
            "axis": axis,
            "density": round(density, 4),
            "us": ours.median * 1e6 / CALLS,
            "us_low": ours.low * 1e6 / CALLS,
            "us_high": ours.high * 1e6 / CALLS,
            "dense_us": theirs.median * 1e6 / CALLS,
            "useful_tflops": bsmm.flops * n * CALLS / ours.median / 1e12,
            "speedup": theirs.median / ours.median,
            "of_dense": theirs.median / ours.median * density,
        }


def time_op(function, sets):
    """The `Timing` of `function` of each of the sets, in one `tf.function`."""
    together = tf.function(lambda sets: [function(*inputs) for inputs in sets])
    return time_call(together, [(sets,)])


def training_memory(shape, dtype, block, density):
    """Peak bytes on the GPU while y, dx and dw are computed once, beside the dense layer's.

    "operands" are the tensors that any implementation has: x, y, dx, dy, W and dw.
    """
    in_features, out_features, n = shape
    mask = layouts.random(
        np.random.default_rng(0), in_features // block, out_features // block, density
    )
    bsmm = bs.BlocksparseMatMul(mask, block)
    peaks, operands = {}, {}
    for name, product, w_shape in (
        ("sparse", bsmm, bsmm.w_shape),
        ("dense", tf.matmul, (in_features, out_features)),
    ):

        @tf.function
        def step(x, w, dy, product=product):
            with tf.GradientTape() as tape:
                tape.watch((x, w))
                y = product(x, w)
            return y, tape.gradient(y, (x, w), output_gradients=dy)

        x, w, dy = (tf.zeros(s, dtype) for s in ((n, in_features), w_shape, (n, out_features)))
        step(x, w, dy)
        tf.config.experimental.reset_memory_stats("GPU:0")
        before = tf.config.experimental.get_memory_info("GPU:0")["current"]
        step(x, w, dy)
        held = sum(t.shape.num_elements() * t.dtype.size for t in (x, w, dy))
        peaks[name] = tf.config.experimental.get_memory_info("GPU:0")["peak"] - before + held
        operands[name] = 2 * held
    return {
        "shape": shape,
        "dtype": dtype,
        "block": block,
        "density": density,
        "peak_bytes": peaks["sparse"],
        "operand_bytes": operands["sparse"],
        "dense_peak_bytes": peaks["dense"],
    }


def kernel_times(path):
    """Microseconds in a results file of bench_kernels.py, by case."""
    if path is None:
        return {}
    with open(path) as file:
        results = json.load(file)["results"]
    return {
        (
            r["product"],
            tuple(r["shape"]),
            goals.NAMES.get(r["arithmetic"], r["arithmetic"]),
            r["block"],
            r["axis"],
            r["target_density"],
        ): r["us"]
        for r in results
        if r["group"] in ("main", "small")
    }


def check(product, bsmm, result, dense):
    """The relative error of the whole result against TensorFlow's dense product."""
    result, dense = (t.numpy().astype(np.float32) for t in (result, dense))
    if product == "dw":
        dense = bsmm.sparsity_layout.from_dense(dense, allow_loss=True)
    error = np.linalg.norm(result - dense) / np.linalg.norm(dense)
    if not error < 1e-2:
        raise SystemExit(f"{product} of {bsmm!r} is wrong: relative error {error:.2e}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["CPU", "GPU"])
    parser.add_argument("--dtype", nargs="*")
    parser.add_argument("--block", nargs="*", type=int, default=BLOCKS)
    parser.add_argument("--density", nargs="*", type=float, default=DENSITIES)
    parser.add_argument("--shape", nargs="*", help="CxKxN")
    parser.add_argument("--axis", nargs="*", type=int, default=[1])
    parser.add_argument("--refcheck", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--kernels", help="results of bench_kernels.py")
    parser.add_argument("--json", help="write the results here")
    args = parser.parse_args()
    device = args.device or ("GPU" if tf.config.list_physical_devices("GPU") else "CPU")
    shapes = [tuple(map(int, s.split("x"))) for s in args.shape] if args.shape else SHAPES[device]

    results = []
    print(
        f"{'case':46} {'us':>9} {'10-90 %':>17} {'dense us':>9} {'TFLOP/s':>8} {'speed-up':>8} "
        f"{'of dense':>8} {'kernel us':>9}"
    )
    kernels = kernel_times(args.kernels)
    for case in itertools.product(
        shapes, args.dtype or DTYPES[device], args.block, args.density, args.axis
    ):
        with tf.device(f"{device}:0"):
            for r in bench_case(*case, args.refcheck):
                shape, dtype, block, density, axis = case
                key = r["product"], tuple(shape), dtype, block, axis, density
                r["kernel_us"] = kernels.get(key)
                results.append(r)
                name = "{product} {dtype} {shape} B{block} axis{axis} d{density}".format(**r)
                print(
                    f"{name:46} {r['us']:9.1f} {r['us_low']:8.1f}-{r['us_high']:<8.1f} "
                    f"{r['dense_us']:9.1f} "
                    f"{r['useful_tflops']:8.2f} {r['speedup']:8.2f} {r['of_dense']:8.2f} "
                    f"{r['kernel_us'] or float('nan'):9.1f}",
                    flush=True,
                )
    mean = np.exp(np.mean([np.log(r["speedup"]) for r in results]))
    print(f"geometric mean of the speed-ups: {mean:.2f}")
    memory = []
    if device == "GPU":
        for block in args.block:
            memory.append(training_memory((4096, 4096, 8192), "bfloat16", block, 0.1))
            print("peak memory of a training step:", memory[-1])
    if args.json:
        with open(args.json, "w") as file:
            found = {"environment": environment(device), "results": results, "memory": memory}
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()

"""Times the CPU's block-sparse products beside tf.matmul and other people's sparse products.

    python bench/bench_matmul_cpu.py                                     # everything, 20 minutes
    python bench/bench_matmul_cpu.py --features 2048 --samples 64 --json bench/results/NAME.json
    python bench/bench_matmul_cpu.py --level avx2 --threads 1

Each result is checked first: against scipy on some samples, or at some blocks. Then all block sizes
and densities of one shape take turns with the dense product, in several rounds, and medians count.
Short calls are repeated within one graph, so that the cost of starting it does not. "of dense" is
the speed-up times the density: 1.0 means that no time is lost to sparsity.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import cpu_goals
import cpu_rivals
import numpy as np
import scipy
import tensorflow as tf

import blocksparse as bs
from blocksparse.testing import layouts
from blocksparse.testing.kernels import Kernels
from blocksparse.testing.timing import environment

PRODUCTS = ("fprop", "dx", "dw")
RIVAL_DENSITY = 0.1
RIVAL_MOST_FLOPS = 2**36  # of the dense product
LARGE_FLOPS = 2**38  # dense products from here on are measured at RIVAL_DENSITY alone
LEAST_SECONDS = 16e-3  # of a graph that is timed: starting one takes 0.2 to 0.4 ms
MOST_CALLS = 256  # in it
ROUND_SECONDS = 2.0  # all rounds of a shape take about as long, but there are
FEWEST_ROUNDS, MOST_ROUNDS = 3, 7
CHECKED_SAMPLES = 8
CHECKED_BLOCKS = 64


class Weights:
    """A random block-sparse matrix."""

    def __init__(self, rng, features, block, density, dtype):
        mask = layouts.random(rng, features // block, features // block, density)
        self.layout = bs.SparsityLayout(mask, block)
        self.target_density = density
        values = rng.standard_normal(self.layout.w_shape, np.float32)
        self.w = tf.cast(values, dtype)


def in_turn(product, sets):
    """A graph of calls that follow one another; returns the last one's result."""

    def run():
        result = []
        for inputs in sets:
            with tf.control_dependencies(result):
                result = [product(*inputs)]
        return result

    return tf.function(run, autograph=False)


def seconds_of(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def repeated(product, sets):
    """(graph, calls in it) for a product that is timed."""
    inputs = sets[0]
    product(*inputs)
    calls = math.ceil(LEAST_SECONDS / seconds_of(lambda: product(*inputs)))
    calls = min(max(calls, 1), MOST_CALLS)
    graph = in_turn(product, (sets * calls)[:calls])
    graph()
    return graph, calls


def sparse_product(product, layout):
    if product == "dw":
        return lambda x, dy: bs.matmul_dw(x, dy, layout)
    if product == "dx":
        return lambda dy, w: bs.matmul_dx(dy, w, layout)
    return bs.BlocksparseMatMul(layout)


def dense_product(product):
    return {
        "fprop": tf.matmul,
        "dx": lambda dy, w: tf.matmul(dy, w, transpose_b=True),
        "dw": lambda x, dy: tf.matmul(x, dy, transpose_a=True),
    }[product]


def error_of(product, layout, first, second, result):
    """The relative error of some samples, or blocks, of the result against scipy and numpy."""
    rng = np.random.default_rng(1)
    first, second, result = (t.numpy().astype(np.float32) for t in (first, second, result))
    if product == "dw":
        size, count = layout.block_size, min(CHECKED_BLOCKS, layout.num_blocks)
        blocks = rng.choice(layout.num_blocks, count, replace=False)
        x, dy = (t.reshape(len(t), -1, size)[:, layout.coordinates[blocks, i]]
                 for i, t in enumerate((first, second)))  # fmt: skip
        result, expected = result[blocks], np.einsum("nbi,nbj->bij", x, dy)
    else:
        samples = rng.choice(len(first), min(CHECKED_SAMPLES, len(first)), replace=False)
        matrix = layout.to_bsr(second)
        matrix = matrix.T if product == "fprop" else matrix
        result, expected = result[samples], (matrix @ first[samples].T).T
    return float(np.linalg.norm(result - expected) / np.linalg.norm(expected))


def measure(case, weights, dense_w, activations, with_rivals):
    """Yields the results of one product and shape for all of `weights`."""
    product, dtype, features, samples = (
        case[key] for key in ("product", "dtype", "features", "samples")
    )
    xs, dys = activations[:2], activations[2:]
    flops = 2 * features**2 * samples
    has_rivals = with_rivals and (product, dtype) == ("fprop", "float32")
    has_rivals = has_rivals and flops < RIVAL_MOST_FLOPS

    def sets(w):
        if product == "dw":
            return list(zip(xs, dys, strict=True))
        return [(x, w) for x in (xs if product == "fprop" else dys)]

    timed = {"dense": repeated(dense_product(product), sets(dense_w))}
    errors, rivals = {}, {}
    for number, weight in enumerate(weights):
        if flops >= LARGE_FLOPS and weight.target_density != RIVAL_DENSITY:
            continue
        ours = sparse_product(product, weight.layout)
        inputs = sets(weight.w)
        errors[number] = error_of(product, weight.layout, *inputs[0], ours(*inputs[0]))
        if not errors[number] < (1e-5 if dtype == "float32" else 1e-2):
            raise SystemExit(f"{case} {weight.layout!r}: relative error {errors[number]:.1e}")
        timed[number] = repeated(ours, inputs)
        if has_rivals and weight.target_density == RIVAL_DENSITY:
            rivals[number] = make_rivals(weight, xs[0], ours(*inputs[0]).numpy())
            timed |= {(number, name): (call, 1) for name, call in rivals[number].items()}
    times = take_turns(timed)
    for number, error in errors.items():
        weight = weights[number]
        density = weight.layout.density
        us, dense_us = times[number] * 1e6, times["dense"] * 1e6
        yield {
            **case,
            "block": weight.layout.block_size,
            "density": round(density, 4),
            "target_density": weight.target_density,
            "us": us,
            "dense_us": dense_us,
            "gflops": flops * density / us / 1e3,
            "dense_gflops": flops / dense_us / 1e3,
            "speedup": dense_us / us,
            "of_dense": dense_us / us * density,
            "goal": cpu_goals.of(product, dtype, weight.layout.block_size),
            "error": error,
            **{f"{name}_us": times[number, name] * 1e6 for name in rivals.get(number, ())},
        }


def make_rivals(weight, x, expected):
    calls = {}
    for name, make in cpu_rivals.RIVALS.items():
        rival = make(weight.layout, weight.w.numpy(), x.numpy())
        if rival is None:
            continue
        result, calls[name] = rival
        error = np.linalg.norm(result() - expected) / np.linalg.norm(expected)
        if not error < 1e-5:
            raise SystemExit(f"{name}: relative error {error:.1e}")
    return calls


def take_turns(timed):
    """Median seconds of a call of each of {name: (graph, calls in it)}."""
    found = {name: [] for name in timed}
    rounds, number = MOST_ROUNDS, 0
    while number < rounds:
        for name, (graph, calls) in timed.items():
            found[name].append(seconds_of(graph) / calls)
        number += 1
        if number == 1:
            total = sum(found[name][0] * calls for name, (_, calls) in timed.items())
            rounds = min(max(math.ceil(ROUND_SECONDS / total), FEWEST_ROUNDS), MOST_ROUNDS)
    return {name: float(np.median(times)) for name, times in found.items()}


def run(args):
    """The results with this process's threads; prints them."""
    rng = np.random.default_rng(0)
    results = []
    for features in args.features:
        for dtype in args.dtype:
            weights = [
                Weights(rng, features, block, density, dtype)
                for block in args.block
                for density in args.density
            ]
            dense_w = tf.cast(rng.standard_normal((features, features), np.float32), dtype)
            for samples in args.samples:
                activations = [
                    tf.cast(rng.standard_normal((samples, features), np.float32), dtype)
                    for _ in range(4)
                ]
                for product in args.product:
                    case = {
                        "threads": tf.config.threading.get_intra_op_parallelism_threads(),
                        "level": args.level or "",
                        "product": product,
                        "dtype": dtype,
                        "features": features,
                        "samples": samples,
                    }
                    for r in measure(case, weights, dense_w, activations, args.rivals):
                        results.append(r)
                        print(line(r), flush=True)
    return results


HEAD = (
    f"{'case':50} {'us':>10} {'dense us':>10} {'GFLOP/s':>8} {'speed-up':>8} {'of dense':>8} "
    f"{'goal':>5}  rivals' time over ours"
)


def line(r):
    name = (
        f"{r['product']} {r['dtype']} {r['features']}x{r['samples']} B{r['block']} "
        f"{r['target_density']:.0%} {r['threads']} thr {r['level']}"
    )
    rivals = " ".join(
        f"{rival} {r[f'{rival}_us'] / r['us']:.1f}"
        for rival in cpu_rivals.RIVALS
        if f"{rival}_us" in r
    )
    return (
        f"{name:50} {r['us']:10.1f} {r['dense_us']:10.1f} {r['gflops']:8.1f} {r['speedup']:8.2f} "
        f"{r['of_dense']:8.2f} {r['goal']:5.2f}  {rivals}"
    )


def run_apart(argv, threads):
    """The same in a process of its own: TensorFlow's threads are fixed when it starts."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "results.json"
        command = [sys.executable, __file__, *argv, "--threads", str(threads), "--json", str(path)]
        status = subprocess.run([*command, "--is-part"]).returncode
        if status != 0:
            raise SystemExit(status)
        return json.loads(path.read_text())["results"]


def versions():
    library = pathlib.Path(bs.__file__).with_name("_blocksparse_ops.so")
    found = environment("CPU") | {
        "cpu_level": Kernels(library).cpu_level,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }
    if cpu_rivals.torch is not None:
        found["torch"] = cpu_rivals.torch.__version__
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--level", help="BLOCKSPARSE_CPU_LEVEL; by default the best")
    parser.add_argument("--product", nargs="*", choices=PRODUCTS, default=PRODUCTS)
    parser.add_argument("--dtype", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--block", nargs="*", type=int, default=[8, 16, 32, 64])
    parser.add_argument("--density", nargs="*", type=float, default=[0.05, 0.1, 0.25, 0.5])
    parser.add_argument("--features", nargs="*", type=int, default=[1024, 2048, 4096, 8192])
    parser.add_argument("--samples", nargs="*", type=int, default=[16, 64, 256, 2048])
    parser.add_argument("--rivals", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", help="write the results here")
    parser.add_argument("--is-part", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.level:
        os.environ["BLOCKSPARSE_CPU_LEVEL"] = args.level
    if args.is_part:
        tf.config.threading.set_intra_op_parallelism_threads(args.threads[0])
        tf.config.threading.set_inter_op_parallelism_threads(1)
        # It would drop calls whose results nobody reads.
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
        results = run(args)
    else:
        print(HEAD)
        results = [r for threads in args.threads for r in run_apart(sys.argv[1:], threads)]
        print("", cpu_goals.table(results), sep="\n")
    if args.json:
        found = {"environment": versions(), "command": " ".join(sys.argv), "results": results}
        pathlib.Path(args.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

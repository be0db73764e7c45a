"""Times the rooms other than matmul beside the same in TensorFlow's own ops.

    python bench/bench_rooms.py
    python bench/bench_rooms.py --room layer_norm --dtype bfloat16 --json bench/results/NAME.json

"forward" is a call, "training" a call and its gradients. Each result is first checked against
TensorFlow's ops in float32. "of bound" is the time in which a copy moves the bytes that the call
must move, over the time of the call: 1.0 means that it runs at the speed of the memory.

On a GPU the copy is a large one. On a CPU it is one of the same size, -x by TensorFlow in as many
calls and with results as fresh, timed beside the case: threads take as long to wake up for it.

A file keeps the results of rooms that are not timed, so that one can be made in parts.
"""

import argparse
import itertools
import json
import math
import os

import numpy as np
import tensorflow as tf
from room_cases import cases

from blocksparse.testing.timing import environment, time_call
from blocksparse.testing.tolerance import UNIT_ROUNDOFF

DTYPES = {"GPU": ["float32", "bfloat16", "float16"], "CPU": ["float32", "bfloat16"]}
REPEATS = {"GPU": 30, "CPU": 10}
WORKING_SET = {"GPU": 256e6, "CPU": 128e6}  # least bytes that a graph moves, more than the caches
MAX_CALLS = 64  # in a graph
COPY_VALUES = 2**27


def copy_bandwidth():
    """Bytes per second, read and written, of a large elementwise op, in its faster repeats."""
    sets = [(tf.fill([COPY_VALUES], float(number)),) for number in range(2)]
    return 8 * COPY_VALUES / time_call(tf.function(lambda x: x + 1), sets).low


def copy_seconds(num_bytes, num_calls, repeats):
    """Seconds of one of num_calls copies that read and write num_bytes in all."""
    values = max(int(num_bytes) // 8, 1)
    inputs = tuple(tf.fill([values], float(number)) for number in range(num_calls))
    return time_call(in_turn(lambda x: (-x,), 1), [inputs], repeats).median / num_calls


def inputs(case, dtype, number):
    """The variables and indices of one call."""
    variables = [
        tf.cast(tf.random.stateless_normal(shape, [number, position]), kind or dtype)
        for position, (shape, kind) in enumerate(case.variables)
    ]
    indices = [
        tf.random.stateless_uniform(shape, [number, -1], 0, limit, tf.int64)
        for shape, limit in case.indices
    ]
    return [*variables, *indices]


def gradients(ys, number):
    """Random gradients of results."""
    seeds = ([number, 100 + position] for position in range(len(ys)))
    return [
        tf.cast(tf.random.stateless_normal(y.shape, seed), y.dtype)
        for y, seed in zip(ys, seeds, strict=True)
    ]


def training(function, num_variables, num_results):
    """A function of variables, indices and gradients of the results: results and gradients."""

    def run(*tensors):
        tensors, dys = tensors[:-num_results], tensors[-num_results:]
        with tf.GradientTape() as tape:
            tape.watch(tensors[:num_variables])
            ys = function(*tensors)
        dys = [tf.cast(dy, y.dtype) for dy, y in zip(dys, ys, strict=True)]
        found = tape.gradient(ys, tensors[:num_variables], dys)
        return *ys, *map(tf.convert_to_tensor, found)  # of embeddings too

    return run


def in_turn(function, num_inputs):
    """A graph of calls that follow one another, so that its own cost counts little for each."""
    function = tf.function(function)

    @tf.function
    def run(*tensors):
        results, last = [], []
        for first in range(0, len(tensors), num_inputs):
            with tf.control_dependencies(last):
                last = list(function(*tensors[first : first + num_inputs]))
            results += last
        return results

    return run


def bench_case(case, dtype, device, repeats, bandwidth, is_compiled):
    """Yields a result for each of forward and training; is_compiled: the rival is, by XLA."""
    size = tf.as_dtype(dtype).size
    num_calls = math.ceil(WORKING_SET[device] / (case.forward * size))
    num_calls = min(max(num_calls, 2), MAX_CALLS)
    sets = [inputs(case, dtype, number) for number in range(num_calls)]
    ys = case.ours(*sets[0])
    for name in ("forward", "training"):
        ours, theirs, num_bytes = case.ours, case.theirs, case.forward * size
        if name == "training":
            ours, theirs = (training(f, len(case.variables), len(ys)) for f in (ours, theirs))
            num_bytes += case.backward * size
            sets = [[*call, *gradients(ys, number)] for number, call in enumerate(sets)]
        if is_compiled:
            theirs = tf.function(theirs, jit_compile=True)
        check(f"{case} {dtype} {name}", ours, theirs, sets[0])
        flat, num_inputs = tuple(itertools.chain(*sets)), len(sets[0])
        mine = time_call(in_turn(ours, num_inputs), [flat], repeats)
        if device == "GPU":
            bound = num_bytes / bandwidth
        else:
            bound = copy_seconds(num_bytes, num_calls, repeats)
        result = {
            "room": case.room,
            "case": case.name,
            "sizes": case.sizes,
            "dtype": dtype,
            "pass": name,
            "us": mine.median * 1e6 / num_calls,
            "us_low": mine.low * 1e6 / num_calls,
            "us_high": mine.high * 1e6 / num_calls,
            "gb_per_s": num_bytes * num_calls / mine.median / 1e9,
            "bound_us": bound * 1e6,
            "of_bound": bound * num_calls / mine.median,
        }
        try:
            other = time_call(in_turn(theirs, num_inputs), [flat], repeats).median
        except tf.errors.OpError as error:
            yield result | {"tensorflow_error": error.message.splitlines()[0][:200]}
            continue
        yield result | {"tensorflow_us": other * 1e6 / num_calls, "speedup": other / mine.median}


def check(name, ours, theirs, tensors):
    """The relative errors of all results against TensorFlow's ops in float32."""
    wide = [tf.cast(t, tf.float32) if t.dtype.is_floating else t for t in tensors]
    for number, (result, expected) in enumerate(zip(ours(*tensors), theirs(*wide), strict=True)):
        error = tf.linalg.norm(tf.cast(result, tf.float32) - expected) / tf.linalg.norm(expected)
        # the rounding of the result, and that of sums in float32
        limit = UNIT_ROUNDOFF[result.dtype.name] + 1e-5
        if not error < limit:
            raise SystemExit(f"{name}: result {number} is wrong: relative error {error:.2e}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["CPU", "GPU"])
    parser.add_argument("--room", nargs="*", help="only these")
    parser.add_argument("--dtype", nargs="*")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--xla", action="store_true", help="compile TensorFlow's ops by XLA")
    parser.add_argument("--json", help="write the results here")
    args = parser.parse_args()
    device = args.device or ("GPU" if tf.config.list_physical_devices("GPU") else "CPU")
    args.dtype = args.dtype or DTYPES[device]
    args.repeats = args.repeats or REPEATS[device]
    with tf.device(f"{device}:0"):
        found = run(args, device)
    if args.json:
        timed = {r["room"] for r in found["results"]}
        if os.path.exists(args.json):
            with open(args.json) as file:
                others = [r for r in json.load(file)["results"] if r["room"] not in timed]
            found["results"] = others + found["results"]
        with open(args.json, "w") as file:
            json.dump(found, file, indent=1)


def run(args, device):
    """Prints the table and returns what goes into the file."""
    bandwidth = copy_bandwidth() if device == "GPU" else math.nan
    if device == "GPU":
        print(f"copy: {bandwidth / 1e9:.1f} GB/s")
    print(
        f"{'case':64} {'us':>9} {'10-90 %':>19} {'TF us':>9} {'speed-up':>8} {'GB/s':>7} "
        f"{'of bound':>8}"
    )
    results = []
    for case, dtype in itertools.product(cases(device), args.dtype):
        if args.room and case.room not in args.room:
            continue
        for r in bench_case(case, dtype, device, args.repeats, bandwidth, args.xla):
            results.append(r)
            rival = (
                f"{r['tensorflow_us']:9.1f} {r['speedup']:8.2f}"
                if "speedup" in r
                else (f"{'fails':>9} {'':8}")
            )
            print(
                f"{f'{case} {dtype} ' + r['pass']:64} {r['us']:9.1f} "
                f"{r['us_low']:9.1f}-{r['us_high']:<9.1f} {rival} {r['gb_per_s']:7.1f} "
                f"{r['of_bound']:8.2f}",
                flush=True,
            )
    for room in {r["room"]: None for r in results}:
        logs = [math.log(r["speedup"]) for r in results if r["room"] == room and "speedup" in r]
        if logs:
            print(f"geometric mean of the speed-ups of {room}: {math.exp(np.mean(logs)):.2f}")
    return {
        "environment": environment(device),
        "copy_gb_per_s": bandwidth / 1e9 if device == "GPU" else None,
        "tensorflow_compiled": args.xla,
        "results": results,
    }


if __name__ == "__main__":
    main()

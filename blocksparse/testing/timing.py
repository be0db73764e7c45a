"""One timer for all benchmarks, and the environment that belongs to its numbers."""

import dataclasses
import datetime
import platform
import subprocess
import time

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median and the 10 % and 90 % quantiles of the repeats."""

    median: float
    low: float
    high: float


def time_call(function, input_sets, repeats=30, seconds=0.02):
    """Times `function(*inputs)` on the current device.

    Each repeat makes as many calls as take about `seconds`, in turn over `input_sets`, so that
    inputs larger in all than the caches are read from memory; the device is waited for once a
    repeat.

    Args:
      function: eager function or `tf.function`.
      input_sets: list of tuples of tensors.
      repeats: repeats after the warm-up.
      seconds: least length of a repeat.
    """

    def run(calls):
        start = time.perf_counter()
        for i in range(calls):
            function(*input_sets[i % len(input_sets)])
        tf.test.experimental.sync_devices()
        return (time.perf_counter() - start) / calls

    run(len(input_sets))
    calls = max(len(input_sets), int(np.ceil(seconds / run(len(input_sets)))))
    times = [run(calls) for _ in range(repeats)]
    return Timing(*np.quantile(times, [0.5, 0.1, 0.9]))


def environment(device):
    """What the numbers depend on: hardware, driver, versions, commit, date."""
    from blocksparse import _build_info

    found = {
        "date": datetime.date.today().isoformat(),
        "commit": _output("git", "rev-parse", "--short", "HEAD"),
        "tensorflow": tf.__version__,
        "cuda": _build_info.CUDA_VERSION,
        "python": platform.python_version(),
        "device": _cpu_name(),
    }
    if device == "GPU":
        query = "--query-gpu=name,driver_version,clocks.sm,clocks.max.sm"
        found["device"] = _output("nvidia-smi", query, "--format=csv,noheader")
    return found


def _output(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpu_name():
    try:
        with open("/proc/cpuinfo") as file:
            lines = [line for line in file if line.startswith("model name")]
        return f"{lines[0].split(':')[1].strip()}, {len(lines)} threads"
    except (OSError, IndexError):
        return platform.processor()

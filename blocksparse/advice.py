"""What a block-sparse product will cost beside the dense one, before it is built.

The times are interpolated between measurements: `advice.json`, which `bench/make_advice.py` makes
from a results file of `bench/bench_kernels.py`.
"""

import dataclasses
import functools
import json
import pathlib

import numpy as np

__all__ = ["Advice", "Estimate"]

PRODUCTS = ("fprop", "dx", "dw")
# Features of the measured products' inputs and outputs.
FEATURES = 4096


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One product.

    Attributes:
      product: "fprop", "dx" or "dw".
      us: microseconds of the block-sparse kernel, with what brings W into its order.
      dense_us: of the dense product of the same shape.
      bound_by: what takes the time: "arithmetic", "memory" (each operand once), "launch" (a few
        microseconds for any kernel) or "blocks" (bringing small blocks together on the chip).
    """

    product: str
    us: float
    dense_us: float
    bound_by: str

    @property
    def speedup(self):
        return self.dense_us / self.us


@dataclasses.dataclass(frozen=True)
class Advice:
    """The products of a training step.

    Attributes:
      device: whose measurements these are.
      estimates: an `Estimate` for each of fprop, dx and dw.
      speedup: the dense products' time together, divided by the block-sparse ones'.
    """

    device: str
    estimates: tuple

    @property
    def speedup(self):
        return sum(e.dense_us for e in self.estimates) / sum(e.us for e in self.estimates)

    def __str__(self):
        lines = [f"{self.device:24} {'us':>9} {'dense us':>9} {'speed-up':>8}  bound by"]
        lines += [
            f"{e.product:24} {e.us:9.1f} {e.dense_us:9.1f} {e.speedup:8.2f}  {e.bound_by}"
            for e in self.estimates
        ]
        verdict = (
            "a training step's products are faster than dense ones"
            if self.speedup > 1
            else "a dense layer of these features is faster: store fewer or larger blocks"
        )
        return "\n".join([*lines, f"{self.speedup:.2f} times: {verdict}"])


def advise(layout, samples, dtype, device):
    """The `Advice` on a layout; see `BlocksparseMatMul.advise`."""
    machines = _machines()
    if device not in machines:
        raise ValueError(
            f"advise: device must be one of {sorted(machines)}, whose speed was measured. "
            f"Received: {device!r}"
        )
    machine = machines[device]
    if dtype not in machine["dense_flops"]:
        raise ValueError(
            f"advise: dtype must be one of {sorted(machine['dense_flops'])}. Received: {dtype!r}"
        )
    if not isinstance(samples, int | np.integer) or samples < 1:
        raise ValueError(f"advise: samples must be a positive integer. Received: {samples!r}")
    return Advice(
        device,
        tuple(_estimate(machine, layout, int(samples), dtype, product) for product in PRODUCTS),
    )


def _estimate(machine, layout, samples, dtype, product):
    size = 2 if dtype in ("bfloat16", "float16") else 4
    features = layout.in_features, layout.out_features
    flops, memory = machine["dense_flops"][dtype], machine["memory_bytes"]
    launch = machine["launch_us"]

    def limits(weights):
        num_bytes = size * (samples * sum(features) + weights)
        return 2 * samples * weights / flops * 1e6, num_bytes / memory * 1e6

    arithmetic, bytes_ = limits(layout.num_blocks * layout.block_size**2)
    dense_us = launch + max(limits(features[0] * features[1]))
    # dx costs what fprop does.
    measured = "bfloat16" if dtype == "float16" else dtype
    grid = machine["us"][f"{measured} {'dw' if product == 'dw' else 'fprop'} {layout.block_size}"]
    us = _interpolate(grid, layout.density, samples * features[0] * features[1] / FEATURES**2)
    causes = {"arithmetic": arithmetic, "memory": bytes_, "launch": launch}
    cause = max(causes, key=causes.get)
    return Estimate(product, us, dense_us, cause if causes[cause] > us / 2 else "blocks")


def _interpolate(grid, density, samples):
    """Microseconds of FEATURES x FEATURES features, linear in the logarithms.

    A product with other features costs what one with as many samples does as make the same work.
    """
    times = np.log(grid["us"])  # [densities, samples]
    densities, counts = np.log(grid["densities"]), np.log(grid["samples"])
    density = np.log(density)
    by_samples = [np.interp(density, densities, column) for column in times.T]
    us = np.exp(np.interp(np.log(samples), counts, by_samples))
    return float(us * max(1.0, samples / grid["samples"][-1]))


@functools.cache
def _machines():
    path = pathlib.Path(__file__).with_name("advice.json")
    return json.loads(path.read_text())

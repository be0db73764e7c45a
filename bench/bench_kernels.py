"""Times the GPU products through their C interface beside cuBLAS, a plain Triton kernel and BSR.

    make kernels
    python bench/bench_kernels.py --json bench/results/NAME.json      # everything, about 4 minutes
    python bench/bench_kernels.py --group main small --block 32       # some of it

Needs torch and a GPU, and no TensorFlow. Every case is first compared with the dense product. Times
are medians of graph replays over rotating inputs, and hold everything that a training step does:
bringing W into a kernel's order too. "TF/s" counts the stored blocks only. "bound" is the share of
what the tensor cores or the memory allow; "goal" the share of the goal in bench/goals.py.
"""

import argparse
import datetime
import itertools
import json
import pathlib
import platform
import subprocess
import sys
import types

import numpy as np
import torch

ROOT = pathlib.Path(__file__).resolve().parents[1]
if "blocksparse" not in sys.modules:  # the package's numpy half, without TensorFlow
    package = types.ModuleType("blocksparse")
    package.__path__ = [str(ROOT / "blocksparse")]
    sys.modules["blocksparse"] = package
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import goals  # noqa: E402
import gpu_rivals  # noqa: E402

from blocksparse._gpu_tables import gpu_tables  # noqa: E402
from blocksparse.layout import SparsityLayout  # noqa: E402
from blocksparse.pattern_graphs import barabasi_albert  # noqa: E402
from blocksparse.pattern_grids import banded  # noqa: E402
from blocksparse.testing import kernels as c_api  # noqa: E402
from blocksparse.testing import layouts  # noqa: E402

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PRODUCTS = ("fprop", "dx", "dw")
# Inputs rotate over more than this, which no cache holds.
FOOTPRINT = 200e6
kept_layouts = {}


def cases(args):
    """Dicts: group, shape (C, K, N), block, axis, target_density, product and more."""

    def case(group, product, shape, block, axis, density, **more):
        found = {
            "group": group,
            "product": product,
            "shape": shape,
            "block": block,
            "axis": axis,
            "target_density": density,
            "layout": "random",
            "arithmetic": "bfloat16",
            "gated": False,
            "pairs": 1,
        }
        return found | more

    large = (4096, 4096, 8192)
    for axis in args.axis:
        for block in args.block:
            for density in goals.DENSITIES:
                for product in PRODUCTS:
                    yield case("main", product, large, block, axis, density)
    for features, samples in goals.SMALL_US:
        for density in goals.SMALL_DENSITIES:
            yield case("small", "fprop", (features, features, samples), 32, 1, density)
    for layout in goals.LAYOUT_TFLOPS:
        for product in PRODUCTS:
            yield case("layouts", product, large, 32, 1, 0.1, layout=layout)
    for arithmetic in goals.FLOAT32_TFLOPS:
        for density in goals.DENSITIES[1:]:
            yield case("float32", "fprop", large, 32, 1, density, arithmetic=arithmetic)
        for axis, block, density in itertools.product(args.axis, args.block, goals.DENSITIES):
            yield case("float32", "dw", large, block, axis, density, arithmetic=arithmetic)
    for product in PRODUCTS:
        yield case("extras", product, large, 32, 1, 0.1, gated=True)
    yield case("extras", "dw", large, 32, 1, 0.1, pairs=8)
    yield case("extras", "dw", large, 32, 1, 0.1, pairs=64)
    for k in range(1, 9):  # the parameters stay as many as those of 2560 x 2560
        for samples in (64, 512):
            for block in (8, 16, 32):
                for product in PRODUCTS:
                    shape = (2560 * k, 2560 * k, samples)
                    yield case("constant_parameters", product, shape, block, 0, 1 / k**2)
    for features in (1024, 2048, 4096, 8192, 16384, 32768, 65536):
        density = min(0.5, 0.1 * 4096 / features)
        for product in PRODUCTS:
            yield case("features", product, (features, features, 1024), 32, 1, density)
    for samples in (1, 8, 32, 64, 128, 192, 256, 512, 1024, 2048, 4096, 16384, 65536):
        for product in PRODUCTS:
            yield case("samples", product, (4096, 4096, samples), 32, 1, 0.1)
    for density in (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0):
        for product in PRODUCTS:
            yield case("density", product, (4096, 4096, 2048), 32, 1, density)
    for block in (8, 16, 32, 64, 128):  # the measurements behind BlocksparseMatMul.advise
        for arithmetic, densities, counts in (
            ("bfloat16", (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0), (32, 128, 512, 2048, 8192)),
            ("tf32", (0.02, 0.1, 0.5), (512, 8192)),
            ("fp32", (0.02, 0.1, 0.5), (512, 8192)),
        ):
            for density, samples, product in itertools.product(densities, counts, ("fprop", "dw")):
                shape = (4096, 4096, samples)
                more = {"arithmetic": arithmetic}
                yield case("advice", product, shape, block, 1, density, **more)


def make_layout(case):
    """The case's layout; the latest few are kept with their tables."""
    key = case["shape"][:2], case["block"], case["target_density"], case["layout"]
    if key not in kept_layouts:
        if len(kept_layouts) == 4:
            kept_layouts.pop(next(iter(kept_layouts)))
        kept_layouts[key] = new_layout(case)
    return kept_layouts[key]


def new_layout(case):
    rng = np.random.default_rng(0)
    c, k = (features // case["block"] for features in case["shape"][:2])
    density = case["target_density"]
    if case["layout"] == "banded":
        return SparsityLayout(banded(c, k, round((density * c - 1) / 2)), case["block"])
    if case["layout"] == "barabasi_albert":
        return SparsityLayout(barabasi_albert(c, round(density * c / 2), rng), case["block"])
    return SparsityLayout(layouts.random(rng, c, k, density), case["block"])


def time_us(call, repeats=5):
    """Microseconds of call(i, stream), i counting up: the median of graph replays."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        call(0)
        start.record()
        call(1)
        end.record()
        torch.cuda.synchronize()
        calls = int(np.clip(2e3 / max(start.elapsed_time(end) * 1e3, 1), 4, 60))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for i in range(calls):
                call(i)
        graph.replay()
        times = []
        for _ in range(repeats):
            start.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / calls * 1e3)
    return float(np.median(times))


class Case:
    """The tensors of a case, and its product as calls."""

    def __init__(self, kernels, case):
        self.kernels, self.case = kernels, case
        self.layout = layout = make_layout(case)
        arithmetic = case["arithmetic"]
        self.dtype_name = arithmetic if arithmetic in DTYPES else "float32"
        self.tf32 = arithmetic == "tf32"
        dtype = DTYPES[self.dtype_name]
        self.axis, self.product = case["axis"], case["product"]
        self.samples = samples = case["shape"][2]
        self.lut, self.plan = gpu_tables(layout)
        self.lut = torch.from_numpy(self.lut.copy()).cuda()

        def shape(features):
            return (samples, features) if self.axis == 1 else (features, samples)

        size = dtype.itemsize
        sizes = {
            "x": samples * layout.in_features * size,
            "dy": samples * layout.out_features * size,
            "w": int(np.prod(layout.w_shape)) * size,
        }
        self.num_bytes = sum(sizes.values())
        self.flops = 2 * samples * int(np.prod(layout.w_shape))
        sets = int(np.clip(np.ceil(FOOTPRINT / self.num_bytes), 2, 24))
        make = lambda shape: torch.randn(shape, device="cuda").to(dtype)  # noqa: E731
        self.sets = [
            {
                "x": make(shape(layout.in_features)),
                "dy": make(shape(layout.out_features)),
                "w": make(layout.w_shape),
            }
            for _ in range(sets)
        ]
        out = {"fprop": "dy", "dx": "x", "dw": "w"}[self.product]
        self.out = torch.empty_like(self.sets[0][out])
        self.gate = None
        if case["gated"]:
            self.gate = torch.rand(layout.num_blocks, device="cuda") + 0.5
        self.workspace = self._workspace()

    def _pairs(self, s):
        if self.case["pairs"] == 1:
            return [(s["x"], s["dy"], self.samples)]
        count = self.samples // self.case["pairs"]
        return [
            (x, dy, count) for x, dy in zip(s["x"].split(count), s["dy"].split(count), strict=True)
        ]

    def _keywords(self):
        stream = torch.cuda.current_stream().cuda_stream
        return {
            "dtype": self.dtype_name,
            "feature_axis": self.axis,
            "allow_tf32": self.tf32 or self.dtype_name != "float32",
            "gate": self.gate,
            "device": c_api.GPU,
            "stream": stream,
        }

    def _arguments(self, s):
        source = s["dy"] if self.product == "dx" else s["x"]
        keywords = self._keywords() | {"batch": self.samples, "is_dx": self.product == "dx"}
        return (self.plan, self.lut, source, s["w"], self.out), keywords

    def _workspace(self):
        s = self.sets[0]
        if self.product == "dw":
            num_bytes = self.kernels.dw_workspace_bytes(
                self.plan, self.lut, self._pairs(s), **self._keywords()
            )
        else:
            arguments, keywords = self._arguments(s)
            num_bytes = self.kernels.workspace_bytes(*arguments, **keywords)
        return torch.empty(max(num_bytes, 16), dtype=torch.uint8, device="cuda")

    def ours(self, i):
        s = self.sets[i % len(self.sets)]
        if self.product == "dw":
            self.kernels.matmul_dw(
                self.plan, self.lut, self._pairs(s), self.out, workspace=self.workspace,
                **self._keywords(),
            )  # fmt: skip
        else:
            arguments, keywords = self._arguments(s)
            self.kernels.matmul(*arguments, workspace=self.workspace, **keywords)

    def dense_w(self, s):
        size = self.layout.block_size
        grid = torch.zeros(
            (self.layout.in_blocks, self.layout.out_blocks, size, size),
            dtype=s["w"].dtype,
            device="cuda",
        )
        where = torch.from_numpy(self.layout.coordinates.astype(np.int64)).cuda()
        w = s["w"]
        if self.gate is not None:
            w = (w.float() * self.gate[:, None, None]).to(w.dtype)
        grid[where[:, 0], where[:, 1]] = w
        return grid.permute(0, 2, 1, 3).reshape(self.layout.in_features, self.layout.out_features)

    def dense(self):
        w = self.dense_w(self.sets[0])
        calls = [gpu_rivals.dense(self.product, s["x"], s["dy"], w, self.axis) for s in self.sets]
        return lambda i: calls[i % len(calls)]()

    def plain_triton(self):
        calls = [
            gpu_rivals.plain_triton(
                self.product, self.layout, s["x"], s["dy"], s["w"], self.out, self.axis, self.tf32
            )
            for s in self.sets
        ]
        return None if calls[0] is None else lambda i: calls[i % len(calls)]()

    def bsr(self):
        calls = [gpu_rivals.bsr(self.layout, s["x"], s["w"]) for s in self.sets[:2]]
        return lambda i: calls[i % 2]()

    def check(self, dense):
        """The relative error against the dense product, in full."""
        expected = dense(0)
        self.out.fill_(float("nan"))
        self.ours(0)
        if self.product == "dw":
            size = self.layout.block_size
            grid = expected.reshape(self.layout.in_blocks, size, self.layout.out_blocks, size)
            where = torch.from_numpy(self.layout.coordinates.astype(np.int64)).cuda()
            expected = grid.permute(0, 2, 1, 3)[where[:, 0], where[:, 1]]
        expected = expected.float()
        return float((self.out.float() - expected).norm() / expected.norm())


def measure(kernels, case, rivals):
    work = Case(kernels, case)
    torch.backends.cuda.matmul.allow_tf32 = work.tf32
    result = dict(case, density=work.layout.density)
    # A dense matrix of 64k x 64k has 8 GB, which says nothing that a smaller one does not.
    if np.prod(case["shape"][:2]) <= 2**30:
        dense = work.dense()
        error = work.check(dense)
        limit = 1e-2 if work.dtype_name != "float32" else 3e-3 if work.tf32 else 1e-5
        if not error < limit:
            raise SystemExit(f"{case} is wrong: relative error {error:.1e}")
        result["error"] = error
        result["dense_us"] = time_us(dense)
    result["us"] = time_us(work.ours)
    result["workspace_bytes"] = work.workspace.numel()
    result["tflops"] = work.flops / result["us"] / 1e6
    result["of_bound"] = (
        goals.bound_us(case["arithmetic"], work.flops, work.num_bytes) / result["us"]
    )
    goal = goals.of(case)
    if goal is not None:
        value, unit = goal
        result["goal"], result["goal_unit"] = value, unit
        result["of_goal"] = result["tflops"] / value if unit == "tflops" else value / result["us"]
    if rivals and case["group"] in ("main", "small", "float32"):
        triton = work.plain_triton()
        if triton is not None:
            result["triton_us"] = time_us(triton)
        if case["product"] == "fprop" and case["axis"] == 1 and case["group"] == "main":
            try:
                result["bsr_us"] = time_us(work.bsr())
            except (RuntimeError, NotImplementedError) as error:
                result["bsr_error"] = str(error).split("\n")[0]
    return result


def break_even(results):
    """The density at which the measured time meets dense's, by (product, block, axis)."""
    found = {}
    for r in results:
        if r["group"] == "main":
            key = r["product"], r["block"], r["axis"]
            found.setdefault(key, []).append((r["density"], r["us"] / r["dense_us"]))
    return {key: crossing(sorted(points)) for key, points in found.items()}


def crossing(points):
    """Where the line through (density, share of dense's time) reaches 1; at most 1."""
    for (d0, s0), (d1, s1) in zip(points, points[1:], strict=False):
        if s0 < 1 <= s1:
            return d0 + (d1 - d0) * (1 - s0) / (s1 - s0)
    (d0, s0), (d1, s1) = points[-2:]
    if points[0][1] >= 1:
        return points[0][0] / points[0][1]
    return min(1.0, d1 + (d1 - d0) * (1 - s1) / (s1 - s0))


def environment():
    def run(*command):
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    query = "--query-gpu=name,driver_version,clocks.sm,clocks.max.sm"
    return {
        "date": datetime.date.today().isoformat(),
        "commit": run("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD") or "unknown",
        "device": run("nvidia-smi", query, "--format=csv,noheader"),
        "torch": torch.__version__,
        "triton": getattr(gpu_rivals.triton, "__version__", None),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--library", default=str(ROOT / "build/libblocksparse_kernels.so"))
    parser.add_argument("--group", nargs="*", help="main, small, layouts, ...; all by default")
    parser.add_argument("--block", nargs="*", type=int, default=[8, 16, 32, 64, 128])
    parser.add_argument("--axis", nargs="*", type=int, default=[1, 0])
    parser.add_argument("--rivals", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", help="write the results here")
    args = parser.parse_args()

    kernels = c_api.Kernels(args.library)
    results = []
    head = f"{'case':64} {'us':>9} {'TF/s':>6} {'bound':>5} {'goal':>5} {'x dense':>7}"
    print(head + f" {'x triton':>8} {'x bsr':>6}", flush=True)
    for case in cases(args):
        if args.group and case["group"] not in args.group:
            continue
        r = measure(kernels, case, args.rivals)
        results.append(r)
        shape = "x".join(map(str, r["shape"]))
        notes = [r["layout"]] * (r["layout"] != "random") + ["gated"] * r["gated"]
        notes += [f"{r['pairs']} pairs"] * (r["pairs"] > 1)
        name = (
            f"{r['group']} {r['product']} {r['arithmetic']} {shape} B{r['block']} "
            f"axis{r['axis']} {r['density']:.1%} {' '.join(notes)}"
        )
        ratio = lambda key: f"{r[key] / r['us']:.2f}" if key in r else ""  # noqa: E731, B023
        goal = f"{r['of_goal']:.0%}" if "goal" in r else ""
        print(
            f"{name:64} {r['us']:9.2f} {r['tflops']:6.1f} {r['of_bound']:5.0%} {goal:>5} "
            f"{ratio('dense_us'):>7} {ratio('triton_us'):>8} {ratio('bsr_us'):>6}",
            flush=True,
        )
    for (product, block, axis), density in break_even(results).items():
        wanted = goals.TFLOPS[product][block][1]
        print(
            f"{product} B{block} axis{axis}: faster than dense below {density:.0%} "
            f"(goal {wanted:.0%})"
        )
    if args.json:
        found = {"environment": environment(), "command": " ".join(sys.argv), "results": results}
        pathlib.Path(args.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

"""Turns results of bench_kernels.py into the measurements behind `BlocksparseMatMul.advise`.

python bench/bench_kernels.py --group advice --json advice_results.json
python bench/make_advice.py advice_results.json > blocksparse/advice.json
python bench/make_advice.py --check bench/results/NAME.json          # how far the advice is off
"""

import argparse
import json
import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import goals  # noqa: E402


def machine(results):
    """What `blocksparse/advice.py` reads of one device."""
    grids = {}
    for r in results:
        if r["group"] == "advice":
            key = f"{goals.NAMES.get(r['arithmetic'], r['arithmetic'])} {r['product']} {r['block']}"
            grids.setdefault(key, {})[r["target_density"], r["shape"][2]] = r["us"]
    us = {}
    for key, cells in grids.items():
        densities, samples = (sorted({cell[i] for cell in cells}) for i in range(2))
        times = [[round(cells[d, n], 2) for n in samples] for d in densities]
        us[key] = {"densities": densities, "samples": samples, "us": times}
    return {
        "dense_flops": {goals.NAMES.get(a, a): f for a, f in goals.DENSE_FLOPS.items()},
        "memory_bytes": goals.MEMORY_BYTES,
        "launch_us": min(min(map(min, grid["us"])) for grid in us.values()),
        "us": us,
    }


def check(results):
    """Prints the quantiles of the advised time over the measured one, by group."""
    from blocksparse import advice
    from blocksparse.layout import SparsityLayout
    from blocksparse.testing import layouts

    ratios = {}
    for r in results:
        is_plain = r["layout"] == "random" and not r["gated"] and r["pairs"] == 1
        if r["group"] == "advice" or not is_plain or np.prod(r["shape"][:2]) > 2**30:
            continue
        shape, block = r["shape"], r["block"]
        rng = np.random.default_rng(0)
        mask = layouts.random(rng, shape[0] // block, shape[1] // block, r["target_density"])
        dtype = goals.NAMES.get(r["arithmetic"], r["arithmetic"])
        found = advice.advise(SparsityLayout(mask, block), shape[2], dtype, "NVIDIA H200")
        estimate = next(e for e in found.estimates if e.product == r["product"])
        ratios.setdefault((r["group"], "ours"), []).append(estimate.us / r["us"])
        if "dense_us" in r:
            ratios.setdefault((r["group"], "dense"), []).append(estimate.dense_us / r["dense_us"])
    for (group, whose), values in ratios.items():
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
        print(f"{group:20} {whose:6} {len(values):4} cases: {low:.2f} {middle:.2f} {high:.2f}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+")
    parser.add_argument("--device", default="NVIDIA H200")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    files = [json.loads(pathlib.Path(path).read_text()) for path in args.results]
    results = [r for file in files for r in file["results"]]
    if args.check:
        check(results)
    else:
        print(json.dumps({args.device: machine(results)}))


if __name__ == "__main__":
    main()

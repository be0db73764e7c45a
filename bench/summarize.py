"""Prints results of bench_kernels.py as Markdown.

    python bench/summarize.py bench/results/NAME.json

Products of 4096 x 4096 features with 8192 samples: how many times as fast as the dense product, and
useful TFLOP/s beside the goals.
"""

import json
import sys

import goals


def main_group(results, axis):
    """The results of group "main", by (product, block, density)."""
    return {
        (r["product"], r["block"], r["target_density"]): r
        for r in results
        if r["group"] == "main" and r["axis"] == axis
    }


def table(head, results, axis, cell, products=("fprop", "dx", "dw")):
    """Markdown: a row for each block size, a column for each density, `cell(result)` by product."""
    found = main_group(results, axis)
    blocks = sorted({block for _, block, _ in found})
    lines = [
        f"| {head}, {' / '.join(products)} | "
        + " | ".join(f"{density:.0%}" for density in goals.DENSITIES)
        + " |",
        "| --- |" + " --- |" * len(goals.DENSITIES),
    ]
    for block in blocks:
        cells = [
            " / ".join(cell(found[product, block, density]) for product in products)
            for density in goals.DENSITIES
        ]
        lines.append(f"| B = {block} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def speedup(result):
    return f"{result['dense_us'] / result['us']:.1f}"


def of_goal(result):
    return f"{result['tflops']:.0f} ({result['goal']})"


def main():
    with open(sys.argv[1]) as file:
        results = json.load(file)["results"]
    for axis in (1, 0):
        print(table(f"times dense, feature_axis {axis}", results, axis, speedup), end="\n\n")
    for axis in (1, 0):
        head = f"TFLOP/s (goal), feature_axis {axis}"
        print(table(head, results, axis, of_goal), end="\n\n")


if __name__ == "__main__":
    main()

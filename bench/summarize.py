"""Prints a results file as Markdown: speed-up over the dense product, block size by density.

python bench/summarize.py bench/results/h200-2026-11-20.json bfloat16
"""

import json
import sys


def table(path, dtype, products=("fprop", "dw")):
    """Markdown: a row for each block size, a cell "fprop / dw" for each density."""
    with open(path) as file:
        results = [r for r in json.load(file)["results"] if r["dtype"] == dtype]
    blocks = sorted({r["block"] for r in results})
    speedups = {}
    for r in results:
        nearest = min((0.05, 0.1, 0.25, 0.5), key=lambda density: abs(density - r["density"]))
        speedups[r["product"], r["block"], nearest] = r["speedup"]
    densities = sorted({density for _, _, density in speedups})
    lines = [
        f"| {dtype}, {' / '.join(products)} | " + " | ".join(f"{d:.0%}" for d in densities) + " |",
        "| --- |" + " --- |" * len(densities),
    ]
    for block in blocks:
        cells = [
            " / ".join(f"{speedups[product, block, density]:.2f}" for product in products)
            for density in densities
        ]
        lines.append(f"| B = {block} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    for name in sys.argv[2:]:
        print(table(sys.argv[1], name), end="\n\n")

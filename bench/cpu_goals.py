"""What the products should reach on a CPU, and whether a results file does.

python bench/cpu_goals.py bench/results/matmul-cpu-2026-11-21.json
"""

import json
import sys

import numpy as np

# Speed-up over tf.matmul of the same dtype, times the density, by block size.
BLOCKS = (8, 16, 32, 64)
OF_DENSE = {
    ("product", "float32"): (0.85, 0.9, 0.95, 0.95),
    ("dw", "float32"): (0.7, 0.8, 0.9, 0.9),
    ("product", "bfloat16"): (0.8, 0.85, 0.95, 0.95),
    ("dw", "bfloat16"): (0.65, 0.75, 0.85, 0.85),
}
OVER_CSR = 3.0  # times CSRSparseMatrix at 10 %
NAMES = {"product": "forward, dx", "dw": "dw"}


def _kind(product):
    return "dw" if product == "dw" else "product"


def of(product, dtype, block):
    """The goal of a case."""
    return OF_DENSE[_kind(product), dtype][BLOCKS.index(block)]


def table(results):
    """Markdown: goal, geometric mean, lowest and share of cases that meet it, by block size."""
    lines = [
        "| of dense: goal; mean, lowest; met | " + " | ".join(f"B = {b}" for b in BLOCKS) + " |",
        "| --- |" + " --- |" * len(BLOCKS),
    ]
    for threads in sorted({r["threads"] for r in results}):
        for (kind, dtype), goals in OF_DENSE.items():
            cells = []
            for block, goal in zip(BLOCKS, goals, strict=True):
                found = [
                    r["of_dense"]
                    for r in results
                    if (r["threads"], _kind(r["product"]), r["dtype"], r["block"])
                    == (threads, kind, dtype, block)
                ]
                cells.append(_cell(goal, found))
            lines.append(f"| {NAMES[kind]} {dtype}, {threads} thr | " + " | ".join(cells) + " |")
    csr = [r["csr_us"] / r["us"] for r in results if "csr_us" in r]
    if csr:
        lines.append("")
        lines.append(f"Times CSRSparseMatrix at 10 %: {_cell(OVER_CSR, csr)}")
    return "\n".join(lines)


def _cell(goal, found):
    if not found:
        return ""
    found = np.array(found)
    mean = np.exp(np.log(found).mean())
    met = (found >= goal).mean()
    return f"{goal:.2f}; {mean:.2f}, {found.min():.2f}; {met:.0%}"


if __name__ == "__main__":
    for path in sys.argv[1:]:
        with open(path) as file:
            print(table(json.load(file)["results"]))

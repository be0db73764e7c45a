"""Draws where block-sparse products beat dense ones, from results of bench_kernels.py.

    python bench/plot_break_even.py bench/results/NAME.json bench/results/NAME.png

Reads the group "advice": 4096 x 4096 features, 8192 samples, bfloat16, feature_axis 1.
"""

import json
import sys

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

PRODUCTS = {"fprop": "forward and dx", "dw": "dw"}
SAMPLES = 8192


def speedups(results, product):
    """(block sizes, densities, float[blocks, densities] dense's time over ours)."""
    found = {
        (r["block"], r["target_density"]): r["dense_us"] / r["us"]
        for r in results
        if r["group"] == "advice"
        and r["product"] == product
        and r["arithmetic"] == "bfloat16"
        and r["shape"][2] == SAMPLES
    }
    blocks, densities = (sorted({key[i] for key in found}) for i in range(2))
    return blocks, densities, np.array([[found[b, d] for d in densities] for b in blocks])


def draw(axes, results, product):
    blocks, densities, values = speedups(results, product)
    limit = np.log2(16)
    image = axes.imshow(
        np.log2(values), cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto", origin="lower"
    )
    for (i, j), value in np.ndenumerate(values):
        text = f"{value:.1f}" if value < 10 else f"{value:.0f}"
        color = "white" if abs(np.log2(value)) > 2.2 else "black"
        axes.text(j, i, text, ha="center", va="center", color=color, fontsize=9)
    # Where the line through the logarithms of the neighbours crosses 1.
    for i, row in enumerate(np.log(values)):
        below = np.flatnonzero((row[:-1] > 0) & (row[1:] <= 0))
        for j in below:
            x = j + row[j] / (row[j] - row[j + 1])
            axes.plot([x, x], [i - 0.5, i + 0.5], color="black", linewidth=2)
    axes.set_xticks(range(len(densities)), [f"{d:.0%}" for d in densities])
    axes.set_yticks(range(len(blocks)), blocks)
    axes.set_xlabel("density")
    axes.set_ylabel("block size")
    axes.set_title(PRODUCTS[product])
    return image


def main():
    source, target = sys.argv[1:]
    with open(source) as file:
        found = json.load(file)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for product, panel in zip(PRODUCTS, axes, strict=True):
        draw(panel, found["results"], product)
    device = found["environment"]["device"].split(",")[0]
    figure.suptitle(f"{device}: times as fast as dense; black: as fast", fontsize=10)
    figure.savefig(target, dpi=130)


if __name__ == "__main__":
    main()

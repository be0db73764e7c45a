"""The table of what is supported, from the data that the checks use, and its proof on this machine.

python -m blocksparse.testing.support            prints the README's table
python -m blocksparse.testing.support --prove    runs every combination on every device
                                                 against the reference; prints what matched
"""

import sys

import numpy as np

from blocksparse import _checks
from blocksparse.layout import BLOCK_SIZES

PRODUCTS = ("fprop", "dx", "dw")


def table():
    """The support table in Markdown."""
    dtypes, sizes, axes = (
        ", ".join(map(str, values))
        for values in ([d.name for d in _checks.DTYPES], BLOCK_SIZES, _checks.FEATURE_AXES)
    )
    lines = [
        "| product | dtypes | block sizes | feature axes | devices |",
        "| --- | --- | --- | --- | --- |",
    ]
    for product, with_gate in (
        ("y = x W", True),
        ("dx = dy Wᵀ", True),
        ("dw = xᵀ dy", True),
        ("l2_normalize", False),
    ):
        shown_axes = axes if with_gate else "any"
        gate = ", with or without gate" if with_gate else ""
        lines.append(f"| {product}{gate} | {dtypes} | {sizes} | {shown_axes} | CPU, GPU |")
    return "\n".join(lines)


def prove(device):
    """Runs every combination on `device`; returns {(dtype, block size, axis, product): matched}."""
    import tensorflow as tf

    from blocksparse import SparsityLayout
    from blocksparse.matmul_ops import matmul, matmul_dw, matmul_dx
    from blocksparse.testing import layouts, reference, tolerance

    outcome = {}
    rng = np.random.default_rng(0)
    n = 130
    for dtype in _checks.DTYPES:
        for size in BLOCK_SIZES:
            layout = SparsityLayout(layouts.standard()["empty_lines"], size)
            for axis in _checks.FEATURE_AXES:
                shapes = [
                    (n, f) if axis == 1 else (f, n)
                    for f in (layout.in_features, layout.out_features)
                ]
                depth = max(layout.in_features, layout.out_features, n)
                x, w, dy = (
                    tolerance.random_integers(rng, shape, depth, dtype.name)
                    for shape in (shapes[0], layout.w_shape, shapes[1])
                )
                with tf.device(f"{device}:0"):
                    tx, tw, tdy = (tf.cast(a, dtype) for a in (x, w, dy))
                    results = (
                        matmul(tx, tw, layout, feature_axis=axis),
                        matmul_dx(tdy, tw, layout, feature_axis=axis),
                        matmul_dw(tx, tdy, layout, feature_axis=axis),
                    )
                expected = (
                    reference.matmul(x, w, layout, axis),
                    reference.matmul_dx(dy, w, layout, axis),
                    reference.matmul_dw(x, dy, layout, axis),
                )
                for product, result, exact in zip(PRODUCTS, results, expected, strict=True):
                    outcome[dtype.name, size, axis, product] = np.array_equal(
                        result.numpy().astype(float), exact
                    )
    return outcome


def main():
    if sys.argv[1:] != ["--prove"]:
        print(table())
        return
    import tensorflow as tf

    failed = 0
    for device in sorted(
        {d.device_type for d in tf.config.list_logical_devices()} & {"CPU", "GPU"}
    ):
        outcome = prove(device)
        failed += sum(not matched for matched in outcome.values())
        print(f"{device}: fprop, dx, dw; y = every element equal to the reference")
        print(f"{'':10} {'':6}", *[f"{f'B={size}':>9}" for size in BLOCK_SIZES])
        for dtype in _checks.DTYPES:
            for axis in _checks.FEATURE_AXES:
                cells = [
                    "".join("y" if outcome[dtype.name, size, axis, p] else "N" for p in PRODUCTS)
                    for size in BLOCK_SIZES
                ]
                print(f"{dtype.name:10} axis {axis}", *[f"{cell:>9}" for cell in cells])
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

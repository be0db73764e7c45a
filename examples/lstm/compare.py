"""Several runs side by side: a table, and their curves in one picture (needs matplotlib).

python examples/lstm/compare.py runs/sparse runs/dense --picture curves.png
"""

import argparse
import json
import pathlib

import errors
import runs


def read(folder):
    """(records, summary) of a finished run's folder.

    Raises:
      UserError: a file is missing or not what `train.py` writes.
    """
    found = []
    for name in (runs.LOG, runs.SUMMARY):
        path = pathlib.Path(folder) / name
        try:
            text = path.read_text()
            whole = name == runs.SUMMARY
            found.append(json.loads(text) if whole else list(map(json.loads, text.splitlines())))
        except OSError as error:
            raise errors.UserError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise errors.UserError(f"{path} is not what train.py writes: {error}") from error
    return tuple(found)


def table(results):
    """Markdown of {name: (records, summary)}."""
    lines = [
        "| run | layout | parameters | training bytes | training | validation | bytes/s | GiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, (records, summary) in results.items():
        flags = summary["flags"]
        layout = flags["layout"]
        if layout != "dense":
            layout += f", {flags['density']:.0%} of blocks of {flags['block-size']}"
        training = [r["bpc"] for r in records if "bpc" in r]
        peak = summary.get("peak_bytes")
        cells = [
            name,
            layout,
            f"{summary['parameters']:,}",
            f"{records[-1]['tokens']:,}",
            f"{training[-1]:.3f}" if training else "",
            f"{summary['validation_bpc']:.3f}",
            f"{summary['bytes_per_second']:,.0f}",
            f"{peak / 2**30:.2f}" if peak else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    compressors = next(iter(results.values()))[1]["compressors"]
    lines.append("")
    beside = ", ".join(f"{name} {bpc:.3f}" for name, bpc in compressors.items())
    lines.append(f"Bits per character; on the validation bytes: {beside}.")
    return "\n".join(lines)


def draw(results, path):
    """The training curves, thin, and the validation curves of {name: (records, summary)}."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, (records, _)) in enumerate(results.items()):
        for key, style, width, label in (
            ("bpc", "-", 0.8, None),
            ("validation_bpc", "o-", 1.6, name),
        ):
            points = [(r["tokens"] / 1e6, r[key]) for r in records if key in r]
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    style,
                    color=f"C{number}",
                    linewidth=width,
                    markersize=4,
                    label=label,
                )
    for number, (name, bpc) in enumerate(next(iter(results.values()))[1]["compressors"].items()):
        style = ("--", "-.", ":")[number % 3]
        axes.axhline(bpc, color="gray", linestyle=style, linewidth=1, label=name)
    axes.set_xlabel("training bytes, millions")
    axes.set_ylabel("bits per character (thin: training)")
    axes.set_ylim(0.5, 4)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main():
    """Parses the flags and compares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", help="folders of finished runs")
    parser.add_argument("--picture", help="PNG file of the curves")
    args = parser.parse_args()
    results = {pathlib.Path(folder).name: read(folder) for folder in args.folders}
    print(table(results))
    if args.picture:
        try:
            draw(results, args.picture)
        except ImportError as error:
            raise errors.UserError(f"--picture needs matplotlib: {error}") from error


if __name__ == "__main__":
    errors.run(main)

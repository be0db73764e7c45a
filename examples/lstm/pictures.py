"""The loss curve and the layouts as PNG files; needs matplotlib."""

from blocksparse import patterns

CURVES = {"bpc": ("training", "-"), "validation_bpc": ("validation", "o-")}


def draw_curve(records, lines, path):
    """The curves of a log.

    Args:
      records: of `runs.read_log`.
      lines: {name: bits per character}, drawn across.
      path: of the PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for key, (label, style) in CURVES.items():
        points = [(r["tokens"] / 1e6, r[key]) for r in records if key in r]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4, linewidth=1)
    for number, (name, value) in enumerate(lines.items(), len(CURVES)):
        label = f"{name}: {value:.2f}"
        axes.axhline(value, color=f"C{number}", linestyle="--", linewidth=1, label=label)
    axes.set_xlabel("training bytes, millions")
    axes.set_ylabel("bits per character")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def draw_layouts(config, folder):
    """The masks of the internal steps and of the gates, a file each: h0.png, ..., gates.png."""
    folder.mkdir(exist_ok=True)
    for name, layout in zip((*config.step_names, "gates"), config.masks, strict=False):
        title = f"{name}: density {layout.density:.3g}, blocks of {layout.block_size}"
        patterns.draw(layout.mask, folder / f"{name}.png", title)

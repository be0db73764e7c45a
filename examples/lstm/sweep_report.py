"""What a sweep has found: tables in Markdown, all figures as JSON, a picture."""

import json

import errors
import settings

TABLES, FIGURES, PICTURE = "results.md", "results.json", "results.png"
COLUMNS = ("features", "stored", "inputs", "pairs joined", "parameters")


def plan(models):
    """The models before they are trained, as text.

    stored: share of blocks; inputs: of a feature, in the mean; pairs joined: share of the pairs of
    features that one update of the state joins by a path.
    """
    rows = [("model", *COLUMNS), *((model.name, *_sizes(model)) for model in models)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def write(sweep, command):
    """Writes results.md, results.json and results.png into the sweep's folder.

    Args:
      sweep: `sweep.Sweep`; models without a result are named as such.
      command: that of the sweep, for results.md.
    Returns:
      The tables.
    Raises:
      UserError: a file cannot be written, or matplotlib is not there.
    """
    from blocksparse.testing.timing import environment

    results = {model.name: sweep.result(model) for model in sweep.models}
    done = [result for result in results.values() if result]
    device = "CPU" if all(result["device"] == "CPU" for result in done) else "GPU"
    about = environment(device)
    tables = "\n\n".join(_table(name, axis, results) for name, axis in sweep.axes.items())
    text = f"{_heading(sweep, done)}\n\n{tables}\n\n{_footnote(about, command)}\n"
    figures = {
        "environment": about,
        "command": command,
        "flags": sweep.base,
        "models": [_figures(model, sweep.base, results[model.name]) for model in sweep.models],
    }
    try:
        (sweep.folder / TABLES).write_text(text)
        (sweep.folder / FIGURES).write_text(json.dumps(figures, indent=1) + "\n")
        _draw(sweep.axes, results, sweep.folder / PICTURE)
    except OSError as error:
        raise errors.UserError(f"{error.filename} cannot be written: {error.strerror}") from error
    except ImportError as error:
        raise errors.UserError(f"there is no picture without matplotlib: {error}") from error
    return text


def _sizes(model):
    """The cells of COLUMNS."""
    return (
        f"{model.hidden:,}",
        f"{model.density:.1%}",
        f"{model.density * model.hidden:.0f}",
        f"{model.joined:.0%}",
        f"{model.parameters:,}",
    )


def _heading(sweep, done):
    flags, steps = sweep.base, settings.num_steps(sweep.base)
    size = steps * flags["batch"] * flags["window"]
    lines = [
        f"# Models of about {flags['parameters']:,} parameters, trained on {size:,} bytes each",
        "",
        f"{steps} steps of {flags['batch']} x {flags['window']} bytes. Each table varies "
        "one flag of the base model. stored: share of blocks; inputs: of a feature, in the mean; "
        "pairs joined: share of the pairs of features that one update of the state joins "
        "by a path.",
    ]
    if done:
        others = ", ".join(f"{name} {bpc:.3f}" for name, bpc in done[0]["compressors"].items())
        lines[-1] += (
            f" Bits per character are of {done[0]['validation_bytes']:,} validation bytes, for "
            f"which an untrained model needs 8, and of which compressors make: {others}."
        )
    return "\n".join(lines)


def _table(name, axis, results):
    """Markdown: a row for each value of a flag."""
    lines = [
        f"| {name} | {' | '.join(COLUMNS)} | bits per character | bytes/s |",
        "| --- |" + " ---: |" * (len(COLUMNS) + 2),
    ]
    for value, model in axis.items():
        result = results[model.name]
        bpc, speed = "no result", ""
        if result:
            bpc = f"{result['validation_bpc']:.3f}"
            speed = f"{result['bytes_per_second']:,.0f}" if result["bytes_per_second"] else ""
        label = f"{value} (base)" if model.name == "base" else value
        lines.append(f"| {label} | {' | '.join(_sizes(model))} | {bpc} | {speed} |")
    return "\n".join(lines)


def _footnote(about, command):
    return (
        f"| | |\n| --- | --- |\n| hardware | {about['device']} |\n| software | TensorFlow "
        f"{about['tensorflow']}, commit {about['commit']} |\n| command | `{command}` |"
    )


def _figures(model, base, result):
    """A model's entry in results.json."""
    kept = ("validation_bpc", "validation_bytes", "bytes_per_second", "compressors", "device",
            "peak_bytes")  # fmt: skip
    return {
        "name": model.name,
        "changed": {name: v for name, v in model.flags.items() if base[name] != v},
        "hidden": model.hidden,
        "density": model.density,
        "joined": model.joined,
        "parameters": model.parameters,
        "result": result and {key: result[key] for key in kept if key in result},
    }


def _draw(axes, results, path):
    """A panel for each flag: bits per character by value, with the numbers of features."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(axes), 3.6), layout="constrained")
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for (name, axis), panel in zip(axes.items(), panels, strict=True):
        points = [
            (number, results[model.name]["validation_bpc"], model)
            for number, model in enumerate(axis.values())
            if results[model.name]
        ]
        for number, bpc, model in points:
            panel.plot(number, bpc, "o", color="C1" if model.name == "base" else "C0")
            panel.annotate(
                f"{model.hidden:,}", (number, bpc), (0, 6), textcoords="offset points",
                ha="center", fontsize=8,
            )  # fmt: skip
        if all(isinstance(value, int | float) for value in axis):
            panel.plot([p[0] for p in points], [p[1] for p in points], "C0", linewidth=1, zorder=0)
        panel.set_xticks(range(len(axis)), [str(value).replace("_", "\n") for value in axis],
                         fontsize=8)  # fmt: skip
        panel.set_xlabel(name)
        panel.margins(0.15)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("bits per character")
    figure.suptitle("orange: the base model; numbers: features of the state", fontsize=9)
    figure.savefig(path, dpi=120)

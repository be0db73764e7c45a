"""Trains models of equal numbers of parameters on equally many bytes, and compares them.

    python examples/lstm/sweep.py --out runs/sweep
    python examples/lstm/sweep.py --out runs/sweep --data enwik8 --parameters 11e6 --steps 4000 \\
        --vary density 0.01 0.03 0.1 --vary layout dense barabasi_albert balanced_random

Each --vary changes one flag of train.py at a time and leaves the others as they are given, so that
every table has the same base model in it; the number of features follows from --parameters. What
has been trained is not trained again, and what was interrupted goes on: the same command continues
a sweep, and with more values adds to it.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys

import corpus
import errors
import runs
import settings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

TRAIN = pathlib.Path(__file__).with_name("train.py")
PARAMETERS = 150_000
AXES = [
    ["density", "0.1", "0.2", "0.4"],
    ["block-size", "8", "16", "32"],
    ["internal-steps", "2", "3", "5"],
    ["layout", "dense", "barabasi_albert", "watts_strogatz", "balanced_random", "banded"],
]
MODEL = {name: flag for name, flag in settings.MODEL.items() if name != "hidden"} | {
    "parameters": (PARAMETERS, *settings.MODEL["parameters"][1:])
}
FLAGS = {**MODEL, **settings.DATA, **settings.TRAINING}
CONTROL = {
    name: settings.CONTROL[name]
    for name in ("save-every", "validation-bytes", "threads", "replicas")
}
VARIED = [*(name for name in MODEL if name != "parameters"), "rate", "warmup", "decay", "clip"]


def main():
    """Parses the flags, trains what is missing, and reports."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="runs/sweep", help="folder of the sweep [runs/sweep]")
    parser.add_argument(
        "--vary",
        nargs="+",
        action="append",
        metavar=("FLAG", "VALUE"),
        help="values of a flag, one model each; may be repeated ["
        + "; ".join(map(" ".join, AXES))
        + "]",
    )
    parser.add_argument("--plan", action="store_true", help="show the models and train none")
    settings.add_flags(
        parser,
        ("model", MODEL),
        ("text", settings.DATA),
        ("training", settings.TRAINING),
        ("control", CONTROL),
    )
    namespace = parser.parse_args()
    base = settings.with_defaults(settings.given(namespace, FLAGS), FLAGS) | {"hidden": None}
    control = settings.with_defaults(settings.given(namespace, CONTROL), CONTROL)
    axes = parse_axes(namespace.vary or AXES)
    sweep = Sweep(pathlib.Path(namespace.out), settings.normalized(base), axes, control)

    import sweep_report

    print(sweep_report.plan(sweep.models), flush=True)
    if not namespace.plan:
        failed = sweep.train()
        print(sweep_report.write(sweep, shlex.join(["python", *sys.argv])))
        if failed:
            raise errors.UserError(
                f"training has failed for {', '.join(failed)}; the same command tries again"
            )


def parse_axes(texts):
    """{flag: values} of lists [flag, value, ...] of texts."""
    axes = {}
    for name, *values in texts:
        if name not in VARIED or name in axes or not values:
            raise errors.UserError(
                f"--vary must name one of {', '.join(VARIED)}, each once, and one value or more. "
                f"Received: {' '.join([name, *values])}"
            )
        axes[name] = [_parse(name, text) for text in values]
    return axes


def _parse(name, text):
    kind = FLAGS[name][1]
    if kind is bool:
        kind = {"yes": True, "no": False}.__getitem__
    elif isinstance(kind, tuple):
        kind = {str(choice): choice for choice in kind}.__getitem__
    try:
        return kind(text)
    except (KeyError, ValueError, argparse.ArgumentTypeError) as error:
        expected = FLAGS[name][1]
        choices = ("yes", "no") if expected is bool else expected
        detail = f"one of {', '.join(map(str, choices))}" if isinstance(choices, tuple) else error
        raise errors.UserError(f"--vary {name}: {text!r} is wrong: {detail}") from error


@dataclasses.dataclass(frozen=True)
class Model:
    """One of the models that a sweep compares.

    Attributes:
      name: of its folder: "base", or the flag that is not as in the base and its value.
      flags: of its run, as `settings.STORED`.
      hidden, parameters: numbers of features of the state and of parameters.
      density: share of blocks stored, in the mean over the masks.
      joined: share of pairs of features that one update of the state joins by a path.
    """

    name: str
    flags: dict
    hidden: int
    parameters: int
    density: float
    joined: float


class Sweep:
    """The models of a sweep and their runs.

    Args:
      folder: of the sweep; each model has a folder in it.
      base: all `settings.STORED` flags.
      axes: {flag: values}.
      control: of CONTROL.
    Attributes:
      axes: {flag: {value: model}}, the base among them, in the order of the values, if numbers.
      models: each once, the base first.
    Raises:
      UserError: a model is impossible, or the text cannot be read.
    """

    def __init__(self, folder, base, axes, control):
        self.folder, self.base, self._control = folder, base, control
        text = corpus.open_text(base["data"], base["files"])
        begin, end = text.splits()["validation"]
        self._validation_bytes = min(end - begin, control["validation-bytes"])
        self._text = {"bytes": len(text), "fingerprint": text.fingerprint()}
        base_model = _model("base", base)
        self.axes = {}
        for name, values in axes.items():
            models = {base[name]: base_model}
            for value in values:
                if value not in models:
                    models[value] = _model(f"{name}={value}", base | {name: value})
            is_ordered = all(isinstance(value, int | float) for value in models)
            self.axes[name] = dict(sorted(models.items())) if is_ordered else models
        models = [base_model, *(m for axis in self.axes.values() for m in axis.values())]
        self.models = list({model.name: model for model in models}.values())

    def result(self, model):
        """The summary of a run, or None if it is not complete.

        Raises:
          UserError: the folder has the run of another model, or of other training.
        """
        path = self.folder / model.name / runs.SUMMARY
        try:
            found = json.loads(path.read_text())
            found["text"] = {key: found["text"][key] for key in self._text}
            flags = found["flags"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise errors.UserError(f"{path} is damaged, delete it: {error!r}") from error
        expected = {
            **{f"--{name}": value for name, value in model.flags.items()},
            "parameters": model.parameters,
            "validation_bytes": self._validation_bytes,
            "text": self._text,
        }
        found = {**found, **{f"--{name}": value for name, value in flags.items()}}
        for name, value in expected.items():
            if found.get(name) != value:
                raise errors.UserError(
                    f"{path} belongs to another sweep: its {name} is {found.get(name)!r}, that of "
                    f"this one {value!r}. Choose another --out"
                )
        return found

    def train(self):
        """Trains the models that have no result; returns the names of those that failed."""
        missing = [model for model in self.models if self.result(model) is None]
        failed = []
        with _Child() as child:
            for number, model in enumerate(missing, 1):
                print(f"\n[{number}/{len(missing)}] {model.name}", flush=True)
                status = child.run(self._command(model))
                if child.is_stopped:
                    raise errors.UserError("stopped; the same command continues")
                if status or self.result(model) is None:
                    failed.append(model.name)
        return failed

    def _command(self, model):
        flags = model.flags | self._control
        words = [sys.executable, str(TRAIN), f"--out={self.folder / model.name}"]
        words += ["--no-pictures", "--keep=1", f"--validate-every={settings.num_steps(flags)}"]
        for name, value in flags.items():
            if value is True:
                words.append(f"--{name}")
            elif value is not None and value is not False:
                words.append(f"--{name}={value}")
        return words


def _model(name, flags):
    import numpy as np
    from model import config_of, num_parameters

    from blocksparse import patterns

    try:
        config = config_of(flags)
    except errors.UserError as error:
        raise errors.UserError(f"{name}: {error}") from error
    *steps, gates = [layout.mask for layout in config.masks]
    joined = patterns.mixing([*(steps * config.isteps)[: config.isteps], gates])[-1]
    density = float(np.mean([layout.density for layout in config.masks]))
    return Model(name, flags, config.nhidden, num_parameters(config), density, joined)


class _Child:
    """Runs programs; Ctrl-C and SIGTERM end the one that runs, which then saves its state."""

    def __enter__(self):
        self.is_stopped = False
        self._process = None
        self._handlers = {n: signal.signal(n, self._stop) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def run(self, command):
        """The exit status."""
        # In a session of its own it gets one signal, not that of the terminal too.
        self._process = subprocess.Popen(command, start_new_session=True)
        if self.is_stopped:
            self._process.terminate()
        return self._process.wait()

    def _stop(self, *_):
        self.is_stopped = True
        if self._process is not None:
            self._process.terminate()


if __name__ == "__main__":
    errors.run(main)

"""The flags of a training run, with their defaults and what they mean. No TensorFlow.

A flag of MODEL, DATA or TRAINING belongs to the run: it is stored in its checkpoints and cannot be
changed afterwards. A flag of CONTROL may be another whenever a run is continued.
"""

import argparse
import os

from errors import UserError


def _positive(text):
    value = int(float(text)) if "e" in text else int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer. Received: {text}")
    return value


def _count(text):
    value = int(float(text)) if "e" in text else int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more. Received: {text}")
    return value


def _positive_number(text):
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number. Received: {text}")
    return value


def _share(text):
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and less than 1. Received: {text}")
    return value


# argparse names a type in its message: "invalid integer value: 'x'".
for _type, _name in ((_positive, "integer"), (_count, "integer"), (_positive_number, "number"),
                     (_share, "number")):  # fmt: skip
    _type.__name__ = _name

DEFAULT_STEPS = 1000
PATTERNS = "barabasi_albert watts_strogatz watts_strogatz_2d random balanced_random banded"

# name: (default, type or choices, help)
MODEL = {
    "hidden": (None, _positive, "features of the state, a multiple of the block size [1024]"),
    "parameters": (None, _positive, "instead of --hidden: about so many parameters in all"),
    "embedding": (64, _positive, "features that a byte becomes, a multiple of 8"),
    "internal-steps": (5, _positive, "internal steps of the multiplicative LSTM, 2 or more"),
    "layout": (
        "barabasi_albert",
        str,
        f"which blocks are stored: dense; {PATTERNS.replace(' ', ', ')} with --density; or a name "
        "with its numbers, such as ba_5, ws_3_60, br_2",
    ),
    "density": (0.1, _positive_number, "share of blocks stored, for a --layout that takes one"),
    "rewire": (0.6, _share, "share of a Watts-Strogatz layout's blocks that are moved at random"),
    "block-size": (32, (8, 16, 32, 64, 128), "edge of a block"),
    "updates": (1, _positive, "LSTM updates for each byte; all but the first see no input"),
    "inputs": (None, _positive, "features of the state that the input reaches [all]"),
    "share-masks": (False, bool, "one layout for all internal steps and gates"),
    "share-steps": (False, bool, "one set of weights for all internal steps"),
    "forget-bias": (1.0, float, "what the forget gate's bias starts with"),
    "dropout": (0.0, _share, "share of the outputs that training sets to zero"),
    "update-dropout": (0.0, _share, "share of the cell's updates that training sets to zero"),
    "dtype": (
        "float32",
        ("float32", "bfloat16", "float16"),
        "of activations and products; parameters are float32",
    ),
    "feature-axis": (1, (0, 1), "1: features last, 0: features first"),
    "seed": (0, _count, "of layouts, initial parameters and dropout"),
}
DATA = {
    "data": (None, str, "a text file, or a folder of them [the sources of Python's library]"),
    "files": ("*", str, "which files of a folder, by their names' pattern"),
}
TRAINING = {
    "steps": (None, _positive, f"training steps [{DEFAULT_STEPS}]"),
    "tokens": (None, _positive, "instead of --steps: training bytes, over all steps and streams"),
    "batch": (64, _positive, "parallel streams of text, on all replicas together"),
    "window": (64, _positive, "bytes of a stream in a step, through which gradients go back"),
    "rate": (2e-3, _positive_number, "Adam's learning rate after warm-up"),
    "warmup": (100, _count, "steps in which the learning rate rises from 0"),
    "decay": (
        "cosine",
        ("cosine", "linear", "none"),
        "how the learning rate then falls, to a twentieth at the last step",
    ),
    "beta2": (0.999, _share, "Adam's decay of squared gradients"),
    "clip": (1.0, _positive_number, "largest global norm of the gradients"),
    "recompute": (
        0,
        _count,
        "to save memory, keep states every so many bytes only and compute the steps between twice",
    ),
}
CONTROL = {
    "save-every": (500, _positive, "steps from one checkpoint to the next"),
    "keep": (2, _positive, "checkpoints to keep"),
    "validate-every": (500, _positive, "steps from one validation to the next"),
    "validation-bytes": (262144, _positive, "bytes of the validation text that are used"),
    "log-every": (10, _positive, "steps from one line of the log to the next"),
    "threads": (0, _count, "CPU threads, 0 for all"),
    "replicas": (
        1,
        _positive,
        "GPUs to train on, of each machine, which share the streams; logical devices without a GPU",
    ),
    "wait": (600, _positive, "seconds to wait for the other machines that TF_CONFIG names"),
    "sample": (0, _count, "bytes to write with the model at the end"),
    "no-pictures": (False, bool, "draw no loss curve and no layouts"),
    "profile": (0, _count, "trace so many steps for TensorBoard and for device_time.py"),
}
STORED = {**MODEL, **DATA, **TRAINING}


def add_flags(parser, *groups):
    """Adds flags; those that are not given become None in the namespace."""
    for title, flags in groups:
        group = parser.add_argument_group(title)
        for name, (default, kind, text) in flags.items():
            if default not in (None, False):
                text += f" [{default}]"
            if kind is bool:
                group.add_argument(f"--{name}", action="store_true", default=None, help=text)
            elif isinstance(kind, tuple):
                group.add_argument(f"--{name}", choices=kind, type=type(kind[0]), help=text)
            else:
                group.add_argument(f"--{name}", type=kind, help=text, metavar="X")


def given(namespace, flags):
    """{name: value} of the flags that the command line names."""
    values = {name: getattr(namespace, name.replace("-", "_")) for name in flags}
    return {name: value for name, value in values.items() if value is not None}


def with_defaults(values, flags):
    """{name: value} of all flags."""
    return {name: values.get(name, default) for name, (default, _, _) in flags.items()}


def normalized(values):
    """The same with an absolute path of the text, and checked against one another."""
    values = dict(values)
    if values.get("data") is not None:
        values["data"] = os.path.abspath(values["data"])
    for one, other in (("hidden", "parameters"), ("steps", "tokens")):
        if values.get(one) is not None and values.get(other) is not None:
            raise UserError(f"--{one} and --{other} exclude each other")
    return values


def num_steps(flags):
    """Training steps, of --steps or of --tokens."""
    if flags["tokens"] is None:
        return flags["steps"] or DEFAULT_STEPS
    return -(-flags["tokens"] // (flags["batch"] * flags["window"]))


def check_unchanged(values, stored, where):
    """Raises UserError if a flag that is given contradicts what a checkpoint stores."""
    for name, value in values.items():
        if name not in stored or stored[name] != value:
            raise UserError(
                f"--{name} contradicts {where}: stored is {stored.get(name)!r}, given is {value!r}."
                " Leave the flag out to continue that run, or choose another --out to start one"
            )

"""What a model remembers of documents, and how well a linear classifier knows them by it.

    python examples/lstm/features.py --checkpoint runs/first --data reviews.csv --out reviews.npz

The features of a document are the cell states after its last byte. They go into the .npz file as
PART/features float32[n, hidden] and PART/labels, in the order of the source, where PART is train,
validation and test, or all. documents.py says what --data may be. The classifier is a logistic
regression (classifier.py). It is fitted on the training part, which a validation part is added to,
because cross-validation chooses its regularisation.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import pathlib
import time

import errors
import numpy as np
import settings
from classifier import classify
from documents import read_documents

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

LINE_SECONDS = 10  # from one line of progress to the next
FLAGS = {
    "text-column": (None, str, "of a table [the first of text, sentence, review]"),
    "label-column": (None, str, "of a table [the first of label, sentiment]"),
    "fine-grained": (False, bool, "of trees: labels 0 to 4 instead of neg and pos"),
    "prefix": (None, str, "bytes that each document begins with [a line break and a space]"),
    "suffix": (None, str, "bytes that each document ends with [a space]"),
    "batch": (64, settings.TRAINING["batch"][1], "documents that are read side by side"),
    "window": (256, settings.TRAINING["window"][1], "bytes of each that are read at a time"),
    "no-classifier": (False, bool, "write the features and stop"),
    "seed": (0, settings.MODEL["seed"][1], "of the cross-validation"),
    "threads": settings.CONTROL["threads"],
}
PREFIX, SUFFIX = "\n ", " "  # what OpenAI's sentiment neuron had around a review


def main():
    """Parses the flags, writes the features and fits the classifier."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="folder of a run, or a checkpoint file")
    parser.add_argument("--data", required=True, help="labelled documents: a file or a folder")
    parser.add_argument("--out", required=True, type=pathlib.Path, help=".npz file of the features")
    settings.add_flags(parser, ("features", FLAGS))
    namespace = parser.parse_args()
    flags = settings.with_defaults(settings.given(namespace, FLAGS), FLAGS)
    if not flags["no-classifier"] and importlib.util.find_spec("sklearn") is None:
        raise errors.UserError(
            "the classifier needs scikit-learn (pip install scikit-learn); --no-classifier does "
            "without"
        )
    parts = _documents(namespace.data, flags)
    with _whole_file(namespace.out) as file:
        arrays = _features(namespace.checkpoint, parts, flags)
        np.savez(file, **arrays)
    print(f"features   {namespace.out}: {', '.join(n for n in arrays if n != 'about')}", flush=True)
    if not flags["no-classifier"]:
        print(_classified(arrays, flags["seed"]))


def cell_states(model, texts, batch, window, show=lambda documents, size: None):
    """The cell states of a model after each text, from a state of zeros.

    Texts of about one length are read side by side, in windows, so that neither their number nor
    their length is bounded by memory.

    Args:
      model: LanguageModel.
      texts: sequence of bytes; after an empty one the cell state is 0.
      batch: texts side by side.
      window: bytes of each that are read at a time.
      show: called now and then with the numbers of texts and bytes that are done.
    Returns:
      float32[len(texts), nhidden].
    """
    read = _reader(model)
    lengths = np.array([len(text) for text in texts])
    order = np.argsort(lengths, kind="stable")
    result = np.empty((len(texts), model.config.nhidden), np.float32)
    num_bytes = 0
    for first in range(0, len(texts), batch):
        chosen = order[first : first + batch]
        state = model.initial_state(len(chosen))
        for begin in range(0, lengths[chosen].max(), window):
            parts = [texts[number][begin : begin + window] for number in chosen]
            sizes = np.array([len(part) for part in parts], np.int32)
            x = np.zeros((sizes.max(), len(chosen)), np.uint8)
            for column, part in enumerate(parts):
                x[: len(part), column] = np.frombuffer(part, np.uint8)
            state = read(x, sizes, *state)
            num_bytes += sizes.sum()
            show(first, num_bytes)
        c = np.asarray(state[0], np.float32)
        result[chosen] = c if model.config.feature_axis == 1 else c.T
    return result


def _reader(model):
    """A graph (x, sizes, c, h) -> (c, h): bytes uint8[T, N] of N texts, sizes[n] of text n."""
    import tensorflow as tf

    dtype = tf.as_dtype(model.config.dtype)
    is_transposed = model.config.feature_axis == 0
    shape = [model.config.nhidden, None] if is_transposed else [None, model.config.nhidden]
    specs = [tf.TensorSpec([None, None], tf.uint8), tf.TensorSpec([None], tf.int32)]

    @tf.function(autograph=False, input_signature=[*specs, *[tf.TensorSpec(shape, dtype)] * 2])
    def read(x, sizes, c, h):
        num_steps = tf.shape(x)[0]
        is_read = tf.transpose(tf.sequence_mask(sizes, num_steps))
        is_read = tf.expand_dims(is_read, 1 if is_transposed else 2)

        def body(step, c, h):
            _, state = model.step(x[step], (c, h))
            new = (tf.where(is_read[step], *pair) for pair in zip(state, (c, h), strict=True))
            return step + 1, *new

        return tf.while_loop(lambda step, *_: step < num_steps, body, (tf.constant(0), c, h))[1:]

    return read


# ---- the steps of main ----


def _documents(path, flags):
    try:
        return read_documents(
            path, flags["text-column"], flags["label-column"], bool(flags["fine-grained"])
        )
    except (FileNotFoundError, ValueError) as error:
        raise errors.UserError(f"--data: {error}") from error
    except OSError as error:
        raise errors.UserError(f"--data: {error.filename}: {error.strerror}") from error


def _features(checkpoint, parts, flags):
    """What goes into the file, by name."""
    import device
    from training import load_model

    device.prepare(flags["threads"])
    model, about = load_model(checkpoint)
    around = [
        default if flags[name] is None else flags[name]
        for name, default in (("prefix", PREFIX), ("suffix", SUFFIX))
    ]
    prefix, suffix = (text.encode(errors="surrogateescape") for text in around)
    arrays = {}
    for part, documents in parts.items():
        texts = [prefix + text + suffix for text in documents.texts]
        print(
            f"{part:10s} {len(texts):,} documents of {len(set(documents.labels))} classes, "
            f"{sum(map(len, texts)):,} bytes",
            flush=True,
        )
        show = _Progress(len(texts), sum(map(len, texts)))
        features = cell_states(model, texts, flags["batch"], flags["window"], show)
        if not np.isfinite(features).all():
            raise errors.UserError(
                f"cell states of the {part} part are not finite, from the checkpoint {checkpoint}"
            )
        arrays |= {f"{part}/features": features, f"{part}/labels": np.array(documents.labels)}
    described = {
        "checkpoint": str(checkpoint),
        "step": about["step"],
        "text": about.get("text"),
        "prefix": around[0],
        "suffix": around[1],
    }
    arrays["about"] = np.frombuffer(json.dumps(described).encode(), np.uint8)
    return arrays


def _classified(arrays, seed):
    fitted = [part for part in ("all", "train", "validation") if f"{part}/features" in arrays]
    if fitted[:1] not in (["all"], ["train"]):
        raise errors.UserError("the classifier needs a training part, and there is none in --data")
    train = [
        np.concatenate([arrays[f"{part}/{kind}"] for part in fitted])
        for kind in ("features", "labels")
    ]
    test = [arrays[f"test/{kind}"] for kind in ("features", "labels") if f"test/{kind}" in arrays]
    try:
        return classify(train, test or None, seed=seed)
    except ValueError as error:
        raise errors.UserError(str(error)) from error


class _Progress:
    """Prints a line every LINE_SECONDS."""

    def __init__(self, num_documents, num_bytes):
        self._totals = num_documents, num_bytes
        self._started = self._last = time.perf_counter()

    def __call__(self, documents, size):
        now = time.perf_counter()
        if now - self._last >= LINE_SECONDS:
            self._last = now
            speed = size / (now - self._started)
            print(
                f"{documents:,}/{self._totals[0]:,} documents, {speed:,.0f} bytes/s, "
                f"{(self._totals[1] - size) / speed:,.0f} s left",
                flush=True,
            )


@contextlib.contextmanager
def _whole_file(path):
    """A file that is put in its place when it is complete; errors come before the work is done."""
    if path.suffix != ".npz":
        raise errors.UserError(f"--out must be a .npz file. Received: {path}")
    temporary = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise errors.UserError(
            f"--out {path} cannot be written: {error.strerror or error}"
        ) from error


if __name__ == "__main__":
    errors.run(main)

"""Bits per character of a checkpoint on a text, beside what compressors make of the same bytes.

python examples/lstm/evaluate.py runs/first --split test
python examples/lstm/evaluate.py runs/first --data other.txt --split all
"""

import argparse
import os

import compressors
import corpus
import errors
import settings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def main():
    """Parses the flags and evaluates."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="folder of a run, or one of its checkpoint files")
    parser.add_argument("--data", help="another text than that of the run: a file or a folder")
    parser.add_argument("--files", help="which files of a folder, by their names' pattern")
    parser.add_argument(
        "--split", choices=(*corpus.SPLITS, "all"), default="test", help="part of the text [test]"
    )
    settings.add_flags(parser, ("control", CONTROL))
    namespace = parser.parse_args()
    control = settings.with_defaults(settings.given(namespace, CONTROL), CONTROL)

    import device
    from training import load_model

    device.prepare(control["threads"])
    model, about = load_model(namespace.checkpoint)
    flags = about["flags"]
    if namespace.data is None and namespace.files is None:
        text = corpus.open_text(flags["data"], flags["files"])
    else:
        text = corpus.open_text(namespace.data, namespace.files or "*")
    begin, end = (0, len(text)) if namespace.split == "all" else text.splits()[namespace.split]
    end = min(end, begin + control["bytes"]) if control["bytes"] else end
    report(model, about, text, begin, end, control)


CONTROL = {
    "bytes": (0, settings.MODEL["seed"][1], "at most so many bytes, from the beginning; 0: all"),
    "batch": (64, settings.TRAINING["batch"][1], "parallel streams; each begins with a zero state"),
    "window": (64, settings.TRAINING["window"][1], "bytes of a stream in one step"),
    "threads": settings.CONTROL["threads"],
}


def report(model, about, text, begin, end, control):
    """Prints the table."""
    from training import Evaluator

    batches = corpus.evaluation_batches(text, begin, end, control["batch"], control["window"])
    bpc = Evaluator(model)(batches)
    others = compressors.bits_per_character(text.read(begin, end - begin).tobytes())
    print(f"bits per character on bytes {begin:,} to {end:,} of {text.name}")
    print(
        f"  model      {bpc:.4f}, after step {about['step']}, {model.num_parameters:,} parameters"
    )
    for name, value in others.items():
        print(f"  {name:9s}  {value:.4f}, these bytes alone")


if __name__ == "__main__":
    errors.run(main)

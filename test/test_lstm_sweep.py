"""The LSTM example's sweep: which models it compares, which runs it starts, what it reports."""

import json
import os
import pathlib
import signal
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples/lstm"))
import settings
import sweep
import sweep_report
from errors import UserError

EXAMPLE = pathlib.Path(sweep.__file__).parent
# Trains nothing: writes what train.py would, from its flags, or fails, or waits for a signal.
FAKE = f"""
import argparse, json, pathlib, signal, sys, time
sys.path.insert(0, {str(EXAMPLE)!r})
import corpus, settings
parser = argparse.ArgumentParser()
parser.add_argument("--out", type=pathlib.Path)
settings.add_flags(parser, ("all", settings.STORED), ("control", settings.CONTROL))
given = parser.parse_args()
flags = settings.normalized(settings.with_defaults(settings.given(given, settings.STORED),
                                                   settings.STORED))
name, told = given.out.name, json.loads((pathlib.Path(__file__).parent / "told.json").read_text())
with open(pathlib.Path(__file__).parent / "calls", "a") as file:
    print(name, file=file)
if name in told["failing"]:
    sys.exit(2)
if name in told["waiting"]:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
    (pathlib.Path(__file__).parent / "ready").touch()
    time.sleep(60)
text = corpus.open_text(flags["data"], flags["files"])
given.out.mkdir(parents=True)
(given.out / "summary.json").write_text(json.dumps({{
    "flags": flags, "parameters": told["parameters"][name], "validation_bytes": 5,
    "text": {{"name": "x", "bytes": len(text), "fingerprint": text.fingerprint()}},
    "validation_bpc": 3 + flags["density"], "bytes_per_second": 1234.5, "device": "CPU",
    "compressors": {{"gzip -9": 2.5}}}}))
"""


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Calls make(*--vary, failing=..., waiting=..., flag=value) -> Sweep on FAKE."""
    (tmp_path / "train.py").write_text(FAKE)
    (tmp_path / "text").write_bytes(bytes(range(100)))
    monkeypatch.setattr(sweep, "TRAIN", tmp_path / "train.py")

    def make(*vary, failing=(), waiting=(), **flags):
        given = {"parameters": 60_000, "block-size": 8, "internal-steps": 2,
                 "data": str(tmp_path / "text"), **flags}  # fmt: skip
        base = settings.normalized(settings.with_defaults(given, settings.STORED))
        control = settings.with_defaults({"validation-bytes": 1000}, sweep.CONTROL)
        axes = sweep.parse_axes(text.split() for text in vary)
        found = sweep.Sweep(tmp_path / "sweep", base, axes, control)
        told = {"failing": failing, "waiting": waiting,
                "parameters": {model.name: model.parameters for model in found.models}}  # fmt: skip
        (tmp_path / "told.json").write_text(json.dumps(told))
        return found

    return make


def calls(tmp_path):
    return (tmp_path / "calls").read_text().split()


def test_models_differ_in_one_flag_and_have_equal_numbers_of_parameters(make):
    found = make("density 0.6 0.2 0.1", "layout dense banded", "share-steps yes", "block-size 8")
    names = ["base", "density=0.2", "density=0.6", "layout=dense", "share-steps=True"]
    assert [model.name for model in found.models] == names[:4] + ["layout=banded"] + names[4:]
    assert list(found.axes["density"]) == [0.1, 0.2, 0.6]  # of numbers, the base among them
    assert list(found.axes["layout"]) == ["barabasi_albert", "dense", "banded"]
    assert list(found.axes["block-size"].values()) == [found.models[0]]
    for model in found.models:
        changed = {name: v for name, v in model.flags.items() if v != found.base[name]}
        assert ",".join(f"{name}={v}" for name, v in changed.items()) == model.name.replace(
            "base", ""
        )
        assert abs(model.parameters / 60_000 - 1) < 0.1
    base, _, half, dense, *_ = found.models
    assert base.hidden > half.hidden > dense.hidden and dense.joined == dense.density == 1
    assert base.density < half.density and 0 < base.joined < 1


def test_only_what_is_missing_is_trained(make, tmp_path):
    assert make("density 0.2", failing=["density=0.2"]).train() == ["density=0.2"]
    assert make("density 0.2 0.3").train() == []
    assert calls(tmp_path) == ["base", "density=0.2", "density=0.2", "density=0.3"]
    again = make("density 0.2 0.3", "internal-steps 3")
    assert again.train() == [] and calls(tmp_path)[4:] == ["internal-steps=3"]
    assert again.result(again.models[1])["validation_bpc"] == 3.2


def test_runs_of_another_sweep_are_not_taken_for_this_one(make, tmp_path):
    make().train()
    summary = tmp_path / "sweep/base/summary.json"
    before = summary.read_bytes()
    with pytest.raises(UserError, match="base.* another sweep: its --rate is 0.002, .* one 0.003"):
        make(rate=0.003).train()
    (tmp_path / "text").write_bytes(bytes(101))
    with pytest.raises(UserError, match="another sweep: its text is .*'bytes': 100,"):
        make().train()
    assert summary.read_bytes() == before and calls(tmp_path) == ["base"]
    summary.write_text("{}")
    with pytest.raises(UserError, match="summary.json is damaged, delete it"):
        make().train()


def test_a_signal_reaches_the_run_and_ends_the_sweep(make, tmp_path):
    found = make("density 0.2", waiting=["base"])
    ready, parent = tmp_path / "ready", os.getpid()
    handler = signal.getsignal(signal.SIGINT)  # ignored, where a shell runs this in the background
    # a process that waits for the run, then signals the sweep
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", "import os, sys, time\nwhile not os.path.exists(sys.argv[1]): "
         f"time.sleep(0.02)\nos.kill({parent}, {signal.SIGINT.value})", str(ready)],
        os.environ,
    )  # fmt: skip
    with pytest.raises(UserError, match="stopped; the same command continues"):
        found.train()
    os.waitpid(pid, 0)
    assert calls(tmp_path) == ["base"] and found.result(found.models[0]) is None
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hidden 64", "--vary must name one of embedding, .* Received: hidden 64"),
        ("density", "and one value or more. Received: density"),
        ("density 0.1 x", "--vary density: 'x' is wrong: could not convert"),
        ("density -1", "--vary density: '-1' is wrong: must be a positive number"),
        ("block-size 12", "--vary block-size: '12' is wrong: one of 8, 16, 32, 64, 128"),
        ("share-steps maybe", "--vary share-steps: 'maybe' is wrong: one of yes, no"),
        ("layout sparse", "layout=sparse: no such model: "),
    ],
)
def test_impossible_models_are_named_before_anything_is_trained(make, tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        make(text)
    with pytest.raises(UserError, match="each once"):
        make("density 0.2", "density 0.3")
    assert not (tmp_path / "sweep").exists()


def test_the_report_has_all_models_and_says_which_failed(make, tmp_path):
    found = make("density 0.2 0.3", "layout dense", failing=["layout=dense"])
    assert "layout=dense" in sweep_report.plan(found.models)
    found.train()
    text = sweep_report.write(found, "the command")
    assert text == (tmp_path / "sweep/results.md").read_text()
    rows = {row.split(" | ")[0].strip("| "): row.split(" | ")[6:] for row in text.splitlines()
            if row.startswith("| ")}  # fmt: skip
    assert rows["0.1 (base)"] == rows["barabasi_albert (base)"] == ["3.100", "1,234 |"]
    assert rows["0.3"] == ["3.300", "1,234 |"] and rows["dense"] == ["no result", " |"]
    assert "gzip -9 2.500" in text and "| command | `the command` |" in text
    figures = json.loads((tmp_path / "sweep/results.json").read_text())
    assert figures["environment"]["tensorflow"] and figures["flags"] == found.base
    results = {model["name"]: model["result"] for model in figures["models"]}
    assert results["density=0.2"]["validation_bpc"] == 3.2 and results["layout=dense"] is None
    assert figures["models"][1]["changed"] == {"density": 0.2}
    assert (tmp_path / "sweep/results.png").read_bytes().startswith(b"\x89PNG")


def test_the_training_program_itself(tmp_path, monkeypatch, capfd):
    (tmp_path / "text").write_bytes(b"to be or not to be " * 200)
    flags = "--parameters 20000 --embedding 8 --block-size 8 --internal-steps 2 --steps 2 --batch 4"
    monkeypatch.setattr(
        sys,
        "argv",
        ["sweep.py", "--out", str(tmp_path / "runs"), "--data", str(tmp_path / "text"),
         *flags.split(), "--window", "4", "--validation-bytes", "64", "--vary", "seed", "0"],
    )  # fmt: skip
    sweep.main()
    assert "| 0 (base) | " in capfd.readouterr().out
    figures = json.loads((tmp_path / "runs/results.json").read_text())
    assert 7 < figures["models"][0]["result"]["validation_bpc"] < 9
    monkeypatch.setattr(sweep, "TRAIN", "nothing that could be run")
    sweep.main()

"""The LSTM example's programs as they are run: killed, stopped, without room on the disk."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples/lstm"))
import checkpoint
import device_time
import errors
import settings
from errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
FLAGS = """--hidden 32 --embedding 8 --block-size 8 --internal-steps 2 --density 0.5 --batch 4
  --window 5 --steps 16 --dtype float16 --dropout 0.1 --update-dropout 0.1 --save-every 4
  --log-every 3 --validate-every 5 --validation-bytes 300 --no-pictures"""

# Calls programs in one process, which saves the time that TensorFlow takes to be imported.
DRIVER = """
import importlib, io, os, resource, signal, sys
import checkpoint, errors

def call(name, *flags):
    sys.argv = [name + ".py", *flags]
    try:
        status = errors.run(importlib.import_module(name).main) or 0
    except SystemExit as ended:
        status = ended.code
    sys.stdout.flush()
    print(f"\\n=== {status}", flush=True)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def die_while_writing(step, savez=checkpoint.np.savez):
    def half(file, **arrays):
        if file.name.endswith(f"{step:08}.npz.part"):
            data = io.BytesIO()
            savez(data, **arrays)
            file.write(data.getvalue()[: len(data.getvalue()) // 2])
            file.flush()
            die()
        savez(file, **arrays)
    checkpoint.np.savez = half

def die_before_renaming(step, replace=os.replace):
    os.replace = lambda a, b: die() if f"{step:08}" in str(b) else replace(a, b)

def terminate_in(number):
    from training import Trainer
    def step(self, at, *args, plain=Trainer.step):
        if at == number:
            Trainer.step = plain
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, at, *args)
    Trainer.step = step
"""


def python(code):
    """(exit status, [(output, status) of each call]) of the driver with this code."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'examples/lstm'}"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER + code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="surrogateescape",
    )
    parts = re.split(r"\n=== (\d+)\n", done.stdout)
    calls = list(zip(parts[::2], map(int, parts[1::2]), strict=False))
    return done.returncode, calls, parts[-1]


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def losses(folder):
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def assert_same_run(folder, other):
    assert losses(folder) == losses(other)
    arrays, about = checkpoint.load(folder)
    others, other_about = checkpoint.load(other)
    assert (about["step"], list(arrays)) == (other_about["step"], list(others))
    for name, array in arrays.items():
        assert array.tobytes() == others[name].tobytes(), name


@pytest.fixture
def data(tmp_path, rng):
    words = [bytes(rng.integers(97, 123, size=size, dtype=np.uint8)) for size in range(2, 9)]
    (tmp_path / "text").write_bytes(b" ".join(words[i] for i in rng.integers(7, size=4000)))
    return ["--data", str(tmp_path / "text")]


def test_runs_that_are_killed_or_stopped_go_on_bit_for_bit(tmp_path, data):
    flags = [*FLAGS.split(), *data]
    whole, killed, stopped, full = (tmp_path / n for n in ("whole", "killed", "stopped", "full"))

    def train(folder, *more):
        return f"call('train', *{['--out', str(folder), *flags, *more]!r})\n"

    status, calls, rest = python(
        train(whole, "--sample", "20", "--profile", "2")
        + "terminate_in(6)\n"
        + train(stopped)
        + train(stopped)
        + train(whole, "--hidden", "64")
        + train(whole)
        + f"call('evaluate', {str(whole)!r}, '--split', 'validation', '--bytes', '300',"
        "  '--batch', '4', '--window', '5')\n"
        + f"call('sample', {str(whole)!r}, '--length', '30', '--temperature', '0.5')\n"
        + "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))\n"
        + train(full)
    )
    assert status == 0, rest
    outputs, statuses = zip(*calls, strict=True)
    assert statuses == (0, 2, 0, 2, 0, 0, 0, 2), outputs
    summary = json.loads((whole / "summary.json").read_text())
    bpc = summary["validation_bpc"]
    assert 0 < bpc < 8.5 and summary["steps"] == 16 and summary["bytes_per_second"] > 0
    assert "20 bytes by the model" in outputs[0] and f"model      {bpc:.3f}" in outputs[0]
    # stopped by a signal: the step is ended and saved
    assert "stopped after step 7; the same command continues" in outputs[1]
    assert "from step 7 on" in outputs[2]
    assert_same_run(stopped, whole)
    # a flag that contradicts; a run that is complete
    assert "--hidden contradicts" in outputs[3] and "stored is 32, given is 64" in outputs[3]
    assert f"model      {bpc:.3f}" in outputs[4]
    assert len([r for r in losses(whole) if r["step"] == 16]) == 2  # a loss and a validation
    # the other programs
    assert f"model      {bpc:.4f}, after step 16" in outputs[5]
    assert len(outputs[6].encode("utf-8", "surrogateescape")) >= 30
    # no room on the disk
    assert "checkpoint-00000004.npz cannot be written: File too large. " in outputs[7]
    assert not [name for name in contents(full) if name.startswith("checkpoint")]
    assert len(losses(full)) == 1
    # the trace of the first run
    device, events = device_time.read(device_time.newest_trace(whole))
    kinds = device_time.summary(device, events)["kinds"]
    for kind in ("optimizer", "sparse product", "dense product", "layer norm", "gates", "softmax"):
        assert kinds[kind]["calls"] >= 2, kind

    # kill -9 while the second checkpoint is half written; then before the third gets its name
    for step, line in ((8, "die_while_writing(8)\n"), (12, "die_before_renaming(12)\n")):
        status, _, rest = python(line + train(killed))
        assert status == -signal.SIGKILL, rest
        assert checkpoint.steps_in(killed)[-1] == step - 4
        assert f"checkpoint-{step:08}.npz.part" in contents(killed)
        assert {r["step"] for r in losses(killed)} >= {3, 5, 6}
    status, calls, rest = python(train(killed))
    assert (status, calls[0][1]) == (0, 0), rest
    assert "from step 8 on" in calls[0][0]
    assert not [name for name in contents(killed) if name.endswith(".part")]
    assert_same_run(killed, whole)


# ---- flags ----


def fails(monkeypatch, capsys, name, *flags):
    """What a program says that ends before it does anything."""
    import importlib

    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, flags)])
    with pytest.raises(SystemExit) as ended:
        errors.run(importlib.import_module(name).main)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--hidden", "64", "--parameters", "1e6"], "--hidden and --parameters exclude each other"),
        (["--steps", "10", "--tokens", "1e6"], "--steps and --tokens exclude each other"),
        (["--steps", "0"], "argument --steps: must be a positive integer. Received: 0"),
        (["--steps", "many"], "argument --steps: invalid integer value: 'many'"),
        (["--dropout", "1"], "argument --dropout: must be at least 0 and less than 1. Received: 1"),
        (["--rate", "-1"], "argument --rate: must be a positive number. Received: -1"),
        (["--block-size", "24"], "argument --block-size: invalid choice: 24"),
        (["--data", "nothing-there"], "--data must be a file or a folder of text. Received: "),
        (["--batch", "9999999"], "are too few for --batch=9999999 streams of --window=64 bytes"),
    ],
)
def test_wrong_flags_are_named(monkeypatch, capsys, tmp_path, flags, message):
    monkeypatch.setattr("device.prepare", lambda *args: None)  # which is for a process's beginning
    assert message in fails(monkeypatch, capsys, "train", "--out", tmp_path / "run", *flags)
    assert not [name for name in contents(tmp_path) if name.startswith("checkpoint")]


@pytest.mark.parametrize(
    "name, flags, message",
    [
        ("evaluate", [], "there is no checkpoint in"),
        ("sample", [], "there is no checkpoint in"),
        ("sample", ["--temperature", "-1"], "--temperature must be 0 or more. Received: -1.0"),
        ("sample", ["--prime", ""], "--prime must be a text of one character or more"),
        ("device_time", [], "there is no trace in"),
    ],
)
def test_folders_without_what_is_needed_are_named(
    monkeypatch, capsys, tmp_path, name, flags, message
):
    monkeypatch.setattr("device.prepare", lambda *args: None)
    assert message in fails(monkeypatch, capsys, name, tmp_path, *flags)


def test_every_flag_has_a_help_text(capsys, monkeypatch):
    import train

    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    with pytest.raises(SystemExit):
        train.main()
    text = capsys.readouterr().out
    for name in (*settings.STORED, *settings.CONTROL):
        assert re.search(rf"--{name}\b", text)


# ---- traces ----


def trace_of(path, lines):
    """Writes a GPU's trace: {line: [(kernel, op or None, begin, duration in us)]}."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace()
    space.planes.add(name="/host:CPU")
    plane = space.planes.add(name="/device:GPU:0")
    plane.stat_metadata[1].name = "tf_op"
    for name, events in lines.items():
        line = plane.lines.add(name=name, timestamp_ns=1000)
        for kernel, op, begin, duration in events:
            number = len(plane.event_metadata) + 1
            plane.event_metadata[number].name = kernel
            event = line.events.add(
                metadata_id=number, offset_ps=begin * 10**6, duration_ps=duration * 10**6
            )
            if op is not None:
                reference = len(plane.stat_metadata) + 1
                plane.stat_metadata[reference].name = op
                event.stats.add(metadata_id=1, ref_value=reference)
    path.write_bytes(space.SerializeToString())
    return path


def test_a_gpu_s_kernels_are_summed_by_kind(tmp_path):
    stream = [
        ("void PackKernel<8>", "a/b:BlocksparseMatmulDX", 0, 10),
        ("MatmulFpropKernel<Policy>", None, 10, 5),
        ("nvjet_hsh_128x64", "a/MatMul_1:MatMul", 15, 20),
        ("sm90_xmma_gemm", None, 40, 5),
        ("LayerNormRowsKernel", "BlocksparseLayerNormGrad:BlocksparseLayerNormGrad", 45, 5),
        ("LstmGatesKernel", "x:BlocksparseLstmGates", 50, 2),
        ("DeviceRadixSort", "x:BlocksparseEmbeddingLookupGrad", 52, 3),
        ("CrossEntropyKernel", "x:BlocksparseSoftmaxCrossEntropy", 55, 5),
        ("Mul_GPU", "cond/then/_0/optimizer/mul:Mul", 60, 10),
        ("MemcpyH2D", None, 70, 1),
        ("Cast_GPU", "Cast_3:Cast", 71, 4),
        ("Mul_GPU", "mul:Mul", 75, 5),
    ]
    other = [("MemcpyD2D", None, 70, 20)]
    lines = {"Stream #13(Compute)": stream, "Stream #14": other, "XLA Ops": [("a", None, 0, 99)]}
    device, events = device_time.read(trace_of(tmp_path / "x.xplane.pb", lines))
    result = device_time.summary(device, events)
    milliseconds = {kind: round(1000 * row["ms"]) for kind, row in result["kinds"].items()}
    assert milliseconds == {
        "optimizer": 10,
        "sparse product": 15,
        "dense product": 25,
        "layer norm": 5,
        "gates": 2,
        "embedding": 3,
        "softmax": 5,
        "copies, casts": 25,
        "other": 5,
    }
    assert (device, result["events"]) == ("1 GPU", 13)
    assert round(1000 * result["span_ms"]) == 90 and round(1000 * result["busy_ms"]) == 85
    assert sum(row["share"] for row in result["kinds"].values()) == pytest.approx(1)
    assert "94.4% busy" in device_time.table(result)


def test_time_inside_another_event_counts_once(tmp_path):
    stream = [("outer", "a:Mul", 0, 10), ("gemm", "b:MatMul", 2, 4), ("after", "c:Cast", 10, 1)]
    _, events = device_time.read(trace_of(tmp_path / "x.xplane.pb", {"Stream": stream}))
    assert [event.own // 10**6 for event in events] == [6, 4, 1]


def test_what_is_no_trace_is_an_error(tmp_path):
    (tmp_path / "x.xplane.pb").write_bytes(b"\xff" * 9)
    with pytest.raises(UserError, match="x.xplane.pb is not a trace of TensorFlow's profiler"):
        device_time.read(tmp_path / "x.xplane.pb")
    with pytest.raises(UserError, match="holds no kernels and no ops"):
        device_time.read(trace_of(tmp_path / "y.xplane.pb", {"Stream": []}))

"""The LSTM example's features: cell states of documents, the file they go to, its errors."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples/lstm"))
import checkpoint
import device
import features
from errors import UserError
from model import LanguageModel

from blocksparse import MLSTMConfig

# The norm of a state near zero, where states begin, makes its rounding 1000 times as large.
ROUNDING = 1e-3

TEXTS = (b"a", b"", b"the quick brown fox", bytes(range(256)), b"b", b"jumps over", b"x" * 65)


def make_model(feature_axis=1, dtype="float32"):
    return LanguageModel(
        MLSTMConfig(
            nhidden=32,
            nembd=8,
            isteps=2,
            block_size=8,
            masks="br_1",
            feature_axis=feature_axis,
            dtype=dtype,
        ),
        seed=3,
    )


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def one_by_one(model):
    """The cell states of TEXTS, each as one sequence of its length."""
    result = np.zeros((len(TEXTS), 32), np.float32)
    for text, row in zip(TEXTS, result, strict=True):
        if text:
            _, (c, _) = model(np.frombuffer(text, np.uint8)[:, None], model.initial_state(1))
            row[:] = c[0]
    return result


@pytest.fixture
def run_program(model, tmp_path, monkeypatch, capsys):
    """Calls run_program(*flags) -> (arrays, what was printed), with a checkpoint of `model`."""
    arrays = {f"model/{name}": v.numpy() for name, v in model.parameters.items()}
    (tmp_path / "run").mkdir()
    checkpoint.save(tmp_path / "run", 5, arrays, {"model": model.config.get_config()}, 1)
    monkeypatch.setattr(device, "prepare", lambda threads: None)

    def run(*flags, out="features.npz"):
        given = ["--checkpoint", tmp_path / "run", "--out", tmp_path / out, *flags]
        monkeypatch.setattr(sys, "argv", ["features.py", *map(str, given)])
        features.main()
        with np.load(tmp_path / out) as file:
            return dict(file), capsys.readouterr().out

    return run


@pytest.mark.parametrize(("batch", "window"), [(1, 300), (3, 64), (7, 5)])
def test_documents_read_side_by_side_keep_to_themselves(model, one_by_one, batch, window):
    found = features.cell_states(model, TEXTS, batch, window)
    np.testing.assert_allclose(found, one_by_one, rtol=0, atol=ROUNDING)
    assert not found[1].any() and np.abs(one_by_one[[0, *range(2, 7)]]).max(1).min() > 0.01


def test_features_first_and_16_bits(one_by_one):
    found = features.cell_states(make_model(feature_axis=0), TEXTS, 4, 50)
    np.testing.assert_allclose(found, one_by_one, rtol=0, atol=ROUNDING)
    found = features.cell_states(make_model(dtype="bfloat16"), TEXTS[:3], 4, 50)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, one_by_one[:3], rtol=0, atol=0.1)


def write_reviews(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f'"{text}",{label}' for text, label in texts]
    path.write_text("\n".join(["text,label", *rows]) + "\n")


def test_parts_are_written_in_order_and_classified(run_program, tmp_path, model):
    reviews = [("no" * i, "bad") if i % 2 else ("yes" * i, "good") for i in range(1, 25)]
    write_reviews(tmp_path / "data/train.csv", reviews[:12])
    write_reviews(tmp_path / "data/dev.csv", reviews[12:18])
    write_reviews(tmp_path / "data/test.csv", reviews[18:])
    arrays, printed = run_program("--data", tmp_path / "data", "--prefix", "<", "--suffix", ">>")
    assert sorted(arrays) == ["about", *(f"{part}/{kind}" for part in ("test", "train",
                              "validation") for kind in ("features", "labels"))]  # fmt: skip
    assert arrays["validation/labels"].tolist() == ["bad", "good"] * 3
    texts = [f"<{text}>>".encode() for text, _ in reviews[12:18]]
    np.testing.assert_array_equal(
        arrays["validation/features"], features.cell_states(model, texts, 64, 256)
    )
    about = json.loads(arrays["about"].tobytes())
    assert (about["step"], about["prefix"], about["suffix"]) == (5, "<", ">>")
    assert "train      12 documents of 2 classes, " in printed
    assert "error: test 0.00%, validation " in printed


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        (None, (), "--data: .*reviews.csv: there is no such file or folder"),
        ("a,b\n", (), "--data: .*reviews.csv: the header must have a column text"),
        ("text,label\nx,1\n", ("--checkpoint", "none"), "there is no checkpoint none"),
        ("text,label\nx,1\n", ("--out", "a.csv"), "--out must be a .npz file. Received: a.csv"),
        ("text,label\nx,1\n", ("--out", "reviews.csv/a.npz"), "a.npz cannot be written: "),
    ],
)
def test_what_is_wrong_is_said_and_no_file_is_left(
    run_program, tmp_path, monkeypatch, content, flags, message
):
    monkeypatch.chdir(tmp_path)
    if content:
        (tmp_path / "reviews.csv").write_text(content)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        run_program("--data", "reviews.csv", *flags)
    assert sorted(tmp_path.rglob("*")) == before


def test_without_a_classifier_the_features_are_there(run_program, tmp_path, monkeypatch):
    write_reviews(tmp_path / "one.csv", [("x", "1")])
    with pytest.raises(UserError, match="two classes or more with two vectors or more each"):
        run_program("--data", tmp_path / "one.csv", out="one.npz")
    write_reviews(tmp_path / "data/test.csv", [("x", "1"), ("y", "2")])
    with pytest.raises(UserError, match="the classifier needs a training part"):
        run_program("--data", tmp_path / "data", out="test.npz")
    assert (tmp_path / "one.npz").exists() and (tmp_path / "test.npz").exists()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs scikit-learn .*--no-classifier does without"):
        run_program("--data", tmp_path / "data")
    arrays, printed = run_program("--data", tmp_path / "data", "--no-classifier")
    assert arrays["test/features"].shape == (2, 32) and "error: " not in printed


def test_a_disk_that_is_full_keeps_the_file_of_before(tmp_path):
    path = tmp_path / "features.npz"
    path.write_bytes(b"before")
    code = (
        "import sys, resource, pathlib; sys.path.insert(0, sys.argv[1]); import features\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "with features._whole_file(pathlib.Path(sys.argv[2])) as file: file.write(bytes(20_000))"
    )
    folder = str(pathlib.Path(features.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code, folder, str(path)], capture_output=True, text=True
    )
    assert "features.npz cannot be written: File too large" in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["features.npz"]
    assert path.read_bytes() == b"before"

"""The LSTM example's checkpoints: whole or not there, damage found and named."""

import pathlib
import resource
import subprocess
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples/lstm"))
import checkpoint
import runs
import settings
from errors import UserError

ARRAYS = {"model/w": np.arange(12, dtype=np.float32).reshape(3, 4), "updates": np.int64(7)}


def save(folder, step, keep=3, **about):
    checkpoint.save(folder, step, ARRAYS, about, keep)


def test_what_is_saved_is_loaded_and_the_oldest_go(tmp_path):
    for step in (5, 100, 7, 20):
        save(tmp_path, step, text="text", flags={"seed": step})
    assert checkpoint.steps_in(tmp_path) == [7, 20, 100]
    arrays, about = checkpoint.load(tmp_path)
    assert about == {"step": 100, "text": "text", "flags": {"seed": 100}}
    assert list(arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype
    assert checkpoint.load(checkpoint.path_of(tmp_path, 7))[1]["step"] == 7


def test_every_damaged_byte_is_found_or_harmless(tmp_path):
    save(tmp_path, 1)
    path = checkpoint.path_of(tmp_path, 1)
    data, found = path.read_bytes(), 0
    for position in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[position] ^= 0x11
        path.write_bytes(damaged)
        try:
            arrays, about = checkpoint.load(path)
        except UserError as error:
            assert "is damaged, in" in str(error)
            found += 1
        else:  # such as the time of writing
            assert about == {"step": 1}
            np.testing.assert_array_equal(arrays["model/w"], ARRAYS["model/w"])
    assert found > len(data) / 12


def test_damage_is_named_with_what_to_do(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    path = checkpoint.path_of(tmp_path, 2)
    data = path.read_bytes()
    path.write_bytes(data.replace(ARRAYS["model/w"].tobytes(), bytes(48)))
    message = (
        "checkpoint-00000002.npz is damaged, in model/w: .*CRC-32.*. Delete it to go on from the "
        "one before, checkpoint-00000001.npz"
    )
    with pytest.raises(UserError, match=message):
        checkpoint.load(tmp_path)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="is damaged, in its list of contents: "):
        checkpoint.load(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="checkpoint-00000002.npz is empty. Delete it to go on"):
        checkpoint.load(tmp_path)
    path.unlink()
    assert checkpoint.load(tmp_path)[1]["step"] == 1


def test_missing_checkpoints_are_errors(tmp_path):
    with pytest.raises(UserError, match="there is no checkpoint in"):
        checkpoint.load(tmp_path)
    with pytest.raises(UserError, match="there is no checkpoint .*checkpoint-00000003.npz"):
        checkpoint.load(checkpoint.path_of(tmp_path, 3))


def test_a_disk_that_is_full_leaves_the_one_before(tmp_path):
    save(tmp_path, 1)
    before = checkpoint.path_of(tmp_path, 1).read_bytes()
    code = (
        "import sys, resource, numpy; sys.path.insert(0, sys.argv[1]); import checkpoint\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "checkpoint.save(sys.argv[2], 2, {'w': numpy.zeros(10**6)}, {}, 3)"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", code, str(pathlib.Path(checkpoint.__file__).parent), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert "checkpoint-00000002.npz cannot be written: File too large. Of earlier ones, the one " \
        "of step 1 is whole" in done.stderr  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000001.npz"]
    assert checkpoint.path_of(tmp_path, 1).read_bytes() == before


# ---- runs ----


def test_a_run_goes_on_with_its_flags(tmp_path):
    run = runs.Run(tmp_path, {"hidden": 64})
    assert run.step == 0 and run.flags["batch"] == settings.TRAINING["batch"][0]
    run.save(3, ARRAYS, {"seconds": 1.5}, keep=1)
    del run
    run = runs.Run(tmp_path, {"hidden": 64, "seed": 0})
    assert (run.step, run.flags["hidden"], run.about["seconds"]) == (3, 64, 1.5)


def test_flags_that_contradict_are_named_and_nothing_is_written(tmp_path):
    run = runs.Run(tmp_path, {"hidden": 64})
    run.save(3, ARRAYS, {}, keep=1)
    run.log.write(step=9, bpc=1.0)
    del run
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    message = "--hidden contradicts .*checkpoint-00000003.npz: stored is 64, given is 128. Leave"
    with pytest.raises(UserError, match=message):
        runs.Run(tmp_path, {"hidden": 128})
    with pytest.raises(UserError, match="--batch contradicts .* stored is 64, given is 8"):
        runs.Run(tmp_path, {"batch": 8})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_one_process_at_a_time(tmp_path):
    run = runs.Run(tmp_path, {})
    with pytest.raises(UserError, match="another process trains in"):
        runs.Run(tmp_path, {})
    del run
    runs.Run(tmp_path, {})


def test_the_log_forgets_what_came_after_the_checkpoint(tmp_path):
    path = tmp_path / "log.jsonl"
    log = runs.Log(path, 0)
    for step in (1, 2, 3):
        log.write(step=step)
    with open(path, "a") as file:
        file.write('{"step": 4, "bp')  # a process that was killed while it wrote
    assert runs.read_log(path) == [{"step": 1}, {"step": 2}, {"step": 3}]
    runs.Log(path, 2).write(step=5)
    assert runs.read_log(path) == [{"step": 1}, {"step": 2}, {"step": 5}]


def test_a_text_that_has_changed_is_an_error(tmp_path):
    import corpus

    (tmp_path / "text").write_bytes(b"abc")
    run = runs.Run(tmp_path / "run", {})
    run.check_text(corpus.open_text(tmp_path / "text"))
    (tmp_path / "text").write_bytes(b"abd")
    with pytest.raises(UserError, match="the text has changed since the checkpoint of step 0"):
        run.check_text(corpus.open_text(tmp_path / "text"))

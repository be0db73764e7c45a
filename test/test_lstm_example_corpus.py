"""The LSTM example's text: files, splits, batches, compressors."""

import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples/lstm"))
import compressors
import corpus
from errors import UserError


def text_of(tmp_path, data, name="text"):
    path = tmp_path / name
    path.write_bytes(bytes(data))
    return corpus.open_text(path)


def folder_of(tmp_path, files):
    for name, data in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path


def test_a_folder_is_its_files_in_order_without_hidden_and_empty_ones(tmp_path):
    files = {"b": b"\xff\x00", "a/z": b"one", ".git/x": b"no", "c.txt": b"two", "a/.h": b"no"}
    folder = folder_of(tmp_path, {**files, "empty": b""})
    assert corpus.open_text(folder).read(0, 8).tobytes() == b"one\xff\x00two"
    assert corpus.open_text(folder, "*.txt").read(0, 3).tobytes() == b"two"


def test_reading_across_files_with_few_of_them_open(tmp_path, monkeypatch, rng):
    monkeypatch.setattr(corpus, "OPEN_FILES", 2)
    parts = [rng.integers(256, size=size, dtype=np.uint8) for size in (3, 1, 7, 2, 5)]
    files = {f"{i}": part.tobytes() for i, part in enumerate(parts)}
    text, whole = corpus.open_text(folder_of(tmp_path, files)), np.concatenate(parts)
    assert len(text) == 18
    for begin in range(18):
        for end in range(begin, 19):
            np.testing.assert_array_equal(text.read(begin, end - begin), whole[begin:end])
    with pytest.raises(IndexError, match="bytes 17 to 19 of 18"):
        text.read(17, 2)


def test_the_default_is_the_standard_library():
    text = corpus.open_text()
    assert len(text) > 5_000_000
    assert not {"site-packages", "test"} & {part for path in text.paths for part in path.parts}


def test_splits_are_contiguous_and_known_by_name_and_size(tmp_path, monkeypatch):
    assert text_of(tmp_path, range(200)).splits() == {
        "train": (0, 180),
        "validation": (180, 190),
        "test": (190, 200),
    }
    path = tmp_path / "enwik8"
    with open(path, "wb") as file:
        file.truncate(10**8)  # sparse: takes no room on the disk
    million = 10**6
    assert corpus.open_text(path).splits() == {
        "train": (0, 90 * million),
        "validation": (90 * million, 95 * million),
        "test": (95 * million, 100 * million),
    }
    assert text_of(tmp_path, range(100), "text8").splits()["train"] == (0, 90)


def test_batches_are_streams_that_go_on_from_step_to_step(tmp_path):
    text = text_of(tmp_path, range(10, 60))
    batches = corpus.Batches(text, 5, 50, batch=3, window=4)
    assert (batches.length, batches.steps_per_epoch) == (14, 3)
    firsts = []
    for step in range(7):
        x, y, is_first = batches(step)
        assert x.shape == y.shape == (4, 3) and x.dtype == np.uint8
        begins = 15 + 14 * np.arange(3) + step % 3 * 4
        np.testing.assert_array_equal(x, begins + np.arange(4)[:, None])
        np.testing.assert_array_equal(y, x + 1)
        firsts.append(is_first)
    assert firsts == [True, False, False] * 2 + [True]


def test_a_text_that_is_too_short_is_an_error(tmp_path):
    text = text_of(tmp_path, range(10))
    assert corpus.Batches(text, 0, 9, batch=2, window=4).steps_per_epoch == 1
    with pytest.raises(UserError, match="8 bytes are too few .* which need 9 or more"):
        corpus.Batches(text, 0, 8, batch=2, window=4)


@pytest.mark.parametrize("begin, end", [(0, 23), (5, 23), (7, 8), (3, 16)])
@pytest.mark.parametrize("batch, window", [(1, 4), (3, 4), (4, 100)])
def test_evaluation_sees_every_byte_once_after_the_one_before(tmp_path, begin, end, batch, window):
    data = np.arange(1, 24, dtype=np.uint8)
    text, seen = text_of(tmp_path, data), []
    for x, y, weights in corpus.evaluation_batches(text, begin, end, batch, window):
        assert x.shape == y.shape == weights.shape == (window, batch)
        seen += y[weights == 1].tolist()
        np.testing.assert_array_equal(x[weights == 1], y[weights == 1] - 1)  # 0 before the first
        assert set(weights.ravel()) <= {0.0, 1.0}
    assert sorted(seen) == data[begin:end].tolist()


def test_errors_of_texts(tmp_path):
    with pytest.raises(UserError, match="--data must be a file or a folder .* which is not there"):
        corpus.open_text(tmp_path / "nothing")
    with pytest.raises(UserError, match="empty holds no text: 1 files, all of them empty"):
        text_of(tmp_path, b"", "empty")
    with pytest.raises(UserError, match=r"\*.c holds no text: 0 files"):
        corpus.open_text(tmp_path, "*.c")
    text = text_of(tmp_path, b"abc", "changing")
    (tmp_path / "changing").write_bytes(b"abcd")
    with pytest.raises(UserError, match="has changed: 3 bytes at the start, 4 now"):
        text.read(0, 3)


def test_fingerprints_differ_with_the_text(tmp_path, rng):
    data = rng.integers(256, size=10_000, dtype=np.uint8)
    first = text_of(tmp_path, data.tobytes(), "a").fingerprint()
    assert text_of(tmp_path, data.tobytes(), "b").fingerprint() == first
    for position in (0, 5_000, 9_999):
        other = data.copy()
        other[position] ^= 1
        assert text_of(tmp_path, other.tobytes(), "c").fingerprint() != first
    assert text_of(tmp_path, data[:-1].tobytes(), "d").fingerprint() != first


def test_compressors_give_bits_per_character():
    bits = compressors.bits_per_character(b"abcd" * 1000)
    assert list(bits) == ["gzip -9", "bzip2 -9", "xz -9e"]
    assert all(0 < value < 1 for value in bits.values())
    noise = np.random.default_rng(0).integers(256, size=4000, dtype=np.uint8)
    assert all(value > 8 for value in compressors.bits_per_character(noise).values())

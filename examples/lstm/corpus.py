"""Text as bytes: a file, a folder or the default, its splits, and the batches of a step.

Files are mapped into memory, not read, so that a text may be larger than the memory. A model sees
bytes 0 to 255, whatever the encoding. No TensorFlow.
"""

import bisect
import fnmatch
import functools
import hashlib
import itertools
import mmap
import pathlib
import sysconfig

import numpy as np
from errors import UserError

# Texts whose splits everybody uses: name, size and sizes of training, validation, test.
MILLION = 10**6
KNOWN = {name: (100 * MILLION, (90 * MILLION, 5 * MILLION, 5 * MILLION)) for name in
         ("enwik8", "text8")}  # fmt: skip
SHARES = (0.9, 0.05, 0.05)
SPLITS = ("train", "validation", "test")
OPEN_FILES = 256  # mapped at a time
SAMPLES, SAMPLE_SIZE = 1024, 4096  # what the fingerprint of a text reads


class Text:
    """The bytes of files, one after another.

    Args:
      name: how messages call it.
      paths: files; empty ones are left out.
    Raises:
      UserError: a file cannot be read, or there is no byte in all of them.
    """

    def __init__(self, name, paths):
        self.name = name
        try:
            sizes = [(path, path.stat().st_size) for path in paths]
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error
        self.paths = [path for path, size in sizes if size]
        self.offsets = [0, *itertools.accumulate(size for _, size in sizes if size)]
        if not self.paths:
            raise UserError(f"{name} holds no text: {len(paths)} files, all of them empty")
        self._mapped = functools.lru_cache(OPEN_FILES)(self._map)

    def __len__(self):
        return self.offsets[-1]

    def read(self, begin, size):
        """uint8[size] from position begin on."""
        end, parts = begin + size, []
        if not 0 <= begin <= end <= len(self):
            raise IndexError(f"bytes {begin} to {end} of {len(self)}")
        number = bisect.bisect_right(self.offsets, begin) - 1
        while begin < end:
            start = self.offsets[number]
            part = self._mapped(number)[begin - start : end - start]
            parts.append(part)
            begin += len(part)
            number += 1
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.uint8), *parts])

    def fingerprint(self):
        """A hash of the size and of 1024 samples of 4 KiB, so that other texts are told apart."""
        digest = hashlib.sha256(str(len(self)).encode())
        last = max(len(self) - SAMPLE_SIZE, 0)
        for begin in sorted({last * k // (SAMPLES - 1) for k in range(SAMPLES)}):
            digest.update(self.read(begin, min(SAMPLE_SIZE, len(self) - begin)).tobytes())
        return digest.hexdigest()[:16]

    def splits(self):
        """{"train": (begin, end), "validation": ..., "test": ...}, contiguous and in this order.

        enwik8 and text8, known by name and size, have the splits of the literature, 90, 5 and 5
        million bytes; other texts 90, 5 and 5 percent.
        """
        size, shares = KNOWN.get(self.paths[0].name, (None, None))
        if len(self.paths) > 1 or size != len(self):
            test, validation = (int(share * len(self)) for share in (SHARES[2], SHARES[1]))
            shares = len(self) - validation - test, validation, test
        ends = [0, *itertools.accumulate(shares)]
        return dict(zip(SPLITS, itertools.pairwise(ends), strict=True))

    def _map(self, number):
        path, size = self.paths[number], self.offsets[number + 1] - self.offsets[number]
        try:
            with open(path, "rb") as file:
                data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        if len(data) != size:
            raise UserError(f"{path} has changed: {size} bytes at the start, {len(data)} now")
        return data


def open_text(data=None, pattern="*"):
    """A `Text`.

    Args:
      data: a file, a folder, whose files are taken with those in its folders, in the order of their
        names and without hidden ones; or None: the sources of Python's standard library, which
        every machine with Python has.
      pattern: which files of a folder, such as "*.txt".
    Raises:
      UserError: there is no such file or folder, or no text in it.
    """
    if data is None:
        return _standard_library()
    path = pathlib.Path(data)
    if path.is_file():
        return Text(str(path), [path])
    if not path.is_dir():
        raise UserError(f"--data must be a file or a folder of text. Received: {path}, which is "
                        f"{'neither' if path.exists() else 'not there'}")  # fmt: skip
    return Text(f"{path}/{pattern}", _files(path, pattern))


def _files(folder, pattern, excluded=()):
    files = []
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        is_hidden = any(part.startswith(".") or part in excluded for part in parts)
        if not is_hidden and fnmatch.fnmatch(path.name, pattern) and path.is_file():
            files.append(path)
    return sorted(files, key=lambda path: path.relative_to(folder).parts)


def _standard_library():
    folder = pathlib.Path(sysconfig.get_path("stdlib"))
    # Tests are not part of every installation; the rest is what pip has installed.
    files = _files(folder, "*.py", {"site-packages", "dist-packages", "test", "tests"})
    return Text("Python's standard library", files)


class Batches:
    """What training step s reads: parallel streams through a text, which carry the model's state.

    A function of the step alone: stream i goes through the i-th of `batch` equal parts, `window`
    bytes in a step; when all are through (an epoch), they begin again.

    Args:
      text: Text.
      begin, end: the part of it to read.
      batch: N, number of streams.
      window: T, bytes of a stream in one step.
      streams: range of those to read, by default all.
    Attributes:
      steps_per_epoch.
    Raises:
      UserError: the part is too short for one step.
    """

    def __init__(self, text, begin, end, batch, window, streams=None):
        self.text, self.begin, self.window = text, begin, window
        self.streams = streams or range(batch)
        self.length = (end - begin - 1) // batch
        self.steps_per_epoch = self.length // window
        if self.steps_per_epoch < 1:
            raise UserError(
                f"{text.name}: {end - begin} bytes are too few for --batch={batch} streams of "
                f"--window={window} bytes, which need {batch * window + 1} or more"
            )

    def __call__(self, step):
        """(x, y, is_first): uint8[T, len(streams)], the bytes after them, and whether an epoch
        begins, so that the state of the step before does not belong to them.
        """
        number = step % self.steps_per_epoch
        begins = self.begin + self.length * np.array(self.streams) + number * self.window
        rows = np.stack([self.text.read(int(begin), self.window + 1) for begin in begins], axis=1)
        return rows[:-1], rows[1:], number == 0


def evaluation_batches(text, begin, end, batch, window, streams=None):
    """Every byte of a part of a text once, for evaluation.

    The part is read in `batch` parallel streams. Each byte is predicted from those before it in its
    stream, and the first of a stream from the byte before it in the text (a zero byte at the start
    of the text). `streams`, a range, are those to read, by default all.

    Yields:
      (x, y, weights): uint8[T, len(streams)] twice, and float32 like them: 1 for each byte of the
      part, 0 for padding.
    """
    length = -(-(end - begin) // batch)
    streams = streams or range(batch)
    for start in range(0, length, window):
        rows = np.zeros((window + 1, len(streams)), np.uint8)
        weights = np.zeros((window, len(streams)), np.float32)
        for column, stream in enumerate(streams):
            stream_end = min(begin + (stream + 1) * length, end)
            first = begin + stream * length + start
            count = min(window, stream_end - first)
            if count > 0:
                before = 0 if first > 0 else 1
                data = text.read(max(first - 1, 0), count + 1 - before)
                rows[before : count + 1, column] = data
                weights[:count, column] = 1
        yield rows[:-1], rows[1:], weights

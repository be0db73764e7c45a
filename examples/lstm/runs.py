"""The folder of a training run: one process at a time, its checkpoints, its log. No TensorFlow."""

import contextlib
import fcntl
import json
import os
import pathlib

import checkpoint
import settings
from cluster import Silent
from errors import UserError

LOG, SUMMARY = "log.jsonl", "summary.json"


class Run:
    """Opens a run's folder, to start or to continue.

    Args:
      folder: made if it is not there.
      given: {name: value} of `settings.STORED` flags that the command line names.
      writes: False for all but one of the processes that train together: it reads the checkpoint,
        and changes nothing.
    Attributes:
      folder: pathlib.Path.
      flags: all `settings.STORED` flags: those of the newest checkpoint, or those given with
        defaults for the others.
      arrays, about: of the newest checkpoint, or None and {}.
      step: training steps that are done.
    Raises:
      UserError: another process trains there; the checkpoint is damaged or contradicts a flag; the
        folder cannot be written.
    """

    def __init__(self, folder, given, writes=True):
        self.folder = pathlib.Path(folder)
        self._writes = writes
        given = settings.normalized(given)
        if writes:
            self._take()
        self.arrays, self.about = None, {}
        self.flags = settings.with_defaults(given, settings.STORED)
        if checkpoint.steps_in(self.folder):
            self.arrays, self.about = checkpoint.load(self.folder)
            newest = checkpoint.path_of(self.folder, self.about["step"])
            settings.check_unchanged(given, self.about["flags"], f"the checkpoint {newest}")
            self.flags = self.about["flags"]
        self.step = self.about.get("step", 0)
        if writes:
            checkpoint.discard_parts(self.folder)
        self.log = Log(self.folder / LOG, self.step) if writes else Silent()

    def _take(self):
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / ".lock", "a")  # noqa: SIM115
        except OSError as error:
            raise UserError(f"--out {self.folder} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another process trains in {self.folder}") from error

    def check_text(self, text):
        """Notes which text is used; UserError if it is not that of the checkpoint."""
        found = {"name": text.name, "bytes": len(text), "fingerprint": text.fingerprint()}
        stored = self.about.setdefault("text", found)
        if any(stored[key] != found[key] for key in ("bytes", "fingerprint")):
            raise UserError(
                f"the text has changed since the checkpoint of step {self.step}: stored is "
                f"{stored['name']} of {stored['bytes']} bytes, hash {stored['fingerprint']}; found "
                f"is {found['name']} of {found['bytes']} bytes, hash {found['fingerprint']}"
            )

    def save(self, step, arrays, about, keep):
        """Writes a checkpoint of these arrays, with the flags, and with `about` from now on."""
        self.log.sync()
        self.about |= about
        if self._writes:
            checkpoint.save(self.folder, step, arrays, {**self.about, "flags": self.flags}, keep)
        self.step = step

    def write_summary(self, summary):
        """Writes summary.json."""
        _write(self.folder / SUMMARY, json.dumps(summary, indent=1) + "\n")


class Log:
    """Records, one JSON object a line. What a run wrote after `step`, when it was killed, goes."""

    def __init__(self, path, step):
        self._path = path
        records = [record for record in read_log(path) if record["step"] <= step]
        _write(path, "".join(json.dumps(record) + "\n" for record in records))
        self._file = open(path, "a")  # noqa: SIM115

    def write(self, **record):
        """Adds a record; it has a step."""
        with _named(self._path):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def sync(self):
        """Returns when all records are on the disk."""
        with _named(self._path):
            os.fsync(self._file.fileno())


def read_log(path):
    """The records of a log, up to one that was cut off; none without a file."""
    records = []
    with contextlib.suppress(FileNotFoundError), open(path) as file:
        for line in file:
            try:
                records.append(json.loads(line))
            except ValueError:
                break
    return records


def _write(path, text):
    """Replaces a file as a whole."""
    temporary = path.with_name(path.name + ".part")
    with _named(path):
        with open(temporary, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


@contextlib.contextmanager
def _named(path):
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error

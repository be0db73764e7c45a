"""Checkpoints that are whole or not there: one file each, written aside, synced and renamed.

A checkpoint is a .npz file, so every array has a checksum that is compared when it is read; its
member "about" holds JSON: the step, the run's flags, what text it was trained on. No TensorFlow.
"""

import contextlib
import io
import json
import os
import pathlib
import re
import zipfile
import zlib

import numpy as np
from errors import UserError

NAME = "checkpoint-{:08}.npz"
PATTERN = re.compile(r"checkpoint-(\d{8})\.npz")
ABOUT = "about"


def steps_in(folder):
    """The steps of the checkpoints in a folder, in order."""
    folder = pathlib.Path(folder)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for match in map(PATTERN.fullmatch, names) if match)


def path_of(folder, step):
    return pathlib.Path(folder) / NAME.format(step)


def save(folder, step, arrays, about, keep):
    """Writes a checkpoint and then deletes all but the newest `keep`.

    Until the new one is complete on the disk, the old ones stay as they are.

    Args:
      folder: exists.
      step: non-negative integer.
      arrays: dict of numpy arrays by name.
      about: dict that JSON can hold.
      keep: number of checkpoints, 1 or more.
    Raises:
      UserError: it cannot be written; what was written so far is deleted.
    """
    path = path_of(folder, step)
    temporary = path.with_name(path.name + ".part")
    about = np.frombuffer(json.dumps({**about, "step": step}).encode(), np.uint8)
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **{ABOUT: about}, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        older = steps_in(folder)
        kept = f"the one of step {older[-1]} is whole" if older else "there is none yet"
        raise UserError(
            f"the checkpoint {path} cannot be written: {error.strerror}. Of earlier ones, {kept}"
        ) from error
    for old in steps_in(folder)[:-keep]:
        path_of(folder, old).unlink(missing_ok=True)


def load(path):
    """(arrays, about) of a checkpoint.

    Args:
      path: a checkpoint, or a folder, of which the newest is taken.
    Raises:
      UserError: there is none, it cannot be read, or a part of it is damaged.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        steps = steps_in(path)
        if not steps:
            raise UserError(f"there is no checkpoint in {path}")
        path = path_of(path, steps[-1])
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}")
    if not path.stat().st_size:
        raise UserError(f"the checkpoint {path} is empty{_advice(path)}")
    name = "its list of contents"
    try:
        arrays = {}
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                name = member.removesuffix(".npy")
                data = archive.read(member)  # raises if the checksum does not fit
                arrays[name] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        name = ABOUT
        about = json.loads(arrays.pop(ABOUT).tobytes())
    except PermissionError as error:
        raise UserError(f"the checkpoint {path} cannot be read: {error.strerror}") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error,
            NotImplementedError) as error:  # fmt: skip
        raise UserError(
            f"the checkpoint {path} is damaged, in {name}: {error}{_advice(path)}"
        ) from error
    return arrays, about


def discard_parts(folder):
    """Deletes what runs that were killed while they wrote have left."""
    for path in pathlib.Path(folder).glob("*.part"):
        path.unlink(missing_ok=True)


def _advice(path):
    match = PATTERN.fullmatch(path.name)
    older = [step for step in steps_in(path.parent) if match and step < int(match[1])]
    if not older:
        return ""
    return f". Delete it to go on from the one before, {path_of(path.parent, older[-1]).name}"


def _sync(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

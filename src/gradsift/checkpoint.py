"""Checkpoints that are whole or not there: written atomically, verified, the last two kept.

A file is one line of JSON (format, version, SHA-256 and length of the rest) and what `torch.save`
makes of plain dictionaries and lists of tensors, numbers and strings. Nothing in it is executed
when it is read (``weights_only``).
"""

import hashlib
import io
import json
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gradsift.errors import DataError, UsageError

FORMAT = "gradsift checkpoint"
VERSION = 1
KEPT = 2
"""Checkpoints of a run that stay; older ones are removed once a new one is safe."""

_NAME = re.compile(r"step-(\d{12})\.ckpt")
_LONGEST_HEAD = 1024


def write_checkpoint(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Writes ``FOLDER/step-<step>.ckpt``, and removes all but the last two.

    The bytes go to a temporary file in the same folder, which is flushed to the disk and renamed;
    then the folder is flushed too. Killed at any moment, it leaves what was there before, or the
    new file, whole.

    Args:
        folder: made if it does not exist.
        step: how far the run is; the checkpoint of the highest step is the latest.
        state: dictionaries and lists of tensors, numbers and strings.

    Returns:
        The file.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for step in range(4):
        ...     _ = write_checkpoint(folder, step, {"step": step})
        >>> [path.name for path in checkpoints(folder)]
        ['step-000000000002.ckpt', 'step-000000000003.ckpt']
        >>> read_latest(folder)
        {'step': 3}
    """
    content = io.BytesIO()
    torch.save(state, content)
    body = content.getbuffer()
    head = {
        "format": FORMAT,
        "version": VERSION,
        "sha256": hashlib.sha256(body).hexdigest(),
        "bytes": len(body),
    }
    _make_folder(folder)
    path = folder / f"step-{step:012d}.ckpt"
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(json.dumps(head).encode() + b"\n")
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    flush_folder(folder)
    _tidy(folder)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder by rising step; none where it does not exist."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if _NAME.fullmatch(path.name))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, verified; tensors are on the CPU.

    Raises:
        DataError: for a file that is cut off, damaged, foreign or holds anything but plain values.
        UsageError: for one of a newer version.
    """
    head, body = _envelope(path)
    if head["version"] > VERSION:
        raise UsageError(
            f"checkpoint {str(path)!r} has version {head['version']}, expected at most {VERSION}: "
            "it was written by a newer gradsift, resume with that one"
        )
    if len(body) < head["bytes"]:
        raise DataError(
            f"checkpoint {str(path)!r} is cut off: it has {len(body)} of {head['bytes']} bytes"
        )
    if hashlib.sha256(body).hexdigest() != head["sha256"]:
        raise DataError(f"checkpoint {str(path)!r} is damaged: its checksum does not fit")
    try:
        return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise DataError(
            f"checkpoint {str(path)!r} holds more than plain tensors and numbers, and is not "
            "read: it did not come from gradsift as it is"
        ) from error


def read_latest(folder: Path) -> dict[str, Any] | None:
    """The state in the latest checkpoint of a folder; None where there is none.

    A latest one that cannot be read is an error, which names the one before it where that is
    whole. Nothing is removed: whoever deletes the bad file resumes from the other.

    Raises:
        DataError: as of `read_checkpoint`.
        UsageError: likewise.
    """
    found = checkpoints(folder)
    if not found:
        return None
    try:
        return read_checkpoint(found[-1])
    except (DataError, UsageError) as error:
        before = next((path for path in reversed(found[:-1]) if _is_whole(path)), None)
        advice = (
            "no other checkpoint is intact: run it anew in another folder"
            if before is None
            else f"the previous one, {str(before)!r}, is intact: remove the first to resume from it"
        )
        raise type(error)(f"{error}; {advice}") from error


def remove_checkpoints(folder: Path) -> None:
    """Removes all checkpoints of a folder, and the folder itself once it is empty."""
    for path in [*checkpoints(folder), *folder.glob("step-*.tmp")]:
        path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def flush_folder(folder: Path) -> None:
    """Makes sure that the names in a folder are on the disk, where the system can do that."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(parents=True)
        flush_folder(folder.parent)


def _tidy(folder: Path) -> None:
    for path in [*checkpoints(folder)[:-KEPT], *folder.glob("step-*.tmp")]:
        path.unlink()


def _is_whole(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except (DataError, UsageError):
        return False
    return True


def _envelope(path: Path) -> tuple[dict[str, Any], bytes]:
    try:
        with path.open("rb") as file:
            line, body = file.readline(_LONGEST_HEAD), file.read()
    except OSError as error:
        raise DataError(f"cannot read checkpoint {str(path)!r} ({error.strerror})") from error
    try:
        head = json.loads(line)
    except ValueError:
        head = {}
    expected = {"version": int, "sha256": str, "bytes": int}
    head = head if isinstance(head, dict) else {}
    fits = all(type(head.get(name)) is kind for name, kind in expected.items())
    if not fits or head.get("format") != FORMAT:
        found = "is empty" if not line else "does not begin as one"
        raise DataError(f"{str(path)!r} is no gradsift checkpoint: it {found}")
    return head, body

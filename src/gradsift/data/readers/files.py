"""Finding and opening files: here, or in the folder that ``GRADSIFT_DATA`` names.

Whatever the operating system refuses becomes a `DataError` in one line.
"""

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from gradsift.errors import DataError

FOLDER = "GRADSIFT_DATA"
"""The environment variable with the folder where relative paths are looked for after ``.``."""

CHUNK = 1 << 20


def find_file(given: str) -> Path:
    """The file that a path means.

    Raises:
        DataError: when it does not exist, or is a folder.

    Example:
        >>> find_file("no/such/file.csv")
        Traceback (most recent call last):
        gradsift.errors.DataError: no/such/file.csv does not exist here...
    """
    path = _find(given)
    if not path.is_file():
        raise DataError(f"{path} is a folder, expected a file: name one of the files in it")
    return path


def find_folder(given: str) -> Path:
    """The folder that a path means.

    Raises:
        DataError: when it does not exist, or is a file.
    """
    path = _find(given)
    if not path.is_dir():
        raise DataError(f"{path} is a file, expected a folder with the unpacked files")
    return path


def _find(given: str) -> Path:
    if not given or "\0" in given:
        raise DataError(f"{given!r} is not a path: write one after the colon")
    path = Path(given)
    data = os.environ.get(FOLDER)
    elsewhere = None if data is None or path.is_absolute() else Path(data) / path
    with readable(path):
        if path.exists():
            return path
        if elsewhere is not None and elsewhere.exists():
            return elsewhere
    if path.is_absolute():
        raise DataError(f"{path} does not exist: check the path")
    looked = f"and {FOLDER} is not set" if data is None else f"nor in {FOLDER} ({data})"
    raise DataError(f"{path} does not exist here {looked}: check the path")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns what goes wrong while a file is read into a `DataError` that names the file.

    Example:
        >>> with readable(Path("a.gz")):
        ...     raise PermissionError(13, "Permission denied")
        Traceback (most recent call last):
        gradsift.errors.DataError: a.gz cannot be read (Permission denied): expected a file that...
    """
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is broken ({error}): expected a whole gzip file; fetch it again"
        ) from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error}): expected a file that this user "
            "may read"
        ) from error


def read_bytes(path: Path, most: int | None = None) -> bytearray:
    """The content of a file, unpacked where its name ends in ``.gz``.

    Args:
        path: of the file.
        most: stop after so many bytes, however large the file claims to be; None reads all.

    Raises:
        DataError: when it cannot be read, or is not what its ending says.
    """
    content = bytearray()
    with readable(path), path.open("rb") as raw:
        opened = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        with opened as stream:
            while most is None or len(content) < most:
                wanted = CHUNK if most is None else min(CHUNK, most - len(content))
                part = cast(BinaryIO, stream).read(wanted)
                if not part:
                    break
                content += part
    return content


def read_text(path: Path) -> str:
    """The content of a text file, without a byte order mark.

    Raises:
        DataError: when it is empty, cannot be read, or is not UTF-8.
    """
    content = read_bytes(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not a text: byte 0x{content[error.start]:02x} at position {error.start}, "
            "expected UTF-8"
        ) from error
    if not text.strip():
        raise DataError(f"{path} is empty, expected text")
    return text

"""IDX files, the format of MNIST and of everything that replaces it.

A file begins with two zero bytes, a byte for the kind of number (8: unsigned byte), a byte for the
number of dimensions, and each dimension as four bytes, the most significant first (Y. LeCun,
C. Cortes and C. Burges, The MNIST database of handwritten digits).
"""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gradsift.data.problem import Problem
from gradsift.data.readers.arrays import pose_images
from gradsift.data.readers.files import find_folder, read_bytes, readable
from gradsift.errors import DataError

BYTES = 8
CLASSES = 10
NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def read_mnist(name: str, folder: str) -> Problem:
    """The four files of MNIST, Fashion-MNIST or another set of their form: 10 classes, from 0.

    Args:
        name: for tables and reports.
        folder: with the four standard file names, plain or with ``.gz``.

    Raises:
        DataError: naming the file, what it holds, and what was expected.
    """
    place = find_folder(folder)
    train, test = (_read_part(place, *NAMES[part]) for part in ("train", "test"))
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(
            f"the images of {place} differ: {_size(train[0])} in the training set, "
            f"{_size(test[0])} in the test set; expected one size"
        )
    return pose_images(name, train, test, CLASSES)


def _read_part(place: Path, images_name: str, labels_name: str) -> tuple[Tensor, Tensor]:
    images_path, labels_path = _choose(place, images_name), _choose(place, labels_name)
    images, labels = read_idx(images_path, dimensions=3), read_idx(labels_path, dimensions=1)
    if len(images) != len(labels):
        raise DataError(
            f"{labels_path} has {len(labels)} labels for the {len(images)} images of "
            f"{images_path.name}: expected one each"
        )
    if int(labels.max()) >= CLASSES:
        wrong = int((labels >= CLASSES).nonzero()[0][0])
        raise DataError(
            f"{labels_path} has label {labels[wrong]} at example {wrong}, expected 0 to "
            f"{CLASSES - 1}"
        )
    classes = torch.from_numpy(labels.astype(np.int64))
    return torch.from_numpy(images).unsqueeze(1), classes


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The unsigned bytes of an IDX file, whose size must be what its header says.

    A plain file of images is mapped into memory; a packed one is unpacked, and no further than its
    header says.

    Args:
        path: of the file; unpacked where the name ends in ``.gz``.
        dimensions: that are expected: 3 for images, 1 for labels.

    Raises:
        DataError: for another kind of file, a broken or an empty one.
    """
    header = 4 + 4 * dimensions
    start = bytes(read_bytes(path, most=header))
    expected = bytes([0, 0, BYTES, dimensions])
    if start[:4] != expected:
        found = f"begins with {start[:4].hex(' ')}" if start else "is empty"
        raise DataError(
            f"{path} {found}, expected {expected.hex(' ')}: an IDX file of bytes in "
            f"{dimensions} dimension{'s' * (dimensions > 1)}"
        )
    if len(start) < header:
        raise DataError(f"{path} ends within its header of {header} bytes: fetch it again")
    shape = tuple(np.frombuffer(start, dtype=">u4", offset=4).tolist())
    if 0 in shape:
        raise DataError(f"{path} holds nothing: its header says {list(shape)}")
    size = math.prod(shape)
    content = _content(path, header, size)
    if len(content) != size:
        found = "more" if len(content) > size else f"{len(content)}"
        raise DataError(
            f"{path} has {found} bytes of data, expected {size} for the {list(shape)} of its "
            "header: fetch it again"
        )
    return content.reshape(shape)


def _content(path: Path, header: int, size: int) -> np.ndarray:
    """What follows the header, or one byte more than expected where there is more."""
    if path.suffix == ".gz":
        return np.frombuffer(read_bytes(path, most=header + size + 1), dtype=np.uint8)[header:]
    with readable(path):
        if path.stat().st_size == header:
            return np.empty(0, dtype=np.uint8)
        return np.memmap(path, dtype=np.uint8, mode="c", offset=header)


def _choose(place: Path, name: str) -> Path:
    for path in (place / name, place / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"{place} has no file {name} or {name}.gz: expected the four IDX files")


def _size(images: Tensor) -> str:
    return f"{images.shape[-2]} x {images.shape[-1]}"

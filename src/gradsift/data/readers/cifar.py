"""CIFAR-10 and CIFAR-100 in their binary form.

A record is one label byte (two in CIFAR-100, the coarse and the fine label) and 3 x 32 x 32 bytes:
the red, the green and the blue plane (A. Krizhevsky, Learning multiple layers of features from
tiny images, 2009). The other form is a Python pickle. Reading it would run whatever code it
holds, so it is refused.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gradsift.data.problem import Problem
from gradsift.data.readers.arrays import pose_images
from gradsift.data.readers.files import find_folder, read_bytes
from gradsift.errors import DataError

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Form:
    """How one of the two sets is laid out.

    Attributes:
        folder: that the archive unpacks to.
        train: names of the training files; those that exist are read, in this order.
        test: name of the test file.
        pickled: a file that only the pickled form has.
        limits: how many values each label byte can have; the last one is the class.
    """

    folder: str
    train: tuple[str, ...]
    test: str
    pickled: str
    limits: tuple[int, ...]

    @property
    def record(self) -> int:
        """Bytes of one example."""
        return len(self.limits) + PIXELS


FORMS = {
    "cifar10": Form(
        folder="cifar-10-batches-bin",
        train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test="test_batch.bin",
        pickled="data_batch_1",
        limits=(10,),
    ),
    "cifar100": Form(
        folder="cifar-100-binary",
        train=("train.bin",),
        test="test.bin",
        pickled="train",
        limits=(20, 100),
    ),
}


def read_cifar(kind: str, name: str, folder: str) -> Problem:
    """Images ``[3, 32, 32]`` in 10 or 100 classes.

    Args:
        kind: ``cifar10`` or ``cifar100`` (with its fine labels).
        name: for tables and reports.
        folder: with the binary files, or with the folder that they unpack to.

    Raises:
        DataError: naming the file, what it holds, and what was expected.
    """
    form = FORMS[kind]
    place = find_folder(folder)
    place = place / form.folder if (place / form.folder).is_dir() else place
    found = [place / name for name in form.train if (place / name).is_file()]
    if not found or not (place / form.test).is_file():
        raise _absent(place, form)
    parts = [_read_records(path, form) for path in found]
    train = tuple(torch.cat(column) for column in zip(*parts, strict=True))
    test = _read_records(place / form.test, form)
    return pose_images(name, (train[0], train[1]), test, form.limits[-1])


def _absent(place: Path, form: Form) -> DataError:
    if (place / form.pickled).is_file():
        return DataError(
            f"{place / form.pickled} is the pickled form, which runs code when it is read: fetch "
            f"the binary form, with {form.train[0]} and {form.test}"
        )
    return DataError(
        f"{place} lacks {form.train[0]} or {form.test}: expected the binary form, unpacked"
    )


def _read_records(path: Path, form: Form) -> tuple[Tensor, Tensor]:
    content = np.frombuffer(read_bytes(path), dtype=np.uint8)
    if len(content) == 0 or len(content) % form.record != 0:
        raise DataError(
            f"{path} has {len(content)} bytes, expected a multiple of {form.record}: a label of "
            f"{len(form.limits)} and pixels of {PIXELS}; fetch it again"
        )
    records = content.reshape(-1, form.record)
    for place, limit in enumerate(form.limits):
        wrong = np.flatnonzero(records[:, place] >= limit)
        if len(wrong) > 0:
            raise DataError(
                f"{path} has label {records[wrong[0], place]} at example {wrong[0]}, expected 0 "
                f"to {limit - 1}: is it the binary form of this set?"
            )
    classes = records[:, len(form.limits) - 1].astype(np.int64)
    images = np.ascontiguousarray(records[:, len(form.limits) :]).reshape(-1, *SHAPE)
    return torch.from_numpy(images), torch.from_numpy(classes)

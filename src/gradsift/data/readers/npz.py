"""NumPy archives: ``x_train, y_train, x_test, y_test``, or ``x, y`` to be split."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradsift.data.problem import Problem, pose
from gradsift.data.readers.arrays import Rows, pose_images
from gradsift.data.readers.files import find_file, readable
from gradsift.data.readers.options import ReadOptions
from gradsift.data.readers.targets import (
    Targets,
    check_known,
    complement,
    held_out_part,
    read_targets,
)
from gradsift.errors import DataError

SPLIT = ("x_train", "y_train", "x_test", "y_test")
WHOLE = ("x", "y")
COLOURS = (1, 3, 4)
CLASSES = "classification"


def read_npz(name: str, file: str, options: ReadOptions) -> Problem:
    """The problem of the arrays of an ``.npz`` file.

    Inputs of bytes with 3 or 4 dimensions are images, ``[n, height, width]`` or
    ``[n, height, width, channels]`` or ``[n, channels, height, width]``, which are standardised
    channel by channel. All others become float32 as they stand. Whole numbers as targets are
    classes, others a regression.

    Args:
        name: for tables and reports.
        file: with the arrays.
        options: task, and seed of the split.

    Raises:
        DataError: naming the file and the array.
    """
    path = find_file(file)
    arrays = _load(path)
    if "x" in arrays:
        x, y = arrays["x"], arrays["y"]
        targets = _targets(path, y, options.task)
        test = held_out_part(str(path), targets, options.seed)
    else:
        _check_alike(path, arrays)
        x, y = (np.concatenate([arrays[f"{key}_train"], arrays[f"{key}_test"]]) for key in WHOLE)
        targets = _targets(path, y, options.task)
        test = torch.arange(len(arrays["x_train"]), len(x))
    train = complement(len(x), test)
    check_known(f"y_test of {path}", targets, train, test)
    values = targets.values
    if x.dtype == np.uint8 and x.ndim in (3, 4):
        images = torch.from_numpy(_channels_first(path, x))
        pairs = [(images[part], values[part]) for part in (train, test)]
        return pose_images(name, pairs[0], pairs[1], targets.outputs, targets.task)
    inputs = torch.from_numpy(_floats(path, x))
    parts = [Rows(inputs[part], values[part]) for part in (train, test)]
    shape = tuple(inputs.shape[1:])
    return pose(name, parts[0], parts[1], shape, targets.outputs, targets.task)


def _load(path: Path) -> dict[str, np.ndarray]:
    """The arrays of one of the two forms, of as many examples as labels; no pickle is opened."""
    with readable(path), path.open("rb") as stream:
        if not zipfile.is_zipfile(stream):
            raise DataError(f"{path} is no npz archive: save it with numpy.savez")
        stream.seek(0)
        try:
            with np.load(stream, allow_pickle=False) as archive:
                found = sorted(archive.files)
                names = WHOLE if "x" in found else SPLIT
                absent = [name for name in names if name not in found]
                arrays = {name: _array(archive[name]) for name in names if not absent}
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise DataError(
                f"{path} cannot be opened ({reason}): expected plain arrays, without Python objects"
            ) from error
    if absent:
        raise DataError(
            f"{path} holds {', '.join(found) or 'nothing'}, but no {absent[0]}: expected "
            f"{', '.join(SPLIT)}, or {' and '.join(WHOLE)}"
        )
    for x_name, y_name in zip(names[::2], names[1::2], strict=True):
        _check_pair(path, x_name, arrays[x_name], y_name, arrays[y_name])
    return arrays


def _array(member: Any) -> np.ndarray:
    """Members that are no arrays come out of an archive as bytes."""
    if not isinstance(member, np.ndarray):
        raise TypeError("a member is no array")
    return member


def _check_pair(path: Path, x_name: str, x: np.ndarray, y_name: str, y: np.ndarray) -> None:
    if x.ndim < 2 or x.size == 0:
        raise DataError(
            f"{x_name} of {path} has shape {list(x.shape)}, expected examples and their features"
        )
    if y.ndim != 1 or len(y) != len(x):
        raise DataError(
            f"{y_name} of {path} has shape {list(y.shape)}, expected [{len(x)}]: one target for "
            f"each example of {x_name}"
        )
    for name, array, kinds in ((x_name, x, "biuf"), (y_name, y, "biufU")):
        if array.dtype.kind not in kinds:
            raise DataError(f"{name} of {path} holds {array.dtype}, expected numbers")


def _check_alike(path: Path, arrays: dict[str, np.ndarray]) -> None:
    for key in WHOLE:
        train, test = arrays[f"{key}_train"], arrays[f"{key}_test"]
        if train.shape[1:] != test.shape[1:] or train.dtype.kind != test.dtype.kind:
            raise DataError(
                f"{key}_train and {key}_test of {path} differ: {train.dtype} of shape "
                f"{list(train.shape[1:])} against {test.dtype} of shape {list(test.shape[1:])} "
                "per example; expected the same"
            )


def _targets(path: Path, y: np.ndarray, asked: str | None) -> Targets:
    where = f"y of {path}"
    if y.dtype.kind == "f":
        if not np.isfinite(y).all():
            raise DataError(f"{where} has a NaN or infinite value: clean the data first")
        return read_targets(where, y, asked or "regression")
    return read_targets(where, y if y.dtype.kind != "b" else y.astype(int), asked or CLASSES)


def _floats(path: Path, x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        inputs = x.astype(np.float32)
    wrong = np.argwhere(~np.isfinite(inputs))
    if len(wrong) > 0:
        raise DataError(
            f"x of {path} has a NaN or infinite value at {wrong[0].tolist()}: clean the data first"
        )
    return inputs


def _channels_first(path: Path, x: np.ndarray) -> np.ndarray:
    if x.ndim == 3:
        return x[:, None]
    if x.shape[1] not in COLOURS and x.shape[3] in COLOURS:
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    if x.shape[1] in COLOURS:
        return x
    raise DataError(
        f"x of {path} holds bytes of shape {list(x.shape)}, expected images of 1, 3 or 4 channels: "
        "save numbers that are no pixels as float32"
    )

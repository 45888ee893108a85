"""Small files of every format that the readers know, written by the obvious means."""

import gzip
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

IDX_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

T = TypeVar("T")


def attempt(function: Callable[[], T], *errors: type[Exception]) -> T | str:
    """What a function returns, or the message of an error that it may raise."""
    try:
        return function()
    except errors as error:
        return str(error)


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    header = bytes([0, 0, kind, array.ndim])
    return header + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


def mnist(
    folder: Path, *, packed: bool = False, size: int = 8, train: int = 40
) -> list[np.ndarray]:
    """The four files, and the arrays that are in them."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(0)
    arrays = []
    for name, count in zip(IDX_NAMES, (train, train, 20, 20), strict=True):
        shape = (count, size, size) if "images" in name else (count,)
        array = numbers.integers(0, 256, shape) if "images" in name else np.arange(count) % 10
        content = idx(array)
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(content) if packed else content)
        arrays.append(array)
    return arrays


def cifar_records(labels: Sequence[Sequence[int]], seed: int = 0) -> bytes:
    """Records of CIFAR: the labels of each, then random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    heads = np.array(labels, dtype=np.uint8)
    return np.concatenate([heads, pixels], axis=1).tobytes()


def cifar10(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in (1, 2):
        labels = [[(number + k) % 10] for k in range(20)]
        (folder / f"data_batch_{number}.bin").write_bytes(cifar_records(labels, number))
    (folder / "test_batch.bin").write_bytes(cifar_records([[k % 10] for k in range(10)], 9))


def cifar100(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    labels = [[k % 20, k % 100] for k in range(100)]
    (folder / "train.bin").write_bytes(cifar_records(labels))
    (folder / "test.bin").write_bytes(cifar_records(labels[:10], 1))


def table(rows: int = 40, header: str = "", separator: str = ",", label: str = "ab") -> str:
    """Rows of two numbers and a word."""
    lines = [header] if header else []
    lines += [
        separator.join([f"{k * 0.5:g}", f"{(-1) ** k * k}", label[k % len(label)]])
        for k in range(rows)
    ]
    return "\n".join(lines) + "\n"


def svmlight(rows: int = 40) -> str:
    return "".join(f"{(-1) ** k:+d} {1 + k % 3}:{k / 10:g} 5:1\n" for k in range(rows))


def arrays(train: int = 40, test: int = 20) -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(1)
    return {
        "x_train": numbers.normal(size=(train, 3)),
        "y_train": np.arange(train) % 2,
        "x_test": numbers.normal(size=(test, 3)),
        "y_test": np.arange(test) % 2,
    }

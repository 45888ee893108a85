"""IDX and CIFAR: every pixel and label arrives, scaled by the training part, batch by batch."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Subset

from datafiles import IDX_NAMES, attempt, cifar10, cifar100, idx, mnist
from gradsift.data.named import ReadOptions, load_problem
from gradsift.data.problem import Problem
from gradsift.data.readers.arrays import Images, Rows, Standard
from gradsift.data.readers.idx import read_idx
from gradsift.errors import DataError

READ = ReadOptions()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRADSIFT_DATA", raising=False)
    return tmp_path


def column(data: Any) -> tuple[np.ndarray, list[int]]:
    """Every input and target, asked for one by one."""
    examples = [data[k] for k in range(len(data))]
    return np.stack([x.numpy() for x, _ in examples]), [int(y) for _, y in examples]


def scaled(images: np.ndarray, train: np.ndarray) -> np.ndarray:
    """The slow way: one channel at a time, in float64."""
    parts = []
    for channel in range(images.shape[1]):
        pixels = train[:, channel].astype(np.float64) / 255
        parts.append((images[:, channel] / 255 - pixels.mean()) / pixels.std())
    return np.stack(parts, axis=1)


def check(problem: Problem, train: np.ndarray, test: np.ndarray) -> None:
    for data, images in ((problem.train, train), (problem.test, test)):
        found, _ = column(data)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, scaled(images, train), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_mnist_arrives_whole(here: Path, packed: bool) -> None:
    train, train_labels, test, test_labels = mnist(here / "m", packed=packed)
    problem = load_problem("mnist:m", READ)
    assert (problem.name, problem.outputs, problem.input_shape) == ("mnist:m", 10, (1, 8, 8))
    check(problem, train[:, None], test[:, None])
    assert column(problem.train)[1] == train_labels.tolist()
    assert column(problem.test)[1] == test_labels.tolist()


@pytest.mark.parametrize("kind", ["mnist", "fashion-mnist"])
def test_a_name_alone_is_its_folder_here_or_among_the_data(
    here: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    mnist(here / "data" / kind, train=30)
    with pytest.raises(DataError, match="GRADSIFT_DATA is not set"):
        load_problem(kind, READ)
    monkeypatch.setenv("GRADSIFT_DATA", str(here / "data"))
    assert len(column(load_problem(kind, READ).train)[1]) == 30
    mnist(here / kind, train=20)
    assert len(column(load_problem(kind, READ).train)[1]) == 20


def test_plain_files_go_before_packed_ones(here: Path) -> None:
    mnist(here / "m")
    (here / "m" / f"{IDX_NAMES[0]}.gz").write_bytes(b"garbage")
    assert load_problem("mnist:m", READ).input_shape == (1, 8, 8)


def test_cifar_planes_are_channels_and_its_files_follow_each_other(here: Path) -> None:
    cifar10(here / "cifar-10-batches-bin")
    problem = load_problem("cifar10:.", READ)
    assert (problem.outputs, problem.input_shape) == (10, (3, 32, 32))
    folder = here / "cifar-10-batches-bin"
    raw = [(folder / f"{name}.bin").read_bytes() for name in ("data_batch_1", "data_batch_2")]
    test = (folder / "test_batch.bin").read_bytes()
    images = [[part[k * 3073 + 1 : (k + 1) * 3073] for k in range(20)] for part in raw]
    planes = np.array([list(image) for part in images for image in part]).reshape(-1, 3, 32, 32)
    held = [list(test[k * 3073 + 1 : (k + 1) * 3073]) for k in range(10)]
    check(problem, planes, np.array(held).reshape(-1, 3, 32, 32))
    assert column(problem.train)[1] == [part[k * 3073] for part in raw for k in range(20)]


def test_cifar100_has_its_fine_labels(here: Path) -> None:
    cifar100(here / "c")
    problem = load_problem("cifar100:c", READ)
    assert problem.outputs == 100
    assert column(problem.train)[1] == list(range(100))


@pytest.mark.parametrize("floating", [False, True])
def test_a_batch_is_the_examples_one_by_one(floating: bool) -> None:
    images = torch.arange(5 * 2 * 3 * 3).reshape(5, 2, 3, 3).to(torch.uint8)
    targets = torch.arange(5) / 2 if floating else torch.arange(5)
    data = Images(images, targets, Standard.of_images(images))
    ids = [4, 0, 0, 3]
    inputs, labels = next(iter(DataLoader(data, batch_sampler=[ids])))
    assert torch.equal(inputs, torch.stack([data[k][0] for k in ids]))
    assert torch.equal(labels, targets[ids])
    assert labels.dtype == (torch.float32 if floating else torch.int64)
    inputs, labels = next(iter(DataLoader(Subset(data, [3, 1]), batch_size=2)))
    assert torch.equal(labels, targets[[3, 1]])
    assert torch.equal(inputs[1], data[1][0])


def test_an_index_beyond_the_data_ends_an_iteration() -> None:
    data = Rows(torch.eye(3), torch.arange(3))
    assert [target for _, target in (data[k] for k in range(3))] == [0, 1, 2]
    assert data[-1][1] == 2
    for index in (3, -4):
        with pytest.raises(IndexError):
            data[index]


def test_a_constant_channel_is_zero_and_not_nan() -> None:
    images = torch.full((3, 2, 4, 4), 77, dtype=torch.uint8)
    images[0, 0] = 5
    data = Images(images, torch.zeros(3), Standard.of_images(images))
    assert data[1][0][1].abs().max() < 1e-5
    assert np.isfinite(column(data)[0]).all()


def test_statistics_do_not_depend_on_how_many_images_are_looked_at_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = torch.randint(256, (50, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8)
    whole = Standard.of_images(images)
    monkeypatch.setattr("gradsift.data.readers.arrays.STATISTICS_CHUNK", 7)
    parts = Standard.of_images(images)
    assert torch.equal(whole.mean, parts.mean)
    torch.testing.assert_close(whole.deviation, parts.deviation)


@given(content=st.binary(max_size=40) | st.builds(lambda tail: b"\0\0\x08\1" + tail, st.binary()))
@pytest.mark.parametrize("dimensions", [1, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_any_bytes_are_an_array_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, dimensions: int, packed: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{'.gz' * packed}"
    path.write_bytes(gzip.compress(content, mtime=0) if packed else content)
    found = attempt(lambda: read_idx(path, dimensions), DataError)
    if isinstance(found, str):
        assert str(path) in found
    else:
        assert struct.pack(f">{dimensions}I", *found.shape) == content[4 : 4 + 4 * dimensions]
        assert found.tobytes() == content[4 + 4 * dimensions :]


@given(shape=st.tuples(*[st.integers(1, 5)] * 3), seed=st.integers(0, 9))
def test_an_array_survives_its_file(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, ...], seed: int
) -> None:
    array = np.random.default_rng(seed).integers(0, 256, shape)
    path = tmp_path_factory.getbasetemp() / "array"
    path.write_bytes(idx(array))
    assert np.array_equal(read_idx(path, 3), array)

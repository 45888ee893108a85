"""Augmentation that repeats: every look at an example has random numbers of its own.

What is random inside a data set comes from the global generators of whatever process reads it. It
depends on which loader worker happens to read which example, and on how often that worker has read.
Here the generators are seeded by (seed of the run, step, id) around each access, and put back
after it: with workers or without, in a resumed loop or a whole one, the pictures are the same.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset


class Visit(int):
    """An id that knows in which step its example is looked at. It travels to loader workers.

    Example:
        >>> visit = Visit(7, step=3)
        >>> visit == 7, visit.step
        (True, 3)
    """

    step: int

    def __new__(cls, index: int, step: int) -> "Visit":
        """``index`` with the number of the step."""
        visit = super().__new__(cls, index)
        visit.step = step
        return visit

    def __reduce__(self) -> tuple[type["Visit"], tuple[int, int]]:
        return Visit, (int(self), self.step)


def seed_of(seed: int, step: int, index: int) -> int:
    """64 bits out of three numbers, the same in every process and on every machine.

    Args:
        seed: of the run.
        step: counted over the whole run.
        index: the example's id.

    Example:
        >>> seed_of(0, 1, 2) == seed_of(0, 1, 2), seed_of(0, 1, 2) == seed_of(0, 2, 1)
        (True, False)
    """
    words = f"{seed},{step},{index}".encode()
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the generators of PyTorch (CPU), NumPy and Python for a block, and puts them back.

    Example:
        >>> before = torch.get_rng_state()
        >>> with seeded(5):
        ...     first = torch.rand(1)
        >>> with seeded(5):
        ...     again = torch.rand(1)
        >>> bool(first == again), bool((torch.get_rng_state() == before).all())
        (True, True)
    """
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


class Seeded(Dataset[Any]):
    """A data set whose every access has random numbers of its own.

    Other attributes are the data set's. Examples are read one by one, also where the data set could
    read a batch at once.

    Args:
        dataset: map-style.
        seed: of the run.

    Example:
        >>> class Noisy(Dataset):
        ...     def __getitem__(self, index):
        ...         return index + torch.rand(())
        >>> data = Seeded(Noisy(), seed=0)
        >>> bool(data[Visit(1, step=5)] == data[Visit(1, step=5)])
        True
        >>> bool(data[Visit(1, step=5)] == data[Visit(1, step=6)])
        False
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self._seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, visit: Visit) -> Any:
        with seeded(seed_of(self._seed, visit.step, visit)):
            return self.dataset[int(visit)]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)

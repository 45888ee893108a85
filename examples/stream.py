"""Train on shards of any number of examples, in constant memory, from a scored pool.

Shards are read one after the other and shuffled in a small buffer, as WebDataset and the streams of
`datasets` do; a stream of either goes in the place of `Shards` below. A stream has no ids to ask
for, so examples are chosen from a pool: the next r·b of the stream, scored and drawn from. Seven of
eight examples here are easy for ever.

    python examples/stream.py --examples 1000000 --folder runs/shards
"""

import argparse
import random
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import gradsift

FEATURES, SHARD, BUFFER = 4, 50_000, 4_096


class Shards(IterableDataset[tuple[Tensor, Tensor]]):
    """Examples out of ``.npy`` files: a row has the features and then the class.

    Every worker of every process reads shards of its own.

    Args:
        files: the shards.
        seed: of the order of shards and examples, another one in each pass.
        rank: of this process.
        world_size: how many processes there are.
    """

    def __init__(self, files: list[Path], seed: int = 0, rank: int = 0, world_size: int = 1):
        self.files, self.seed = files, seed
        self.rank, self.world_size = rank, world_size
        self.passes = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = random.Random(f"{self.seed} {self.passes}")
        self.passes += 1
        files = order.sample(self.files, len(self.files))
        worker = get_worker_info()
        mine, among = (0, 1) if worker is None else (worker.id, worker.num_workers)
        buffer: list[np.ndarray] = []
        for file in files[self.rank * among + mine :: self.world_size * among]:
            for row in np.load(file, mmap_mode="r"):
                buffer.append(np.array(row))
                if len(buffer) >= BUFFER:
                    place = order.randrange(BUFFER)
                    buffer[place], buffer[-1] = buffer[-1], buffer[place]
                    yield example(buffer.pop())
        order.shuffle(buffer)
        yield from map(example, buffer)


def example(row: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(row[:FEATURES]), torch.tensor(int(row[FEATURES]))


def write_shards(folder: Path, examples: int, shard: int = SHARD) -> list[Path]:
    """Two classes that one feature tells apart, except in one of eight examples."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    files = []
    for start in range(0, examples, shard):
        count = min(shard, examples - start)
        rows = generator.normal(size=(count, FEATURES + 1)).astype(np.float32)
        rows[:, FEATURES] = generator.integers(2, size=count)
        rows[:, 0] = (2 * rows[:, FEATURES] - 1) * np.where(generator.random(count) < 1 / 8, 0.2, 6)
        files.append(folder / f"shard-{len(files):05d}.npy")
        np.save(files[-1], rows)
    return files


def megabytes() -> float:
    """The most memory that this process has had so far; Linux counts in KiB, macOS in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def train_on(files: list[Path], *, batch_size: int, recipe: str, reports: int) -> list[float]:
    """One pass; returns the peak of memory in MB at each of so many points of it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_fn = nn.CrossEntropyLoss(reduction="none")
    examples = sum(len(np.load(file, mmap_mode="r")) for file in files)
    train = gradsift.sift(DataLoader(Shards(files), batch_size), model, loss_fn, recipe=recipe)
    peaks: list[float] = []
    read = 0
    start = time.perf_counter()
    for batch in train:
        loss = batch.loss(model(batch.inputs))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        read = max(train.examples_scored, train.examples_trained)
        if read >= (len(peaks) + 1) * examples / reports:
            peaks.append(megabytes())
            seconds = time.perf_counter() - start
            print(f"{read} examples, {seconds:.0f} s, loss {loss.item():.4f}, {peaks[-1]:.1f} MB")
        if read >= examples:
            break
    print(train)
    return peaks


def main() -> int:
    parser = argparse.ArgumentParser(description="Train on shards in constant memory.")
    parser.add_argument("--examples", type=int, default=200_000, help="in all shards together")
    parser.add_argument("--folder", type=Path, default=Path("runs/shards"), help="for the shards")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--recipe", default="pool")
    given = parser.parse_args()
    files = write_shards(given.folder, given.examples)
    peaks = train_on(files, batch_size=given.batch_size, recipe=given.recipe, reports=10)
    print(f"from the first tenth on, the peak grew by {peaks[-1] - peaks[0]:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One of two processes that sift together: runs every check and writes down what it saw.

Started by `test_citizen_ranks.py` as ``python pair.py RANK FOLDER``; the tests read its results.
"""

import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import gradsift
from gradsift.clock import VirtualClock
from gradsift.gate import TauThreshold
from gradsift.sifting import together

LOSS = nn.CrossEntropyLoss(reduction="none")
N, BATCH, RATE = 256, 8, 0.05
PUBLISHED = gradsift.Recipe(gate=TauThreshold(threshold=1.4), name="published")
PREDICTED = replace(
    gradsift.recipes["katharopoulos2017"],
    prediction=gradsift.predictor.Prediction(candidates=64, warm_up=8),
)


def uneven_data() -> TensorDataset:
    """Most examples are easy for ever, a tenth has random labels: scores that persist."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(N) % 2
    x = torch.randn(N, 8, generator=generator)
    x[:, 0] = (2 * y - 1) * 6.0
    x[: N // 10, 0] = 0.0
    return TensorDataset(x, y)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))


def loader(data: Any = None, workers: int = 0) -> DataLoader:
    data = uneven_data() if data is None else data
    return DataLoader(data, BATCH, sampler=DistributedSampler(data), num_workers=workers)


def train_with(
    train: gradsift.SiftedLoader, model: nn.Module, clock: VirtualClock, epochs: int
) -> list[tuple[Tensor, Tensor, bool]]:
    """Trains, and returns the ids and weights of every step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    seen = []
    for _ in range(epochs):
        for batch in train:
            seen.append((batch.indices, batch.weights, batch.drawn))
            batch.loss(model(batch.inputs)).backward()
            optimizer.step()
            optimizer.zero_grad()
            clock.charge(trained=len(batch))
    return seen


def whole(values: Tensor) -> Tensor:
    """A parameter, put together where processes hold parts of it."""
    gather: Callable[[], Tensor] | None = getattr(values, "full_tensor", None)
    return values.detach().clone() if gather is None else gather().detach().clone()


def check_recipe(
    recipe: str | gradsift.Recipe, wrap: str, epochs: int, workers: int = 0
) -> dict[str, Any]:
    """A run of one recipe behind DDP or FSDP2."""
    inner = network()
    if wrap == "ddp":
        model: Any = DistributedDataParallel(inner)
    else:
        for layer in (inner[0], inner[2]):
            fully_shard(layer)
        model = fully_shard(inner)
    clock = VirtualClock()
    train = gradsift.sift(
        loader(workers=workers), model, LOSS, recipe=recipe, clock=clock, spend="noise"
    )
    seen = train_with(train, model, clock, epochs)
    table = train.table
    return {
        "seen": seen,
        "parameters": [whole(value) for value in inner.parameters()],
        "table": None if table is None else table.state_dict()["relative"],
        "gate": train.gate,
        "scored": train.examples_scored,
    }


def check_resume(recipe: str, steps: int, cut: int) -> dict[str, Any]:
    """A run in one go, and one that is saved after ``cut`` steps and taken up by new objects.

    An engine is in exact mode, where nothing depends on what workers were doing.
    """

    def begin() -> tuple[nn.Module, torch.optim.Optimizer, VirtualClock, gradsift.SiftedLoader]:
        model, clock = DistributedDataParallel(network()), VirtualClock()
        engine = None
        if recipe == "issgd":
            engine = gradsift.engines.inline(block=64, every=4, mode="exact")
        train = gradsift.sift(
            loader(), model, LOSS, recipe=recipe, clock=clock, spend="noise", engine=engine
        )
        return model, torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9), clock, train

    def go(run: Any, count: int) -> list[Tensor]:
        model, optimizer, clock, train = run
        ids = []
        for batch in islice(chain.from_iterable(repeat(train)), count):
            ids.append(batch.indices)
            optimizer.zero_grad()
            batch.loss(model(batch.inputs)).backward()
            optimizer.step()
            clock.charge(trained=len(batch))
        return ids

    once, first, second = begin(), begin(), begin()
    expected, found = go(once, steps), go(first, cut)
    saved = io.BytesIO()
    torch.save([first[0].state_dict(), first[1].state_dict(), first[3].state_dict()], saved)
    saved.seek(0)
    for part, state in zip((*second[:2], second[3]), torch.load(saved), strict=True):
        part.load_state_dict(state)
    found += go(second, steps - cut)
    return {
        "ids": (expected, found),
        "parameters": [[whole(value) for value in run[0].parameters()] for run in (once, second)],
        "gates": (once[3].gate, second[3].gate),
    }


def check_engine(kind: str) -> dict[str, Any]:
    """A run behind DDP whose scores an engine of the first rank measures."""
    inner = network()
    model, clock = DistributedDataParallel(inner), VirtualClock()
    asked: dict[str, Any] = {"block": 32, "every": 8}
    made = gradsift.engines.local if kind == "local" else gradsift.engines.inline
    train = gradsift.sift(loader(), model, LOSS, engine=made(**asked), clock=clock)
    seen = train_with(train, model, clock, 6)
    train.settle()
    found = {
        "seen": seen,
        "parameters": [whole(value) for value in inner.parameters()],
        "table": train.table.state_dict()["relative"] if train.table is not None else None,
        "gate": train.gate,
        "status": train.engine_status,
    }
    train.close()
    return found


def check_engine_failure() -> str:
    """Rank 0 finds no data set."""
    engine = gradsift.engines.inline(dataset="nowhere:nothing")
    train = gradsift.sift(loader(), network(), LOSS, engine=engine)
    return message_of(lambda: next(iter(train)))


def check_engine_parts() -> str:
    """No process has all parameters."""
    train = gradsift.sift(loader(), fully_shard(network()), LOSS, engine=gradsift.engines.inline())
    return message_of(lambda: next(iter(train)))


def check_finish() -> dict[str, Any]:
    """`auto` that ends in the user's own order; rank 0 alone says how far the run is."""
    model = DistributedDataParallel(network())
    clock = VirtualClock()
    train = gradsift.sift(loader(), model, LOSS, clock=clock, spend="noise", finish=0.25)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    epochs, seen = 24, []
    for epoch in range(epochs):
        for batch in train:
            if dist.get_rank() == 0:
                train.policy.progress = epoch / epochs
            seen.append((batch.indices, batch.drawn))
            batch.loss(model(batch.inputs)).backward()
            optimizer.step()
            optimizer.zero_grad()
            clock.charge(trained=len(batch))
    return {"seen": seen, "gate": train.gate}


def check_spending() -> dict[str, Any]:
    """`auto` that may shrink its batches: to the same size on every rank."""
    model = DistributedDataParallel(network())
    clock = VirtualClock()
    train = gradsift.sift(loader(), model, LOSS, clock=clock, spend="batch")
    seen = train_with(train, model, clock, 24)
    return {"sizes": [len(ids) for ids, _, _ in seen], "gate": train.gate}


class Stream(IterableDataset[tuple[Tensor, ...]]):
    """Rank 0 has 21 examples, rank 1 has 36: the last batch that both have is uneven."""

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        data = uneven_data()
        start, end = ((0, 21), (100, 136))[dist.get_rank()]
        yield from (data[k] for k in range(start, end))


def check_uneven() -> dict[str, Any]:
    """In the user's own order, with a published gate that stays shut."""
    model = DistributedDataParallel(network())
    recipe = gradsift.Recipe(gate=gradsift.recipes["katharopoulos2018"].gate, name="shut")
    train = gradsift.sift(DataLoader(Stream(), BATCH), model, LOSS, recipe=recipe)
    gradients, sizes = [], []
    for batch in train:
        model.zero_grad()
        batch.loss(model(batch.inputs)).backward()
        gradients.append(
            [value.grad.clone() for value in model.parameters() if value.grad is not None]
        )
        sizes.append(len(batch))
    return {"gradients": gradients, "sizes": sizes}


class Broken(TensorDataset):
    """Cannot be read on rank 1 after a while."""

    reads = 0

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        Broken.reads += 1
        if dist.get_rank() == 1 and Broken.reads > 3 * BATCH:
            raise gradsift.DataError(f"example {index} cannot be read")
        return super().__getitem__(index)


def message_of(action: Callable[[], Any]) -> str:
    try:
        action()
    except (gradsift.TrainingError, gradsift.UsageError, gradsift.DataError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def check_failure() -> str:
    model = DistributedDataParallel(network())
    data = Broken(*uneven_data().tensors)
    train = gradsift.sift(loader(data), model, LOSS, recipe="pool")
    return message_of(lambda: train_with(train, model, VirtualClock(), 2))


def check_not_finite() -> str:
    inputs, targets = (part.clone() for part in uneven_data().tensors)
    inputs[5] = torch.nan
    model = DistributedDataParallel(network())
    train = gradsift.sift(loader(TensorDataset(inputs, targets)), model, LOSS, recipe="table")
    return message_of(lambda: train_with(train, model, VirtualClock(), 1))


def check_arguments() -> str:
    train = gradsift.sift(loader(), network(), LOSS, recipe="table", seed=dist.get_rank())
    return message_of(lambda: next(iter(train)))


def check_alone() -> list[int]:
    """``world_size=1`` keeps processes to themselves, with other random numbers each."""
    train = gradsift.sift(
        DataLoader(uneven_data(), 64), network(), LOSS, recipe="pool", world_size=1
    )
    return next(iter(train)).indices.tolist()


def check_log(folder: Path) -> list[str]:
    """Both name a folder; only rank 0 writes."""
    train = gradsift.sift(
        loader(), network(), LOSS, recipe="pool", log=folder / f"log-{dist.get_rank()}"
    )
    next(iter(train))
    return sorted(path.name for path in folder.glob(f"log-{dist.get_rank()}/*"))


def check_silence() -> str:
    """Rank 1 stays away from the second batch."""
    together.PATIENCE = timedelta(seconds=2)
    batches = iter(gradsift.sift(loader(), network(), LOSS, recipe="pool"))
    next(batches)
    return "" if dist.get_rank() == 1 else message_of(lambda: next(batches))


CHECKS: dict[str, Callable[[], Any]] = {
    "ddp-pool": lambda: check_recipe("pool", "ddp", 2),
    "ddp-table": lambda: check_recipe("table", "ddp", 6),
    "ddp-table-workers": lambda: check_recipe("table", "ddp", 4, workers=2),
    "ddp-auto": lambda: check_recipe("auto", "ddp", 24),
    "ddp-published": lambda: check_recipe(PUBLISHED, "ddp", 4),
    "ddp-predicted": lambda: check_recipe(PREDICTED, "ddp", 3),
    "fsdp-pool": lambda: check_recipe("pool", "fsdp", 2),
    "fsdp-table": lambda: check_recipe("table", "fsdp", 6),
    "fsdp-auto": lambda: check_recipe("auto", "fsdp", 24),
    "ddp-engine": lambda: check_engine("inline"),
    "ddp-local": lambda: check_engine("local"),
    "engine-failure": check_engine_failure,
    "engine-parts": check_engine_parts,
    "resumed-engine": lambda: check_resume("issgd", 60, 37),
    "ddp-infobatch": lambda: check_recipe("infobatch", "ddp", 4),
    "ddp-rho": lambda: check_recipe("rho-loss", "ddp", 1),
    "fsdp-kakurenbo": lambda: check_recipe("kakurenbo", "fsdp", 8),
    "fsdp-rho": lambda: message_of(lambda: check_recipe("rho-loss", "fsdp", 1)),
    "resumed-table": lambda: check_resume("table", 60, 37),
    "resumed-auto": lambda: check_resume("auto", 300, 170),
    "finish": check_finish,
    "spending": check_spending,
    "uneven": check_uneven,
    "failure": check_failure,
    "not-finite": check_not_finite,
    "arguments": check_arguments,
    "alone": check_alone,
    "silence": check_silence,
}


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(  # pyright: ignore[reportPrivateImportUsage]
        str(folder / "store"), 2
    )
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    results = {}
    checks = {"log": lambda: check_log(folder), **CHECKS}
    for name, check in checks.items():
        results[name] = check()
        torch.save(results, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))

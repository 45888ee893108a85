"""One of two processes that train by synchronous SGD, guided or not: writes down what it saw.

Started by `test_parallel_ranks.py` as ``python pair_parallel.py RANK FOLDER``.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from gradsift.errors import UsageError
from gradsift.parallel import (
    AbstractGuide,
    Alignment,
    FixedVerification,
    FreshVerification,
    ParameterServer,
    Random,
    RanksObjective,
    Replay,
    RoundGuide,
    ssgd_on_ranks,
)

RANKS, ROUNDS, SIZE = 2, 9, 3
VERIFICATION = torch.tensor([1, 5, 7, 20, 2])
LOSS = nn.MSELoss(reduction="none")


def examples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 4, dtype=torch.float64, generator=generator)
    return x, x.sum(1, keepdim=True).sin()


def fetch(ids: Tensor) -> tuple[Tensor, Tensor]:
    x, y = examples()
    return x[ids], y[ids]


def losses(outputs: Tensor, targets: Tensor) -> Tensor:
    return LOSS(outputs, targets).squeeze(1)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def batches(count: int = ROUNDS) -> list[list[Tensor]]:
    """For each round one batch per rank; of odd size, so that shares differ."""
    generator = torch.Generator().manual_seed(1)
    return [
        [torch.randint(24, (SIZE,), generator=generator) for _ in range(RANKS)]
        for _ in range(count)
    ]


def guide(name: str, seed: int) -> AbstractGuide | None:
    """Generators differ from rank to rank: what rank 0 draws counts."""
    generator = torch.Generator().manual_seed(seed)
    fixed = FixedVerification(VERIFICATION)
    made = {
        "plain": lambda: None,
        "consistent": lambda: RoundGuide(fixed, rho=2),
        "aligned": lambda: RoundGuide(fixed, rho=2, selector=Alignment()),
        "random": lambda: RoundGuide(fixed, rho=2, selector=Random(generator)),
        "fresh": lambda: RoundGuide(FreshVerification(VERIFICATION, 3, generator), rho=2),
        "replay": lambda: Replay(generator, rho=4, count=2),
        "weighted": lambda: Replay(generator, rho=4, count=2, uniform=0.3),
    }
    return made[name]()


NAMES = ("plain", "consistent", "aligned", "random", "fresh", "replay", "weighted")


def check(name: str) -> dict[str, Any]:
    """A run on both ranks; rank 1 has one batch more, which is left out."""
    rank = dist.get_rank()
    inner = network()
    server = ParameterServer(inner.parameters(), SGD(inner.parameters(), lr=0.3, momentum=0.5))
    objective = RanksObjective(DistributedDataParallel(inner), losses, fetch)
    chosen = guide(name, seed=rank)
    mine = [parts[rank] for parts in batches(ROUNDS + rank)]
    done = list(ssgd_on_ranks(server, objective, mine, chosen))
    return {
        "done": done,
        "weights": [weight.clone() for weight in server.weights],
        "version": server.version,
        "replays": 0 if chosen is None else chosen.replays,
        "loss": objective.loss(server.weights, VERIFICATION),
        "one": objective.gradient(server.weights, torch.tensor([3])),
    }


def check_refusals() -> list[str]:
    said = []
    inner = network()
    server = ParameterServer(inner.parameters(), SGD(inner.parameters(), lr=0.3))
    for attempt in (
        lambda: RanksObjective(inner, losses, fetch),
        lambda: list(
            ssgd_on_ranks(
                server,
                RanksObjective(DistributedDataParallel(inner), losses, fetch),
                [torch.tensor([1])][dist.get_rank() :],
            )
        ),
    ):
        try:
            attempt()
        except UsageError as error:
            said.append(str(error))
    return said


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(  # pyright: ignore[reportPrivateImportUsage]
        str(folder / "store"), RANKS
    )
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    results: dict[str, Any] = {name: check(name) for name in NAMES}
    results["refusals"] = check_refusals()
    torch.save(results, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))

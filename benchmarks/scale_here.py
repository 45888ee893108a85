"""The constants of the scaling simulation that this machine can tell, in CPU seconds of one thread.

CPU seconds, because other processes do not count in them; on a core that two threads share they
are longer while the other thread is busy.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from gradsift.comparison.machine import between, read_meters
from gradsift.engine.snapshot import Writer, make_board
from gradsift.sampling.table import ScoreTable
from gradsift.scores import GradientNorm
from scale_model import Costs

BLOCK, BATCH, DRAWN = 512, 128, 1024
WIDTHS = (784, 256, 256, 10)
LOSS = nn.CrossEntropyLoss(reduction="none")
PUBLISHED = 4 * 2**20
"""Parameters whose publication is timed: 16 MiB, more than a cache holds."""


@dataclass(frozen=True)
class Here:
    """What was measured.

    Attributes:
        scoring: of the exact gradient norm of one example, in a block of 512.
        training: of one example of a training step of 128.
        parameters: bytes of the model's.
        costs: of table and publication.
        foreign: share of the cores that others took meanwhile; None where unknown.
    """

    scoring: float
    training: float
    parameters: int
    costs: Costs
    foreign: float | None


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Of single calls, after one that is not counted."""
    work()
    found = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return statistics.median(found)


def measure(repeats: int, table_size: int) -> Here:
    """An MLP 784-256-256-10, and a table of so many examples."""
    before = read_meters()
    torch.manual_seed(0)
    first, second, last = (nn.Linear(*pair) for pair in pairwise(WIDTHS))
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)
    inputs, targets = torch.randn(BLOCK, WIDTHS[0]), torch.randint(WIDTHS[-1], (BLOCK,))
    score = GradientNorm(check=False)

    def train() -> None:
        model.zero_grad()
        LOSS(model(inputs[:BATCH]), targets[:BATCH]).mean().backward()

    scoring = median_seconds(lambda: score(model, LOSS, inputs, targets), repeats) / BLOCK
    training = median_seconds(train, repeats) / BATCH
    costs = table_costs(repeats, table_size)
    size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    return Here(scoring, training, size, costs, between(before, read_meters()).foreign_cpu)


def table_costs(repeats: int, size: int) -> Costs:
    """Of a draw of 1,024, of one score of a block of 512, and of publishing a byte."""
    table = ScoreTable(size)
    generator = torch.Generator().manual_seed(0)
    table.update(torch.arange(size), torch.rand(size, generator=generator), version=0)
    scores, starts = torch.rand(BLOCK, generator=generator), iter(range(0, 10**12, BLOCK))

    def update() -> None:
        start = next(starts) % (size - BLOCK)
        table.update(torch.arange(start, start + BLOCK), scores, version=1)

    parameters = {"weight": torch.zeros(PUBLISHED)}
    writer = Writer(make_board(parameters))
    published = median_seconds(lambda: writer.write(parameters, 1), repeats)
    return Costs(
        draw=median_seconds(lambda: table.draw(DRAWN), repeats),
        update=median_seconds(update, repeats) / BLOCK,
        copy=published / (4 * PUBLISHED),
    )

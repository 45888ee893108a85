"""How much larger the steps of Adam become by themselves when noise falls.

    GRADSIFT_DATA=FOLDER python benchmarks/adaptive.py [--epochs 3] [--seeds 3] [--settling 3000]
                                                           [--out FILE.json]

Adam moves along ``m/√v``, and where noise is most of the gradient, v is the noise. With a variance
ratio of R in a coordinate, the signal in its step grows by ``√R`` at the same learning rate, as
``spend="lr"`` would do on purpose for SGD by up to R. An MLP trains on Fashion-MNIST for some
epochs. Then it stands still, while Adam's v settles, for three times its memory, on shuffled
batches and, apart from them, on batches out of the score table. Printed: the median over
coordinates of ``√(v of uniform / v of the table)``, and the root of the ratio of the summed v, that
of the second moments of the whole gradient.
"""

import argparse
import json
import statistics
from dataclasses import asdict, dataclass
from itertools import chain, islice, repeat
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gradsift import sift
from gradsift.models import build_model
from problems import clothes

LOSS = nn.CrossEntropyLoss(reduction="none")


@dataclass(frozen=True)
class Row:
    """One seed.

    Attributes:
        seed: of the model and the orders.
        median: over coordinates, of the factor by which Adam's steps grow.
        overall: root of the ratio of the second moments of the whole gradient.
        loss: of the training batches at the end, a mean.
    """

    seed: int
    median: float
    overall: float
    loss: float


def measure(data: TensorDataset, seed: int, epochs: int, settling: int) -> Row:
    model = build_model("mlp", (1, 28, 28), 10, generator=torch.Generator().manual_seed(seed))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loaders = [
        DataLoader(data, 64, shuffle=True, generator=torch.Generator().manual_seed(seed))
        for _ in range(2)
    ]
    plain = sift(loaders[0], model, LOSS, recipe="uniform", seed=seed)
    for batch in chain.from_iterable(repeat(plain, epochs)):
        optimizer.zero_grad()
        batch.loss(model(batch.inputs)).backward()
        optimizer.step()
    table = sift(loaders[1], model, LOSS, recipe="table", seed=seed)
    for batch in table:
        batch.loss(model(batch.inputs))
    settled = []
    for train in (plain, table):
        still = torch.optim.Adam(model.parameters(), lr=0.0)
        losses = []
        for batch in islice(chain.from_iterable(repeat(train)), settling):
            still.zero_grad()
            loss = batch.loss(model(batch.inputs))
            loss.backward()
            still.step()
            losses.append(loss.item())
        settled.append(second_moments(still))
        mean = statistics.fmean(losses)
    uniform, drawn = settled
    seen = (uniform > 0) & (drawn > 0)
    ratio = (uniform[seen] / drawn[seen]).sqrt()
    overall = float((uniform.sum() / drawn.sum()).sqrt())
    return Row(seed, float(ratio.median()), overall, mean)


def second_moments(optimizer: torch.optim.Adam) -> Tensor:
    """Adam's v of every coordinate."""
    return torch.cat([state["exp_avg_sq"].flatten() for state in optimizer.state.values()]).double()


def main() -> None:
    parser = argparse.ArgumentParser(description="Adam's steps under less noise.")
    parser.add_argument("--epochs", type=int, default=3, help="of training before")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--settling", type=int, default=3000, help="steps at a rate of zero")
    parser.add_argument("--out", type=Path, help="write the rows to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    examples = DataLoader(clothes().train, 1000)
    inputs, labels = (torch.cat(part) for part in zip(*examples, strict=True))
    data, rows = TensorDataset(inputs, labels), []
    for seed in range(options.seeds):
        rows.append(measure(data, seed, options.epochs, options.settling))
        print(asdict(rows[-1]), flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()

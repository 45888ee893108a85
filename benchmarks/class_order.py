"""What a stratified draw gains when the table walks through its examples in some order.

    GRADSIFT_DATA=FOLDER python benchmarks/class_order.py [--steps 400 1800] [--examples 1600]
                                                              [--out FILE.json]

A CNN is trained on Fashion-MNIST. At some steps the full gradients of the first examples are taken,
and with them the exact variance of a stratified draw of b out of these: for every slot, the trace
of the covariance of one weighted gradient in it, summed. Nothing about the draws is random.
Proposals are 0.8 of the score and 0.2 uniform; "stale" scores are multiplied by lognormal(0.7)
noise. Printed are ratios: the variance of b uniform draws, one per slot of the ids' own order, over
that of the draw.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import DataLoader, TensorDataset

from gradsift.models import build_model
from gradsift.scores import OutputGradient
from problems import clothes

LOSS = nn.CrossEntropyLoss(reduction="none")
DRAWN, UNIFORM, STALE = 64, 0.2, 0.7
LR = 0.04


def stratified_variance(gradients: Tensor, probabilities: Tensor, size: int) -> float:
    """Exact trace of ``Var (1/b) Σ_k w_k g_k`` with one draw in each of b equal slots.

    Args:
        gradients: float64 ``[N, parameters]``, in the order that the table walks.
        probabilities: float64 ``[N]``, in the same order; they sum to one.
        size: b.
    """
    ends = size * probabilities.cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    weighted = gradients / (len(probabilities) * probabilities)[:, None]
    total = 0.0
    for slot in range(size):
        share = (ends.clamp(max=slot + 1) - starts.clamp(min=slot)).clamp(min=0)
        inside = share.nonzero().flatten()
        chance, values = share[inside] / share[inside].sum(), weighted[inside]
        second = (chance * values.square().sum(1)).sum()
        total += float(second - (chance[:, None] * values).sum(0).square().sum())
    return total / size**2


def orders(scores: Tensor, labels: Tensor, rivals: Tensor) -> dict[str, Tensor]:
    """Permutations of the examples, by name."""
    natural = torch.arange(len(scores))
    by_score = scores.argsort()

    def first_by(keys: Tensor, then: Tensor) -> Tensor:
        return then[keys[then].argsort(stable=True)]

    return {
        "ids": natural,
        "score": by_score,
        "class": first_by(labels, natural),
        "class, score": first_by(labels, by_score),
        "class, rival, score": first_by(labels, first_by(rivals, by_score)),
    }


def gradients(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Full gradients of single examples, ``[N, parameters]``."""
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        outputs = functional_call(model, values, (image[None],))
        return nn.functional.cross_entropy(outputs, label[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))
    parts = [
        torch.cat([part.flatten(1) for part in each(parameters, *pair).values()], dim=1)
        for pair in zip(inputs.split(100), labels.split(100), strict=True)
    ]
    return torch.cat(parts).double()


def measure(model: nn.Module, inputs: Tensor, labels: Tensor) -> list[dict[str, float | str]]:
    """A row for fresh and one for stale scores."""
    each = gradients(model, inputs, labels)
    with torch.no_grad():
        outputs = model(inputs)
    rivals = outputs.scatter(1, labels[:, None], -torch.inf).argmax(1)
    fresh = OutputGradient()(model, LOSS, inputs, labels).double()
    noise = torch.randn(len(fresh), generator=torch.Generator().manual_seed(1)).double()
    even = torch.full_like(fresh, 1 / len(fresh))
    uniform = stratified_variance(each, even, DRAWN)
    rows: list[dict[str, float | str]] = []
    for name, scores in (("fresh", fresh), ("stale", fresh * (STALE * noise).exp())):
        proposal = (1 - UNIFORM) * scores / scores.sum() + UNIFORM / len(scores)
        row: dict[str, float | str] = {"scores": name}
        for order, places in orders(scores, labels, rivals).items():
            spread = stratified_variance(each[places], proposal[places], DRAWN)
            row[order] = round(uniform / spread, 3)
            plain = stratified_variance(each[places], even, DRAWN)
            row[f"uniform by {order}"] = round(uniform / plain, 3)
        rows.append(row)
    return rows


def trained(steps: list[int], data: TensorDataset) -> Iterator[tuple[int, nn.Module]]:
    """The model after each of these numbers of steps."""
    model = build_model("cnn", (1, 28, 28), 10, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9)
    loader = DataLoader(data, 64, shuffle=True, generator=torch.Generator().manual_seed(0))
    step = 0
    while True:
        for inputs, labels in loader:
            if step in steps:
                yield step, model
            if step >= max(steps):
                return
            optimizer.zero_grad()
            LOSS(model(inputs), labels).mean().backward()
            optimizer.step()
            step += 1


def main() -> None:
    parser = argparse.ArgumentParser(description="Stratification by the order of a table.")
    parser.add_argument("--steps", nargs="+", type=int, default=[400, 1800], help="moments")
    parser.add_argument("--examples", type=int, default=1600, help="whose gradients are taken")
    parser.add_argument("--out", type=Path, help="write the rows to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    examples = DataLoader(clothes().train, 1000)
    inputs, labels = (torch.cat(part) for part in zip(*examples, strict=True))
    rows = []
    for step, model in trained(options.steps, TensorDataset(inputs, labels)):
        for row in measure(model, inputs[: options.examples], labels[: options.examples]):
            rows.append({"step": step, **row})
            print(rows[-1], flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()

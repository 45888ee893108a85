"""Scores that training steps give away for nothing, kept in a table and drawn from.

Every training step computes its outputs anyway, and with them how much each of its examples
mattered. One pass in the loader's own order fills the table; then ids are drawn from the whole
data set, stratified, with weights ``1/(N p)``. Scores are stale by as many steps as their example
was not drawn, which costs variance and never bias.

Example:
    >>> import torch, gradsift
    >>> data = torch.utils.data.TensorDataset(torch.randn(64, 5), torch.randint(3, (64,)))
    >>> loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
    >>> model, loss_fn = torch.nn.Linear(5, 3), torch.nn.CrossEntropyLoss(reduction="none")
    >>> train = gradsift.sift(loader, model, loss_fn, recipe="table")
    >>> for epoch in range(3):
    ...     for batch in train:
    ...         loss = batch.loss(model(batch.inputs))
    >>> train.examples_scored
    0
"""

from dataclasses import replace

from gradsift.gate import MeasuredGate
from gradsift.predictor.settings import Forecasting
from gradsift.recipes.recipe import Recipe
from gradsift.sampling.distributions import Mixed, Proportional
from gradsift.sampling.draws import Stratified, Systematic
from gradsift.scores.gradient_norm import GradientNorm

_REFERENCE = "after Schaul et al. 2016, arXiv:1511.05952, and Alain et al. 2015, arXiv:1511.06481"

TABLE = Recipe(
    source="table",
    distribution=Mixed(Proportional(), uniform=0.2),
    draw=Stratified(),
    smoothing=0.5,
    reference=_REFERENCE,
    name="table",
)
"""A fixed mixture: weights stay below five. Smoothed scores, because a stale one is noisy."""

TABLE_EXACT = replace(TABLE, score=GradientNorm(), name="table-exact")
"""The same with the exact gradient norm of each example, by `GradientNorm.watch`.

What the norms cost is paid in every step, and on a small network they gain little over the output
gradient (``docs/results``). They are norms in the mode of the step: BatchNorm in train mode is
refused. One forward and one backward pass belong to a step."""

TABLE_FORECAST = replace(TABLE, forecast=Forecasting(), name="table-forecast")
"""The same, with a predictor of today's scores that is drawn by while it is measured to be better.

It learns from each example's last scores, their age and its class (`gradsift.predictor`), and from
frozen features where ``Forecasting(features=…)`` has them. ``print(train)`` says which won."""

AUTO = Recipe(
    source="auto",
    distribution=Mixed(Proportional(), uniform=0.1),
    draw=Systematic(),
    gate=MeasuredGate(),
    finish=0.2,
    reference=_REFERENCE,
    name="auto",
)
"""The user's own order until something better was measured; then whatever pays the most.

The distribution and the draw are those of pools. A table's draws are stratified, and its mixture is
chosen by price, one step of a grid at a time. A loop that says how far it is ends with
a fifth of the run in its own order, whose noise the test error wants (``docs/log.md``)."""

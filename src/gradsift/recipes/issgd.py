"""*Variance Reduction in SGD by Distributed Importance Sampling*, Alain et al. 2015.

Workers sweep the data set and measure exact gradient norms with parameters that the trainer
publishes every few steps; the trainer draws by them and never waits. A norm is stale by a sweep at
most, which costs variance and never bias.

`ISSGD` is the method with what was learnt since; `ISSGD_2015` has the published constants.

| | `issgd` | `issgd2015` |
|---|---|---|
| smoothing | share of uniform draws with the least estimated second moment | constant c = 10 |
| a new score | counts half, the old one the rest; all of it in exact mode | replaces the old one |
| scores that are too old | count as unseen | are not drawn: biased |
| too old | 10 passes over the data | 20 seconds |
| draw | stratified | with replacement |
| units | none | c is in those of a gradient norm |

Norms of single examples jump from step to step, so the mean of a few is a better guess at the next
than the last one: at one sweep per pass it recovers 0.76 of what ideal draws would gain, where the
last norm alone recovers 0.70 (``docs/results/staleness.md``).

Deviations of both: a block is always measured with one whole set of parameters; uniform steps take
the loader's shuffled order. Of `issgd2015`: one trainer and any number of workers, blocks of 512.

Example:
    >>> import torch, gradsift
    >>> data = torch.utils.data.TensorDataset(torch.randn(64, 5), torch.randint(3, (64,)))
    >>> loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
    >>> model, loss_fn = torch.nn.Linear(5, 3), torch.nn.CrossEntropyLoss(reduction="none")
    >>> engine = gradsift.engines.inline(block=32)
    >>> train = gradsift.sift(loader, model, loss_fn, recipe="issgd", engine=engine)
    >>> for batch in train:
    ...     loss = batch.loss(model(batch.inputs))
    >>> print(train)
    on: draws by the scores of the inline engine, all of them seen, ...
"""

from gradsift.recipes.recipe import Recipe
from gradsift.recipes.search import Search
from gradsift.sampling.distributions import Mixed, Proportional
from gradsift.sampling.draws import Multinomial, Stratified
from gradsift.scores.gradient_norm import GradientNorm

_PAPER = "Alain et al. 2015, arXiv:1511.06481"

ISSGD = Recipe(
    source="engine",
    score=GradientNorm(),
    distribution=Mixed(Proportional(), uniform=0.2),
    draw=Stratified(),
    smoothing=0.5,
    search=Search(),
    reference=f"{_PAPER}, unbiased, with a smoothing that is chosen by measurement",
    name="issgd",
)
"""Exact gradient norms from an engine; the proposal follows the measured price."""

ISSGD_2015 = Recipe(
    source="engine",
    score=GradientNorm(),
    distribution=Proportional(),
    draw=Multinomial(),
    smoothing=0.0,
    search=Search(stale="filter", epochs=None, seconds=20.0, opens=0.1, constant=10.0),
    reference=f"{_PAPER}, with the constants and the filter of the authors' code",
    name="issgd2015",
)
"""As published: weights ``w_i = ‖g_i‖ + 10``, of the last 20 seconds, drawn with replacement."""

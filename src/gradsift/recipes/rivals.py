"""Published methods that pick examples by their history, and those that select inside a pool.

Each is a rule of `gradsift.rules`, or a product of parts, whose docstring has its mathematics, its
deviations and its reference. Recipes whose weights do not undo their choice say `biased`.

**The number of steps stays the loader's** whatever a rule leaves out: an epoch is ``len(train)``
steps of the same size, so budgets and schedules mean the same in all arms. Rules that anneal ask
for the share of the run that is over: ``gradsift train`` tells it, and a loop of your own sets
``train.policy.progress`` between 0 and 1.

**The control arm needs the same mean step.** Some of these methods take larger steps, by weights
above one or by a learning rate that they multiply (``train.lr_factor``). ``train.gate["reason"]``
says by how much in the mean; run the uniform arm at that learning rate too.

Example:
    >>> import torch, gradsift
    >>> data = torch.utils.data.TensorDataset(torch.randn(64, 5), torch.randint(3, (64,)))
    >>> loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
    >>> model, loss_fn = torch.nn.Linear(5, 3), torch.nn.CrossEntropyLoss(reduction="none")
    >>> train = gradsift.sift(loader, model, loss_fn, recipe="infobatch")
    >>> for epoch in range(4):
    ...     for batch in train:
    ...         train.policy.progress = (4 * epoch + 1) / 16
    ...         loss = batch.loss(model(batch.inputs))
    >>> print(train)
    on: picks by its rule, with steps of 1... times the loader's own in the mean
"""

from dataclasses import replace

from gradsift.fitting.held_out import Holdout
from gradsift.recipes.recipe import Recipe
from gradsift.rules import (
    Budgeted,
    ClassGaussian,
    Fixed,
    Hidden,
    InfoBatch,
    LearntClasses,
    Prioritised,
    RandomSubset,
    RankedByLoss,
)
from gradsift.sampling.corrections import Unweighted
from gradsift.sampling.distributions import Ranked
from gradsift.sampling.draws import TopK
from gradsift.scores.doubt import Doubt
from gradsift.scores.input_norm import InputNorm
from gradsift.scores.loss import Loss

_OF_LOSSES = Recipe(source="history", score=Loss(), rule=RandomSubset())

SCHAUL = replace(
    _OF_LOSSES,
    rule=Prioritised(),
    name="schaul-proportional",
    reference="Schaul et al. 2016, arXiv:1511.05952, on examples instead of transitions",
)
"""Powers of the latest losses, with weights of a growing power."""

ONLINE_BATCH_SELECTION = replace(
    _OF_LOSSES,
    rule=RankedByLoss(),
    name="online-batch-selection",
    reference="Loshchilov & Hutter 2016, arXiv:1511.06343",
)
"""Exponentially by the rank of the latest loss."""

RS2 = replace(
    _OF_LOSSES,
    rule=RandomSubset(),
    name="rs2",
    reference="Okanovic et al. 2024, arXiv:2305.18424: the control of all pruning",
)
"""A fresh random 30 % in every round."""

INFOBATCH = replace(
    _OF_LOSSES,
    rule=InfoBatch(),
    name="infobatch",
    reference="Qin et al. 2024, arXiv:2303.04947",
)
"""Half of the examples below the mean loss, with twice the weight."""

SELECTIVE_BACKPROP = Recipe(
    ratio=2.0,
    score=Loss(),
    distribution=Ranked(1.0),
    correction=Unweighted(),
    name="selective-backprop",
    reference="Jiang et al. 2019, arXiv:1910.00762, with percentiles within the pool",
)
"""Of 2b candidates b are kept, without replacement and unweighted, with probability ``P``, the
percentile of the loss.

The paper keeps candidates one by one with probability ``P^β`` until a batch is full, so that its
passes have a random length; exactly b of (β + 1)·b, drawn systematically with ``π = P^β`` up to
rounding, cost what it costs in the mean. With another β, change ``ratio`` to β + 1. Percentiles are
those within the pool instead of the last 1,024 losses. Scoring is in eval mode, so no BatchNorm
statistic is updated twice."""

RHO_LOSS = Recipe(
    ratio=10.0,
    score=Loss(),
    draw=TopK(),
    holdout=Holdout(),
    name="rho-loss",
    reference="Mindermann et al. 2022, arXiv:2206.07137, without hold-out data",
)
"""Of 10b candidates those b with the largest loss beyond its held-out one are kept, unweighted.

The irreducible losses are those of two copies of the model, each trained on the half of the data
that the other one tells the losses of: the paper's variant without hold-out data. Deviations: the
copies have the model's own size; candidates are scored in eval mode. What the copies and the pools
cost is paid in the run: count seconds, not steps. Copies that have learnt too little make it leave
out what they did not learn: look at `Holdout` when the training loss stalls."""

KAKURENBO = replace(
    _OF_LOSSES,
    score=Doubt(),
    rule=Hidden(),
    name="kakurenbo",
    reference="Nguyen et al. 2023, arXiv:2310.10102",
)
"""Hides what is learnt for certain, and takes larger steps on the rest."""

P_SGD = replace(
    _OF_LOSSES,
    score=Doubt(),
    rule=Budgeted("p"),
    name="p-sgd",
    reference="Chang et al. 2017, arXiv:1704.07433; Arazo et al. 2021, arXiv:2110.14283",
)
"""30 % in every round, by the mean probability of being wrong."""

C_SGD = replace(P_SGD, rule=Budgeted("c"), name="c-sgd")
"""30 % in every round, by how undecided the mean prediction is."""

AW_SGD = Recipe(
    source="history",
    rule=LearntClasses(),
    name="aw-sgd",
    reference="Bouchard et al. 2015, arXiv:1506.09016, over classes",
)
"""A softmax over classes that descends the variance of the gradient."""

PER_CLASS_GAUSSIAN = Recipe(
    source="history",
    rule=ClassGaussian(),
    name="per-class-gaussian",
    reference="Katharopoulos & Fleuret 2018, arXiv:1803.00942; their PerClassGaussian sampler",
)
"""Mean and spread of the scores of each class."""

STATIC_IMPORTANCE = Recipe(
    source="history",
    score=InputNorm(),
    rule=Fixed(),
    name="static-importance",
    reference="Zhao & Zhang 2015, arXiv:1401.2753; Wang et al. 2017, arXiv:1706.08210 (IS-ASGD)",
)
"""Input norms, drawn ahead."""

RIVALS = (
    SCHAUL,
    ONLINE_BATCH_SELECTION,
    RS2,
    INFOBATCH,
    SELECTIVE_BACKPROP,
    RHO_LOSS,
    KAKURENBO,
    P_SGD,
    C_SGD,
    AW_SGD,
    PER_CLASS_GAUSSIAN,
    STATIC_IMPORTANCE,
)
"""All of them."""

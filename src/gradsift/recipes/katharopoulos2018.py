"""*Not All Samples Are Created Equal*, Katharopoulos & Fleuret 2018, as an assembly.

A step takes B = r·b candidates from the shuffled loader, scores them by the output gradient
``s_i = ‖∂ℓ_i/∂z_i‖``, draws b of them with replacement, ``p_i = s_i/Σs``, and weights them by
``w_i = 1/(B·p_i)``. While the moving average of ``τ = sqrt(E s²)/E s`` is not above
``(B + 3b)/(3b)``, steps are uniform, and the scores of their own outputs feed τ for free.

Where the authors' library differs from the paper, the paper is followed:

* Uniform steps take the loader's shuffled order. The library draws with replacement, so that its
  two phases, and its comparison with a plain loop, differ before sampling starts.
* Candidates come from the same shuffled order, not drawn with replacement from all data.
* A pool whose scores are all zero is drawn uniformly; the library fails there. Zero scores among
  others keep a small probability.
* τ of a uniform step comes from train-mode outputs and τ of a pool from eval-mode outputs, as in
  the library: that is inherent in taking the former for free.

Example:
    >>> import torch, gradsift
    >>> data = torch.utils.data.TensorDataset(torch.randn(256, 5), torch.randint(3, (256,)))
    >>> model = torch.nn.Linear(5, 3)
    >>> loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
    >>> loss_fn = torch.nn.CrossEntropyLoss(reduction="none")
    >>> train = gradsift.sift(loader, model, loss_fn, recipe="katharopoulos2018")
    >>> for batch in train:
    ...     loss = batch.loss(model(batch.inputs))
    >>> print(train)
    off: needs tau above 2.00, has ... (moving average over 16 batches)
"""

from gradsift.gate import ConstantTime, ConstantVariance, TauThreshold
from gradsift.recipes.recipe import Recipe
from gradsift.sampling.draws import Multinomial

_PAPER = "Katharopoulos & Fleuret 2018, arXiv:1803.00942"

KATHAROPOULOS_2018 = Recipe(
    ratio=3.0,
    draw=Multinomial(),
    gate=TauThreshold(),
    reference=f"{_PAPER}, algorithm 1",
    name="katharopoulos2018",
)
"""Algorithm 1, with the library's default pool of three batches."""

CONSTANT_VARIANCE = Recipe(
    ratio=1.0,
    draw=Multinomial(),
    gate=ConstantVariance(),
    reference=f"{_PAPER}; the authors' ConstantVarianceSampler",
    name="katharopoulos2018-constant-variance",
)
"""Scores one batch and trains on fewer of its examples, at about its variance."""

CONSTANT_TIME = Recipe(
    ratio=1.0,
    draw=Multinomial(),
    gate=ConstantTime(),
    reference=f"{_PAPER}; the authors' ConstantTimeSampler",
    name="katharopoulos2018-constant-time",
)
"""Trains on fewer examples out of a larger pool, in the time of a plain step."""

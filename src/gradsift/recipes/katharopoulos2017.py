"""*Biased Importance Sampling for Deep Neural Network Training*, Katharopoulos & Fleuret 2017.

The loss stands in for the gradient norm. A step takes B candidates from all data, uniformly; a
small network predicts their losses ``ŝ`` from the last ten of each and its class; b are drawn with
replacement, ``p_i = ŝ_i/Σŝ``, and weighted by the k-th power of ``1/(B·p_i)``. With exact losses
this is descent on ``mean(L^(2−k))``, the *soft max-loss*: k = 1 is the mean loss, without bias, and
k → −∞ the largest loss. Losses of each step's own outputs teach the network; no example is looked
at without being trained on.

| | `katharopoulos2017` | `-unbiased` | `-exact` |
|---|---|---|---|
| candidates | 2,048, whose losses are predicted | likewise | 4b, whose losses are computed |
| k | 1/2 | 1 | 1/2 |
| objective | `mean(ŝ^(1/2) ∇L)` | the mean loss | `mean(L^(3/2))` |
| smoothing | half of the average score is added | likewise | none |
| first steps | 100 in the loader's order | likewise | the first pool has k = 1 |

Deviations from the authors' library:

* It has sampled by gradient norms instead of losses since its version 0.6, under the same name.
* Powers of weights are normalised by what *earlier* candidates tell, not by the batch itself: the
  latter changes the objective (``normaliser="batch"`` has it all the same).
* Smoothing is off there unless asked for. A predicted loss that is far too small gets a weight that
  is far too large, so here it is on, as its documentation recommends. Its average is that of
  earlier candidates. What is learnt with it is ``mean((ŝ + a)^(1−k) ∇L)``.
* What the network made of each history is kept between steps, and the network learns from every
  fourth step's losses alone, which predicts better then (`LossPredictor`).
* The warm-up of 100 steps, which the paper's code had, is there and takes the loader's own order.

Example:
    >>> import torch, gradsift
    >>> data = torch.utils.data.TensorDataset(torch.randn(256, 5), torch.randint(3, (256,)))
    >>> model = torch.nn.Linear(5, 3)
    >>> loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
    >>> loss_fn = torch.nn.CrossEntropyLoss(reduction="none")
    >>> train = gradsift.sift(loader, model, loss_fn, recipe="katharopoulos2017")
    >>> for epoch in range(8):
    ...     for batch in train:
    ...         loss = batch.loss(model(batch.inputs))
    >>> print(train)
    on: draws by predicted losses out of 2048 candidates; predictions are off by ...
"""

from dataclasses import replace

from gradsift.predictor.settings import Prediction
from gradsift.recipes.recipe import Recipe
from gradsift.sampling.draws import Multinomial
from gradsift.sampling.resampling import Resampling
from gradsift.sampling.smoothing import AddShare
from gradsift.scores.loss import Loss

_PAPER = "Katharopoulos & Fleuret 2017, arXiv:1706.00043"
_SMOOTHED = AddShare(0.5)

KATHAROPOULOS_2017 = Recipe(
    source="predicted",
    score=Loss(),
    draw=Multinomial(),
    prediction=Prediction(),
    resampling=Resampling(exponent=0.5, smoothing=_SMOOTHED),
    reference=f"{_PAPER}; the authors' ApproximateImportanceTraining, by losses",
    name="katharopoulos2017",
)
"""Predicted losses and k = 1/2."""

UNBIASED_2017 = replace(
    KATHAROPOULOS_2017,
    resampling=Resampling(exponent=1.0, smoothing=_SMOOTHED),
    reference=f"{_PAPER}, with k = 1",
    name="katharopoulos2017-unbiased",
)
"""Predicted losses as a proposal alone: what is learnt is the mean loss."""

EXACT_2017 = Recipe(
    source="pool",
    ratio=4.0,
    score=Loss(),
    draw=Multinomial(),
    resampling=Resampling(exponent=0.5),
    reference=f"{_PAPER}; the authors' BiasedImportanceTraining, by losses",
    name="katharopoulos2017-exact",
)
"""Losses are computed for a pool, of 256 at a batch size of 64 as published."""

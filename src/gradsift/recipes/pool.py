"""Pools scored in the step, drawn without replacement.

The published two-step scheme draws with replacement, and forgets that a pool of r·b examples is
itself a sample. With inclusion probabilities ``π_i = min(1, c·s_i)`` and no duplicates, the same
scores reduce the variance by about τ² (at most r) instead of ``1/(1/r + 1/τ²)``.
"""

from gradsift.recipes.recipe import Recipe
from gradsift.scores.loss import Loss

POOL = Recipe(
    name="pool",
    reference="Horvitz & Thompson 1952; Katharopoulos & Fleuret 2018, arXiv:1803.00942",
)
"""Output gradient as the score, a capped systematic draw without replacement, at every step."""

LOSS = Recipe(
    score=Loss(),
    name="loss",
    reference="Katharopoulos & Fleuret 2017, arXiv:1706.00043, with exact losses and unbiased",
)
"""The same draw with the loss as the score: the control arm of the 2018 paper."""

"""The exact laws of the draws, by integrating over every uniform number of the real functions.

A position is a step function of a uniform number. Its breakpoints are known, so one call per
cell, weighted by the cell's length, is the integral. Permutations and subsets are enumerated.
"""

import itertools
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from gradsift.sampling.positions import (
    multinomial_positions,
    poisson_positions,
    stratified_positions,
    systematic_positions,
)

SCORE_SETS = {
    "ties": [1.0, 1.0, 1.0, 1.0],
    "uneven": [0.3, 1.0, 2.5, 4.0],
    "five": [0.2, 0.7, 1.1, 1.3, 3.0],
    "zero": [0.0, 1.0, 2.0, 3.0],
    "dominant": [1.0, 1.0, 1.0, 1e6],
    "two ties": [1.0, 5.0, 1.0, 5.0, 5.0],
    "all zero": [0.0, 0.0, 0.0],
    "broken": [1.0, math.nan, 2.0, math.inf],
}
"""Small score sets that cover the edges: at most five, so that permutations can be enumerated."""

CASES = [(name, size) for name, scores in SCORE_SETS.items() for size in range(1, len(scores) + 1)]
"""Every score set with every size."""

Law = dict[tuple[int, ...], float]
"""The probability of every outcome, a tuple of positions."""


def float64(values: Iterable[float]) -> Tensor:
    """A float64 tensor."""
    return torch.tensor(list(values), dtype=torch.float64)


def score_set(name: str) -> Tensor:
    """One of `SCORE_SETS`, in float64."""
    return float64(SCORE_SETS[name])


def cells(points: Iterable[float]) -> list[tuple[float, float]]:
    """Midpoint and length of every cell into which breakpoints cut [0, 1]."""
    edges = sorted({0.0, 1.0, *(point for point in points if 0 < point < 1)})
    return [((low + high) / 2, high - low) for low, high in itertools.pairwise(edges)]


def multinomial_law(p: Tensor) -> Tensor:
    """The probability of each position in one draw."""
    law = torch.zeros_like(p)
    for middle, length in cells(p.cumsum(0).tolist()):
        law[multinomial_positions(p, float64([middle]))] += length
    return law


def stratified_law(p: Tensor, size: int) -> Tensor:
    """The probability of each position in each slot, shape ``[size, n]``."""
    law = torch.zeros(size, len(p), dtype=torch.float64)
    for slot in range(size):
        for middle, length in cells((size * p.cumsum(0) - slot).tolist()):
            uniforms = torch.full((size,), 0.5, dtype=torch.float64)
            uniforms[slot] = middle
            law[slot, stratified_positions(p, uniforms)[slot]] += length
    return law


def systematic_law(inclusion: Tensor) -> Law:
    """The probability of each set of positions, over all orders of the candidates."""
    law: Law = {}
    orders = list(itertools.permutations(range(len(inclusion))))
    for permutation in orders:
        order = torch.tensor(permutation)
        for outcome, probability in systematic_law_in_order(inclusion[order]).items():
            subset = tuple(sorted(permutation[place] for place in outcome))
            law[subset] = law.get(subset, 0.0) + probability / len(orders)
    return law


def systematic_law_in_order(inclusion: Tensor) -> Law:
    """The same for the one order given."""
    law: Law = {}
    for middle, length in cells((inclusion.cumsum(0) % 1).tolist()):
        outcome = tuple(systematic_positions(inclusion, middle).tolist())
        law[outcome] = law.get(outcome, 0.0) + length
    return law


def poisson_law(inclusion: Tensor) -> Law:
    """The probability of each of the ``2^n`` subsets."""
    law: Law = {}
    for sides in itertools.product((True, False), repeat=len(inclusion)):
        probability = 1.0
        uniforms = []
        for taken, pi in zip(sides, inclusion.tolist(), strict=True):
            probability *= pi if taken else 1 - pi
            uniforms.append(pi / 2 if taken else (pi + 1) / 2)
        if probability > 0:
            outcome = tuple(poisson_positions(inclusion, float64(uniforms)).tolist())
            law[outcome] = law.get(outcome, 0.0) + probability
    return law


def counts(outcome: tuple[int, ...], n: int) -> Tensor:
    """How many times each of ``n`` positions occurs in an outcome."""
    return torch.bincount(torch.tensor(outcome, dtype=torch.int64), minlength=n).double()


def moments(law: Law, values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of ``values · counts`` under a law: shapes ``[n]`` and ``[n, n]``."""
    n = len(values)
    mean = torch.zeros(n, dtype=torch.float64)
    second = torch.zeros(n, n, dtype=torch.float64)
    for outcome, probability in law.items():
        vector = values * counts(outcome, n)
        mean += probability * vector
        second += probability * torch.outer(vector, vector)
    return mean, second - torch.outer(mean, mean)

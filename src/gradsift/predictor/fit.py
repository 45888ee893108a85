"""A proposal fitted to its own price.

Whoever draws by ``q`` has the second moment ``E[g²/q] · E[q]``, up to a factor that all proposals
share. For ``q = exp(x·β)`` its logarithm is convex in β: two log-sum-exps of linear functions. The
least of it within the family is not a regression of scores, but the cheapest proposal itself; where
the family holds it, that is ``q ∝ sqrt(E[g² | x])``.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

STEPS = 12
"""Newton steps, at most; four are usual."""

HALVINGS = 20
"""Times that a Newton step is halved, at most, until it goes down."""

SETTLED = 1e-9
"""Decrease below which β is said to be found."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Examples with fresh scores, as they were drawn.

    Attributes:
        x: what was known about each before it was scored, ``[n, k]``.
        costs: ``w g²``, with the weight that it was drawn with.
        weights: ``w``.
    """

    x: Float64[np.ndarray, "n k"]
    costs: Float64[np.ndarray, " n"]
    weights: Float64[np.ndarray, " n"]


def log_price(
    beta: Float64[np.ndarray, " k"], rows: Rows
) -> tuple[float, Float64[np.ndarray, " k"], Float64[np.ndarray, "k k"]]:
    """``log Σ w g² e^(−x·β) + log Σ w e^(x·β)``, with its gradient and Hessian.

    Args:
        beta: coefficients.
        rows: with a cost above zero among them.

    Example:
        >>> rows = Rows(np.array([[0.0], [1.0]]), np.array([1.0, 4.0]), np.ones(2))
        >>> value, slope, _ = log_price(np.log([2.0]), rows)  # q = g: (1 + 2)²
        >>> round(float(np.exp(value)), 6), slope.round(6).tolist()
        (9.0, [0.0])
    """
    scores = rows.x @ beta
    top, first = _softened(rows.costs, -scores)
    bottom, second = _softened(rows.weights, scores)
    mean_first, mean_second = first @ rows.x, second @ rows.x
    hessian = (rows.x * (first + second)[:, None]).T @ rows.x
    hessian -= np.outer(mean_first, mean_first) + np.outer(mean_second, mean_second)
    return top + bottom, mean_second - mean_first, hessian


def fit(
    rows: Rows,
    start: Float64[np.ndarray, " k"],
    prior: Float64[np.ndarray, " k"],
    ridge: float,
) -> Float64[np.ndarray, " k"]:
    """The β of the least ``log price + (ridge/2)·‖β − prior‖²``, by damped Newton steps.

    Args:
        rows: to be priced on; where every cost is zero, nothing is learnt.
        start: where the search begins.
        prior: what is believed where the rows say nothing.
        ridge: > 0; how strongly.

    Example:
        >>> rows = Rows(np.array([[0.0], [1.0]]), np.array([1.0, 4.0]), np.ones(2))
        >>> fit(rows, np.zeros(1), np.zeros(1), ridge=1e-9).round(4).tolist()  # log 2
        [0.6931]
    """
    if not rows.costs.sum() > 0:
        return start
    beta = start
    value, slope, hessian = _penalised(beta, rows, prior, ridge)
    for _ in range(STEPS):
        step = np.linalg.solve(hessian, slope)
        share, found = 1.0, _penalised(beta - step, rows, prior, ridge)
        for _ in range(HALVINGS):
            if found[0] <= value:
                break
            share /= 2
            found = _penalised(beta - share * step, rows, prior, ridge)
        if not value - found[0] > SETTLED:
            break
        beta = beta - share * step
        value, slope, hessian = found
    return beta


def _penalised(
    beta: np.ndarray, rows: Rows, prior: np.ndarray, ridge: float
) -> tuple[float, np.ndarray, np.ndarray]:
    value, slope, hessian = log_price(beta, rows)
    away = beta - prior
    return (
        value + ridge / 2 * float(away @ away),
        slope + ridge * away,
        hessian + ridge * np.eye(len(beta)),
    )


def _softened(
    factors: Float64[np.ndarray, " n"], exponents: Float64[np.ndarray, " n"]
) -> tuple[float, Float64[np.ndarray, " n"]]:
    """``log Σ f e^z``, and the share of each term in the sum."""
    largest = float(exponents[factors > 0].max())
    terms = np.where(factors > 0, factors * np.exp(np.minimum(exponents - largest, 0.0)), 0.0)
    total = float(terms.sum())
    return largest + float(np.log(total)), terms / total

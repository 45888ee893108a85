"""Repeating what a layer computed inside, with the random numbers that it drew."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.scores.gradient_norm.rules import Use

TOLERANCE = 1e-3
"""Relative difference to the layer's own output that rounding may cause; 0.05 in low precision."""


@contextmanager
def with_random_state(state: Tensor | None) -> Iterator[None]:
    """Runs a block with another state of the default CPU generator, and restores its own.

    Example:
        >>> state = torch.get_rng_state()
        >>> with with_random_state(state):
        ...     _ = torch.rand(1)
        >>> torch.equal(torch.get_rng_state(), state)
        True
    """
    kept = torch.get_rng_state()
    try:
        if state is not None:
            torch.set_rng_state(state)
        yield
    finally:
        torch.set_rng_state(kept)


def check_repeated(use: Use, original: Tensor, repeated: Tensor) -> None:
    """Raises a `UsageError` where a layer that draws did not come out as before."""
    allowed = (TOLERANCE if original.itemsize >= 4 else 0.05) * float(original.abs().max())
    if bool((original - repeated.detach()).abs().max() > allowed):
        raise UsageError(
            f"the dropout inside of layer {use.name!r} ({type(use.layer).__name__}) cannot be "
            "repeated on this device: set its dropout to 0, or score with mode='eval'"
        )

"""Which examples tell whether training goes well: the verification data of guided SGD.

They stand for the whole training set and must never be test data: they decide which batches are
replayed. Ids have shape ``[*runs, n]``.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, final

import torch
from jaxtyping import Int64
from torch import Tensor

from gradsift.errors import UsageError
from gradsift.parallel.saved import check_keys


class AbstractVerification(ABC):
    """A policy that names the examples to look at after each update."""

    @abstractmethod
    def ids(self) -> Int64[Tensor, "*runs size"]:
        """The examples for this update."""

    def state_dict(self) -> dict[str, Any]:
        """What the next ids depend on, besides the examples: plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with the ids that would have come next."""
        check_keys(self, state, set())


@final
class FixedVerification(AbstractVerification):
    """Always the same examples, so two values differ by the weights alone.

    Raises:
        UsageError: when there is none.

    Example:
        >>> FixedVerification(torch.tensor([3, 5])).ids()
        tensor([3, 5])
    """

    def __init__(self, examples: Int64[Tensor, "*runs size"]) -> None:
        _check(examples)
        self._examples = examples

    def ids(self) -> Int64[Tensor, "*runs size"]:
        """All of them."""
        return self._examples


@final
class FreshVerification(AbstractVerification):
    """A new random draw, with replacement, for every update, as in the published parallel code.

    Two successive values differ by the draw as well as by the weights: with few examples the sign
    of the difference is close to a coin flip.

    Args:
        examples: to draw from.
        size: how many; the published code takes ``min(100, a tenth of the training set)``.
        generator: of the draws.

    Example:
        >>> fresh = FreshVerification(torch.arange(100), 5, torch.Generator())
        >>> fresh.ids().shape, bool((fresh.ids() != fresh.ids()).any())
        (torch.Size([5]), True)
    """

    def __init__(
        self, examples: Int64[Tensor, "*runs n"], size: int, generator: torch.Generator
    ) -> None:
        _check(examples)
        if size < 1:
            raise UsageError(f"a verification set of {size} examples received, expected at least 1")
        self._examples = examples
        self._size = size
        self._generator = generator

    def ids(self) -> Int64[Tensor, "*runs size"]:
        """A new draw; every run of a population has its own."""
        shape = (*self._examples.shape[:-1], self._size)
        places = torch.randint(self._examples.shape[-1], shape, generator=self._generator)
        return self._examples.gather(-1, places)

    def state_dict(self) -> dict[str, Any]:
        """The state of the generator."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Sets the generator."""
        check_keys(self, state, {"generator"})
        self._generator.set_state(state["generator"])


@final
class RotatingVerification(AbstractVerification):
    """Several fixed sets in turn: less overfitting to one of them, less noise than fresh draws.

    The published CNN code sets four batches aside and picks one of them at random.

    Args:
        examples: cut into ``parts`` of equal size; what is left over is not used.
        parts: how many sets.

    Example:
        >>> rotating = RotatingVerification(torch.arange(5), parts=2)
        >>> [rotating.ids().tolist() for _ in range(3)]
        [[0, 1], [2, 3], [0, 1]]
    """

    def __init__(self, examples: Int64[Tensor, "*runs n"], parts: int) -> None:
        size = examples.shape[-1] // parts if parts > 0 else 0
        if size < 1:
            raise UsageError(
                f"{parts} verification sets out of {examples.shape[-1]} examples received: each "
                "needs at least one"
            )
        self._sets = examples[..., : size * parts].split(size, dim=-1)
        self._next = 0

    def ids(self) -> Int64[Tensor, "*runs size"]:
        """The next set."""
        found = self._sets[self._next]
        self._next = (self._next + 1) % len(self._sets)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Whose turn it is."""
        return {"next": self._next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with that set.

        Raises:
            UsageError: when there are fewer sets.
        """
        check_keys(self, state, {"next"})
        if not 0 <= state["next"] < len(self._sets):
            raise UsageError(
                f"verification set {state['next']} is next, but there are {len(self._sets)}: go on "
                "with as many as the state was saved with"
            )
        self._next = int(state["next"])


def _check(examples: Tensor) -> None:
    if examples.shape[-1] == 0:
        raise UsageError("the verification set is empty: set at least one training example aside")

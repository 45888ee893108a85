"""Which state fits which sifted loader: told before anything is changed, in one line."""

from collections.abc import Mapping
from typing import Any

from gradsift.errors import UsageError
from gradsift.sifting.setup import Setup
from gradsift.sifting.together import place

FORMAT = 1
"""Of the states that this version writes and reads."""


def made_for(setup: Setup, examples: int | None) -> dict[str, Any]:
    """What a state must have been made for to be taken back.

    Args:
        setup: of the sifted loader.
        examples: N, or None for a stream.
    """
    rank, processes = place()
    return {
        "recipe": setup.recipe.name,
        "examples": examples,
        "rank": rank if setup.rank is None else setup.rank,
        "processes": processes,
        "per_example_seed": setup.per_example_seed,
    }


def check_saved(state: Any, made_for: Mapping[str, Any]) -> None:
    """Refuses what is no state of a sifted loader, or that of one made for something else.

    Args:
        state: as received.
        made_for: what the state must have been made for.

    Raises:
        UsageError: naming what differs.

    Example:
        >>> check_saved({"format": FORMAT, "made_for": {"recipe": "pool"}}, {"recipe": "pool"})
        >>> check_saved({"format": FORMAT, "made_for": {"recipe": "auto"}}, {"recipe": "pool"})
        Traceback (most recent call last):
        gradsift.errors.UsageError: the state of a loader with recipe 'auto' received, expected...
    """
    found = state.get("format") if isinstance(state, Mapping) else None
    if isinstance(found, int) and found > FORMAT:
        raise UsageError(
            f"the state has format {found}, expected at most {FORMAT}: it was saved by a newer "
            "gradsift, load it with that one"
        )
    if found != FORMAT:
        raise UsageError(
            f"load_state_dict received a {type(state).__name__} that is no state of a sifted "
            "loader, expected what state_dict() returned"
        )
    for name, expected in made_for.items():
        if (saved := state["made_for"].get(name)) != expected:
            raise UsageError(
                f"the state of a loader with {name} {saved!r} received, expected {expected!r}: "
                "sift the loader as it was when the state was saved"
            )

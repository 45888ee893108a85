"""A batch, as the loader made it, into what the model takes and what the loss takes."""

from collections.abc import Callable, Mapping
from typing import Any

from gradsift.errors import UsageError

Split = Callable[[Any], tuple[Any, Any]]
"""``split(batch)``: the inputs of the model and the targets of the loss."""


def split_batch(batch: Any) -> tuple[Any, Any]:
    """``(inputs, targets)`` of a 2-tuple, or of a mapping with ``labels``.

    Raises:
        UsageError: for anything else, listing what was found.

    Example:
        >>> split_batch({"input_ids": 1, "mask": 2, "labels": 3})
        ({'input_ids': 1, 'mask': 2}, 3)
    """
    if isinstance(batch, Mapping):
        if "labels" in batch:
            return {key: value for key, value in batch.items() if key != "labels"}, batch["labels"]
        found = f"a mapping with the keys {', '.join(map(repr, batch))}"
    elif isinstance(batch, tuple | list):
        if len(batch) == 2:
            return batch[0], batch[1]
        found = f"a {type(batch).__name__} of {len(batch)}"
    else:
        found = f"a {type(batch).__name__}"
    raise UsageError(
        f"a batch of the loader is {found}, expected (inputs, targets) or a mapping with "
        "'labels': pass split=..., a function from your batch to (inputs, targets)"
    )

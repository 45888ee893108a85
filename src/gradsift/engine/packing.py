"""A task as bytes, on its way to other processes."""

import pickle

from gradsift.engine.task import Task
from gradsift.errors import UsageError


def pack(task: Task) -> bytes:
    """By value: sent as it is, a tensor would be moved into memory that both sides share.

    Raises:
        UsageError: for what Python cannot send.
    """
    try:
        return pickle.dumps(task)
    except Exception as error:
        raise UsageError(
            "the model, the loss, the score or the data cannot be sent to a worker "
            f"({type(error).__name__}: {error}): define them in a module, not in a function, and "
            "name the data set by engines.local(dataset='module:callable')"
        ) from error

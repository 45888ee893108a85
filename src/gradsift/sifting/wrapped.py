"""Models inside of others: what is scored and probed is the module that a wrapper wraps.

A wrapper for data parallelism communicates in its forward pass, which is for training steps alone:
other processes may not be scoring at that moment.
"""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


def bare(model: Any) -> Any:
    """The module inside of a data-parallel wrapper, compiled or not; any other model as it is.

    Example:
        >>> inner = nn.Linear(2, 1)
        >>> bare(DataParallel(inner)) is inner, bare(inner) is inner
        (True, True)
    """
    inner = getattr(model, "_orig_mod", model)
    return inner.module if isinstance(inner, DistributedDataParallel | DataParallel) else model


def eagerly() -> AbstractContextManager[Any]:
    """Runs compiled modules as they were written: a probe has batch sizes of its own.

    Example:
        >>> model = torch.compile(nn.Linear(2, 1), backend="eager")
        >>> with eagerly():
        ...     model(torch.ones(3, 2)).shape
        torch.Size([3, 1])
    """
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def sharded(model: Any) -> bool:
    """Whether processes hold parts of its parameters (FSDP2), so that they score it together.

    Example:
        >>> sharded(nn.Linear(2, 1))
        False
    """
    values = model.parameters() if isinstance(model, nn.Module) else ()
    return any(hasattr(value, "device_mesh") for value in values)

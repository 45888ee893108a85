"""Scoring leaves no trace: flags, buffers, gradients and random states are as before.

A score must not change the run that it serves. Everything that a forward pass can move is noted
before and put back after, also when the pass fails.
"""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from gradsift.errors import UsageError

Mode = Literal["eval", "train"]


def check_mode(mode: str) -> None:
    """Raises a `UsageError` for an unknown mode."""
    if mode not in get_args(Mode):
        raise UsageError(f"mode {mode!r} is unknown: use one of {', '.join(get_args(Mode))}")


@contextmanager
def untouched(model: Any, mode: Mode = "eval") -> Iterator[None]:
    """Runs a block in ``mode`` and restores the model and all random states afterwards.

    Restored are the training flag of every module by itself, every buffer (such as BatchNorm
    statistics), every parameter's ``grad``, and the random states of Python, NumPy, PyTorch and
    the model's CUDA devices. ``grad`` is None inside the block.

    Args:
        model: a module, or any callable, of which there is nothing to restore.
        mode: "eval", or "train" to score with batch statistics and dropout.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(1), torch.nn.Dropout())
        >>> with untouched(model, "train"):
        ...     _ = model(torch.randn(8, 1))
        >>> model[0].running_mean, model.training
        (tensor([0.]), True)
    """
    with ExitStack() as stack:
        stack.enter_context(_random_states(_cuda_devices(model)))
        if isinstance(model, nn.Module):
            stack.enter_context(_flags(model))
            stack.enter_context(_buffers(model, always=mode == "train"))
            stack.enter_context(_gradients(model))
            model.train(mode == "train")
        yield


def _cuda_devices(model: Any) -> list[int]:
    if not isinstance(model, nn.Module):
        return []
    found = {parameter.device for parameter in model.parameters()}
    return sorted({device.index or 0 for device in found if device.type == "cuda"})


@contextmanager
def _random_states(cuda_devices: list[int]) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=cuda_devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def _flags(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def _buffers(model: nn.Module, *, always: bool) -> Iterator[None]:
    """BatchNorm moves its statistics without a new version, but in train mode only."""
    kept: list[tuple[nn.Module, str, Tensor, int, Tensor]] = [
        (module, name, buffer, buffer._version, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        for module, name, buffer, version, content in kept:
            if always or buffer._version != version:
                with torch.no_grad():
                    buffer.copy_(content)
            if getattr(module, name) is not buffer:
                setattr(module, name, buffer)


@contextmanager
def _gradients(model: nn.Module) -> Iterator[None]:
    kept = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in kept:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient

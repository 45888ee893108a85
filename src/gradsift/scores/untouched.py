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
from torch import nn

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
        mode: "eval", or "train" to score with batch statistics and dropout, as the training step
            runs: a layer that is frozen in eval inside a training model stays so.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(1), torch.nn.Dropout())
        >>> with untouched(model, "train"):
        ...     _ = model(torch.randn(8, 1))
        >>> model[0].running_mean, model.training
        (tensor([0.]), True)
    """
    with ExitStack() as stack:
        modules = list(model.modules()) if isinstance(model, nn.Module) else []
        parameters = [
            parameter
            for module in modules
            for parameter in module._parameters.values()
            if parameter is not None
        ]
        stack.enter_context(random_states(_cuda_devices(parameters)))
        stack.enter_context(_flags(modules))
        stack.enter_context(_buffers(modules))
        stack.enter_context(_gradients(parameters))
        if isinstance(model, nn.Module) and (mode == "eval" or not model.training):
            model.train(mode == "train")
        yield


def _cuda_devices(parameters: list[nn.Parameter]) -> list[int]:
    found = {parameter.device for parameter in parameters}
    return sorted({device.index or 0 for device in found if device.type == "cuda"})


@contextmanager
def random_states(cuda_devices: list[int]) -> Iterator[None]:
    """Restores the random states of Python, NumPy, PyTorch and some CUDA devices after a block."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=cuda_devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def _flags(modules: list[nn.Module]) -> Iterator[None]:
    flags = [(module, module.training) for module in modules]
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def _buffers(modules: list[nn.Module]) -> Iterator[None]:
    """BatchNorm moves its statistics without a new version, but in train mode only.

    They go back without one too: a graph that waits for its backward pass may hold them.
    """
    registered = [(module._buffers, dict(module._buffers.items())) for module in modules]
    buffers = [value for _, before in registered for value in before.values() if value is not None]
    kept = [(buffer, buffer._version, buffer.clone()) for buffer in buffers]
    try:
        yield
    finally:
        training = any(module.training for module in modules)
        for buffer, version, content in kept:
            if training or buffer._version != version:
                buffer.data.copy_(content)
        for live, before in registered:
            _restore(live, before)


def _restore(live: dict[str, Any], before: dict[str, Any]) -> None:
    now = dict(live.items())
    for name in now.keys() - before.keys():
        del live[name]
    for name, value in before.items():
        if now.get(name) is not value:
            live[name] = value


@contextmanager
def _gradients(parameters: list[nn.Parameter]) -> Iterator[None]:
    kept = [(parameter, parameter.grad) for parameter in parameters]
    for parameter, _ in kept:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient

"""The precision of a scoring pass: low where the device computes in it, full elsewhere.

A score is only a proposal: a rounding error in it costs variance, never bias. On a processor
without bfloat16 instructions autocast emulates them and is several times slower than float32.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Literal, get_args

import torch

from gradsift.errors import UsageError
from gradsift.nested import tensors

Precision = Literal["auto", "float32", "bfloat16", "float16"]


@cache
def computes_in_bfloat16(device_type: str) -> bool:
    """Whether a device has bfloat16 instructions, rather than an emulation of them.

    Example:
        >>> computes_in_bfloat16("meta")
        False
    """
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type == "cpu":
        names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        probes: list[Callable[[], bool]] = [
            probe for name in names if (probe := getattr(torch.cpu, name, None)) is not None
        ]
        return any(probe() for probe in probes)
    return False


def check_precision(precision: str) -> None:
    """Raises a `UsageError` for an unknown precision."""
    if precision not in get_args(Precision):
        raise UsageError(
            f"precision {precision!r} is unknown: use one of {', '.join(get_args(Precision))}"
        )


def autocast(inputs: Any, precision: Precision) -> torch.autocast:
    """The autocast context for scoring ``inputs``.

    It states the precision whatever context surrounds it, and caches no converted weight: one
    cached without a graph would cut a surrounding autocast region off from its gradients.

    Example:
        >>> import torch
        >>> with autocast(torch.ones(1), "bfloat16"):
        ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
        torch.bfloat16
    """
    found = tensors(inputs)
    device_type = found[0].device.type if found else "cpu"
    if precision == "auto":
        double = any(leaf.dtype == torch.float64 for leaf in found)
        low = computes_in_bfloat16(device_type) and not double
        precision = "bfloat16" if low else "float32"
    if precision == "float32":
        return torch.autocast(device_type, enabled=False, cache_enabled=False)
    return torch.autocast(device_type, dtype=getattr(torch, precision), cache_enabled=False)

"""Convolutions of any dimension, plain and transposed: one rule for both.

The gradient of a weight is a correlation, ``G[o, c, k] = Σ_p left[o, p] · image[c, s·p + d·k]``,
with left the output gradient and image the padded input; for a transposed convolution the input
is left and the output gradient the image. Strides are taken apart into phases: ``image[s·q + φ]``
is an image of its own for each φ, in which every kernel position k is a plain shift. With both
sides on one grid, flattened, a shift is a view, so no patch is copied but for narrow images:

* by taps: one matrix product ``left · imageᵀ`` for each kernel position;
* by groups: for small weights in float32 on a CPU, one convolution with a group for each example
  (`gradsift.scores.gradient_norm.grouped`);
* by pixels: ``‖G‖² = Σ_{p,q} ⟨left_p, left_q⟩ Σ_k ⟨image_{p+k}, image_{q+k}⟩``, where the inner
  products of pixels are computed once and shared by all kernel positions.

Few positions favour pixels, many favour the others; the count in `costs` decides.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gradsift.scores.gradient_norm.contributions import AbstractContribution, Whole
from gradsift.scores.gradient_norm.costs import pixel_cost, taps_cost
from gradsift.scores.gradient_norm.grouped import suits_groups, weight_gradients
from gradsift.scores.gradient_norm.rules import Use, register_rule

Offsets = tuple[int, ...]
"""One number for each spatial dimension."""

AT_ONCE = 2**20
"""Numbers of both sides that are laid out on the grid at one time, unless one row has more."""

NARROW = 8
"""Columns below which patches are copied for one matrix product: narrow products waste time."""


@dataclass(frozen=True)
class Tap:
    """A kernel position: which phase of the image, and how far it is shifted there."""

    phase: Offsets
    shift: Offsets


@lru_cache
def taps_of(kernel: Offsets, stride: Offsets, dilation: Offsets) -> tuple[Tap, ...]:
    """All kernel positions, the last dimension fastest.

    Example:
        >>> taps_of((3,), (2,), (1,))[2]
        Tap(phase=(0,), shift=(1,))
    """
    found: list[Tap] = []
    for place in product(*map(range, kernel)):
        offsets = [k * d for k, d in zip(place, dilation, strict=True)]
        pairs = [divmod(offset, s) for offset, s in zip(offsets, stride, strict=True)]
        found.append(Tap(tuple(phase for _, phase in pairs), tuple(shift for shift, _ in pairs)))
    return tuple(found)


@lru_cache
def grid_of(positions: Offsets, kernel: Offsets, stride: Offsets, dilation: Offsets) -> Offsets:
    """The grid on which every kernel position is a shift: of both sides, in each phase.

    Example:
        >>> grid_of((4,), (3,), (2,), (1,))
        (5,)
    """
    sides = zip(positions, kernel, stride, dilation, strict=True)
    return tuple(size + (k - 1) * d // s for size, k, s, d in sides)


@dataclass(frozen=True, eq=False)
class Correlation(AbstractContribution):
    """``G[o, c, k] = Σ_p left[o, p] · image[c, s·p + d·k]`` for each example and group.

    Attributes:
        left: ``[batch·groups, rows, *positions]``.
        image: ``[batch·groups, columns, *pixels]``.
        kernel: positions of the kernel in each dimension.
        stride: s.
        dilation: d.
        groups: each has a weight of its own.
        before: zeros in front of the image in each dimension, none by default. Behind it there
            are as many as the grid asks for.

    Example:
        >>> left, image = torch.ones(1, 1, 2), torch.ones(1, 1, 3)  # 2 + 1 = 3
        >>> Correlation(left, image, (2,), (1,), (1,), 1).squared_norms()
        tensor([8.])
    """

    left: Tensor
    image: Tensor
    kernel: Offsets
    stride: Offsets
    dilation: Offsets
    groups: int
    before: Offsets = ()

    @property
    def count(self) -> int:
        """How many examples."""
        return self.left.shape[0] // self.groups

    @property
    def numbers(self) -> int:
        """How many numbers the parameter has."""
        return self.groups * self.left.shape[1] * self.image.shape[1] * prod(self.kernel)

    @property
    def taps(self) -> tuple[Tap, ...]:
        """The kernel's positions."""
        return taps_of(self.kernel, self.stride, self.dilation)

    @property
    def grid(self) -> Offsets:
        """The size that both sides have: every shift of every position fits."""
        return grid_of(self.left.shape[2:], self.kernel, self.stride, self.dilation)

    @property
    def prefers_pixels(self) -> bool:
        """Whether inner products of pixels have the smaller count."""
        positions, pixels = prod(self.left.shape[2:]), prod(self.grid)
        rows, columns = self.left.shape[1], self.image.shape[1]
        phases = len({tap.phase for tap in self.taps})
        count = pixel_cost(positions, pixels, phases, rows, columns, len(self.taps))
        return count < taps_cost(positions, rows, columns, len(self.taps))

    def gradients(self, part: slice) -> Float[Tensor, "part numbers"]:
        """The gradients of some examples, ``[rows of all groups, columns, *kernel]`` flattened."""
        rows = slice(part.start * self.groups, part.stop * self.groups)
        found = torch.stack(list(self._products(rows)), -1)
        return found.reshape(part.stop - part.start, -1)

    def squared_norms(self) -> Float[Tensor, " batch"]:
        """``‖G_i‖²``."""
        numbers = prod(self.grid) * (self.left.shape[1] + self.image.shape[1])
        form = self.by_taps
        if self.prefers_pixels:
            form = self.by_pixels
        elif suits_groups(self.left, self.image.shape[1], self.kernel):
            form = self.by_groups
            numbers = max(self.left[0].numel(), self.numbers // self.groups)
        step, size = max(1, AT_ONCE // numbers), len(self.left)
        spans = [slice(start, min(start + step, size)) for start in range(0, size, step)]
        return torch.cat([form(span) for span in spans]).view(self.count, self.groups).sum(1)

    def by_taps(self, rows: slice) -> Float[Tensor, " rows"]:
        """One product for each tap, of which only the norm is kept."""
        parts = [torch.linalg.vector_norm(part, dim=(1, 2)) for part in self._products(rows)]
        return torch.stack(parts).square().sum(0)

    def by_groups(self, rows: slice) -> Float[Tensor, " rows"]:
        """Gradients from one convolution that has a group for each row."""
        left, image = self.left[rows], self.image[rows]
        before = self.before or (0,) * len(self.kernel)
        found = weight_gradients(left, image, self.kernel, self.stride, self.dilation, before)
        return torch.linalg.vector_norm(found.flatten(1), dim=1).square()

    def by_pixels(self, rows: slice) -> Float[Tensor, " rows"]:
        """Inner products of pixels, summed over shifts; rounding can put the sum below zero."""
        positions, size = self.left.shape[2:], rows.stop - rows.start
        flat = self.left[rows].flatten(2)
        lefts = torch.bmm(flat.transpose(1, 2), flat).view(size, *positions, *positions)
        total = torch.zeros_like(lefts)
        for phase, image in self._phases(rows).items():
            pixels = torch.bmm(image.transpose(1, 2), image).view(size, *self.grid, *self.grid)
            for tap in self.taps:
                if tap.phase == phase:
                    spans = _spans(tap.shift, positions)
                    total += pixels[:, *spans, *spans]
        return total.mul_(lefts).flatten(1).sum(1).clamp_min_(0.0)

    def _products(self, rows: slice) -> Iterator[Tensor]:
        """``left · imageᵀ`` for each tap: ``[batch·groups, rows, columns]``."""
        left, grid, images = self.left[rows], self.grid, self._phases(rows)
        if self.image.shape[1] < NARROW:
            shifts = [(tap.phase, _spans(tap.shift, left.shape[2:])) for tap in self.taps]
            views = [images[phase].unflatten(2, grid)[..., *spans] for phase, spans in shifts]
            found = _outer(left.flatten(2), torch.cat(views, 1).flatten(2))
            yield from found.split(self.image.shape[1], 2)
            return
        widths = [(0, far - size) for size, far in zip(left.shape[3:], grid[1:], strict=True)]
        padded = _padded(left, [width for pair in reversed(widths) for width in pair]).flatten(2)
        last = _flat([size - 1 for size in left.shape[2:]], grid) + 1
        padded = padded[:, :, :last]
        for tap in self.taps:
            start = _flat(tap.shift, grid)
            yield _outer(padded, images[tap.phase][:, :, start : start + last])

    def _phases(self, rows: slice) -> dict[Offsets, Tensor]:
        """The image as the strides see it: ``[batch·groups, columns, grid]`` for each phase."""
        image, grid, found = self.image[rows], self.grid, {}
        before = self.before or (0,) * len(grid)
        for phase in {tap.phase for tap in self.taps}:
            sides = zip(image.shape[2:], grid, self.stride, phase, before, strict=True)
            places = [_strided(*side) for side in sides]
            seen = image[(slice(None), slice(None), *(part for part, _, _ in places))]
            widths = [width for _, *pair in reversed(places) for width in pair]
            found[phase] = _padded(seen, widths).flatten(2)
        return found


def _strided(size: int, grid: int, step: int, phase: int, zeros: int) -> tuple[slice, int, int]:
    """What a phase sees of one dimension, and the zeros before and behind that make it the grid.

    Place q of the phase is ``step·q + phase − zeros`` of the image.
    """
    first = max(0, -((phase - zeros) // step))
    start = step * first + phase - zeros
    count = min(grid - first, max(0, -((start - size) // step)))
    return slice(start, start + step * count, step), first, grid - first - count


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """``left · rightᵀ``; the longer side is the one that a matrix product walks along."""
    if left.shape[1] > right.shape[1]:
        return torch.bmm(right, left.transpose(1, 2)).transpose(1, 2)
    return torch.bmm(left, right.transpose(1, 2))


def _flat(place: Any, grid: Offsets) -> int:
    """The position of a place on the flattened grid."""
    found = 0
    for offset, size in zip(place, grid, strict=True):
        found = found * size + offset
    return found


def _spans(shift: Offsets, positions: Any) -> list[slice]:
    return [slice(far, far + size) for far, size in zip(shift, positions, strict=True)]


def _bias(gradient: Tensor) -> AbstractContribution:
    return Whole(gradient.flatten(2).sum(2))


@register_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d, reads_outputs=False)
def convolution(use: Use) -> Mapping[str, AbstractContribution]:
    """Stride, padding in every mode, dilation and groups."""
    layer, gradient = use.layer, use.by_example(use.gradient)
    found: dict[str, AbstractContribution] = {}
    if "weight" in use.wanted:
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        image = use.by_example(use.input).to(gradient.dtype)
        found["weight"] = _correlation(
            layer, gradient, image, list(layer._reversed_padding_repeated_twice), mode
        )
    if "bias" in use.wanted:
        found["bias"] = _bias(gradient)
    return found


@register_rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, reads_outputs=False)
def transposed_convolution(use: Use) -> Mapping[str, AbstractContribution]:
    """The same with input and output gradient in exchanged roles."""
    layer, gradient = use.layer, use.by_example(use.gradient)
    found: dict[str, AbstractContribution] = {}
    if "weight" in use.wanted:
        inputs = use.by_example(use.input).to(gradient.dtype)
        widths = [width for far in reversed(layer.padding) for width in (far, far)]
        found["weight"] = _correlation(layer, inputs, gradient, widths, "constant")
    if "bias" in use.wanted:
        found["bias"] = _bias(gradient)
    return found


def _correlation(
    layer: Any, left: Tensor, image: Tensor, widths: list[int], mode: str
) -> Correlation:
    """Both sides by groups, and an image that is padded with zeros only where it is used."""
    groups, options = layer.groups, (layer.kernel_size, layer.stride, layer.dilation)
    if mode != "constant":
        image, widths = F.pad(image, widths, mode=mode), [0] * len(widths)
    left, image = (
        side.reshape(-1, side.shape[1] // groups, *side.shape[2:]) for side in (left, image)
    )
    return Correlation(left, image, *options, groups, tuple(reversed(widths[::2])))


def _padded(values: Tensor, widths: list[int]) -> Tensor:
    return F.pad(values, widths) if any(widths) else values

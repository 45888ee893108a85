"""Convolutions: every option against a loop over examples, and all forms against each other."""

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradsift.scores import GradientNorm
from gradsift.scores.gradient_norm import convolution
from gradsift.scores.gradient_norm.convolution import NARROW, Correlation, grid_of, taps_of
from gradsift.scores.gradient_norm.costs import pixel_cost, taps_cost
from norms import agrees, normal
from twins import assert_close

PLAIN = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


@st.composite
def layers(draw: Any) -> tuple[nn.Module, tuple[int, ...], int]:
    """A convolution, the shape of its input, and a seed."""
    dimensions = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 2))
    channels, width = (groups * draw(st.integers(1, 3)) for _ in range(2))
    kernel, stride, dilation = (
        tuple(draw(st.integers(1, high)) for _ in range(dimensions)) for high in (3, 3, 2)
    )
    padding: Any = tuple(draw(st.integers(0, 2)) for _ in range(dimensions))
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    if draw(st.booleans()) and stride == (1,) * dimensions:
        padding = draw(st.sampled_from(["same", "valid"]))
    size = tuple(draw(st.integers(5, 6)) for _ in range(dimensions))
    layer = PLAIN[dimensions](
        channels, width, kernel, stride, padding, dilation, groups, draw(st.booleans()), mode
    )
    return layer, (draw(st.integers(1, 3)), channels, *size), draw(st.integers(0, 99))


@given(layers())
@settings(max_examples=60)
def test_plain_convolutions(case: tuple[nn.Module, tuple[int, ...], int]) -> None:
    layer, shape, seed = case
    agrees(nn.Sequential(layer, nn.Tanh()), normal(seed, *shape), seed)


@st.composite
def transposed(draw: Any) -> tuple[nn.Module, tuple[int, ...], int]:
    dimensions = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 2))
    channels, width = (groups * draw(st.integers(1, 3)) for _ in range(2))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(dimensions))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(dimensions))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(dimensions))
    padding = tuple(
        draw(st.integers(0, d * (k - 1))) for d, k in zip(dilation, kernel, strict=True)
    )
    extra = tuple(
        draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
    )
    size = tuple(draw(st.integers(2, 4)) for _ in range(dimensions))
    layer = TRANSPOSED[dimensions](
        channels, width, kernel, stride, padding, extra, groups, draw(st.booleans()), dilation
    )
    return layer, (draw(st.integers(1, 3)), channels, *size), draw(st.integers(0, 99))


@given(transposed())
@settings(max_examples=40)
def test_transposed_convolutions(case: tuple[nn.Module, tuple[int, ...], int]) -> None:
    layer, shape, seed = case
    agrees(nn.Sequential(layer, nn.Tanh()), normal(seed, *shape), seed)


@given(
    groups=st.integers(1, 2),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    kernel=st.integers(1, 3),
    columns=st.sampled_from([1, 2, NARROW]),
    seed=st.integers(0, 99),
)
@settings(max_examples=30)
def test_taps_pixels_and_gradients_agree(
    groups: int, stride: int, dilation: int, kernel: int, columns: int, seed: int
) -> None:
    left = normal(seed, 2 * groups, 3, 4, 3)
    options = (kernel,) * 2, (stride,) * 2, (dilation,) * 2
    pixels = [stride * size for size in grid_of((4, 3), *options)]
    image = normal(seed + 1, 2 * groups, columns, *pixels)
    found = Correlation(left, image, *options, groups)
    every = slice(0, 2 * groups)
    by_taps = found.by_taps(every).view(2, groups).sum(1)
    assert_close(found.by_pixels(every).view(2, groups).sum(1), by_taps, 1e-11)
    assert_close(found.by_groups(every).view(2, groups).sum(1), by_taps, 1e-11)
    assert_close(found.gradients(slice(0, 2)).square().sum(1), by_taps, 1e-11)
    assert_close(
        found.scaled_squared_norms(torch.full((found.numbers,), 2.0).double()), 4 * by_taps, 1e-11
    )


def of_size(pixels: int, channels: int) -> Correlation:
    left = torch.empty(2, channels, pixels, pixels, device="meta")
    image = torch.empty(2, channels, pixels + 2, pixels + 2, device="meta")
    return Correlation(left, image, (3, 3), (1, 1), (1, 1), 1)


def test_the_cheaper_form_is_taken() -> None:
    assert of_size(8, 128).prefers_pixels
    assert of_size(4, 64).prefers_pixels
    assert not of_size(32, 32).prefers_pixels
    assert not of_size(16, 64).prefers_pixels
    for pixels, channels in ((8, 128), (32, 32), (8, 8)):
        pixel = pixel_cost(pixels**2, (pixels + 2) ** 2, 1, channels, channels, 9)
        taps = taps_cost(pixels**2, channels, channels, 9)
        assert of_size(pixels, channels).prefers_pixels == (pixel < taps)


@pytest.mark.parametrize("form", ["by_pixels", "by_taps"])
def test_only_the_form_that_was_chosen_runs(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    for name in ("by_pixels", "by_taps"):
        monkeypatch.setattr(
            Correlation, name, lambda self, rows, name=name: ran.append(name) or torch.zeros(2)
        )
    monkeypatch.setattr(Correlation, "prefers_pixels", form == "by_pixels")
    Correlation(torch.ones(2, 1, 2), torch.ones(2, 1, 3), (2,), (1,), (1,), 1).squared_norms()
    assert ran == [form]


def test_small_weights_go_by_groups_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    by_groups = Correlation.by_groups
    monkeypatch.setattr(
        Correlation, "by_groups", lambda self, rows: ran.append("groups") or by_groups(self, rows)
    )
    agrees(nn.Conv2d(4, 8, 3, padding=1), normal(3, 5, 4, 12, 12))
    assert ran
    ran.clear()
    for other in (nn.Conv2d(4, 8, 1), nn.Conv2d(4, 7, 3), nn.Conv2d(64, 64, 3)):
        agrees(other, normal(3, 2, other.in_channels, 16, 16))
    assert not ran


@st.composite
def small_layers(draw: Any) -> tuple[nn.Module, tuple[int, ...], int]:
    """Those that go by groups, of any dimension, plain and transposed."""
    dimensions, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    kernel = tuple(draw(st.integers(2, 3)) for _ in range(dimensions))
    stride = tuple(draw(st.integers(1, 2)) for _ in range(dimensions))
    padding = tuple(draw(st.integers(0, 2 if k == 3 else 1)) for k in kernel)
    size = tuple(draw(st.integers(7, 9)) for _ in range(dimensions))
    kind = draw(st.sampled_from([PLAIN, TRANSPOSED]))[dimensions]
    layer = kind(8 * groups, 8 * groups, kernel, stride, padding, groups=groups)
    return layer, (draw(st.integers(1, 3)), 8 * groups, *size), draw(st.integers(0, 99))


@given(small_layers())
@settings(max_examples=25)
def test_convolutions_by_groups(case: tuple[nn.Module, tuple[int, ...], int]) -> None:
    layer, shape, seed = case
    agrees(nn.Sequential(layer, nn.Tanh()), normal(seed, *shape), seed)


def test_a_stride_is_a_phase_and_a_shift() -> None:
    taps = taps_of((3, 2), (2, 1), (1, 3))
    assert [tap.phase for tap in taps] == [(0, 0), (0, 0), (1, 0), (1, 0), (0, 0), (0, 0)]
    assert [tap.shift for tap in taps] == [(0, 0), (0, 3), (0, 0), (0, 3), (1, 0), (1, 3)]


class Twice(nn.Module):
    """One convolution on two sizes of image."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.tanh(self.layer(x))[:, :, ::2])


def test_a_convolution_that_is_used_twice() -> None:
    agrees(Twice(), normal(3, 3, 2, 4, 4))


def test_rows_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "AT_ONCE", 200)
    agrees(nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), normal(5, 7, 2, 5, 5))


def test_a_large_image_in_float32() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2))
    agrees(model, normal(4, 2, 3, 16, 16), score=GradientNorm(precision="float32"))


@pytest.mark.parametrize("narrow", [0, 99])
@pytest.mark.parametrize(("rows", "columns"), [(2, 5), (5, 2)])
def test_copied_patches_and_shifted_views_agree(
    narrow: int, rows: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each entry is the sum over positions, written as loops."""
    monkeypatch.setattr(convolution, "NARROW", narrow)
    left, image = normal(1, 2, rows, 3), normal(2, 2, columns, 5)
    found = Correlation(left, image, (2,), (2,), (1,), 1, before=(1,))
    expected = torch.zeros(2, rows, columns, 2, dtype=torch.float64)
    for row, column, tap, position in product(range(rows), range(columns), range(2), range(3)):
        place = 2 * position + tap - 1
        if place >= 0:
            expected[:, row, column, tap] += left[:, row, position] * image[:, column, place]
    assert_close(found.gradients(slice(0, 2)), expected.flatten(1), 1e-12)
    assert_close(found.by_taps(slice(0, 2)), expected.flatten(1).square().sum(1), 1e-12)
    assert_close(found.by_groups(slice(0, 2)), expected.flatten(1).square().sum(1), 1e-12)
    assert_close(found.by_pixels(slice(0, 2)), expected.flatten(1).square().sum(1), 1e-12)

"""Publication: what is sent is what has changed, rounded where asked, and a set is always whole."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader

import gradsift
from engines import BLOCK, CROSS_ENTROPY, N, examples, model, norm_task
from gradsift import engines
from gradsift.engine.interface import blocks_of
from gradsift.engine.outbox import Changes, Outbox, bytes_of, encoded, same_bits
from gradsift.engine.snapshot import Reader, Writer, make_board
from gradsift.scores.gradient_loop import gradient_norms

SETS = st.lists(st.tuples(*(st.integers(0, 2) for _ in range(3))), min_size=1, max_size=12)
"""Successive sets of three tensors, by their content."""

SHAPES = {"weight": (3, 5), "bias": (5,), "steps": ()}


def made(content: tuple[int, ...]) -> dict[str, Tensor]:
    """Zero, minus zero and not a number: contents that ``==`` takes for others than they are."""
    values = (0.0, -0.0, torch.nan)
    parts = zip(SHAPES.items(), content, strict=True)
    return {name: torch.full(shape, values[which]) for (name, shape), which in parts}


def whole_bytes(values: dict[str, Tensor]) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in values.items()}


@given(SETS)
def test_a_board_is_whole_and_takes_what_its_slot_does_not_hold(sets: list[Any]) -> None:
    """Twin: the sets themselves; of each tensor whether it is as in the set two writes before."""
    board = make_board(made(sets[0]))
    writer, reader = Writer(board), Reader(board)
    slots: list[dict[str, bytes]] = [{}, {}]
    last: dict[str, bytes] = {}
    changed_at = dict.fromkeys(SHAPES, 0)
    for number, content in enumerate(sets, 1):
        values = made(content)
        expected = whole_bytes(values)
        for name in SHAPES:
            changed_at[name] = number if expected[name] != last.get(name) else changed_at[name]
        needed = [name for name in SHAPES if changed_at[name] > number - 2]
        assert all(name in needed or slots[number % 2][name] == expected[name] for name in SHAPES)
        assert writer.write(values, number) == sum(len(expected[name]) for name in needed)
        found = reader.read()
        assert found is not None
        assert (whole_bytes(found[0]), found[1]) == (expected, number)
        slots[number % 2] = last = expected


@given(SETS)
def test_what_has_changed_over_the_first_set_makes_the_whole(sets: list[Any]) -> None:
    changes = Changes()
    first: dict[str, Tensor] = {}
    ever: set[str] = set()
    start = whole_bytes(made(sets[0]))
    for place, content in enumerate(sets):
        values = made(content)
        expected = whole_bytes(values)
        begun, moved = changes.split(values)
        assert (begun is not None) == (place == 0)
        first = begun or first
        ever |= {name for name in SHAPES if expected[name] != start[name]}
        assert set(moved) == ever
        for value in values.values():
            value.fill_(7.0)
        assert whole_bytes({**first, **moved}) == expected


@pytest.mark.parametrize(
    "value",
    [
        torch.randn(3, 1000),
        torch.randn(3, 1000).T,
        torch.randn(7).bfloat16(),
        torch.tensor(5),
        torch.zeros(0, 2),
        torch.tensor([True, False, True]),
        torch.randn(5, dtype=torch.complex64),
        torch.randn(4099, dtype=torch.float64),
    ],
    ids=lambda value: f"{tuple(value.shape)}-{value.dtype}",
)
def test_same_bits_of_any_type(value: Tensor) -> None:
    assert same_bits(value, value.clone())
    for place in {0, value.numel() // 2, value.numel() - 1} if value.numel() else set():
        other = value.clone(memory_format=torch.contiguous_format)
        flat = other.view(-1)
        flat[place] = ~flat[place] if value.dtype == torch.bool else flat[place] + 1
        assert not same_bits(value, other)


def test_what_is_rounded_and_what_is_not() -> None:
    parameters = {
        "weight": torch.randn(4, 3),
        "kernel": torch.randn(2, 2, 3, 3),
        "bias": torch.randn(4),
        "steps": torch.tensor(3),
        "double": torch.randn(2, 2, dtype=torch.float64),
        "half": torch.randn(2, 2).half(),
    }
    sent = {name: encoded(value, "bfloat16") for name, value in parameters.items()}
    assert {name for name, value in sent.items() if value.dtype == torch.bfloat16} == {
        "weight",
        "kernel",
    }
    saved = bytes_of(parameters) - bytes_of(sent)
    assert saved == 2 * (12 + 36)
    for name, value in parameters.items():
        assert encoded(value, "float32").data_ptr() == value.data_ptr()
        if name not in ("weight", "kernel"):
            assert sent[name].data_ptr() == value.data_ptr()
        else:
            error = (sent[name].float() - value).abs() / value.abs()
            assert float(error.max()) <= 2**-8


def test_an_outbox_gives_the_newest_set_once() -> None:
    outbox = Outbox("bfloat16")
    assert outbox.take() is None
    outbox.put({"weight": torch.ones(1, 1)}, 1)
    outbox.put({"weight": torch.full((1, 1), 3.0)}, 2)
    found = outbox.take()
    assert found is not None
    assert (found[0]["weight"].tolist(), found[1]) == ([[3.0]], 2)
    assert outbox.take() is None


class Later:
    """An event of a device that is not done yet."""

    def __init__(self) -> None:
        self.done = False

    def query(self) -> bool:
        return self.done


def test_a_set_that_is_on_its_way_is_not_given_out() -> None:
    outbox, event = Outbox(), Later()
    outbox.put({"weight": torch.ones(1)}, 1)
    outbox._copied = event
    assert outbox.take() is None
    event.done = True
    assert outbox.take() is not None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_sets_leave_a_device_as_they_were_when_they_were_put() -> None:
    weight = torch.zeros(1 << 24, device="cuda")
    outbox, seen = Outbox(), 0
    for version in range(1, 200):
        weight.fill_(float(version))
        outbox.put({"weight": weight, "steps": torch.tensor(version)}, version)
        weight.fill_(-1.0)
        if (found := outbox.take()) is not None:
            seen += 1
            assert bool((found[0]["weight"] == found[1]).all())
            assert int(found[0]["steps"]) == found[1]
    torch.cuda.synchronize()
    found = outbox.take()
    assert seen or found is not None


def norms_by(engine: Any, network: nn.Module) -> Tensor:
    engine.start(norm_task())
    engine.publish(network.state_dict(), 1)
    engine.request(blocks_of(N, BLOCK))
    return torch.cat([scored.scores for scored in engine.collect(wait=1.0)])


def test_rounded_parameters_give_the_norms_of_the_rounded_model() -> None:
    network = model(3)
    found = norms_by(engines.inline(block=BLOCK, precision="bfloat16"), network)
    rounded = model(3)
    with torch.no_grad():
        for parameter in rounded.parameters():
            if parameter.dim() >= 2:
                parameter.copy_(parameter.bfloat16())
    inputs, targets = examples().tensors
    expected = gradient_norms(rounded, CROSS_ENTROPY, inputs, targets).float()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    whole = norms_by(engines.inline(block=BLOCK), network)
    assert not torch.equal(found, whole)
    assert float(((found - whole) / whole).abs().max()) < 0.05


def test_frozen_layers_are_sent_once() -> None:
    """A sifted run: three publications of a model whose first layer is frozen."""
    network = model()
    for parameter in network[0].parameters():  # pyright: ignore[reportIndexIssue]
        parameter.requires_grad_(requires_grad=False)
    frozen = bytes_of(network[0].state_dict())  # pyright: ignore[reportIndexIssue]
    whole = bytes_of(network.state_dict())
    board = make_board(network.state_dict())
    writer, changes = Writer(board), Changes()
    optimizer = torch.optim.SGD(network[2].parameters(), lr=0.1)  # pyright: ignore[reportIndexIssue]
    written, sent = [], []
    for batch in gradsift.sift(DataLoader(examples(), 8), network, CROSS_ENTROPY, recipe="uniform"):
        written.append(writer.write(network.state_dict(), len(written)))
        begun, moved = changes.split(network.state_dict())
        sent.append(bytes_of(begun or moved))
        optimizer.zero_grad()
        batch.loss(network(batch.inputs)).backward()
        optimizer.step()
    assert written == [whole, whole, *[whole - frozen] * 3]
    assert sent == [whole, *[whole - frozen] * 4]

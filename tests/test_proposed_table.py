"""Draws by values from outside: their exact law, in any order, and their state."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from enumeration import cells, float64
from gradsift.errors import UsageError
from gradsift.sampling.distributions import AbstractDistribution, Mixed, Power, Proportional
from gradsift.sampling.proposed import ProposedTable

VALUES = np.array([0.2, 3.0, 0.0, 1.0, 0.7])
ORDER = torch.tensor([3, 0, 4, 1, 2])
LAWS = [Mixed(Proportional(), uniform=0.2), Mixed(Power(0.5), uniform=0.5)]


def expected(law: Mixed) -> np.ndarray:
    exponent = law.inner.exponent if isinstance(law.inner, Power) else 1.0
    powers = VALUES**exponent
    return (1 - law.uniform) * powers / powers.mean() + law.uniform


@pytest.mark.parametrize("arranged", [False, True])
@pytest.mark.parametrize("law", LAWS)
def test_masses_are_those_of_the_mixture(law: Mixed, arranged: bool) -> None:
    table = ProposedTable(5, LAWS[0])
    table.write(VALUES)
    if arranged:
        table.arrange(ORDER)
    table.propose(law)
    assert table.masses(np.arange(5)).tolist() == pytest.approx(expected(law).tolist(), rel=1e-6)
    assert table.values(np.array([4, 1])).tolist() == pytest.approx([0.7, 3.0], rel=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("arranged", [False, True])
@pytest.mark.parametrize("law", LAWS)
def test_every_example_is_unbiased(
    law: Mixed, arranged: bool, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By exact integration over each slot's uniform number: ``E[Σ_j 1{i_j = i} w_j] = b/N``."""
    table = ProposedTable(5, law)
    if arranged:
        table.arrange(ORDER)
    table.write(VALUES)
    walk = ORDER.numpy() if arranged else np.arange(5)
    edges = np.cumsum(table.masses(walk)) * size / 5
    found = np.zeros(5)
    for slot in range(size):
        for middle, length in cells((edges - slot).tolist()):
            uniforms = torch.full((size,), 0.5, dtype=torch.float64)
            uniforms[slot] = middle
            monkeypatch.setattr(torch, "rand", lambda *_, u=uniforms, **__: u)
            drawn = table.draw(size, torch.Generator())
            found[int(drawn.positions[slot])] += length * float(drawn.weights[slot])
    assert found.tolist() == pytest.approx([size / 5] * 5, rel=1e-9)


@given(
    ids=st.lists(st.integers(0, 4), max_size=5, unique=True),
    numbers=st.lists(st.floats(0, 100, width=32), min_size=5, max_size=5),
    arranged=st.booleans(),
)
def test_setting_some_is_writing_all(ids: list[int], numbers: list[float], arranged: bool) -> None:
    one, other = (ProposedTable(5, LAWS[0]) for _ in range(2))
    for table in (one, other):
        table.write(VALUES)
        if arranged:
            table.arrange(ORDER)
    whole = one.values(np.arange(5))
    whole[ids] = np.array(numbers)[: len(ids)]
    one.set(np.array(ids, np.int64), np.array(numbers)[: len(ids)])
    other.write(whole)
    assert one.masses(np.arange(5)).tolist() == other.masses(np.arange(5)).tolist()


def test_it_goes_on_from_its_state() -> None:
    whole, again = ProposedTable(5, LAWS[1]), ProposedTable(5, LAWS[0])
    whole.write(VALUES)
    whole.arrange(ORDER)
    again.load_state_dict(whole.state_dict())
    one, other = (table.draw(4, torch.Generator().manual_seed(7)) for table in (whole, again))
    assert torch.equal(one.positions, other.positions)
    assert torch.equal(one.weights, other.weights)
    plain = ProposedTable(5, LAWS[0])
    again.load_state_dict(plain.state_dict())
    assert again.draw(5, torch.Generator()).positions.tolist() == [0, 1, 2, 3, 4]
    assert whole.nbytes > plain.nbytes


def test_all_zero_values_mean_uniform() -> None:
    table = ProposedTable(4, LAWS[0])
    table.write(np.zeros(4))
    assert table.draw(4, torch.Generator()).weights.tolist() == float64([1, 1, 1, 1]).tolist()


@pytest.mark.parametrize("law", [Proportional(), Mixed(Power(5.0), uniform=0.1)])
def test_laws_without_a_bound_are_refused(law: AbstractDistribution) -> None:
    with pytest.raises(UsageError, match="a score table cannot draw by"):
        ProposedTable(4, law)


def test_sizes_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match="cannot draw 5 of 4"):
        ProposedTable(4, LAWS[0]).draw(5, torch.Generator())

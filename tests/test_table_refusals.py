"""What a table refuses, in one line, before anything is changed."""

import math
from typing import Any

import pytest
import torch

from enumeration import float64
from gradsift.errors import UsageError
from gradsift.sampling import ScoreTable
from gradsift.sampling.distributions import Proportional
from gradsift.sampling.draws import Multinomial, Systematic
from gradsift.sampling.relative import example_ids, fresh_scores


def everyone(table: ScoreTable) -> torch.Tensor:
    return torch.arange(table.size)


@pytest.mark.parametrize("other", [{"size": 41}, {"draw": Systematic()}, {}])
def test_a_state_that_does_not_fit_changes_nothing(other: dict[str, Any]) -> None:
    table = ScoreTable(40)
    table.update(torch.tensor([3, 4]), torch.tensor([9.0, 1.0]), 0)
    before = table.probabilities(everyone(table))
    state = ScoreTable(**{"size": 40, **other}).state_dict() if other else {}
    with pytest.raises(UsageError, match=r"does not fit one with .*'size': 40"):
        table.load_state_dict(state)
    assert torch.equal(table.probabilities(everyone(table)), before)


@pytest.mark.parametrize(
    ("indices", "scores", "options", "message"),
    [
        ([0, 5], [1.0, 1.0], {}, "5 examples received id 5, expected 0 to 4"),
        ([-1, 0], [1.0, 1.0], {}, "received id -1"),
        ([0, 1], [1.0, -0.5], {}, "the score -0.5 of example 1, expected scores >= 0"),
        ([0], [1.0], {"version": -1}, "received version -1, expected 0 to 2147483647"),
        ([0], [1.0], {"version": 2**31}, "received version 2147483648"),
        ([0], [1.0], {"weights": [-1.0]}, "weights from -1 to -1, expected finite weights >= 0"),
        ([0], [1.0], {"weights": [math.nan]}, "weights from nan to nan"),
    ],
)
def test_refusals_change_nothing(
    indices: list[int], scores: list[float], options: dict[str, Any], message: str
) -> None:
    table = ScoreTable(5)
    weights = float64(options["weights"]) if "weights" in options else None
    version = options.get("version", 0)
    with pytest.raises(UsageError, match=message):
        table.update(torch.tensor(indices), float64(scores), version, weights)
    assert table.seen == 0
    assert math.isnan(table.level)
    assert table.relative(everyone(table)).tolist() == [1.0] * 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "received size 0, expected 1 to 2147483647"),
        ({"size": 2**31}, "split larger data over several tables"),
        ({"distribution": Proportional()}, "cannot draw by Proportional.*uniform=share"),
        ({"draw": Multinomial()}, r"cannot draw by Multinomial\(\), expected Stratified"),
        ({"smoothing": 1.0}, r"smoothing 1.0, expected a share in \[0, 1\)"),
        ({"smoothing": -0.1}, "smoothing -0.1"),
        ({"order": torch.arange(3)}, "of 4 examples received an order of 3"),
        ({"order": torch.tensor([0, 1, 1, 2])}, "lacks 1 ids, the first is 3"),
        ({"order": torch.tensor([0, 1, 2, -4])}, "lacks 1 ids, the first is 3"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ScoreTable(**{"size": 4, **options})


def test_ids_of_other_types_and_sizes_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match=r"torch.int32 ids, expected int64"):
        example_ids(torch.tensor([1], dtype=torch.int32), 4)
    for size in (0, 5):
        with pytest.raises(UsageError, match=f"cannot draw {size} of 4"):
            ScoreTable(4).draw(size)


def test_shapes_that_differ_are_refused() -> None:
    ids, two, three = torch.tensor([0, 1]), torch.ones(2), torch.ones(3)
    with pytest.raises(UsageError, match=r"ids of shape \[2\], scores of shape \[3\]: expected"):
        fresh_scores(ids, three, None, 5)
    with pytest.raises(UsageError, match=r"shape \[2\] and weights of shape \[3\]: expected one"):
        fresh_scores(ids, two, three, 5)
    with pytest.raises(UsageError, match=r"ids of shape \[2, 1\]"):
        fresh_scores(ids[:, None], two[:, None], None, 5)

"""What a run keeps of its draws and its scores."""

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from gradsift.budget import parse_budget
from gradsift.clock import VirtualClock
from gradsift.data.problem import from_datasets, pose
from gradsift.report.picks import read_picks
from gradsift.scores.output_gradient import OutputGradient
from gradsift.trainer import Settings, run
from gradsift.trainer import picks as module
from gradsift.trainer.picks import describe, pick


def problem(examples=60, shape=(1, 4, 4)):
    inputs = torch.randn(examples, *shape, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(inputs, torch.arange(examples) % 3)
    return from_datasets("toy", data, data)


def settings(recipe="uniform", budget="2ep"):
    return Settings(recipe=recipe, model="linear", batch_size=10, budget=parse_budget(budget))


def test_a_run_that_shuffles_draws_every_example_once_an_epoch(tmp_path):
    run(problem(), settings(), out=tmp_path / "o", clock=VirtualClock())
    found = read_picks(tmp_path / "o")
    assert found is not None
    assert found.draws.tolist() == [2] * 60


@pytest.mark.parametrize("recipe", ["pool", "uniform-iid", "katharopoulos2018"])
def test_all_draws_are_counted(tmp_path, recipe):
    outcome = run(problem(), settings(recipe, "13steps"), out=tmp_path / "o", clock=VirtualClock())
    found = read_picks(tmp_path / "o")
    assert found is not None
    assert found.draws.sum() == outcome.summary.examples_trained == 130


def test_scores_are_those_of_the_final_model_one_example_at_a_time(tmp_path):
    posed = problem()
    outcome = run(posed, settings("pool"), out=tmp_path / "o")
    found = read_picks(tmp_path / "o")
    assert found is not None
    assert found.scored.tolist() == list(range(60))
    for index in (0, 17, 59):
        inputs, target = posed.train[index]
        alone = OutputGradient()(outcome.model, posed.loss_fn, inputs[None], target[None])
        assert found.scores[index] == pytest.approx(float(alone[0]), rel=1e-5)
        if index in found.shown:
            place = found.shown.tolist().index(index)
            assert np.array_equal(found.inputs[place], inputs.numpy())
            assert found.texts[place] == str(int(target))


def test_only_a_sample_is_scored_and_only_the_extremes_are_kept(monkeypatch):
    monkeypatch.setattr(module, "SCORED", 20)
    monkeypatch.setattr(module, "SHOWN", 2)
    posed = problem()
    draws = torch.arange(60)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    found = pick(model, posed, draws, torch.device("cpu"), seed=3)
    assert len(found.scored) == len(found.scores) == 20
    assert (np.diff(found.scored) > 0).all()
    chosen = {index for ids in found.extremes(2).values() for index in ids.tolist()}
    assert {0, 1, 58, 59} <= chosen == set(found.shown.tolist())
    assert len(found.inputs) == len(found.texts) == len(chosen)


def test_picking_changes_no_number_of_the_run(tmp_path):
    with_folder = run(problem(), settings("pool"), out=tmp_path / "o", clock=VirtualClock())
    without = run(problem(), settings("pool"), clock=VirtualClock())
    assert with_folder.summary == without.summary


def test_rows_texts_and_sparse_rows_in_words():
    rows = problem(shape=(20,))
    text = describe(rows, torch.arange(20.0), torch.tensor(2))
    assert text == "2: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, …"
    data = rows.train
    sparse = pose("toy", data, data, (9,), 2, "classification", sparse=True)
    pairs = torch.tensor([[3.0, 1.0], [7.0, 0.5], [0.0, 0.0]])
    assert describe(sparse, pairs, torch.tensor(1)) == "1: 3:1 7:0.5"
    words = pose("toy", data, data, (2,), 3, "classification", vocabulary=("?", "to", "be"))
    assert describe(words, torch.tensor([1, 2]), torch.tensor(0)) == "to be → ?"

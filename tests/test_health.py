"""Health, cost and where they go: against loops, and without changing a number of any run."""

import json
import math
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader

import blobs
import gradsift
from gradsift.errors import UsageError
from gradsift.monitors import tensorboard
from gradsift.monitors.cost import Cost
from gradsift.monitors.health import Health, HealthMonitor, correlation, relative_entropy, top_share
from gradsift.monitors.log import AbstractLog, NullLog, SeveralLogs
from gradsift.monitors.tensorboard import TensorBoard
from gradsift.report.health import has_health, health
from gradsift.report.page import page
from gradsift.report.runs import read_run
from gradsift.sampling.table import ScoreTable
from gradsift.scores.gradient_loop import gradient_norms
from gradsift.trainer import run
from gradsift.trainer.loop import Loop

few = settings(derandomize=True, max_examples=40, deadline=None)
counts = st.lists(st.integers(0, 20), min_size=2, max_size=30).filter(lambda found: sum(found) > 0)


class Kept(AbstractLog):
    """Remembers what is written."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def write(self, kind: Any, *, step: int, seconds: float, **values: Any) -> None:
        self.lines.append({"kind": kind, "step": step, **values})


@given(draws=counts, top=st.sampled_from([0.01, 0.1, 0.5, 1.0]))
@few
def test_the_top_share_is_that_of_the_most_picked(draws: list[int], top: float) -> None:
    most = sorted(draws, reverse=True)[: max(1, math.ceil(top * len(draws) - 1e-9))]
    found = top_share(torch.tensor(draws), top)
    assert found == pytest.approx(sum(most) / sum(draws), rel=1e-12)


@given(draws=counts)
@few
def test_the_entropy_is_that_of_a_loop(draws: list[int]) -> None:
    shares = [count / sum(draws) for count in draws if count]
    expected = -math.fsum(q * math.log(q) for q in shares) / math.log(len(draws))
    found = relative_entropy(torch.tensor(draws))
    assert found == pytest.approx(expected, abs=1e-12)
    assert -1e-12 <= found <= 1 + 1e-12


def test_nothing_picked_is_nothing_known() -> None:
    none = torch.zeros(3, dtype=torch.int64)
    assert math.isnan(top_share(none))
    assert math.isnan(relative_entropy(none))
    assert relative_entropy(torch.tensor([5])) == 1.0
    found = HealthMonitor(3).read()
    assert (found.picks, found.coverage) == (0, 0.0)
    unknown = [value for value in asdict(found).values() if math.isnan(value)]
    assert len(unknown) == len(fields(Health)) - 2
    with pytest.raises(UsageError, match="received 0 examples"):
        HealthMonitor(0)


@given(
    scores=st.lists(st.integers(-4, 4), min_size=3, max_size=20),
    seed=st.integers(0, 99),
)
@few
def test_the_correlations_are_those_of_scipy(scores: list[int], seed: int) -> None:
    norms = torch.randn(len(scores), generator=torch.Generator().manual_seed(seed)).round(
        decimals=1
    )
    values = torch.tensor(scores, dtype=torch.float32)
    found = correlation(values, norms)
    if len(set(scores)) == 1 or len(set(norms.tolist())) == 1:
        assert math.isnan(found.rank)
        assert math.isnan(found.linear)
        return
    assert found.rank == pytest.approx(stats.spearmanr(values, norms)[0], abs=1e-9)
    assert found.linear == pytest.approx(stats.pearsonr(values, norms)[0], abs=1e-5)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_correlations_do_not_depend_on_the_scale(scale: float) -> None:
    values = torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64)
    found = correlation(scale * values, values.flip(0))
    assert found.linear == pytest.approx(correlation(values, values.flip(0)).linear, rel=1e-12)
    assert math.isnan(correlation(values[:1], values[:1]).rank)
    with pytest.raises(UsageError, match="1 scores and 3 norms"):
        correlation(values[:1], values)


def test_what_is_since_the_last_reading_begins_anew() -> None:
    monitor = HealthMonitor(10)
    ids = torch.tensor([1, 1, 3])
    monitor.add(ids, torch.tensor([1.0, 1.0, 2.0]), torch.tensor([2.0, 2.0, 1.0]))
    monitor.add(ids, torch.tensor([3.0, 3.0, 3.0]), torch.tensor([1.0, 1.0, 1.0]))
    monitor.add(torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    found = monitor.read()
    assert monitor.draws.tolist() == [0, 4, 0, 2, 0, 0, 0, 0, 0, 0]
    assert (found.picks, found.coverage, found.top_share) == (6, 0.2, 4 / 6)
    assert found.effective_sample == pytest.approx((16 / 6 / 3 + 1) / 2)
    assert found.largest_weight == 3.0
    first, second = (6 / 3 + 9 / 3) / 2, (12 / 3 + 27 / 3) / 2
    assert found.efficiency == pytest.approx(first**2 / second)
    again = monitor.read()
    assert again.picks == 6
    assert math.isnan(again.largest_weight)
    assert math.isnan(again.efficiency)


def test_the_efficiency_of_scores_that_were_drawn_by_is_one() -> None:
    scores = torch.tensor([1.0, 2.0, 4.0])
    drawn = gradsift.draws.Multinomial().draw(scores, 3, torch.Generator().manual_seed(0))
    monitor = HealthMonitor(3)
    monitor.add(drawn.positions, drawn.weights, scores[drawn.positions])
    assert monitor.read().efficiency == pytest.approx(1.0, rel=1e-12)


def test_ages_and_scored_examples_are_those_of_the_table() -> None:
    table = ScoreTable(10)
    nothing = HealthMonitor(10).read(table, version=9)
    assert nothing.scored == 0.0
    assert math.isnan(nothing.age_largest)
    for version, ids in ((1, [0]), (4, [1, 2, 3]), (8, [4])):
        table.update(torch.tensor(ids), torch.ones(len(ids)), version)
    found = HealthMonitor(10).read(table, version=9)
    assert found.scored == 0.5
    assert (found.age_median, found.age_90, found.age_largest) == (5.0, 5.0, 8.0)


def test_the_parts_of_the_cost_sum_to_the_whole() -> None:
    cost = Cost(10.0, 1.0, 2.5, 6.0, trained=100, scored=250)
    listed = cost.listed()
    parts = ("loading", "scoring", "training", "waiting")
    assert math.fsum(listed[part] for part in parts) == pytest.approx(listed["total"])
    assert (listed["scored_per_trained"], listed["seconds_per_example"]) == (2.5, 0.1)
    assert Cost(1.0, 1.0, 1.0, 1.0, 1, 0).waiting == 0.0
    assert math.isnan(Cost(0.0, 0.0, 0.0, 0.0, 0, 0).scored_per_trained)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that draws from a table, with everything that is written."""
    folder = tmp_path_factory.mktemp("run") / "o"
    kept = Kept()
    settings = blobs.settings(40, recipe="table")
    run(blobs.toy(), settings, out=folder, clock=blobs.virtual(), log=kept)
    return folder, kept


def test_the_keys_of_health_cost_and_correlation_are_frozen(finished) -> None:
    events = {line.get("name"): line for line in blobs.lines(finished[0], "event")}
    common = {"kind", "step", "seconds", "name"}
    assert set(events["health"]) - common == {field.name for field in fields(Health)}
    assert set(events["cost"]) - common == {
        *("total", "loading", "scoring", "training", "waiting", "trained", "scored"),
        *("scored_per_trained", "seconds_per_example"),
    }
    assert set(events["correlation"]) - common == {
        *("rank", "linear", "examples", "norms", "scores", "stale", "stale_rank", "stale_linear"),
    }


def test_a_run_writes_its_health_at_every_evaluation(finished) -> None:
    folder, kept = finished
    found = read_run(folder)
    assert len(found.events("health")) == len(found.of_kind("eval")) == len(found.events("cost"))
    last = found.event("health")
    assert last["picks"] == found.summary.examples_trained == 40 * blobs.BATCH
    assert last["scored"] == 1.0
    assert 0 < last["age_median"] <= last["age_90"] <= last["age_largest"] <= 40
    assert found.event("cost")["total"] == pytest.approx(found.summary.seconds_total, abs=1e-6)
    written = (folder / "metrics.jsonl").read_text().splitlines()
    assert [line["kind"] for line in kept.lines] == [json.loads(line)["kind"] for line in written]


def test_the_norms_of_a_run_are_exact_ones_of_its_final_model(tmp_path) -> None:
    problem = blobs.toy()
    done = run(
        problem, blobs.settings(20, recipe="pool"), out=tmp_path / "o", clock=blobs.virtual()
    )
    found = read_run(tmp_path / "o").event("correlation")
    ids = torch.randperm(100, generator=torch.Generator().manual_seed(0))[:64]
    x, y = problem.train[ids.tolist()]
    expected = gradient_norms(done.model, problem.loss_fn, x, y)
    np.testing.assert_allclose(found["norms"], expected.tolist(), rtol=1e-6)
    assert found["stale"] is None
    assert found["rank"] == pytest.approx(correlation(torch.tensor(found["scores"]), expected).rank)


def test_without_the_monitors_no_number_of_a_run_changes(tmp_path, monkeypatch) -> None:
    """Bit for bit: parameters, summary, and every other line of the measurements."""

    def outcome(name: str) -> tuple[list[torch.Tensor], Any, list[str]]:
        settings = blobs.settings(30, recipe="table")
        done = run(blobs.toy(), settings, out=tmp_path / name, clock=blobs.virtual())
        text = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ours = ('"name": "health"', '"name": "cost"', '"name": "correlation"')
        lines = [line for line in text if not any(name in line for name in ours)]
        assert (len(lines) < len(text)) == (name == "with")
        return list(done.model.state_dict().values()), done.summary, lines

    parameters, summary, lines = outcome("with")
    monkeypatch.setattr(Loop, "_look", lambda self: None)
    monkeypatch.setattr(Loop, "compare_scores", lambda self: None)
    monkeypatch.setattr(HealthMonitor, "add", lambda self, *batch: None)
    without, same_summary, same_lines = outcome("without")
    assert all(map(torch.equal, parameters, without))
    assert (summary, lines) == (same_summary, same_lines)


@pytest.mark.parametrize("recipe", ["table", "pool"])
def test_a_watched_loop_is_bit_identical(recipe: str) -> None:
    def trained(*, watched: bool) -> tuple[list[int], torch.Tensor]:
        torch.manual_seed(0)
        data, model = blobs.blobs(), nn.Linear(4, 3)
        generator = torch.Generator().manual_seed(0)
        loader = DataLoader(data, batch_size=10, shuffle=True, generator=generator)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss_fn = nn.CrossEntropyLoss(reduction="none")
        train = gradsift.sift(loader, model, loss_fn, recipe=recipe, clock=blobs.virtual())
        monitor, ids = HealthMonitor(len(data)), []
        for _ in range(3):
            for batch in train:
                if watched:
                    monitor.add(batch.indices, batch.weights)
                    monitor.read(train.table, train.steps)
                loss = batch.loss(model(batch.inputs))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                ids += batch.indices.tolist()
        assert (train.table is None) == (recipe == "pool")
        return ids, model.weight.detach()

    with torch.random.fork_rng():
        (ids, weight), (same_ids, same_weight) = trained(watched=True), trained(watched=False)
    assert ids == same_ids
    assert torch.equal(weight, same_weight)


def test_the_report_shows_the_health_of_what_drew(finished, tmp_path) -> None:
    found = read_run(finished[0])
    assert has_health(found)
    text = page([found])
    assert "Health of the proposal" in text
    assert "share of top 1 %" in text
    panels = health([found]).axes
    assert [panel.get_title() for panel in panels][2] == "Age of scores, in steps"
    assert {line.get_label() for line in panels[2].lines} == {"median", "90 %", "oldest"}
    run(blobs.toy(), blobs.settings(5), out=tmp_path / "u", clock=blobs.virtual())
    uniform = read_run(tmp_path / "u")
    assert not has_health(uniform)
    assert uniform.event("correlation") == {}
    assert "Health of the proposal" not in page([uniform])


class Writer:
    """Stands for TensorBoard's own."""

    def __init__(self, folder: str = "") -> None:
        self.folder, self.scalars, self.texts, self.flushed = folder, [], [], 0

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars.append((tag, value, step))

    def add_text(self, tag: str, text: str, step: int) -> None:
        self.texts.append((tag, text, step))

    def flush(self) -> None:
        self.flushed += 1


def test_tensorboard_gets_numbers_and_notices() -> None:
    writer = Writer()
    log = SeveralLogs(NullLog(), TensorBoard("unused", writer))
    log.write("train", step=1, seconds=0.1, loss=0.5, drawn=True, tau=None, kappa=math.nan)
    log.write("event", step=2, seconds=0.1, name="health", coverage=1, norms=[1.0])
    log.write("event", step=3, seconds=0.1, text="a notice")
    assert writer.scalars == [
        ("train/loss", 0.5, 1),
        ("train/drawn", 1.0, 1),
        ("health/coverage", 1, 2),
    ]
    assert writer.texts == [("event/text", "a notice", 3)]
    assert writer.flushed == 3


def test_tensorboard_is_made_for_the_folder_or_asked_for(monkeypatch) -> None:
    made: list[Writer] = []

    def make(folder: str) -> Writer:
        made.append(Writer(folder))
        return made[-1]

    monkeypatch.setattr(tensorboard, "_make", make)
    TensorBoard("runs/a").write("eval", step=0, seconds=0.0, test_error=0.5)
    assert (made[0].folder, made[0].scalars) == ("runs/a", [("eval/test_error", 0.5, 0)])
    monkeypatch.setattr(tensorboard, "_make", None)
    with pytest.raises(UsageError, match=r"gradsift\[tensorboard\]"):
        TensorBoard("runs/a")


def test_a_sifted_loader_writes_to_any_log() -> None:
    loader = DataLoader(blobs.blobs(), batch_size=10)
    loss_fn, kept = nn.CrossEntropyLoss(reduction="none"), Kept()
    model = nn.Linear(4, 3)
    train = gradsift.sift(loader, model, loss_fn, recipe="pool", log=kept, clock=blobs.virtual())
    for batch in train:
        batch.loss(model(batch.inputs))
    assert {line["kind"] for line in kept.lines} == {"train"}
    del train
    silent = gradsift.sift(loader, model, loss_fn, recipe="pool", log=kept, rank=1, world_size=2)
    before = len(kept.lines)
    for batch in silent:
        batch.loss(model(batch.inputs))
    assert len(kept.lines) == before

"""Runs of parallel SGD that are killed, and go on as if never stopped; and what a crew is told."""

import json
import signal

import pytest
import torch

import crowd
from blobs import Calls, lines, settings, toy, virtual
from gradsift.budget import Budget
from gradsift.checkpoint import read_latest, write_checkpoint
from gradsift.cli import entry
from gradsift.data.digits import digits
from gradsift.errors import TrainingError, UsageError
from gradsift.parallel import Arrival, MeasuredTickets, Recording, Ticket, read_arrivals
from gradsift.trainer import Workers, run_parallel
from gradsift.trainer.crew import RECORDED, ActorsCrew
from gradsift.trainer.keeping import FOLDER, Keeping
from gradsift.trainer.work import prepare

STEPS = 24
SPARSE = Keeping(every=Budget("steps", 5))
AGAIN = Keeping(every=Budget("steps", 5), resume=True)

TEAMS = {
    "gasgd": Workers("gasgd", 2, "uniform:0:5", rho=4, compensation="dc-adaptive"),
    "ssp": Workers("ssp", 3, compensation="gap"),
    "gssgd": Workers("gssgd", 3, rho=3),
    "replayed": Workers("asgd", 2, compensation="replay", rho=4),
    "gsgd": Workers("gsgd", 1, rho=4),
    "drawing": Workers("asgd", 2, "uniform:0:5", sampler="table", average=0.5),
}


class Killed(BaseException):
    """Stands for the end of the process."""


def start(out, team, kept=SPARSE, progress=None, steps=STEPS, **changes):
    return run_parallel(
        toy(),
        settings(steps, batch_size=4, lr=0.1, **changes),
        team,
        out=out,
        clock=virtual(),
        progress=progress,
        keeping=kept,
        command="gradsift train",
    )


def kill(out, team, at, kept=SPARSE):
    count = iter(range(1, at))
    calls = Calls(lambda step: next(count))
    with pytest.raises(StopIteration):
        start(out, team, kept, calls)


def files(folder):
    return {name: (folder / name).read_text() for name in ("summary.json", "metrics.jsonl")}


@pytest.mark.parametrize("name", TEAMS)
def test_killed_in_any_round_it_ends_with_the_same_files(tmp_path, name):
    team = TEAMS[name]
    whole = start(tmp_path / "whole", team)
    rounds = STEPS // team.batches_per_round
    for at in range(1, rounds, 5 if name == "gasgd" else 9):
        out = tmp_path / str(at)
        kill(out, team, at)
        again = start(out, team, AGAIN)
        assert again.summary == whole.summary
        assert files(out) == files(tmp_path / "whole")
        assert not (out / FOLDER).exists()
        pairs = zip(again.model.parameters(), whole.model.parameters(), strict=True)
        assert all(torch.equal(mine, expected) for mine, expected in pairs)


@pytest.mark.slow
def test_the_buffers_of_batch_norm_go_on(tmp_path):
    team = Workers("gasgd", 2, "constant:1", rho=2)
    images = {"model": "wrn-10-1", "norm": "batch"}

    def begin(out, kept, progress=None):
        return run_parallel(
            digits(),
            settings(3, batch_size=4, **images),
            team,
            out=out,
            clock=virtual(),
            keeping=kept,
            progress=progress,
        )

    each = Keeping(every=Budget("steps", 1))
    whole = begin(tmp_path / "whole", each)
    count = iter(range(1, 3))
    with pytest.raises(StopIteration):
        begin(tmp_path / "o", each, Calls(lambda step: next(count)))
    again = begin(tmp_path / "o", Keeping(every=Budget("steps", 1), resume=True))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name


def test_ctrl_c_is_no_end_and_the_command_line_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "--recipe gasgd --workers 2 --rho 4 --budget 24steps --clock virtual --model linear"
    assert entry.main(["train", *words.split(), "--out", "whole"]) == 0
    kept = Keeping(every=Budget("steps", 5), flags=read_flags(tmp_path, words, monkeypatch))
    assert kept.flags["recipe"] == "gasgd"
    assert kept.flags["workers"] == 2
    printed = capsys.readouterr()
    assert "to go on: gradsift train --resume --out o" in printed.out
    wrong = ["train", "--resume", "--out", "o", "--optimizer", "adam"]
    assert entry.main(wrong) == 2
    assert "--optimizer adam received, but the run in 'o' was begun with sgd" in (
        capsys.readouterr().err
    )
    assert entry.main(["train", "--resume", "--out", "o", "--delay", "constant:5"]) == 2
    assert entry.main(["train", "--resume", "--out", "o"]) == 0
    found, expected = (
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("o", "whole")
    )
    assert found.pop("command") != expected.pop("command")
    assert found == expected
    assert not (tmp_path / "o" / FOLDER).exists()


def read_flags(folder, words, monkeypatch):
    """A run that is interrupted after ten rounds; returns the flags in its checkpoint."""
    moved = []

    def interrupt(self, share, step):
        moved.append(step)
        if len(moved) == 10:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr("gradsift.cli.watch.Lines.moved", interrupt)
        assert entry.main(["train", *words.split(), "--out", "o"]) == 130
    state = read_latest(folder / "o" / FOLDER)
    assert state is not None
    return state["flags"]


@pytest.mark.parametrize(
    ("changes", "team", "message"),
    [
        ({"optimizer": "adam"}, TEAMS["gasgd"], "has optimizer sgd, received adam"),
        ({}, Workers("gasgd", 3, "uniform:0:5", rho=4), "has count 2, received 3"),
        ({}, TEAMS["ssp"], "has recipe gasgd, received ssp"),
    ],
)
def test_other_settings_are_refused(tmp_path, changes, team, message):
    kill(tmp_path / "o", TEAMS["gasgd"], 8)
    with pytest.raises(UsageError, match=message):
        start(tmp_path / "o", team, AGAIN, **changes)


def test_an_unknown_optimiser_state_is_one_line(tmp_path):
    kill(tmp_path / "o", TEAMS["gasgd"], 8)
    state = read_latest(tmp_path / "o" / FOLDER)
    assert state is not None
    groups = state["loop"]["crew"]["service"]["server"]["optimizer"]["param_groups"]
    groups[0]["rho"] = groups[0].pop("momentum")
    write_checkpoint(tmp_path / "o" / FOLDER, 999, state)
    with pytest.raises(UsageError, match=r"settings momentum, rho differ") as caught:
        start(tmp_path / "o", TEAMS["gasgd"], AGAIN)
    assert "\n" not in str(caught.value)


def test_a_recorded_run_is_played_again(tmp_path):
    """By hand: arrivals and batches in another order give another model, in their own the same."""
    team = Workers("asgd", 2, "constant:0")
    plain = start(tmp_path / "plain", team)
    order = range(STEPS)
    straight = Recording(tuple(Arrival(k % 2, k) for k in order), tuple(order))
    straight.write(tmp_path / "straight.csv")
    again = start(tmp_path / "a", Workers("asgd", 2, f"arrivals:{tmp_path / 'straight.csv'}"))
    assert again.summary.train_loss == plain.summary.train_loss
    turned = Recording(straight.arrivals, tuple(reversed(order)))
    turned.write(tmp_path / "turned.csv")
    other = start(tmp_path / "b", Workers("asgd", 2, f"arrivals:{tmp_path / 'turned.csv'}"))
    assert other.summary.train_loss != plain.summary.train_loss
    with pytest.raises(UsageError, match="has 24 arrivals, but the run has 20 gradients"):
        start(None, Workers("asgd", 2, f"arrivals:{tmp_path / 'turned.csv'}"), steps=20)


def a_crew(script=(), workers=2):
    service = crowd.make_service()
    actors = crowd.Crowd(script)
    tickets = MeasuredTickets(20, crowd.LONGEST)
    stream = iter(crowd.stream(20))
    return ActorsCrew(actors, tickets, stream, service, workers, crowd.rate), actors, service


def test_a_crew_of_processes_brings_its_results_home_and_goes_on(tmp_path):
    whole, actors, service = a_crew()
    for expected in range(1, 21):
        assert whole.advance().received == expected
    whole.refresh()
    assert service.progress.received == 20
    whole.write(tmp_path)
    recording = read_arrivals(tmp_path / RECORDED)
    taken = [
        Ticket(number, arrival.worker, arrival.read, batch)
        for number, (arrival, batch) in enumerate(
            zip(recording.arrivals, recording.batches, strict=True)
        )
    ]
    server, _, average = crowd.replayed(taken, crowd.stream(20))
    assert [w.tolist() for w in service.weights(20)] == [w.tolist() for w in server.weights]
    mean = service.state_dict()["average"]["mean"]
    assert [w.tolist() for w in mean] == [w.tolist() for w in average.weights]
    whole.close()
    assert actors.closed

    first, _, _ = a_crew()
    for _ in range(9):
        first.advance()
    state = first.state_dict()
    first.write(tmp_path / "nowhere")
    second, later, home = a_crew()
    second.load_state_dict(state)
    assert home.progress.received == 9
    assert [second.advance().received for _ in range(11)] == list(range(10, 21))
    assert later.applied == 11


def test_a_crew_tells_what_was_lost():
    crew, _, service = a_crew(
        [(0, 0)] * 6 + [(crowd.DIE, 0)] + [(0, 0)] * 5 + [(crowd.SERVER_BEFORE, 0)]
    )
    told = []
    while crew.advance().received < 20:
        told += crew.news()
    assert (crew.workers_lost, crew.restarts) == (1, 2)
    assert [line.split(" ")[0] for line in told] == ["worker", "the"]
    crew.refresh()
    assert service.progress.received == 20


def test_training_that_cannot_go_on_is_noted(tmp_path, monkeypatch):
    def failing(self):
        raise TrainingError("every worker was lost")

    monkeypatch.setattr("gradsift.trainer.crew.SimulatedCrew.advance", failing)
    with pytest.raises(TrainingError):
        start(tmp_path / "o", TEAMS["gasgd"])
    assert lines(tmp_path / "o", "event")[-1]["name"] == "failed"


def test_real_workers_get_what_the_trainer_has(monkeypatch):
    """The functions that actors are made of, called here: same weights, same gradients."""
    made = {}

    def remember(make_objective, make_service, address):
        made.update(objective=make_objective, service=make_service, address=address)
        return crowd.Crowd()

    monkeypatch.setattr("gradsift.trainer.work.ray_actors", remember)
    team = Workers("gasgd", 2, backend="ray", address="10.0.0.1:6379")
    work = prepare(toy(), settings(20, batch_size=4), team, torch.device("cpu"))
    assert made["address"] == "10.0.0.1:6379"
    ids = torch.tensor([3, 4, 50])
    weights = work.server.weights
    service = made["service"]()
    service.load_state_dict(work.crew.state_dict()["service"])
    assert [w.tolist() for w in service.weights(0)] == [w.tolist() for w in weights]
    gradients = made["objective"]().gradient(weights, ids)
    model = work.model
    x, y = (
        torch.stack([torch.as_tensor(toy().train[k][part]) for k in ids.tolist()])
        for part in (0, 1)
    )
    torch.nn.functional.cross_entropy(model(x), y).backward()
    for mine, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad)

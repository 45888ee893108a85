"""The programs of the delay studies run from end to end, on a table and images that are tiny."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gradsift.models import build_model
from gradsift.trainer.work import shuffled


@pytest.fixture
def tiny(bench, monkeypatch, tmp_path):
    """Two tables of forty rows in place of the seven, and runs of forty updates."""
    problem, table = bench("guided_problem"), bench("guided_table")
    generator = torch.Generator().manual_seed(0)
    for name in list(problem.TABLES):
        monkeypatch.delitem(problem.TABLES, name)
    for name, noise in (("clear", 0.1), ("noisy", 1.5)):
        x = torch.rand(40, 3, generator=generator)
        y = x.sum(1) + noise * torch.randn(40, generator=generator) > 1.5
        rows = [[*(f"{v:.4f}" for v in row), str(int(t))] for row, t in zip(x, y, strict=True)]
        (tmp_path / f"{name}.data").write_text("\n".join(map(",".join, rows)) + "\n")
        kind = problem.Table(f"{name}.data", label=-1, positive=("1",))
        monkeypatch.setitem(problem.TABLES, name, kind)
    monkeypatch.setattr(table, "UPDATES", 40)
    return tmp_path


def run(monkeypatch, module, *words):
    monkeypatch.setattr("sys.argv", ["program", *map(str, words)])
    module.main()


def test_the_table_and_its_figure(bench, tiny, monkeypatch, capsys):
    table, file = bench("guided_table"), tiny / "table.json"
    shown = (*bench("guided_figures").LINES, "gSGD, movement")
    monkeypatch.setattr(table, "SHOWN", shown)
    words = ("--data", tiny, "--delays", 9, 0, 31, "--out", file)
    run(monkeypatch, table, *words)
    printed = capsys.readouterr().out
    assert printed.count("| against |") == 1
    assert printed.count("| within |") == 1
    for delay in (0, 9, 31):
        assert f"final test loss, delay {delay}, tuned rate" in printed
    rows = json.loads(file.read_text())
    keys = {(row["table"], row["arm"], row["delay"], row["rate"]) for row in rows}
    assert len(keys) == len(rows) == 2 * len(table.SHOWN) * 3 * 2
    study = table.begin(table.flags("").parse_args(["--data", str(tiny)]))
    study.simulate(9, ["none"], ["scaled"])
    expected = float(study.results["clear", "none", 9, "scaled"].loss.mean())
    (found,) = (
        row["loss"]
        for row in rows
        if (row["table"], row["arm"], row["delay"], row["rate"]) == ("clear", "none", 9, "scaled")
    )
    assert found == pytest.approx(expected, rel=1e-5)
    run(monkeypatch, bench("guided_figures"), "--numbers", tiny, "--to", tiny)
    drawing = (tiny / "guided-delay.svg").read_text()
    assert all(arm in drawing for arm in bench("guided_figures").LINES)
    assert not (tiny / "guided-margin.svg").exists()


def test_the_default_is_tried_on_splits_of_its_own(bench, tiny, monkeypatch, capsys):
    default = bench("guided_default")
    trial = set(range(default.TRIAL, default.TRIAL + default.TRIAL_SPLITS))
    fresh = set(range(default.NEW, default.NEW + default.NEW_SPLITS))
    looked_at = trial | set(range(30)) | set(range(10_000, 10_010))
    assert not fresh & looked_at
    monkeypatch.setattr(default, "TRIAL_SPLITS", 4)
    words = ("--data", tiny, "--tuned", tiny / "tuned", "--keep", tiny / "kept")
    run(monkeypatch, default, "trial", *words)
    printed = capsys.readouterr().out
    assert all(f"| {arm} |" in printed for arm in default.CANDIDATES)
    monkeypatch.setattr(bench("guided_table"), "tuned_rates", None)
    monkeypatch.setattr(bench("guided_table"), "simulate", None)
    run(monkeypatch, default, "trial", *words)
    assert capsys.readouterr().out == printed
    assert set(json.loads((tiny / "tuned").read_text())) == {"clear", "noisy"}


def test_the_default_is_confirmed_on_new_splits(bench, tiny, monkeypatch, capsys):
    default, arms = bench("guided_default"), bench("guided_arms")
    monkeypatch.setattr(default, "NEW_SPLITS", 5)
    run(monkeypatch, default, "confirm", "--data", tiny, "--out", tiny / "default.json")
    printed = capsys.readouterr().out
    assert printed.count("| against |") == 1
    found = json.loads((tiny / "default.json").read_text())
    assert found["splits"] == 5
    for arm in (arms.DEFAULT, arms.FIRST_DEFAULT):
        assert [row["table"] for row in found["margins"][arm]] == ["clear", "noisy"]
        assert all(row["bound"] <= row["difference"] for row in found["margins"][arm])
    run(monkeypatch, bench("guided_figures"), "--numbers", tiny, "--to", tiny)
    assert arms.DEFAULT in (tiny / "guided-margin.svg").read_text()


def test_the_study_of_drawn_batches(bench, tiny, monkeypatch, capsys):
    sampled, file = bench("guided_sampled"), tiny / "sampled.json"
    run(monkeypatch, sampled, "--data", tiny, "--out", file)
    printed = capsys.readouterr().out
    assert printed.count("share of the gap closed") == 4
    rows = json.loads(file.read_text())
    assert len(rows) == 2 * 3 * 2
    for row in rows:
        assert row["low"] <= row["ratio"] <= row["high"]
        assert row["gain"] > 0.5
        assert 0 < row["age"] < 40
    run(monkeypatch, bench("guided_figures"), "--numbers", tiny, "--to", tiny)
    assert "rate/age" in (tiny / "guided-sampled.svg").read_text()


def images(bench):
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(90, 1, 28, 28, generator=generator)
    y = torch.arange(90) % 3
    x[:, 0, :4] += y.reshape(-1, 1, 1)
    return bench("guided_network").Images(x[:70], y[:70], x[70:], y[70:])


def test_the_network_without_delay_is_a_plain_loop(bench):
    network, arms = bench("guided_network"), bench("guided_arms")
    data = images(bench)
    for name in ("none", "none, averaged"):
        found = network.Training(data, arms.ALL[name], 0, 0.1, 4)
        loss, error = found.run(12)
        generator = torch.Generator().manual_seed(4)
        model = build_model("cnn", (1, 28, 28), 10, generator=generator)
        optimizer, kept = torch.optim.SGD(model.parameters(), lr=0.1), []
        batches = shuffled(torch.arange(70), 32, torch.Generator().manual_seed(4))
        for _ in range(12):
            ids = next(batches)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data.x[ids]), data.y[ids]).backward()
            optimizer.step()
            kept.append([p.detach().clone() for p in model.parameters()])
        tail = kept[6:] if name.endswith("averaged") else kept[-1:]
        with torch.no_grad():
            for place, parameter in enumerate(model.parameters()):
                parameter.copy_(torch.stack([weights[place] for weights in tail]).mean(0))
            outputs = model(data.other_x)
        expected = nn.functional.cross_entropy(outputs, data.other_y)
        assert loss == pytest.approx(float(expected), rel=1e-4)
        wrong = (outputs.argmax(1) != data.other_y).double().mean()
        assert error == pytest.approx(100 * float(wrong))


def test_the_network_makes_as_many_updates_with_every_arm(bench):
    network, arms = bench("guided_network"), bench("guided_arms")
    data = images(bench)
    for name in ("gSGD (consistent)", "rate/age, replay", "table", "rate/age, uniform draws"):
        training = network.Training(data, arms.ALL[name], 3, 0.05, 0)
        training.run(30)
        assert 30 <= training.server.version <= 34
        if training.drawn is not None:
            assert training.drawn.examples == 30 * network.SIZE
            assert training.drawn.gain == pytest.approx(1.0) or name == "table"


def test_the_network_s_program(bench, monkeypatch, tmp_path, capsys):
    network = bench("guided_network")
    data = images(bench)
    monkeypatch.setattr(network, "read_images", lambda: (data, data))
    file = tmp_path / "network.json"
    words = ("--seeds", 0, 1, "--updates", 11, "--arms", "none", "rate/age", "--out", file)
    run(monkeypatch, network, *words)
    printed = capsys.readouterr().out
    assert printed.count("tuning: learning rate") == len(network.GRID)
    rows = [SimpleNamespace(**row) for row in json.loads(file.read_text())]
    assert [(row.seed, row.arm, row.delay) for row in rows] == [
        (seed, arm, delay)
        for seed in (0, 1)
        for arm, delay in (("none", 0), ("table", 0), ("none", 9), ("rate/age", 9))
    ]
    assert len({row.lr for row in rows}) == 1
    assert all(row.loss > 0 and 0 <= row.error <= 100 for row in rows)
    assert rows[1].age > 0


def test_lost_weights_count_as_infinitely_bad(bench):
    network, data = bench("guided_network"), images(bench)
    model = build_model("cnn", (1, 28, 28), 10, generator=torch.Generator())
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    assert network.judged(model, data)[0] == float("inf")

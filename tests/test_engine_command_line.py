"""`gradsift train --engine`, the engine in the summary, `gradsift status`."""

import json
from pathlib import Path

import pytest

from gradsift import DataError, UsageError
from gradsift.cli.entry import main
from gradsift.cli.status import describe
from gradsift.engine.interface import AbstractEngine
from gradsift.trainer.searching import check_engine, make_engine
from gradsift.trainer.settings import Settings

FAST = ["--data", "digits", "--model", "linear", "--clock", "virtual", "--budget", "4ep"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "a"
    assert main(["train", *FAST, "--engine", "inline", "--out", str(out)]) == 0
    return out


def test_the_summary_names_the_engine_and_the_recipe(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["engine"] == {"kind": "inline", "workers_lost": 0, "restarts": 0}
    assert summary["recipe"] == "issgd"
    assert summary["examples_scored"] > 0
    assert summary["seconds_scoring"] > 0
    assert summary["gate"]["state"] == "on"


def test_measurements_follow_the_search(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    states = [line for line in lines if line.get("name") == "engine"]
    assert len(states) > 10
    assert states[0]["delivered"] == 0
    delivered = [state["delivered"] for state in states]
    assert delivered == sorted(delivered)
    assert states[-1]["usable"] == 1


def test_status_reads_a_run_at_any_moment(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", str(folder)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert ": finished; step " in said[0]
    assert said[1] == "engine: inline, 1 workers, 0 lost, 0 restarts"
    assert "100 % of the examples usable" in said[2]
    assert "in the median" in said[3]
    assert said[4].startswith("parameters: published ")
    assert said[5].startswith("variance: ")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:1]))
    early = describe(tmp_path)
    assert "running, or stopped before its end; step 0" in early[0]
    assert early[1] == "engine: none"
    state = next(line for line in reversed(lines) if '"name": "engine"' in line)
    odd = {**json.loads(state), "set_aside": [3, 7], "workers": 0, "age": None}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(odd))
    assert describe(tmp_path)[-1] == "set aside: blocks 3, 7"


def test_status_of_nothing_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == 2
    assert "name the folder of a run" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(DataError, match="has only begun"):
        describe(tmp_path)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--engine", "cloud"], "engine 'cloud' is unknown: choose one of inline, local, ray"),
        (["--scorers", "2"], "2 scorers received, but the engine is none"),
        (["--engine", "inline", "--scorers", "2"], "2 scorers received, but the engine is inline"),
        (["--engine", "local", "--scorers", "0"], "0 scorers received, expected at least 1"),
        (["--engine", "local", "--ray-address", "x"], "Ray address 'x' received"),
        (["--engine", "inline", "--recipe", "pool"], "takes no scores from an engine"),
    ],
)
def test_wrong_flags_are_one_line_and_write_nothing(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *FAST, *flags, "--out", str(tmp_path / "b")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "b" / "summary.json").exists()


def test_an_engine_makes_issgd_the_default_recipe() -> None:
    assert Settings(engine="local").assembled().name == "issgd"
    assert Settings(engine="local", recipe="issgd2015").assembled().name == "issgd2015"
    assert Settings().assembled().name == "auto"
    with pytest.raises(UsageError, match="0 scorers"):
        check_engine("local", 0, None)


@pytest.mark.parametrize(("examples", "block"), [(10, 32), (1600, 100), (10**6, 512)])
def test_blocks_follow_the_size_of_the_data(examples: int, block: int) -> None:
    engine = make_engine("local", 3, examples=examples, opening=int)
    assert isinstance(engine, AbstractEngine)
    assert (engine.options.block, engine.options.dataset) == (block, int)
    assert make_engine(None, examples=examples) is None


def test_only_workers_beside_the_training_evaluate() -> None:
    asked = {"evaluate": {"train": None, "test": None}, "error": abs}
    for name, expected in (("inline", {}), ("local", asked["evaluate"])):
        engine = make_engine(name, examples=100, **asked)
        assert engine is not None
        assert engine.options.evaluate == expected


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_digits_with_workers(engine: str, tmp_path: Path) -> None:
    if engine == "ray":
        pytest.importorskip("ray")
    out = tmp_path / "run"
    flags = ["--data", "digits", "--model", "linear", "--budget", "15s"]
    assert main(["train", *flags, "--engine", engine, "--scorers", "2", "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["engine"]["kind"] == engine
    assert summary["test_error"] < 0.1
    assert summary["examples_scored"] > 0
    assert f"{engine} engine" in summary["gate"]["reason"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    curves = [line for line in lines if line.get("name") == "curve"]
    assert {line["set"] for line in curves} <= {"train", "test"}
    assert all(0 <= line["error"] <= 1 for line in curves)
    assert {line["examples"] for line in curves} <= {1442, 355}

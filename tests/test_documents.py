"""What the documents say is run: code blocks, links, commands."""

import re
import shlex
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gradsift
from gradsift.cli import entry
from gradsift.cli.suspects import suspects_command
from gradsift.cli.train import train as train_command
from gradsift.recipes import recipes

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def prepared() -> dict[str, Any]:
    """What a reader of the README has at hand."""
    data = TensorDataset(torch.randn(64, 5), torch.randint(3, (64,)))
    model = nn.Linear(5, 3)
    return {
        "train_loader": DataLoader(data, batch_size=16, shuffle=True),
        "model": model,
        "loss_fn": nn.CrossEntropyLoss(reduction="none"),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }


def test_the_five_lines_and_the_recipe_run_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = prepared()
    for block in blocks(README, "python"):
        exec(compile(block, "README.md", "exec"), names)
    told = re.compile(r"(on|off): (table|nothing is measured yet|the first pass)")
    assert told.match(capsys.readouterr().out)
    assert (tmp_path / "runs/a/metrics.jsonl").stat().st_size > 0
    assert isinstance(names["recipe"], gradsift.Recipe)


def test_the_page_on_resuming_runs_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own assertion says that the run that goes on ends with the same parameters."""
    monkeypatch.chdir(tmp_path)
    names = prepared()
    data = names["train_loader"].dataset
    names["loader_of_another_process"] = DataLoader(data, batch_size=16, shuffle=True)
    page = (ROOT / "docs" / "resume.md").read_text(encoding="utf-8")
    with torch.random.fork_rng():
        for block in blocks(page, "python"):
            exec(compile(block, "resume.md", "exec"), names)
    assert (tmp_path / "run.pt").stat().st_size > 0


def test_the_page_on_engines_runs_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
    (block,) = blocks(page, "python")
    exec(compile(block, "engines.md", "exec"), prepared())
    said = "on: draws by the scores of the inline engine, all of them seen, "
    assert capsys.readouterr().out.startswith(said)
    assert '"name": "curve", "set": "train"' in (tmp_path / "runs/engine/metrics.jsonl").read_text()


def test_every_block_of_your_own_loop_runs_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one of one process; two of them are in `test_citizen_ranks.py`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    for name, value in (("MASTER_ADDR", "localhost"), ("MASTER_PORT", port)):
        monkeypatch.setenv(name, value)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    page = (ROOT / "docs/your-own-loop.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    found = blocks(page, "python")
    assert len(found) == page.count("\n## ") - 1
    for block in found:
        names.pop("train", None)
        names |= prepared()
        before = [value.detach().clone() for value in names["model"].parameters()]
        exec(compile(block, "your-own-loop.md", "exec"), names)
        after = list(names["model"].parameters())
        assert len(before) != len(after) or not torch.equal(before[0], whole(after[0]))


def test_the_page_on_wrong_labels_runs_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = prepared()
    page = (ROOT / "docs" / "label-noise.md").read_text(encoding="utf-8")
    for block in blocks(page, "python"):
        exec(compile(block, "label-noise.md", "exec"), names)
    assert float(capsys.readouterr().out) > 0
    assert len(names["suspicious"]) == 10
    assert entry.main(["suspects", "runs/mine"]) == 0
    assert "id  label  model" in capsys.readouterr().out
    words = {word for line in blocks(page, "sh") for word in shlex.split(line)}
    assert {word for word in words if word.startswith("--")} <= {
        f"--{name.replace('_', '-')}"
        for command in (train_command, suspects_command)
        for name in command.__annotations__
    }


def whole(parameter: Any) -> torch.Tensor:
    return parameter._local_tensor if hasattr(parameter, "device_mesh") else parameter


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(path: Path) -> None:
    named = re.findall(r"`((?:docs|benchmarks|tests|examples|src)/[\w./-]+)`", path.read_text())
    for name in named:
        assert (ROOT / name).exists(), f"{path.name} names {name}"


def test_the_table_of_recipes_is_complete() -> None:
    listed = re.findall(r"^\| `([\w-]+)`", README, re.MULTILINE)
    assert sorted(listed) == sorted(recipes)


def test_every_flag_that_is_shown_exists() -> None:
    known = {name.replace("_", "-") for name in train_command.__annotations__}
    shown = [
        word[2:]
        for path in DOCUMENTS
        for block in blocks(path.read_text(encoding="utf-8"), "sh")
        for line in block.splitlines()
        if line.startswith("gradsift train ")
        for word in shlex.split(line)
        if word.startswith("--")
    ]
    assert shown
    assert set(shown) <= known


def test_makefile_targets_of_the_documents_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in DOCUMENTS:
        for used in re.findall(r"^make (\w+)|`make (\w+)`", path.read_text(), re.MULTILINE):
            assert ({*used} - {""}) <= targets


def test_the_lock_names_exact_versions_and_no_index() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert "torch==2.13.0" in lines
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)

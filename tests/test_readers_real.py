"""The second tier: every data set that docs/data.md lists trains by the command that it lists."""

import os
import re
import shlex
from pathlib import Path

import pytest

from gradsift.cli import entry
from gradsift.report.runs import read_run

DATA = os.environ.get("GRADSIFT_DATA")
DOCUMENT = Path(__file__).parents[1] / "docs" / "data.md"
COMMANDS = re.findall(r"^\| `gradsift (train [^`]+)`", DOCUMENT.read_text(), re.MULTILINE)


def test_the_document_lists_the_commands() -> None:
    assert len(COMMANDS) >= 12
    assert all("--data" in command for command in COMMANDS)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(DATA is None, reason="GRADSIFT_DATA names no folder with real data")
@pytest.mark.parametrize("command", COMMANDS)
def test_real_data_train_by_one_command(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(command)
    words[words.index("--budget") + 1] = "5steps"
    out = tmp_path / "o"
    status = entry.main([*words, "--out", str(out)])
    error = capsys.readouterr().err
    if "cifar10" in command and "does not exist" in error:
        pytest.skip("CIFAR-10 is not unpacked below GRADSIFT_DATA")
    assert status == 0, error
    assert read_run(out).summary.steps == 5

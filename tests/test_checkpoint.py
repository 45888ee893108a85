"""Checkpoints are whole or not there, whatever happens while they are written or afterwards."""

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradsift import checkpoint
from gradsift.checkpoint import (
    checkpoints,
    read_checkpoint,
    read_latest,
    remove_checkpoints,
    write_checkpoint,
)
from gradsift.errors import DataError, UsageError

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=5), plain))
def test_what_is_written_is_read(tmp_path_factory: Any, state: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("kept")
    write_checkpoint(folder, 3, state)
    assert read_latest(folder) == state


def test_tensors_come_back_to_the_bit(tmp_path: Path) -> None:
    state = {"w": torch.randn(3, 4, dtype=torch.float64), "ids": torch.arange(5)}
    found = read_checkpoint(write_checkpoint(tmp_path, 1, state))
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_the_last_two_are_kept_by_step_and_nothing_else_is_touched(tmp_path: Path) -> None:
    (tmp_path / "step-notes.txt").write_text("mine")
    for step in (1, 2, 10, 9_999_999):
        write_checkpoint(tmp_path, step, {"step": step})
    assert [read_checkpoint(path)["step"] for path in checkpoints(tmp_path)] == [10, 9_999_999]
    assert (tmp_path / "step-notes.txt").read_text() == "mine"
    remove_checkpoints(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-notes.txt"]


def test_no_folder_no_checkpoint(tmp_path: Path) -> None:
    assert read_latest(tmp_path / "none") is None
    remove_checkpoints(tmp_path / "none")
    write_checkpoint(tmp_path / "some", 1, {})
    remove_checkpoints(tmp_path / "some")
    assert not (tmp_path / "some").exists()


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("moment", ["open", "half", "fsync", "replace", "flush", "tidy"])
def test_killed_while_writing_it_leaves_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    for step in (1, 2):
        write_checkpoint(tmp_path, step, {"step": step})

    def die(*arguments: Any, **named: Any) -> Any:
        if moment == "half":
            path = next(tmp_path.glob("*.tmp"))
            os.truncate(path, path.stat().st_size // 2)
        raise Killed

    places: dict[str, tuple[Any, str]] = {
        "open": (Path, "open"),
        "half": (os, "fsync"),
        "fsync": (os, "fsync"),
        "replace": (Path, "replace"),
        "flush": (checkpoint, "flush_folder"),
        "tidy": (Path, "unlink"),
    }
    with monkeypatch.context() as patched:
        owner, name = places[moment]
        patched.setattr(owner, name, die)
        with pytest.raises(Killed):
            write_checkpoint(tmp_path, 3, {"step": 3})
    renamed = moment in ("flush", "tidy")
    assert read_latest(tmp_path) == {"step": 3 if renamed else 2}
    write_checkpoint(tmp_path, 4, {"step": 4})
    left = [path.name for path in sorted(tmp_path.iterdir())]
    assert left == [f"step-{step:012d}.ckpt" for step in ((3 if renamed else 2), 4)]


def truncated(good: bytes) -> bytes:
    return good[:-7]


def damaged(good: bytes) -> bytes:
    return good[:-50] + bytes([good[-50] ^ 1]) + good[-49:]


def empty(good: bytes) -> bytes:
    return b""


def foreign(good: bytes) -> bytes:
    return good.partition(b"\n")[2]  # a file of torch.save


def other_json(good: bytes) -> bytes:
    return b'{"kind": "eval", "step": 3}\n'


def half_a_head(good: bytes) -> bytes:
    return good[:30]


def sealed(body: bytes, version: int = checkpoint.VERSION) -> bytes:
    head = {
        "format": checkpoint.FORMAT,
        "version": version,
        "sha256": hashlib.sha256(body).hexdigest(),
        "bytes": len(body),
    }
    return json.dumps(head).encode() + b"\n" + body


def newer(good: bytes) -> bytes:
    return sealed(good.partition(b"\n")[2], version=checkpoint.VERSION + 1)


class Malice:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pwned",)


def malicious(good: bytes) -> bytes:
    file = io.BytesIO()
    torch.save({"model": Malice()}, file)
    return sealed(file.getvalue())


def no_archive(good: bytes) -> bytes:
    return sealed(b"hello")


BAD = {
    truncated: (DataError, "is cut off"),
    damaged: (DataError, "is damaged"),
    empty: (DataError, "it is empty"),
    foreign: (DataError, "no gradsift checkpoint"),
    other_json: (DataError, "no gradsift checkpoint"),
    half_a_head: (DataError, "no gradsift checkpoint"),
    newer: (UsageError, "written by a newer gradsift"),
    malicious: (DataError, "more than plain tensors"),
    no_archive: (DataError, "more than plain tensors"),
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_a_bad_one_is_refused_in_one_line_that_names_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "kept"
    before, last = (write_checkpoint(folder, step, {"step": step}) for step in (1, 2))
    kept = before.read_bytes()
    last.write_bytes(spoil(last.read_bytes()))
    kind, message = BAD[spoil]
    with pytest.raises(kind, match=message) as refused:
        read_latest(folder)
    assert "\n" not in str(refused.value)
    assert str(before) in str(refused.value)
    assert "is intact" in str(refused.value)
    assert before.read_bytes() == kept
    assert not (tmp_path / "pwned").exists()
    last.unlink()
    assert read_latest(folder) == {"step": 1}


def test_where_none_is_intact_it_says_so(tmp_path: Path) -> None:
    for step in (1, 2):
        path = write_checkpoint(tmp_path, step, {"step": step})
        path.write_bytes(truncated(path.read_bytes()))
    with pytest.raises(DataError, match="no other checkpoint is intact"):
        read_latest(tmp_path)


def test_the_malice_of_this_test_is_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = io.BytesIO()
    torch.save(Malice(), file)
    file.seek(0)
    torch.load(file, weights_only=False)
    assert (tmp_path / "pwned").exists()

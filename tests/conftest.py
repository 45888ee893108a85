"""One thread, repeatable examples, and no test that leaks state into the next one."""

import importlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("gradsift", derandomize=True, deadline=None)
hypothesis.settings.load_profile("gradsift")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Imports a benchmark by name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module


@pytest.fixture(autouse=True)
def _nothing_leaks() -> Iterator[None]:
    before = _process_state()
    yield
    assert _process_state() == before


def _process_state() -> dict[str, object]:
    libraries = (
        "PYTEST_",
        "TORCHINDUCTOR_",
        "KMP_",
        "RAY_",
        "PYTHONBREAKPOINT",
    )  # set at their own first use
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith(libraries)
    }
    return {
        "environment": variables,
        "default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "SIGINT": signal.getsignal(signal.SIGINT),
        "threads": {thread.name for thread in threading.enumerate() if not thread.daemon},
    }

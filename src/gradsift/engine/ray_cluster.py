"""Ray itself: whether it is there, how a cluster is joined or started, what runs as an actor."""

import os
import pickle
import socket
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gradsift.engine.task import Examiner
from gradsift.errors import UsageError

ray: Any
try:
    import ray as _ray
except ImportError:
    ray = None
else:
    ray = _ray

CONNECTING = 10.0
"""Seconds that the head node of a cluster may take to answer."""


class Scorer:
    """What runs as an actor. Ray rebuilds it by its constructor, so it has no other state.

    Args:
        packed: a pickled `Task`, which the trainer sent to this actor alone.
    """

    def __init__(self, packed: bytes) -> None:
        torch.set_num_threads(1)
        self._examiner = Examiner(pickle.loads(packed))

    def ready(self) -> str | None:
        """What should be said about the data."""
        return self._examiner.notice

    def answer(
        self,
        first: Mapping[str, Tensor],
        moved: Mapping[str, Tensor],
        version: int,
        start: int,
        stop: int,
        part: int,
    ) -> tuple[Tensor, float]:
        """Scores one block, or evaluates a slice, with parameters that came with the call.

        Args:
            first: the set that was published first.
            moved: what is put over it to make a whole set.
            version: of that.
            start: as of the `Block`, like the others.
            stop: likewise.
            part: likewise.
        """
        before = time.perf_counter()
        if version != self._examiner.version:
            # Ray's store is read-only memory; loading copies out of it.
            self._examiner.load({**first, **moved}, version)
        scores = self._examiner.answer(start, stop, part)
        return scores, time.perf_counter() - before


def connect(address: str | None) -> bool:
    """Joins a cluster, or starts one; returns whether it is ours to stop.

    Raises:
        UsageError: when neither works.
    """
    if ray.is_initialized():
        _check_same(address, str(ray.get_runtime_context().gcs_address))
        return False
    _check_reachable(address)
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        if address is not None:
            ray.init(address=address, **quiet)
            return False
        ray.init(include_dashboard=False, **quiet)
    except Exception as error:
        raise UsageError(
            f"Ray at {address or 'this machine'} cannot be reached or started "
            f"({reason_of(error)}): check the address, and that the token of the cluster is set"
        ) from error
    return True


def start_actor(kind: type, packed: bytes | None, *, ours: bool, gpu: bool = False) -> Any:
    """An actor that is made of pickled bytes; restarts are left to whoever counts them.

    On a cluster of our own actors ask for no CPU: those beyond the cores would wait for ever. On a
    joined one each asks for a CPU, or a GPU, spread over nodes.
    """
    needs = {"num_cpus": 0, "num_gpus": 1} if gpu else {"num_cpus": 0 if ours else 1}
    path = {"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}}
    options = {**needs, "max_restarts": 0, "scheduling_strategy": "SPREAD", "runtime_env": path}
    return ray.remote(kind).options(**options).remote(packed)


def _check_same(asked: str | None, joined: str) -> None:
    """One process can be connected to one cluster only."""
    host, _, port = (asked or "").rpartition(":")
    here, _, there = joined.rpartition(":")
    if not port.isdigit() or "://" in host:
        return
    local = {"127.0.0.1", "localhost"}
    if port != there or not (host == here or {host, here} & local):
        raise UsageError(
            f"Ray at {asked} was asked for, and this process is connected to the cluster at "
            f"{joined}: call ray.shutdown() first, or give that address"
        )


def _check_reachable(address: str | None) -> None:
    """Ray itself tries for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECTING).close()
    except OSError as error:
        raise UsageError(
            f"Ray at {address} cannot be reached ({error.strerror or error}): check the address, "
            "and that the head node runs"
        ) from error


def reason_of(error: BaseException) -> str:
    r"""What went wrong inside an actor, on one line.

    Example:
        >>> reason_of(ValueError("two\nlines"))
        'ValueError: two lines'
    """
    cause = getattr(error, "cause", None) or error
    return " ".join(f"{type(cause).__name__}: {cause}".split())[-400:]

"""Workers as actors on a Ray cluster.

Extra ``ray``. Without an address a cluster of our own is started on this machine, its dashboard
off, and stopped at the end; one that runs already, or that an address names, is joined and left as
it was.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

from torch import Tensor

from gradsift.engine.interface import AbstractEngine, Block, EngineState, Options, Scored
from gradsift.engine.ledger import Lease, Ledger, Sent, back_off
from gradsift.engine.outbox import Changes, Outbox, bytes_of
from gradsift.engine.packing import pack
from gradsift.engine.ray_cluster import Scorer, connect, ray, reason_of, start_actor
from gradsift.errors import UsageError

DEPTH = 2
"""Calls that one actor may have: one in work, one that waits."""

STARTING = 30.0


@dataclass(eq=False)
class _Post:
    """One actor's place."""

    number: int
    actor: Any = None
    waking: Any = None
    losses: int = 0
    restart_at: float = 0.0
    calls: dict[Any, tuple[Lease, int, float]] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        return self.actor is not None and self.waking is None


@final
class RayEngine(AbstractEngine):
    """Actors of a Ray cluster. Parameters go through its object store, once per node and version.

    On a cluster of our own, actors ask for no CPU: those beyond the cores would wait for ever. On a
    joined one each asks for a CPU, or a GPU where ``options.device`` is one, spread over nodes.

    Bytes over the wire: the parameters that have changed since the first publication, once per node
    and publication; 4 bytes per score; about a kilobyte for each call.

    Args:
        options: as for any engine.
        scorers: how many actors.
        address: of a cluster to join; None uses the one that this process is connected to, or
            starts one.
        patience: seconds that one block may take.
    """

    kind: ClassVar[str] = "ray"

    def __init__(
        self,
        options: Options,
        scorers: int = 1,
        address: str | None = None,
        patience: float = 60.0,
    ) -> None:
        if ray is None:
            raise UsageError("the Ray engine needs ray: run pip install 'gradsift[ray]'")
        if scorers < 1 or not patience > 0:
            raise UsageError(
                f"the Ray engine received {scorers} scorers and a patience of {patience} s, "
                "expected at least one worker, and a positive number of seconds"
            )
        self.options = options
        self._posts = [_Post(number) for number in range(scorers)]
        self._address = address
        self._patience = patience
        self._ledger = Ledger()
        self._ours = False
        self._packed: bytes | None = None
        self._outbox = Outbox(options.precision)
        self._changes = Changes()
        self._sent = Sent()
        self._first: Any = None
        self._moved: Any = None
        self._version = -1
        self._lost = 0
        self._restarts = 0

    def start(self, task: Any) -> None:
        """Starts or joins a cluster, and waits for the first actor that is ready."""
        self._packed = pack(task)
        self._ours = connect(self._address)
        now = time.monotonic()
        for post in self._posts:
            self._hire(post, now)
        try:
            self._wait_for_one(now)
        except UsageError:
            self.close()
            raise

    def publish(self, parameters: Mapping[str, Tensor], version: int) -> None:
        """Puts a copy into the object store; actors get it with their next block."""
        self._outbox.put(parameters, version)
        self._send()

    def request(self, blocks: Sequence[Block]) -> None:
        """Queues blocks, and hands them out as far as actors have room."""
        self._ledger.ask(blocks)
        self._send()
        self._hand_out(time.monotonic())

    def collect(self, wait: float = 0.0) -> list[Scored]:
        """Takes what is ready, replaces lost actors, hands out what waits."""
        found = self._look(0.0)
        return found or (self._look(wait) if wait > 0 else found)

    def close(self) -> None:
        """Ends the actors; stops the cluster only if it is ours."""
        self._packed = None
        connected = ray.is_initialized()
        for post in self._posts:
            self._ledger.lost(post.number, None, "closed")
            post.calls.clear()
            if post.actor is not None and connected:
                ray.kill(post.actor)
            post.actor = post.waking = None
        self._first = self._moved = None
        if self._ours and connected:
            ray.shutdown()
        self._ours = False

    @property
    def room(self) -> int:
        """Free calls of all actors, without what waits already."""
        ready = [post for post in self._posts if post.ready] or self._posts
        free = sum(DEPTH - len(post.calls) for post in ready)
        return max(0, free - self._ledger.waiting)

    @property
    def state(self) -> EngineState:
        """Actors that are ready, and what has happened to others."""
        ready = sum(post.ready for post in self._posts)
        return self._ledger.state(
            self.kind,
            workers=ready,
            lost=self._lost,
            restarts=self._restarts,
            published=self._sent,
        )

    def news(self) -> list[str]:
        """Losses, failures, remarks."""
        return self._ledger.told()

    def _send(self) -> None:
        if (found := self._outbox.take()) is None:
            return
        values, self._version = found
        first, moved = self._changes.split(values)
        if first is not None:
            self._first = ray.put(first)
        self._moved = ray.put(moved)
        self._sent.add(bytes_of(first or moved))

    def _hire(self, post: _Post, now: float) -> None:
        gpu = (self.options.device or "cpu").startswith("cuda")
        # Restarts are ours, so that they are counted, slowed down and told.
        post.actor = start_actor(Scorer, self._packed, ours=self._ours, gpu=gpu)
        post.waking = post.actor.ready.remote()
        post.restart_at = now

    def _wait_for_one(self, since: float) -> None:
        while not any(post.ready for post in self._posts):
            for post in self._posts:
                if (error := self._wake(post, 0.2)) is not None:
                    raise UsageError(f"an actor of the Ray engine cannot start: {reason_of(error)}")
            if time.monotonic() - since > STARTING:
                raise UsageError(
                    f"no actor of the Ray engine was ready after {STARTING:g} s: the cluster has "
                    f"{ray.available_resources().get('CPU', 0):g} free CPUs and "
                    f"{ray.available_resources().get('GPU', 0):g} free GPUs; free some, or ask "
                    "for less"
                )

    def _wake(self, post: _Post, wait: float) -> Exception | None:
        """Looks whether an actor is ready; returns what keeps it from being."""
        done, _ = ray.wait([post.waking], timeout=wait)
        if not done:
            return None
        try:
            notice = ray.get(post.waking)
        except ray.exceptions.RayError as error:
            return error
        post.waking = None
        if notice:
            self._ledger.news.append(notice)
        return None

    def _look(self, wait: float) -> list[Scored]:
        self._send()
        now = time.monotonic()
        refs = [ref for post in self._posts for ref in post.calls]
        if refs:
            ray.wait(refs, num_returns=1, timeout=wait)
        elif wait > 0:
            time.sleep(min(wait, 0.05))
        found: list[Scored] = []
        for post in self._posts:
            if post.waking is not None:
                error = self._wake(post, 0)
                if error is not None:
                    self._lose(post, f"could not start ({reason_of(error)})", None, now)
            elif post.ready:
                found += self._listen(post, now)
            elif self._packed is not None and now >= post.restart_at:
                self._hire(post, now)
                self._restarts += 1
        self._hand_out(now)
        return found

    def _listen(self, post: _Post, now: float) -> list[Scored]:
        found: list[Scored] = []
        while post.calls:
            ref, (lease, version, since) = next(iter(post.calls.items()))
            if not ray.wait([ref], timeout=0)[0]:
                if now - since > self._patience:
                    self._lose(post, f"was silent for {now - since:.0f} s", lease.ticket, now)
                break
            del post.calls[ref]
            self._start_next(post, now)
            try:
                scores, seconds = ray.get(ref)
            except ray.exceptions.RayTaskError as error:
                self._ledger.failed(lease.ticket, reason_of(error))
                continue
            except ray.exceptions.RayError as error:
                self._lose(post, f"ended ({type(error).__name__})", lease.ticket, now)
                break
            if (block := self._ledger.done(lease.ticket)) is not None:
                post.losses = 0
                found.append(Scored(block, scores.clone(), version, seconds))
        return found

    def _start_next(self, post: _Post, now: float) -> None:
        """The oldest call left begins now, as far as we know."""
        for ref, (lease, version, _) in post.calls.items():
            post.calls[ref] = (lease, version, now)
            return

    def _lose(self, post: _Post, how: str, ticket: int | None, now: float) -> None:
        ray.kill(post.actor)
        post.actor = post.waking = None
        post.calls.clear()
        post.losses += 1
        post.restart_at = now + back_off(post.losses)
        self._lost += 1
        wait = post.restart_at - now
        reason = f"actor {post.number} {how}"
        self._ledger.news.append(f"{reason}: started again {f'in {wait:g} s' if wait else 'now'}")
        self._ledger.lost(post.number, ticket, reason)

    def _hand_out(self, now: float) -> None:
        if self._moved is None:
            return
        for post in self._posts:
            while post.ready and len(post.calls) < DEPTH:
                lease = self._ledger.lease(post.number)
                if lease is None:
                    return
                block = lease.block
                place = (block.start, block.stop, block.part)
                ref = post.actor.answer.remote(self._first, self._moved, self._version, *place)
                post.calls[ref] = (lease, self._version, now)

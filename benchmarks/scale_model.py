"""Scoring workers, links and table owners as events: how old are scores when they are drawn by?

Every worker always has work, because a sweep begins again where it ends. So its own times follow
from its own services alone, whoever else there is, and all workers advance together, one block each
in a round: cumulated sums instead of a queue of events. Sorting what they began by time tells
which block each one had; owners are single servers, whose waiting times are a running maximum
(Lindley, 1952). `tests/test_scale_sim.py` holds the same machine as a loop over single events.

Left out: leases that wait at a worker (two of them, one block's time), faults, and scores that
matter more than others: blocks are swept round-robin.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradsift.engine.seat import LANES

HEADER = 48
"""Bytes of a record of the local engine; what any message costs besides its numbers."""

FULLEST = 0.95
"""Share of its time that an owner or a link works at most: beyond, workers wait for leases."""

SWEEPS = 2
"""Before ages are looked at, over one more sweep or one more publication, the longer of them."""

LOOKS = 48
"""Moments at which all ages are looked at."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Costs:
    """What the library's own work costs, in seconds.

    Attributes:
        draw: of one batch out of a table.
        update: of one score in the table.
        copy: of one byte of parameters.
    """

    draw: float
    update: float
    copy: float


@dataclass(frozen=True)
class Setting:
    """One system.

    Attributes:
        examples: N.
        workers: W.
        rate: examples per second that one worker scores.
        step: seconds of a training step alone.
        parameters: bytes of a published set.
        link: bytes per second that one machine sends, and as many that it receives.
        latency: seconds of a message.
        owners: machines that keep a part of the table each; 0: the trainer keeps it, as the
            engines of this library do.
        every: training steps between publications.
        batch: examples per step.
        block: examples scored together.
        fanout: copies of the parameters that one machine sends on; with W of them the trainer
            sends all itself.
        window: batches that are drawn together.
        spread: standard deviation of the logarithm of a block's seconds.
        slow: share of the workers that take three times as long.
        striped: whether successive blocks belong to different owners.
        seed: of the spread.
    """

    examples: int
    workers: int
    rate: float
    step: float
    parameters: float
    link: float
    latency: float = 1e-4
    owners: int = 0
    every: int = 32
    batch: int = 1024
    block: int = 512
    fanout: int = 2
    window: int = 16
    spread: float = 0.1
    slow: float = 0.0
    striped: bool = True
    seed: int = 0

    @property
    def blocks(self) -> int:
        """Of a sweep."""
        return -(-self.examples // self.block)

    @property
    def rates(self) -> Floats:
        """Of every worker."""
        rates = np.full(self.workers, self.rate)
        rates[: int(self.slow * self.workers)] /= 3
        return rates

    @property
    def block_bytes(self) -> float:
        """Of the scores of one block on their way."""
        return HEADER + 4.0 * self.block


@dataclass(frozen=True)
class Pace:
    """How fast everything goes once it has settled.

    Attributes:
        step: seconds between two steps of the trainer, with all that it does besides.
        rate: examples per second that all workers together get into the table.
        throttle: how many times slower workers are than they could be, waiting for leases.
        stride: publications take place at every so-manieth moment, as the link is free again.
        delays: seconds from the start of a publication until each worker has it.
        busy: share of its time that the busiest owner works.
    """

    step: float
    rate: float
    throttle: float
    stride: int
    delays: Floats
    busy: float

    def cycle(self, setting: Setting) -> float:
        """Seconds after which ages repeat: of a sweep or of a publication, the longer."""
        interval = self.stride * setting.every * self.step
        return max(setting.examples / self.rate, interval)

    def share(self, setting: Setting) -> float:
        """Of the trainer's time, that it trains."""
        return setting.step / self.step


def depths(workers: int, fanout: int) -> Ints:
    """How many times parameters are sent on until each worker has them: a full tree.

    Machine 0 is the trainer, and machine k gets them from machine ``(k − 1)//fanout``.
    """
    machine = np.arange(1, workers + 1)
    found = np.zeros(workers, np.int64)
    while (machine > 0).any():
        found += machine > 0
        machine = np.where(machine > 0, (machine - 1) // fanout, 0)
    return found


def settle(setting: Setting, costs: Costs) -> Pace:
    """Speeds that fit together: what the trainer takes in slows its steps, and those its intake."""
    messages = 4 * setting.latency / setting.window if setting.owners else 0.0
    own = setting.step + costs.draw + messages + costs.copy * setting.parameters / setting.every
    could = float(setting.rates.sum())
    if setting.owners:
        step, rate, busy = own, *_owned(setting, costs, could)
    else:
        step, rate, busy = _trainers(setting, costs, could, own)
    send = min(setting.fanout, setting.workers) * setting.parameters / setting.link
    stride = max(1, int(np.ceil(send / (setting.every * step))))
    delays = depths(setting.workers, setting.fanout).astype(np.float64) * (setting.latency + send)
    return Pace(step, rate, could / rate, stride, delays, busy)


def service(setting: Setting, costs: Costs) -> float:
    """Seconds that an owner has to do with one block: its table or its link, the slower one."""
    return max(setting.block * costs.update, setting.block_bytes / setting.link)


def _owned(setting: Setting, costs: Costs, could: float) -> tuple[float, float]:
    """Blocks in the order of their ids come to one owner at a time, and the others rest."""
    working = setting.owners if setting.striped else 1
    busy = could / setting.block * service(setting, costs) / working
    throttle = max(1.0, busy / FULLEST)
    return could / throttle, busy / throttle


def _trainers(
    setting: Setting, costs: Costs, could: float, own: float
) -> tuple[float, float, float]:
    """The trainer takes in what has come between two steps: at most all leases of all workers."""
    could = min(could, FULLEST * setting.link * setting.block / setting.block_bytes)
    leased = float(LANES * setting.workers * setting.block)
    share = costs.update * could
    step = own / (1 - share) if share < 1 else np.inf
    if could * step > leased:
        step = own + costs.update * leased
        could = leased / step
    return step, could, costs.update * could


def wire_bytes(setting: Setting, pace: Pace) -> dict[str, float]:
    """Bytes per training step, by purpose, over all links together.

    * parameters: ``W·P/(K·stride)``;
    * scores: ``(4 + h/m)·r·T`` for a rate r and a step of T seconds, with a header h per block;
    * draws of a window of v batches: every owner tells its sum, ``O·(2h + 8)``, and those touched
      get points and return ids and masses: ``min(O, b·v)·(2h + 16) + 24·b·v``.

    Data and gradients never travel.
    """
    scored = pace.rate * pace.step
    drawn = setting.batch * setting.window
    touched = min(setting.owners, drawn)
    asked = setting.owners * (2 * HEADER + 8) + touched * (2 * HEADER + 16) + 24 * drawn
    return {
        "parameters": setting.workers * setting.parameters / (setting.every * pace.stride),
        "scores": scored / setting.block * setting.block_bytes,
        "draws": asked / setting.window if setting.owners else 0.0,
    }


@dataclass(frozen=True, eq=False)
class Scorings:
    """Blocks that were scored, one entry each.

    Attributes:
        block: its number.
        version: of the parameters: training steps.
        known: when its scores are in force, in seconds.
        horizon: until when all are simulated.
    """

    block: Ints
    version: Ints
    known: Floats
    horizon: float


def simulate(setting: Setting, costs: Costs, pace: Pace) -> Scorings:
    """All scorings that begin within `SWEEPS` sweeps and a cycle."""
    sweeps = SWEEPS * setting.examples / pace.rate
    horizon = float(pace.delays.max()) + sweeps + pace.cycle(setting)
    begin, finish, worker, number = _rounds(setting, costs, pace, horizon)
    order = np.lexsort((worker, begin))
    block = np.arange(len(order)) % setting.blocks
    version = number[order] * pace.stride * setting.every
    sent = finish[order] + setting.latency + setting.block_bytes / setting.link
    if not setting.owners:
        known = np.ceil(sent / pace.step) * pace.step
        return Scorings(block, version, known, horizon)
    owner = block % setting.owners if setting.striped else block * setting.owners // setting.blocks
    return Scorings(block, version, _served(sent, owner, service(setting, costs)), horizon)


def _rounds(
    setting: Setting, costs: Costs, pace: Pace, horizon: float
) -> tuple[Floats, Floats, Ints, Ints]:
    """When each worker begins and ends each of its blocks, and with which publication."""
    random = np.random.default_rng(setting.seed)
    interval = pace.stride * setting.every * pace.step
    seconds = setting.block * pace.throttle / setting.rates
    loading = costs.copy * setting.parameters
    now, loaded = pace.delays.copy(), np.full(setting.workers, -1)
    begins, ends, numbers = [], [], []
    while now.min() < horizon:
        number = np.floor((now - pace.delays) / interval).astype(np.int64)
        noise = np.exp(setting.spread * (random.standard_normal(len(now)) - setting.spread / 2))
        end = now + loading * (number > loaded) + seconds * noise
        begins.append(now)
        ends.append(end)
        numbers.append(number)
        now, loaded = end, number
    workers = np.tile(np.arange(setting.workers), len(begins))
    begin, end, number = (np.concatenate(part) for part in (begins, ends, numbers))
    early = begin < horizon
    return begin[early], end[early], workers[early], number[early]


def _served(sent: Floats, owner: Ints, seconds: float) -> Floats:
    """When servers with equal services are done with what comes to them, in its order.

    The k-th to come to a server is done at ``max_{j <= k} (sent_j − j·s) + (k + 1)·s``.
    """
    done = np.empty_like(sent)
    for each in np.unique(owner):
        mine = np.flatnonzero(owner == each)
        mine = mine[np.argsort(sent[mine], kind="stable")]
        place = np.arange(len(mine))
        done[mine] = np.maximum.accumulate(sent[mine] - place * seconds) + (place + 1) * seconds
    return done


def look(setting: Setting, pace: Pace, found: Scorings) -> tuple[Ints, float]:
    """Ages of all blocks' scores, in steps, when they are trained on, over the last cycle.

    A newer version is never overwritten by an older one. A batch is trained on up to
    ``window − 1`` steps after it was drawn.

    Returns:
        The ages of blocks that have scores, of all looks together; and the share of those that
        have none.
    """
    order = np.lexsort((found.known, found.block))
    block, known = found.block[order], found.known[order]
    far = int(found.version.max()) + 1
    newest = np.maximum.accumulate(block * far + found.version[order]) - block * far
    starts = np.searchsorted(block, np.arange(setting.blocks))
    ages, unseen = [], 0
    for number in range(LOOKS):
        moment = found.horizon - pace.cycle(setting) * (1 - number / LOOKS)
        counts = np.bincount(block[known <= moment], minlength=setting.blocks)
        seen = counts > 0
        step = int(moment / pace.step) + number % setting.window
        ages.append(step - newest[(starts + counts - 1)[seen]])
        unseen += int((~seen).sum())
    return np.concatenate(ages), unseen / (LOOKS * setting.blocks)

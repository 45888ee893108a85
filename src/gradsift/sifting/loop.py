"""The loop itself. While nothing is chosen it is the plain loop, to the bit.

One step, in order: collect what the last step told, decide, fetch, and, where examples are
chosen, score the candidates and draw. A decision uses what earlier steps told, never the batch
that it weights.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from gradsift.clock import Seconds
from gradsift.data.sources import Fetched, open_source
from gradsift.nested import move
from gradsift.records import WeightedBatch
from gradsift.sampling.table import ScoreTable
from gradsift.sifting.candidates import Chooser
from gradsift.sifting.feedback import Feedback
from gradsift.sifting.policies import choose_policy
from gradsift.sifting.preparing import Preparing
from gradsift.sifting.ranks import AbstractRanks, Alone, EpochOverError, TogetherError
from gradsift.sifting.saved import FORMAT, check_saved, made_for
from gradsift.sifting.setup import Counts, OpenStep, Setup, described, device_of, first_notices
from gradsift.sifting.together import find_ranks

T = TypeVar("T")


class SiftedLoader:
    """Batches of the examples that matter; made by `gradsift.sift`.

    Iterating gives one epoch of `WeightedBatch`. ``print`` says whether examples are being chosen
    and why.

    Attributes:
        recipe: the recipe in use.
        seconds: seconds spent "loading" and "scoring" so far, by the clock.
        policy: who decides what each step takes.

    Example:
        >>> import torch, gradsift
        >>> batches = [(torch.randn(8, 2), torch.randint(3, (8,))) for _ in range(6)]
        >>> loss_fn = torch.nn.CrossEntropyLoss(reduction="none")
        >>> train = gradsift.sift(batches, torch.nn.Linear(2, 3), loss_fn, recipe="pool")
        >>> sum(len(batch) for batch in train), train.examples_scored, train.steps
        (48, 144, 6)
    """

    def __init__(self, loader: Any, setup: Setup) -> None:
        self.recipe = setup.recipe
        self.seconds = Seconds()
        self._setup = setup
        self._loader = loader
        self._source = open_source(loader, setup.seed if setup.per_example_seed else None)
        self._counts = Counts()
        self._chooser = Chooser(setup, self._counts, self.seconds)
        self.policy = choose_policy(setup, self._source, self._chooser)
        self._feedback = Feedback(setup, self._counts, self.policy)
        self._device = torch.device("cpu")
        self._open: OpenStep | None = None
        self._ranks: AbstractRanks = Alone()
        self._begun = False
        self._preparing = Preparing(setup, self._chooser, self.policy, self._feedback)

    @property
    def steps(self) -> int:
        """Batches handed out so far."""
        return self._counts.steps

    @property
    def updates(self) -> int:
        """Updates that the parameters have taken, as their version counters tell; at least 1."""
        return max(1, self._feedback.versions.count)

    @property
    def examples_trained(self) -> int:
        """Examples handed out so far."""
        return self._counts.trained

    @property
    def examples_scored(self) -> int:
        """Examples scored by an extra forward pass so far."""
        return self._counts.scored

    @property
    def quarantined(self) -> int:
        """Scores so far that were not finite, and counted as the root mean square of others."""
        return self._counts.quarantined

    @property
    def scores(self) -> Tensor | None:
        """The scores seen last, of a pool or of a trained batch; None before."""
        return self._feedback.scores

    @property
    def table(self) -> ScoreTable | None:
        """The score table, to look at; None where none is kept."""
        return self.policy.table

    @property
    def lr_factor(self) -> float:
        """What to multiply the next learning rate by: 1, but for ``spend="lr"`` and some rules."""
        return self.policy.lr_factor

    @property
    def notices(self) -> tuple[str, ...]:
        """What was said once about this run, in words."""
        return tuple(self._feedback.notices)

    @property
    def gate(self) -> dict[str, Any] | None:
        """The gate's state, reason and the step at which it first opened; None without a gate."""
        return self.policy.summary()

    @property
    def engine(self) -> dict[str, Any] | None:
        """The engine's kind, and how many of its workers were lost and restarted; None without."""
        return self.policy.engine_summary

    @property
    def engine_status(self) -> dict[str, Any] | None:
        """How an engine's search goes: rate, ages in steps, versions behind; None without one."""
        return self.policy.engine_status()

    def close(self) -> None:
        """Ends what an engine runs beside the training. Nothing is searched for afterwards."""
        self.policy.close()

    def __len__(self) -> int:
        return len(self._source)

    def __repr__(self) -> str:
        return str(self.policy)

    def __iter__(self) -> Iterator[WeightedBatch]:
        self._telling(self._begin)
        self._open = None  # the time of a step at which a loop was left says nothing
        self.settle()
        steps = self._source.epoch(self.policy.plan)
        before = self._setup.clock.now()
        while (batch := self._telling(self._arrive, steps, before)) is not None:
            self._feedback.hand_out(batch)
            self._counts.steps += 1
            self._counts.trained += len(batch)
            try:
                yield batch
            finally:
                self._feedback.taken()
            before = self._telling(self.settle)

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on to the bit, within an epoch or between two.

        Call it after the optimiser's step: the batch handed out last counts as trained. Nothing of
        the run changes by it. It holds counts, the score table, all that was measured and decided,
        the generators of the draws and of your loader, the place in your loader's order, and what
        its workers were asked for ahead: ids and weights, while data are read again. Model,
        optimiser and PyTorch's global random state are yours to save (``docs/resume.md``).
        Processes that sift together all call it, at the same step, and save a state each.

        Returns:
            Dictionaries and lists of tensors, numbers and strings: ``weights_only`` reads them.

        Raises:
            UsageError: for a batch sampler without a generator and a length.

        Example:
            >>> import torch, gradsift
            >>> data = torch.utils.data.TensorDataset(torch.randn(64, 5), torch.randint(3, (64,)))
            >>> model, loss_fn = torch.nn.Linear(5, 3), torch.nn.CrossEntropyLoss(reduction="none")
            >>> def sifted():
            ...     loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
            ...     return gradsift.sift(loader, model, loss_fn, recipe="uniform")
            >>> train, again = sifted(), sifted()
            >>> batches = iter(train)
            >>> loss = next(batches).loss(model(data.tensors[0][:16]))
            >>> again.load_state_dict(train.state_dict())
            >>> [torch.equal(a.indices, b.indices) for a, b in zip(batches, again)]
            [True, True, True]
        """
        self.settle()
        return {
            "format": FORMAT,
            "made_for": made_for(self._setup, self._source.examples),
            "begun": self._begun,
            "rehearsed": self._preparing.rehearsed,
            "counts": self._counts.state_dict(),
            "seconds": dict(self.seconds.spent),
            "clock": self._setup.clock.state_dict(),
            "generator": self._chooser.generator.get_state(),
            "source": self._source.state_dict(),
            "policy": self.policy.state_dict(),
            "feedback": self._feedback.state_dict(),
            "wish": self._ranks.follows(wish=False),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where another sifted loader was, which was made by the same calls.

        If the state was saved within an epoch, the first ``for`` loop gives what was left of it,
        which may be nothing. Load before you set PyTorch's global random state.

        Args:
            state: of `state_dict`, from any device.

        Raises:
            UsageError: for anything else, or the state of another recipe, data set, batch size or
                rank.
        """
        check_saved(state, made_for(self._setup, self._source.examples))
        self._open = None
        self._begun, self._preparing.rehearsed = state["begun"], state["rehearsed"]
        if self._begun:
            self._telling(self._join)
            self._ranks.recall(wish=state["wish"])
        self._source.load_state_dict(state["source"])
        self.policy.load_state_dict(state["policy"])
        self._feedback.load_state_dict(state["feedback"], device_of(self._setup))
        self._chooser.generator.set_state(state["generator"])
        self._setup.clock.load_state_dict(state["clock"])
        self.seconds.spent.update(state["seconds"])
        self._counts.load_state_dict(state["counts"])
        kept = self._setup.per_example_seed or not self._source.workers
        if self._source.underway and not kept:
            self._feedback.notice(
                "this epoch goes on with new loader workers, whose own random numbers nobody has "
                "saved: augmentation inside them differs until the next epoch begins; sift with "
                "per_example_seed=True to make it repeat"
            )

    def settle(self) -> float:
        """Learns now from the step that is over, which the next step would do; returns the time.

        Call it between steps to look at a table that knows all of them. No batch changes by it.
        """
        self._feedback.collect()
        now = self._setup.clock.now()
        if self._open is not None:
            self.policy.timed(self._open.plan, now - self._open.before, self._open.loading)
            self._open = None
            now += self.policy.search()
        self._feedback.write_news()
        return now

    def _arrive(self, steps: Iterator[Fetched], before: float) -> WeightedBatch | None:
        """Fetches and prepares a batch; None when the epoch ends, here or in another process."""
        fetched = next(steps, None)
        try:
            if fetched is None:
                self._ranks.agree(None, wish=False)
                return None
            data = move(fetched.data, self._device, non_blocking=True)
            loading = self._setup.clock.now() - before
            self.seconds.add("loading", loading)
            batch = self._preparing.prepare(fetched, data, self._device)
            wish = self._ranks.size > 1 and self.policy.wishes
            sizes = self._ranks.agree(batch.size, wish=wish)
        except EpochOverError:
            return None
        self._open = OpenStep(fetched.plan, before, loading)
        return batch.among(sizes)

    def _telling(self, work: Callable[..., T], *arguments: Any) -> T:
        """What goes wrong in it, other processes are told, unless it came from them."""
        try:
            return work(*arguments)
        except TogetherError:
            raise
        except Exception as error:
            self._ranks.fail(error)
            raise

    def _join(self) -> None:
        setup = self._setup
        self._device = device_of(setup)
        self._ranks = find_ranks(
            setup.rank,
            setup.world_size,
            described(setup, self._source.examples),
            scored=setup.recipe.scored,
        )
        self._feedback.join(self._ranks)
        self.policy.join(self._ranks)

    def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        self._join()
        seed = (self._setup.seed * 1_000_003 + self._ranks.rank) % 2**63
        self._chooser.generator.manual_seed(seed)
        self._feedback.begin()
        self.policy.begin(self._setup.clock.now())
        for notice in first_notices(
            self._setup, one_pass=self._source.one_pass, plain_order=self._source.plain_order
        ):
            self._feedback.notice(notice)

"""`sift`: what a user wraps around a loader."""

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gradsift.clock import AbstractClock, WallClock
from gradsift.data.split import Split, split_batch
from gradsift.engine.interface import AbstractEngine
from gradsift.errors import UsageError
from gradsift.monitors.log import AbstractLog, JsonLines, NullLog
from gradsift.recipes import recipes
from gradsift.recipes.recipe import Recipe
from gradsift.records import LossFunction, Spend
from gradsift.scores.base import Forward, call_model
from gradsift.sifting.loop import SiftedLoader as SiftedLoader
from gradsift.sifting.setup import Setup
from gradsift.sifting.spending import choose_spend
from gradsift.sifting.together import place
from gradsift.sifting.wrapped import bare

_alive: "weakref.WeakValueDictionary[int, SiftedLoader]" = weakref.WeakValueDictionary()


def sift(
    loader: Any,
    model: Any,
    loss_fn: LossFunction,
    *,
    recipe: str | Recipe = "auto",
    split: Split | None = None,
    forward: Forward | None = None,
    device: torch.device | str | None = None,
    engine: AbstractEngine | None = None,
    spend: Spend | None = None,
    cap: float | None = None,
    finish: float | None = None,
    seed: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
    per_example_seed: bool = False,
    clock: AbstractClock | None = None,
    log: str | Path | AbstractLog | None = None,
) -> SiftedLoader:
    """Wraps a loader so that training takes the examples that matter, without bias.

    The estimator of every step is ``(1/b) Σ_j w_j ∇ℓ(i_j)``, with b the nominal batch size and
    weights that belong to the draw, so its expectation is the mean gradient over the data.

    Args:
        loader: a `torch.utils.data.DataLoader`, or any iterable of batches. A map-style
            DataLoader is read by example id, in its own sampler's order while nothing is chosen.
        model: called as ``forward(model, inputs)`` to score candidates; never changed.
        loss_fn: ``loss_fn(outputs, targets)``, one loss per example, ``reduction="none"``.
        recipe: a name in `gradsift.recipes`, or a `gradsift.Recipe`.
        split: a batch into ``(inputs, targets)``. By default 2-tuples, and mappings with
            ``labels``.
        forward: ``model(**mapping)``, ``model(*tuple)`` or ``model(x)`` by default.
        device: where batches go; by default the device of the model at the first iteration.
        engine: where scores are searched for beside the training step, one of `gradsift.engines`:
            ``engines.local(dataset="module:callable", scorers=1)`` uses a spare core. It goes with
            ``recipe="issgd"``, which it makes the default. None: nowhere; a recipe that needs an
            engine then scores in the training process itself. Of several ranks the first runs it
            for all, with parameters that are whole on each. Ends with ``train.close()``, or with
            the process.
        spend: what lower variance is spent on: "batch", the batch of most progress per
            second, in eighths of the loader's own and no noisier than it: smaller ones as far as
            their steps take less time, less noise as far as not; "noise", less of it in each step,
            which fits the training set better in as many steps and may test worse
            (``docs/log.md``); "lr", a larger step: multiply your learning rate
            by ``train.lr_factor``. "batch" and "lr" need ``recipe="auto"``, and act while the score
            table is in use. By default "batch", but "noise" with another recipe or for a model
            with BatchNorm. An adaptive optimiser takes larger steps by itself when noise falls.
        cap: quantile of the fresh scores, in (0, 1), above which a score counts as much as the one
            there. High scores are often wrong labels: with a share ε of them, a cap of at most
            1 − ε keeps them from being drawn more often than hard examples. The proposal changes,
            and its weights with it: nothing is biased. It needs ``recipe="auto"``, which then
            takes no pools, or ``"table"``. None leaves the recipe's own (none).
        finish: the last share of a run that is in your own order again, in [0, 1], where your loop
            says how far it is: ``train.policy.progress = steps / total``. The noise of plain
            batches, which the table takes away, costs training loss and helps the test error
            (``docs/log.md``). It needs ``recipe="auto"``. None leaves the recipe's own, a fifth.
        seed: of the draws. Global random state is neither read nor seeded.
        rank: of this process among data-parallel ones; by default that of `torch.distributed` at
            the first iteration. Its processes sift together: they keep one table by gathering
            scores, draw one large batch from it and take a share each, follow the decisions of
            rank 0, and end or fail at the same step. The mean over ranks of ``batch.loss`` is
            what is unbiased. Processes of another ``rank`` draw by other random numbers.
        world_size: how many processes there are, checked against ``rank``; by default those of
            `torch.distributed`. Any other number, such as 1, keeps each process to itself.
        per_example_seed: seeds PyTorch's, NumPy's and Python's generators by (seed, step, id)
            around every access to map-style data, in loader workers too, and puts them back:
            augmentation then repeats in a resumed run, with any workers (``docs/resume.md``).
        clock: where seconds come from; real ones by default.
        log: a folder for ``metrics.jsonl``, or any `monitors.AbstractLog`, such as
            ``monitors.tensorboard.TensorBoard(folder)``. Only rank 0 writes.

    Returns:
        An iterable of `WeightedBatch`, one epoch per ``for`` loop.

    Raises:
        UsageError: for arguments that cannot work together, and, at the first batch, for
            everything that would fail in a later one.

    Example:
        >>> import torch, gradsift
        >>> data = torch.utils.data.TensorDataset(torch.randn(64, 5), torch.randint(3, (64,)))
        >>> loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
        >>> model = torch.nn.Linear(5, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> loss_fn = torch.nn.CrossEntropyLoss(reduction="none")
        >>> train = gradsift.sift(loader, model, loss_fn, recipe="pool")
        >>> for batch in train:
        ...     loss = batch.loss(model(batch.inputs))
        ...     optimizer.zero_grad(); loss.backward(); optimizer.step()
        >>> print(train)
        on: recipe 'pool' draws one of 3 candidates, always
    """
    named = "issgd" if engine is not None and recipe == "auto" else recipe
    assembled = named if isinstance(named, Recipe) else recipes[named]
    assembled = assembled if cap is None else replace(assembled, cap=cap)
    assembled = assembled if finish is None else replace(assembled, finish=finish)
    _check(model, loss_fn)
    _check_engine(engine, assembled)
    _check_ranks(rank, world_size)
    if (first := _description_of_living(loader)) is not None:
        raise UsageError(
            f"this loader is sifted already ({first}): iterate over the first one, or delete it "
            "before the loader is sifted again"
        )
    sifted = SiftedLoader(
        loader,
        Setup(
            model=bare(model),
            loss_fn=loss_fn,
            recipe=assembled,
            split=split or split_batch,
            forward=forward or call_model,
            device=None if device is None else torch.device(device),
            spend=choose_spend(spend, assembled, model),
            seed=seed,
            rank=rank,
            world_size=world_size,
            per_example_seed=per_example_seed,
            clock=clock or WallClock(),
            log=NullLog() if log is None or _follows(rank) else _open_log(log),
            engine=engine,
        ),
    )
    _alive[id(loader)] = sifted
    return sifted


def _description_of_living(loader: Any) -> str | None:
    """In words, so that no traceback keeps the first one alive."""
    first = _alive.get(id(loader))
    return None if first is None else str(first)


def _follows(rank: int | None) -> bool:
    """Whether another process writes the log."""
    return (place()[0] if rank is None else rank) != 0


def _open_log(log: str | Path | AbstractLog) -> AbstractLog:
    return log if isinstance(log, AbstractLog) else JsonLines(log)


def _check(model: Any, loss_fn: Any) -> None:
    for name, value in (("model", model), ("loss_fn", loss_fn)):
        if not callable(value):
            raise UsageError(f"{name} is a {type(value).__name__}, expected a callable")


def _check_engine(engine: Any, recipe: Recipe) -> None:
    if engine is not None and not isinstance(engine, AbstractEngine):
        raise UsageError(
            f"engine {engine!r} received, expected one of gradsift.engines, such as "
            "engines.local(scorers=1)"
        )
    if engine is not None and recipe.search is None:
        raise UsageError(
            f"recipe {recipe.name!r} takes no scores from an engine: use recipe='issgd', or leave "
            "the engine out"
        )


def _check_ranks(rank: int | None, world_size: int | None) -> None:
    if world_size is not None and not 0 <= (rank or 0) < world_size:
        raise UsageError(f"rank {rank} received, expected 0 to {world_size - 1} (world_size - 1)")

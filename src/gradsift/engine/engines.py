"""Engines by name: where scores are searched for beside the training step."""

import importlib
from collections.abc import Mapping
from typing import Any

from gradsift.engine.evaluate import ErrorFunction
from gradsift.engine.inline import InlineEngine
from gradsift.engine.interface import AbstractEngine, Options
from gradsift.engine.local import LocalEngine

RAY = "gradsift.engine.ray"
"""Imported when it is asked for: Ray takes a second to import, and is an extra."""


def inline(
    *,
    rate: int = 1,
    delay: int = 0,
    dataset: Any = None,
    block: int = 512,
    device: str | None = None,
    every: int | None = None,
    mode: str = "relaxed",
    order: str = "round-robin",
    evaluate: Mapping[str, Any] | None = None,
    error: ErrorFunction | None = None,
    precision: str = "float32",
) -> AbstractEngine:
    """Scores in the training process itself: exact, repeatable, and paid for by the trainer.

    The reference that other engines are compared with, and the means to study staleness: a sweep
    over N examples takes ``N / (rate · block)`` steps, and a score is ``delay`` steps older still.

    Args:
        rate: blocks scored per step.
        delay: steps between measuring a block and the moment when its scores count.
        dataset: what is scored: None takes the loader's own data set; or as in `local`.
        block: examples per block.
        device: where scoring happens; None follows the model.
        every: training steps between publications; None follows the recipe (32).
        mode: "relaxed", or "exact": all examples are scored after every publication.
        order: of the blocks: "round-robin", or "adaptive" for where it pays.
        evaluate: as for `local`; it takes the trainer's time here.
        error: likewise.
        precision: likewise.

    Raises:
        UsageError: for a number out of range, an unknown mode, order or precision.

    Example:
        >>> inline(rate=2).state.listed()
        {'kind': 'inline', 'workers_lost': 0, 'restarts': 0}
    """
    options = Options(dataset, block, device, every, mode, order, evaluate or {}, error, precision)
    return InlineEngine(options, rate, delay)


def local(
    dataset: Any = None,
    scorers: int = 1,
    *,
    block: int = 512,
    device: str | None = "cpu",
    every: int | None = None,
    mode: str = "relaxed",
    order: str = "round-robin",
    evaluate: Mapping[str, Any] | None = None,
    error: ErrorFunction | None = None,
    precision: str = "float32",
    patience: float = 60.0,
    starting: float = 60.0,
) -> AbstractEngine:
    """Scores in processes of this machine: a spare core, or another GPU, searches the data set.

    The trainer copies its parameters to shared memory every few steps, takes what scores have
    come, and never waits. A worker that is killed, hangs or fails is replaced; training goes on
    meanwhile, with older scores, and uniformly at worst.

    Processes are spawned, so a script needs the guard ``if __name__ == "__main__":``, and the
    model, the loss and the score must be defined in a module. The dictionary of the model's
    parameters is held twice in shared memory and twice by each worker; a tensor that has not
    changed is not copied again.

    Args:
        dataset: what workers score, opened by each of them: ``"module:callable"``, where the
            callable returns a map-style data set, another word after ``--data``, or a function
            of a module. None sends them the loader's own data set by value. A sample is compared by
            content at the start, so that no score lands on the wrong example.
        scorers: how many processes.
        block: examples per block.
        device: where they score, such as "cpu" or "cuda:1"; None follows the model.
        every: training steps between publications; None follows the recipe (32).
        mode: "relaxed", or "exact": the trainer waits after every publication until all examples
            were scored with it.
        order: of the blocks: "round-robin", or "adaptive": blocks whose old scores cost most, as
            measured when they come back, come up to four times as often. It helps where scores
            move in some blocks more than in others, as in data that are sorted.
        evaluate: data sets whose loss workers measure, one slice of each for every 20 blocks:
            ``{"train": None, "test": "mymod:test"}``, opened like ``dataset``; None takes the part
            of that name of a data set that is opened as a pair. Up to 4,096 examples of each,
            spread evenly. The points are events named "curve" of the log.
        error: ``error(outputs, targets)``, one per example, for a second curve of each.
        precision: "bfloat16" publishes weight matrices in half the bytes; scores are then those
            of rounded weights. "float32" publishes them as they are.
        patience: seconds that one block may take before its worker is replaced.
        starting: seconds that a worker may take to start.

    Raises:
        UsageError: for a number out of range, an unknown mode, order or precision; at the first
            batch, when no worker can start or its data set is another one.

    Reference:
        Alain, Lamb, Sankar, Courville & Bengio, *Variance Reduction in SGD by Distributed
        Importance Sampling*, 2015, https://arxiv.org/abs/1511.06481. Deviations: parameters are
        read whole or not at all; a block that its worker lost is scored by another.

    Example:
        >>> import torch, gradsift
        >>> data = torch.utils.data.TensorDataset(torch.randn(64, 5), torch.randint(3, (64,)))
        >>> loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
        >>> model, loss_fn = torch.nn.Linear(5, 3), torch.nn.CrossEntropyLoss(reduction="none")
        >>> engine = gradsift.engines.local(scorers=2)
        >>> train = gradsift.sift(loader, model, loss_fn, recipe="issgd", engine=engine)
        >>> train.engine
        {'kind': 'local', 'workers_lost': 0, 'restarts': 0}
    """
    options = Options(dataset, block, device, every, mode, order, evaluate or {}, error, precision)
    return LocalEngine(options, scorers, patience, starting)


def ray(
    dataset: Any = None,
    scorers: int = 1,
    *,
    address: str | None = None,
    block: int = 512,
    device: str | None = "cpu",
    every: int | None = None,
    mode: str = "relaxed",
    order: str = "round-robin",
    evaluate: Mapping[str, Any] | None = None,
    error: ErrorFunction | None = None,
    precision: str = "float32",
    patience: float = 60.0,
) -> AbstractEngine:
    """Scores in actors of a Ray cluster; needs ``pip install 'gradsift[ray]'``.

    Without an address, Ray is started on this machine and stopped by ``train.close()``. A cluster
    that this process is connected to, or that the address names, is joined: nothing is stopped that
    is not ours. Modules and data must be found under the same names on every node.

    Args:
        dataset: as for `local`, opened on the node of each actor.
        scorers: how many actors; on a joined cluster each asks for a CPU, or for a GPU where the
            device is "cuda", and they are spread over nodes.
        address: of the cluster, as for ``ray.init``.
        block: as for `local`, like all below.
        device: where actors score: "cpu" or "cuda".
        every: training steps between publications.
        mode: "relaxed" or "exact".
        order: "round-robin" or "adaptive".
        evaluate: data sets for curves.
        error: for a second curve of each.
        precision: "float32" or "bfloat16", which halves what goes over the wire.
        patience: seconds that one block may take.

    Raises:
        UsageError: when Ray is missing; at the first batch, when the cluster cannot be reached, or
            no actor is ready after 30 seconds.

    Example:
        >>> engine = ray(scorers=4, address="ray://head:10001")  # doctest: +SKIP
        >>> ray(block=0)
        Traceback (most recent call last):
        gradsift.errors.UsageError: an engine received blocks of 0 examples and a publication ...
    """
    options = Options(dataset, block, device, every, mode, order, evaluate or {}, error, precision)
    return importlib.import_module(RAY).RayEngine(options, scorers, address, patience)

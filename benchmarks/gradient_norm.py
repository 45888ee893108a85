"""What exact per-example gradient norms cost: against a plain forward and backward pass.

    python benchmarks/gradient_norm.py [--out FILE.json] [--markdown FILE.md] [--models …]
                                       [--repeats N] [--threads N] [--device cpu|cuda]

Every number is the time of a way to get the norms over that of a plain forward and backward pass
of the mean loss, of the same model on the same batch. Beside it stands the plain pass over itself
(A/A): a difference within its quartiles is noise. Repeats are interleaved and ratios are paired.
``score`` is `gradsift.scores.GradientNorm` (float32, without its check of the first call),
``watch`` the same as a by-product of a training step. The others run where they can be imported:
Opacus (ghost norms where it has them), BackPACK (BatchL2Grad) and `torch.func`. A way that does
not support a model says so: Opacus takes LSTM and attention only as layers of its own. The norms
of each way are compared with those of gradsift. The process keeps the memory that it has freed, as
the runs of ``gradsift compare`` do, so that no way is charged for page faults.

Peak memory is that of a process of its own over the plain pass's, above what the process held
before: from `torch.cuda` on a device, from the high-water mark of the process on Linux.

A row is marked "contended" where other processes took more than 5 % of the cores meanwhile: such
a row supports no claim.
"""

import argparse
import copy
import importlib
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gradsift.comparison.child import KEEPING_MEMORY
from gradsift.models import build_model
from gradsift.scores import GradientNorm

LOSS = nn.CrossEntropyLoss(reduction="none")
CLASSES = 10
VOCABULARY = 1000
FOREIGN_LIMIT = 0.05
WAYS = ("score", "watch", "opacus", "backpack", "torch.func")
Work = Callable[[], Tensor]


class OwnLayersError(Exception):
    """A package has a way for layers of its own alone."""


class Transformer(nn.Module):
    """Two encoder layers over 64 tokens, the mean of which is classified."""

    def __init__(self, width: int = 128, heads: int = 4, steps: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.places = nn.Embedding(steps, width)
        layers = [
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(2)
        ]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        """From int64 ``[batch, steps]`` to ``[batch, classes]``."""
        places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return self.head(self.layers(self.tokens(ids) + self.places(places)).mean(1))


def mlp() -> nn.Module:
    """784-2048-2048-10."""
    hidden = [nn.Linear(784, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(2048, CLASSES))


def built(name: str, shape: tuple[int, ...]) -> Callable[[], nn.Module]:
    """One of the package's own models."""
    generator = torch.Generator().manual_seed(0)
    return lambda: build_model(name, shape, CLASSES, generator=generator)


def images(*shape: int) -> Callable[[int, torch.Generator], Tensor]:
    return lambda count, generator: torch.randn(count, *shape, generator=generator)


def sentences(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(VOCABULARY, (count, 64), generator=generator)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int, torch.Generator], Tensor]]] = {
    "mlp": (mlp, images(1, 28, 28)),
    "cnn": (built("cnn", (1, 28, 28)), images(1, 28, 28)),
    "wrn-10-2": (built("wrn-10-2", (3, 32, 32)), images(3, 32, 32)),
    "lstm": (built("lstm", (1, 28, 28)), images(1, 28, 28)),
    "transformer": (Transformer, sentences),
}


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Row:
    """One model.

    Attributes:
        model: its name.
        plain_seconds: median of a plain forward and backward pass.
        identical: the plain pass over itself, paired.
        ratios: of each way to the plain pass, paired; a text where it does not run.
        errors: largest relative difference to the norms of ``score``.
        memory: peak memory of each way over that of the plain pass.
        foreign: share of the cores that other processes took meanwhile; None where unknown.
    """

    model: str
    plain_seconds: float
    identical: Spread
    ratios: dict[str, Spread | str]
    errors: dict[str, float]
    memory: dict[str, float]
    foreign: float | None

    @property
    def mark(self) -> str:
        """Whether the row supports a claim."""
        if self.foreign is None:
            return "load unknown"
        return "contended" if self.foreign > FOREIGN_LIMIT else "quiet"


@dataclass(frozen=True)
class Task:
    """A model with a batch."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor

    def plain(self) -> Tensor:
        """A training step without its update."""
        self.model.zero_grad()
        loss = LOSS(self.model(self.inputs), self.targets).mean()
        loss.backward()
        return loss.detach()

    def score(self) -> Work:
        """One pass of the score."""
        score = GradientNorm(precision="float32", check=False)
        return lambda: score(self.model, LOSS, self.inputs, self.targets)

    def watch(self) -> Work:
        """The plain step, watched."""
        score = GradientNorm()

        def work() -> Tensor:
            with score.watch(self.model, len(self.inputs)) as seen:
                self.plain()
            return seen.norms()

        return work

    def opacus(self) -> Work:
        """Opacus: ghost norms where it has them, per-example gradients elsewhere."""
        module = importlib.import_module("opacus.grad_sample")
        if any(
            isinstance(layer, nn.LSTM | nn.MultiheadAttention) for layer in self.model.modules()
        ):
            raise OwnLayersError
        wrapped = module.GradSampleModuleFastGradientClipping(
            copy.deepcopy(self.model), max_grad_norm=1.0, use_ghost_clipping=True
        )

        def work() -> Tensor:
            wrapped.zero_grad()
            LOSS(wrapped(self.inputs), self.targets).mean().backward()
            norms = wrapped.get_norm_sample()
            for parameter in wrapped.parameters():
                parameter._norm_sample = None
            return norms

        return work

    def backpack(self) -> Work:
        """BackPACK's BatchL2Grad."""
        package = importlib.import_module("backpack")
        extensions = importlib.import_module("backpack.extensions")
        model = package.extend(copy.deepcopy(self.model), use_converter=False)
        loss_fn = package.extend(nn.CrossEntropyLoss())

        def work() -> Tensor:
            model.zero_grad()
            loss = loss_fn(model(self.inputs), self.targets)
            with package.backpack(extensions.BatchL2Grad()):
                loss.backward()
            squares = [parameter.batch_l2 for parameter in model.parameters()]
            return len(self.inputs) * torch.stack(squares).sum(0).sqrt()

        return work

    def functional(self) -> Work:
        """`torch.func`: every per-example gradient at once."""
        parameters = {name: value.detach() for name, value in self.model.named_parameters()}

        def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            outputs = torch.func.functional_call(self.model, values, (x.unsqueeze(0),))
            return LOSS(outputs, y.unsqueeze(0)).sum()

        gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))

        def work() -> Tensor:
            found = gradients(parameters, self.inputs, self.targets)
            return torch.stack([part.flatten(1).norm(dim=1) for part in found.values()]).norm(dim=0)

        return work

    def way(self, name: str) -> Work:
        """One of `WAYS`, or "plain"."""
        if name == "plain":
            return self.plain
        return getattr(self, {"torch.func": "functional"}.get(name, name))()


def task(name: str, batch: int, device: str) -> Task:
    build, data = MODELS[name]
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    inputs = data(batch, generator).to(device)
    targets = torch.randint(CLASSES, (batch,), generator=generator).to(device)
    return Task(build().to(device), inputs, targets)


def spread(values: list[float]) -> Spread:
    low, _, high = statistics.quantiles(values, n=4)
    return Spread(statistics.median(values), low, high)


def busy_seconds() -> float | None:
    """Processor seconds that all processes of the machine have used, or None where not told."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    except (OSError, IndexError):
        return None
    ticks = [int(field) for field in fields]
    used = sum(ticks) - ticks[3] - ticks[4]  # without idle and waiting for input
    return used / os.sysconf("SC_CLK_TCK") if used else None


def seconds_of(work: Work, device: str) -> float:
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def prepared(
    given: Task, ways: list[str]
) -> tuple[dict[str, Work], dict[str, str], dict[str, float]]:
    """The ways that run, why others do not, and their differences to ``score``."""
    works: dict[str, Work] = {"plain": given.plain, "again": given.plain}
    refused: dict[str, str] = {}
    errors: dict[str, float] = {}
    exact = given.way("score")()
    for name in ways:
        try:
            work = given.way(name)
            found = work()
        except Exception as error:  # noqa: BLE001  (any failure of another package is a result)
            own = isinstance(error, OwnLayersError)
            refused[name] = "no: own layers" if own else f"no: {type(error).__name__}"
            continue
        works[name] = work
        errors[name] = float(((found - exact).abs() / exact).max())
    return works, refused, errors


def measure(name: str, options: argparse.Namespace) -> Row:
    """Interleaved repeats of every way."""
    given = task(name, options.batch, options.device)
    works, refused, errors = prepared(given, options.ways)
    slow = {label for label in works if seconds_of(works[label], options.device) > options.patience}
    times: dict[str, list[float]] = {label: [] for label in works}
    wall, own, everyone = time.perf_counter(), time.process_time(), busy_seconds()
    for repeat in range(options.repeats):
        # Every place in the round falls to every kind of work equally often.
        order = list(works)[repeat % len(works) :] + list(works)[: repeat % len(works)]
        for label in order:
            if label not in slow or repeat < 2:
                times[label].append(seconds_of(works[label], options.device))
    wall, own = time.perf_counter() - wall, time.process_time() - own
    now, foreign = busy_seconds(), None
    if everyone is not None and now is not None:
        foreign = max(0.0, now - everyone - own) / (wall * (os.cpu_count() or 1))
    ratios: dict[str, Spread | str] = {
        label: spread(paired(times[label], times["plain"])) for label in works if label != "plain"
    }
    identical = ratios.pop("again")
    assert isinstance(identical, Spread)
    runs = [label for label in ratios if options.memory]
    return Row(
        model=name,
        plain_seconds=statistics.median(times["plain"]),
        identical=identical,
        ratios={label: ratios.get(label, refused.get(label, "")) for label in options.ways},
        errors=errors,
        memory=memory(name, runs, options),
        foreign=foreign,
    )


def paired(upper: list[float], lower: list[float]) -> list[float]:
    return [one / other for one, other in zip(upper, lower, strict=False)]


def memory(name: str, runs: list[str], options: argparse.Namespace) -> dict[str, float]:
    """Peak memory of each way over the plain pass, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    for variable in KEEPING_MEMORY:  # a high-water mark is that of a process that gives it back
        os.environ.pop(variable, None)
    peaks: dict[str, float] = {}
    for label in ["plain", *runs] if runs else []:
        asked = (name, label, options.batch, options.device, options.threads)
        with context.Pool(1) as pool:
            peaks[label] = pool.apply(peak_memory, asked)
    return {label: peak / peaks["plain"] for label, peak in peaks.items() if label != "plain"}


def peak_memory(name: str, label: str, batch: int, device: str, threads: int) -> float:
    """Bytes above what was held before, in the second of two runs or since the start."""
    torch.set_num_threads(threads)
    given = task(name, batch, device)
    work = given.way(label)
    if device == "cuda":
        work()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return float(torch.cuda.max_memory_allocated() - before)
    task("mlp", 2, device).plain()  # what every process loads once
    before = resident("VmRSS")
    work()
    return float(resident("VmHWM") - before)


def resident(field: str) -> int:
    """Bytes of a line of Linux's ``/proc/self/status``; 1 elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 1
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def tables(rows: list[Row], ways: list[str]) -> str:
    lines = [f"{'model':12} {'plain':>8} {'A/A':18} " + " ".join(f"{way:18}" for way in ways)]
    for row in rows:
        cells = " ".join(f"{row.ratios[way]!s:18}" for way in ways)
        plain = f"{row.plain_seconds * 1e3:6.1f}ms"
        lines.append(f"{row.model:12} {plain} {row.identical!s:18} {cells} {row.mark}")
    lines += ["", "largest relative difference to score; peak memory over the plain pass"]
    for row in rows:
        cells = "  ".join(
            f"{way} {row.errors[way]:.0e}"
            + (f", {row.memory[way]:.2f}x" if way in row.memory else "")
            for way in ways
            if way in row.errors
        )
        lines.append(f"{row.model:12} {cells}")
    return "\n".join(lines)


def markdown(rows: list[Row], ways: list[str], setting: dict[str, object]) -> str:
    """The same as a page of a repository."""
    lines = [
        ", ".join(f"{key} {value}" for key, value in setting.items()) + ".",
        "",
        "Times over a plain forward and backward pass, paired medians [quartiles]; peak memory "
        "over that of the plain pass.",
        "",
        "| model | plain | again (A/A) | " + " | ".join(ways) + " | load |",
        "|---" * (len(ways) + 4) + "|",
    ]
    for row in rows:
        cells = [
            str(row.ratios[way])
            + (f"<br>memory {row.memory[way]:.2f}" if way in row.memory else "")
            for way in ways
        ]
        load = row.mark if row.foreign is None else f"{row.mark} ({row.foreign:.1%} foreign)"
        plain = f"{row.plain_seconds * 1e3:.1f} ms"
        lines.append(f"| {' | '.join([row.model, plain, str(row.identical), *cells, load])} |")
    worst = max((row.errors[way] for row in rows for way in ways if way in row.errors), default=0.0)
    lines += [
        "",
        f"Largest relative difference between any two ways' norms and score's: {worst:.0e}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="What exact gradient norms cost.")
    parser.add_argument("--out", type=Path, help="write the measurements to this JSON file")
    parser.add_argument("--markdown", type=Path, help="write the table to this Markdown file")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--patience", type=float, default=2.0, help="slower ways run twice")
    options = parser.parse_args()
    if options.repeats < 2 or options.batch < 2 or options.threads < 1:
        parser.error("--repeats and --batch must be at least 2, --threads at least 1")
    torch.set_num_threads(options.threads)
    setting = {
        "batch": options.batch,
        "repeats": options.repeats,
        "threads": options.threads,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    rows = [measure(name, options) for name in options.models]
    print(tables(rows, options.ways))
    if options.out is not None:
        result = {"setting": setting, "rows": [{**asdict(row), "mark": row.mark} for row in rows]}
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    if options.markdown is not None:
        options.markdown.write_text(markdown(rows, options.ways, setting))


if __name__ == "__main__":
    if not KEEPING_MEMORY.keys() <= os.environ.keys():
        # Other packages warn about their own hooks and fallbacks.
        settings = {**KEEPING_MEMORY, "PYTHONWARNINGS": "ignore"}
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **settings})
    main()

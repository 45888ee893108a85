"""How a run is watched: a bar on a terminal, a line per evaluation elsewhere."""

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from gradsift.trainer import AbstractProgress, Point


def in_words(point: Point) -> str:
    """One evaluation on one line.

    Example:
        >>> in_words(Point(120, 2.5, 0.25, 0.0814, 0.1253, 0.0338))
        ' 25 %     2.5 s  step     120  training loss 0.0814  test loss 0.1253  test error 0.0338'
    """
    return (
        f"{100 * point.share:3.0f} %  {point.seconds:6.1f} s  step {point.step:7d}  "
        f"training loss {point.train_loss:.4f}  test loss {point.test_loss:.4f}  "
        f"test error {point.test_error:.4f}"
    )


class Lines(AbstractProgress):
    """Prints a line per evaluation."""

    def moved(self, share: float, step: int) -> None:
        """Prints nothing."""
        del share, step

    def evaluated(self, point: Point) -> None:
        """Prints the evaluation."""
        print(in_words(point), flush=True)


class Bar(AbstractProgress):
    """A bar that fills with the budget, beside the last evaluation."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[last]}"),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("training", total=1.0, last="")

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def moved(self, share: float, step: int) -> None:
        """Fills the bar, which redraws itself a few times a second."""
        self._bar.update(self._task, completed=share, description=f"step {step:,}")

    def evaluated(self, point: Point) -> None:
        """Shows the evaluation."""
        last = f"test loss {point.test_loss:.4f}  test error {point.test_error:.4f}"
        self._bar.update(self._task, completed=point.share, last=last)

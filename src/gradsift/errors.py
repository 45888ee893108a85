"""The exceptions of gradsift: each says what arrived, what was expected, and what to do.

Failures that belong to normal life (a score that is not finite, a draw that comes out empty)
are values on a record, not exceptions.
"""


class UsageError(ValueError):
    """A call, a flag or an object that cannot work as given. Exit status 2 on the command line."""


class DataError(ValueError):
    """A file or data set whose content is not what it claims. Exit status 2 on the command line."""


class TrainingError(RuntimeError):
    """Training cannot go on: a loss that is not finite. Exit status 1 on the command line."""

"""Text as a problem: which token comes next, given the ones before it."""

from collections.abc import Iterable

import torch
from jaxtyping import Int64
from torch import Tensor

from gradsift.data.problem import Problem, pose
from gradsift.data.readers.arrays import Rows
from gradsift.data.readers.files import find_file, read_text
from gradsift.data.readers.options import ReadOptions
from gradsift.errors import DataError, UsageError

UNKNOWN = "<unk>"
"""Number 0 of every vocabulary: what the training part does not have. WikiText spells it so too."""

TRAINED = 0.9
"""Share of a single file that is the training part: its beginning."""


class Windows(Rows):
    """Every place of a text: the tokens before it, and the token there.

    The text is kept once; windows are cut out of it when they are fetched.

    Args:
        tokens: the numbers of the text's tokens.
        context: tokens of a window.

    Example:
        >>> Windows(torch.tensor([5, 6, 7, 8]), context=2)[1]
        (tensor([6, 7]), 8)
    """

    def __init__(self, tokens: Int64[Tensor, " tokens"], context: int) -> None:
        super().__init__(tokens.unfold(0, context, 1)[:-1], tokens[context:])


def read_text_problem(name: str, files: str, options: ReadOptions) -> Problem:
    """The problem of the next token, as classes; one example per token with a full context.

    A single file is cut: its first 90 % of tokens are the training part, the others the test part.
    The vocabulary is that of the training part, and a token for all others.

    Args:
        name: for tables and reports.
        files: ``FILE``, or ``TRAIN,TEST``.
        options: unit and context.

    Raises:
        DataError: for a file that is no text, or is too short.
        UsageError: for more than two files.
    """
    names = files.split(",")
    if len(names) > 2:
        raise UsageError(f"{files!r} names {len(names)} texts, expected FILE or TRAIN,TEST")
    paths = [find_file(file) for file in names]
    texts = [split(read_text(path), options.unit) for path in paths]
    if len(texts) == 1:
        cut = int(TRAINED * len(texts[0]))
        texts = [texts[0][:cut], texts[0][cut:]]
    for part, path, tokens in zip(("training", "test"), (paths[0], paths[-1]), texts, strict=True):
        if len(tokens) <= options.context:
            raise DataError(
                f"the {part} part of {path} has {len(tokens)} {options.unit}, expected more than "
                f"the context of {options.context}: lower --context"
            )
    vocabulary = learn_vocabulary(texts[0])
    train, test = (Windows(encode(tokens, vocabulary), options.context) for tokens in texts)
    return pose(
        name,
        train,
        test,
        (options.context,),
        len(vocabulary),
        "classification",
        vocabulary=vocabulary,
    )


def split(text: str, unit: str) -> list[str]:
    r"""The tokens of a text: its characters, or its words with line ends as ``<eos>``.

    Example:
        >>> split("to be", "characters")
        ['t', 'o', ' ', 'b', 'e']
        >>> split("to be\nor not", "words")
        ['to', 'be', '<eos>', 'or', 'not']
    """
    if unit == "characters":
        return list(text)
    return text.replace("\n", " <eos> ").split()


def learn_vocabulary(tokens: Iterable[str]) -> tuple[str, ...]:
    """The unknown token, and all different tokens in order.

    Example:
        >>> learn_vocabulary("abba")
        ('<unk>', 'a', 'b')
    """
    return (UNKNOWN, *sorted(set(tokens) - {UNKNOWN}))


def encode(tokens: Iterable[str], vocabulary: tuple[str, ...]) -> Int64[Tensor, " tokens"]:
    """The number of each token in the vocabulary, 0 where it is not there.

    Example:
        >>> encode("abc", ("<unk>", "a", "b"))
        tensor([1, 2, 0])
    """
    numbers = {token: number for number, token in enumerate(vocabulary)}
    return torch.tensor([numbers.get(token, 0) for token in tokens], dtype=torch.int64)

"""The flags that say what the data are and how to read them."""

from typing import Annotated

import typer

Data = Annotated[
    str,
    typer.Option(
        help="digits, mnist:DIR, fashion-mnist:DIR, cifar10:DIR, cifar100:DIR, FILE.npz, "
        "FILE.csv, FILE.data, table:FILE, libsvm:FILE, text:FILE or module:callable. What is not "
        "here is looked for in the folder GRADSIFT_DATA."
    ),
]
Label = Annotated[
    str | None,
    typer.Option(
        help="Column of a table to learn: its name, its number from 1, or from -1 backwards.",
        show_default="the last",
    ),
]
Drop = Annotated[list[str] | None, typer.Option(help="Column of a table to leave out; repeatable.")]
Missing = Annotated[str, typer.Option(help="Missing values of a table: error, drop or mean.")]
Task = Annotated[
    str | None,
    typer.Option(help="classification or regression.", show_default="what the targets are"),
]
Unit = Annotated[str, typer.Option(help="Tokens of a text: characters or words.")]
Context = Annotated[int, typer.Option(help="Tokens of a text before the one to predict.")]

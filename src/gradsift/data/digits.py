"""The handwritten digits that scikit-learn brings along: real data without a download.

This is the only reader that needs scikit-learn; install it with ``pip install 'gradsift[cli]'``.
"""

import torch
from jaxtyping import Int64
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import TensorDataset

from gradsift.data.problem import Problem, from_datasets


def digits(seed: int = 0) -> Problem:
    """1,797 images of 8 x 8 pixels in 10 classes; a fifth of each class is held out as test set.

    Pixels are divided by 16 and lie in [0, 1]; an input has shape ``[1, 8, 8]``. The split depends
    on the seed alone.

    Reference:
        E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test
        part, as bundled with scikit-learn).

    Example:
        >>> problem = digits(seed=0)
        >>> len(problem.train), len(problem.test), problem.input_shape, problem.outputs
        (1442, 355, (1, 8, 8), 10)
    """
    pixels, classes = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16.0
    labels = torch.tensor(classes, dtype=torch.int64)
    held_out = stratified_part(labels, 0.2, torch.Generator().manual_seed(seed))
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[held_out] = False
    return from_datasets(
        "digits",
        TensorDataset(images[kept], labels[kept]),
        TensorDataset(images[held_out], labels[held_out]),
    )


def stratified_part(
    labels: Int64[Tensor, " examples"], share: float, generator: torch.Generator
) -> Int64[Tensor, " part"]:
    """Positions of ``⌊share · n_c⌋`` random examples of each class c, in ascending order.

    Args:
        labels: the class of each example.
        share: of each class, from 0 to 1.
        generator: where the randomness comes from.

    Example:
        >>> labels = torch.tensor([0, 0, 1, 1, 1, 1])
        >>> part = stratified_part(labels, 0.5, torch.Generator().manual_seed(0))
        >>> labels[part]
        tensor([0, 1, 1])
    """
    parts = []
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        order = torch.randperm(len(members), generator=generator)
        parts.append(members[order[: int(share * len(members))]])
    return torch.cat(parts).sort().values

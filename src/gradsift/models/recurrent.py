"""A recurrent network over rows, time steps or tokens: ``lstm``."""

from torch import Tensor, nn

from gradsift.errors import UsageError


class Lstm(nn.Module):
    """One layer of long short-term memory (Hochreiter & Schmidhuber 1997), read at its last step.

    An image ``[channels, height, width]`` is a sequence of its rows, each with the row of every
    channel side by side. ``[steps, features]`` is a sequence as it stands, and so is ``[steps]``,
    of one feature.

    Args:
        input_shape: of one input, with one to three dimensions.
        outputs: numbers per example.
        width: size of the memory.

    Raises:
        UsageError: for inputs of more dimensions.

    Example:
        >>> import torch
        >>> Lstm((1, 8, 8), 10)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(self, input_shape: tuple[int, ...], outputs: int, width: int = 128) -> None:
        super().__init__()
        if not 1 <= len(input_shape) <= 3:
            raise UsageError(
                f"model 'lstm' received inputs of shape {list(input_shape)}, expected [steps], "
                "[steps, features] or [channels, height, width]: choose mlp, which takes any shape"
            )
        channels = input_shape[0] if len(input_shape) == 3 else 1
        row = 1 if len(input_shape) == 1 else input_shape[-1]
        self.memory = nn.LSTM(channels * row, width, batch_first=True)
        self.head = nn.Linear(width, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """From ``[batch, *input_shape]`` to ``[batch, outputs]``."""
        states, _ = self.memory(as_sequence(inputs))
        return self.head(states[:, -1])


class TokenLstm(nn.Module):
    """The same over tokens, each of which is looked up as a row of numbers first.

    Args:
        vocabulary: how many different tokens there are.
        outputs: numbers per example.
        size: numbers per token.
        width: size of the memory.

    Example:
        >>> import torch
        >>> TokenLstm(100, 7)(torch.zeros(5, 20, dtype=torch.int64)).shape
        torch.Size([5, 7])
    """

    def __init__(self, vocabulary: int, outputs: int, size: int = 64, width: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, size)
        self.memory = nn.LSTM(size, width, batch_first=True)
        self.head = nn.Linear(width, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """From int64 ``[batch, steps]`` to ``[batch, outputs]``."""
        states, _ = self.memory(self.embedding(tokens))
        return self.head(states[:, -1])


def as_sequence(inputs: Tensor) -> Tensor:
    """A batch as ``[batch, steps, features]``.

    Example:
        >>> import torch
        >>> as_sequence(torch.zeros(5, 3, 8, 6)).shape
        torch.Size([5, 8, 18])
    """
    if inputs.dim() == 2:
        return inputs.unsqueeze(-1)
    if inputs.dim() == 3:
        return inputs
    return inputs.transpose(1, 2).flatten(start_dim=2)

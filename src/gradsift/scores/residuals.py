"""‖∂ℓ/∂z‖ in closed form, correct where a softmax has converged.

The gradient of cross-entropy with respect to the logits is ``S·p − c``, with the coefficients c of
``ℓ = −Σ_k c_k log p_k`` and their sum S. Computed as written, its largest entry cancels: in
float32 ``1 − p_y`` is zero from a gap of 17 on, and a score of zero means a probability of zero.
But the entries of ``S·p − c`` sum to zero, so the entry where p is largest is minus the sum of
the others, each of which is accurate.
"""

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor


def row_norm(values: Float[Tensor, "batch *rest"]) -> Float[Tensor, " batch"]:
    """The Euclidean norm over all but the first dimension, without underflow of small squares.

    Example:
        >>> import torch
        >>> row_norm(torch.tensor([[3e-30, 4e-30]]))
        tensor([5.0000e-30])
    """
    flat = values.flatten(1) if values.dim() > 1 else values.unsqueeze(1)
    if flat.shape[1] == 0:
        return flat.new_zeros(flat.shape[0])
    smallest = torch.finfo(flat.dtype).tiny
    largest = flat.abs().amax(1, keepdim=True).clamp_min(smallest)
    return torch.linalg.vector_norm(flat / largest, dim=1) * largest.squeeze(1)


def balanced(
    gradient: Float[Tensor, "batch classes *rest"],
    probability: Float[Tensor, "batch classes *rest"],
) -> Float[Tensor, "batch classes *rest"]:
    """Replaces the entry of the most probable class by minus the sum of the others.

    Exact for every gradient whose entries sum to zero over the classes (dimension 1).

    Example:
        >>> import torch
        >>> balanced(torch.tensor([[0.0, 1e-9]]), torch.tensor([[1.0, 1e-9]]))
        tensor([[-1.0000e-09,  1.0000e-09]])
    """
    top = probability.argmax(1, keepdim=True)
    others = gradient.scatter(1, top, 0.0)
    return others.scatter(1, top, -others.sum(1, keepdim=True))


def hard_label_norm(
    logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """``‖softmax(z) − onehot(y)‖ = sqrt(Σ_{k≠y} p_k² + (Σ_{k≠y} p_k)²)``, in [0, √2).

    Args:
        logits: pre-activations of the softmax; float32 or float64.
        labels: the class of each example, in [0, classes).

    Example:
        >>> import torch
        >>> hard_label_norm(torch.tensor([[0.0, 0.0], [40.0, 0.0]]), torch.tensor([0, 0]))
        tensor([7.0711e-01, 6.0081e-18])
    """
    others = torch.log_softmax(logits, 1).exp_().scatter_(1, labels.unsqueeze(1), 0.0)
    return torch.hypot(row_norm(others), others.sum(1))


def soft_label_norm(
    logits: Float[Tensor, "batch classes"], coefficients: Float[Tensor, "batch classes"]
) -> Float[Tensor, " batch"]:
    """``‖S·softmax(z) − c‖`` for ``ℓ = −Σ_k c_k log p_k`` and ``S = Σ_k c_k``.

    Args:
        logits: pre-activations of the softmax; float32 or float64.
        coefficients: label probabilities, times class weights where there are any.

    Example:
        >>> import torch
        >>> soft_label_norm(torch.zeros(1, 2), torch.tensor([[0.9, 0.1]]))
        tensor([0.5657])
    """
    probability = torch.log_softmax(logits, 1).exp_()
    gradient = coefficients.sum(1, keepdim=True) * probability - coefficients
    return row_norm(balanced(gradient, probability))


def binary_norm(
    logits: Float[Tensor, "batch *rest"], labels: Shaped[Tensor, "batch *rest"]
) -> Float[Tensor, " batch"]:
    """``‖σ(z) − y‖``, each entry computed as ``(1 − y)·σ(z) − y·σ(−z)``.

    Example:
        >>> import torch
        >>> binary_norm(torch.tensor([0.0, 40.0]), torch.tensor([1.0, 1.0]))
        tensor([5.0000e-01, 4.2484e-18])
    """
    labels = labels.to(logits.dtype)
    return row_norm((1 - labels) * torch.sigmoid(logits) - labels * torch.sigmoid(-logits))

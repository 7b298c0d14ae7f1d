"""Bases for a residual stream: the k directions of n that a narrower student keeps, the same in all layers.

A LayerNorm takes the mean over channels away and divides by the deviation, so a stream may be turned at will as long
as its mean stays what is taken away. Directions are therefore chosen orthogonal to that of all channels alike, and
turned into k channels whose mean is zero: then LayerNorm in the student does what it does in the teacher, on the
part that was kept. With n of n channels that is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Sam3Model

from sam3dist.models.inheritance.spaces import PATCH_NORM, STACKS


def basis_of_moments(moments: Tensor, width: int) -> Tensor:
    """The basis [n, width] that keeps most of a stream with these second moments [n, n].

    The leading width - 1 principal directions orthogonal to 1, turned so that the columns of their product with any
    token add up to 0: Q = P R^T, with P [n, width - 1] and R an orthonormal basis of the complement of 1 in `width`.
    """
    matrix = centred(moments.double())
    matrix = centred(matrix.T)
    directions = torch.linalg.eigh(matrix).eigenvectors.flip(1)[:, : width - 1]
    # Of the two signs of each the one that makes its largest entry positive, so that machines agree.
    directions = directions * directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
    return (directions @ balanced(width).to(directions).T).float()


def balanced(width: int) -> Tensor:
    """An orthonormal basis [width, width - 1] of all vectors whose entries add up to 0 (Helmert 1876), in float64."""
    columns = torch.arange(1, width, dtype=torch.float64)
    rows = torch.arange(width, dtype=torch.float64)[:, None]
    signs = torch.where(rows < columns, 1.0, torch.where(rows == columns, -columns, 0.0))
    return signs / (columns * (columns + 1)).sqrt()


def centred(matrix: Tensor) -> Tensor:
    """The matrix with the mean of each column taken away."""
    return matrix - matrix.mean(0)


def chosen_channels(kept: list[int], width: int) -> Tensor:
    """The basis [width, k] of these channels of `width`."""
    return torch.eye(width)[:, kept]


def weight_moments(net: Sam3Model, tower: str) -> Tensor:
    """Second moments [n, n] of a tower's stream as its weights alone suggest them.

    What all writers would add to it if they read uncorrelated channels of variance 1; the left singular vectors of
    the writers side by side are its principal directions.
    """
    parameters = dict(net.named_parameters())
    if tower == "vision":
        written = [torch.diag(parameters[f"{PATCH_NORM}.weight"].detach())]
    else:
        embeddings = parameters["text_encoder.text_model.embeddings.token_embedding.weight"].detach()
        written = [embeddings.T / len(embeddings) ** 0.5]
    written += [
        parameter.detach()
        for name, parameter in parameters.items()
        if name.startswith(STACKS[tower]) and name.endswith((".o_proj.weight", ".out_proj.weight", ".fc2.weight"))
    ]
    return sum((matrix.float() @ matrix.float().T for matrix in written), torch.zeros(()).to(written[0]))

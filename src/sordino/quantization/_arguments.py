"""Checks of weights, Gram matrices and magnitudes, for the methods on single layers."""

from __future__ import annotations

import torch

from sordino.core.checks import require_integer
from sordino.core.errors import InvalidParameterError


def require_weight(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """Returns a finite matrix (rows, columns) in float32 or float64, else raises."""
    if weight.ndim != 2 or weight.numel() == 0 or not weight.is_floating_point():
        raise InvalidParameterError(
            "a weight must be a matrix of floats with at least one entry, got shape "
            f"{tuple(weight.shape)} and type {weight.dtype}."
        )
    if not bool(torch.isfinite(weight).all()):
        raise InvalidParameterError("weights must be finite; check the model.")
    columns = weight.shape[1]
    require_integer("group_size", group_size, 1, columns)
    if columns % group_size:
        raise InvalidParameterError(
            f"group_size must divide the {columns} inputs of the layer, got {group_size}."
        )
    weight = weight.detach()
    return weight if weight.dtype == torch.float64 else weight.float()


def require_gram(gram: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Returns a finite Gram matrix for `like`'s columns, in its type and on its device."""
    columns = like.shape[1]
    if tuple(gram.shape) != (columns, columns) or not bool(torch.isfinite(gram).all()):
        raise InvalidParameterError(
            f"gram must be finite, of shape ({columns}, {columns}), got {tuple(gram.shape)}."
        )
    return gram.to(like)


def require_magnitudes(name: str, values: torch.Tensor, columns: int) -> torch.Tensor:
    """Returns finite numbers of at least 0, one for each column, else raises."""
    if tuple(values.shape) != (columns,) or not bool(((values >= 0) & values.isfinite()).all()):
        raise InvalidParameterError(
            f"{name} must be finite numbers of at least 0, shape ({columns},), got shape "
            f"{tuple(values.shape)}."
        )
    return values

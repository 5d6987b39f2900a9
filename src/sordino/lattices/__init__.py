"""Rounding weights as a nearest-point search in a lattice: pure mathematics, NumPy float64.

Every layer has one geometry: the loss of codes z is the squared length of L (w - s z), with
L lower triangular and L^T L = H, the Gram matrix of the layer's inputs. See
docs/proofs/nearest_plane.md.
"""

from __future__ import annotations

from sordino.lattices.babai import nearest_plane
from sordino.lattices.bounds import (
    compute_pivots,
    headroom,
    loss_bound_upper,
    loss_estimate,
    reconstruction_losses,
)
from sordino.lattices.orders import ORDERS, compute_order
from sordino.lattices.problem import damp_gram
from sordino.lattices.reduction import ReducedBasis, nearest_plane_reduced, reduce_basis

__all__ = [
    "ORDERS",
    "ReducedBasis",
    "compute_order",
    "compute_pivots",
    "damp_gram",
    "headroom",
    "loss_bound_upper",
    "loss_estimate",
    "nearest_plane",
    "nearest_plane_reduced",
    "reconstruction_losses",
    "reduce_basis",
]

"""A quantization in tables and in words, for the terminal and the report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sordino.quantization.provenance import WHAT_THE_BOUND_SAYS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "GEOMETRY_HEADERS",
    "HEADERS",
    "QuantizeRow",
    "describe_layers",
    "geometry_rows",
    "table_rows",
]

HEADERS = ("layers", "loss", "nearest", "share", "predicted", "bound", "clipped", "bound holds")
_GEOMETRY = {  # header, field, and whether the largest value is the worst
    "tr(D)/tr(H)": ("pivot_share", True),
    "headroom": ("headroom", True),
    "exact/bound": ("exact_share", True),
    "singular values": ("singular_value_shift", True),
    "angle out": ("output_angle", True),
    "CKA": ("cka", False),
    "changed": ("changed_rate", False),
}
GEOMETRY_HEADERS = ("mean (worst)", *_GEOMETRY)
_MOST_WORST = 3


@dataclass(frozen=True, slots=True)
class QuantizeRow:
    """One line of the table: a layer, or the sum over several, as the record holds them."""

    name: str
    layers: Sequence[Mapping[str, Any]]

    def cells(self) -> list[str]:
        """Returns the line's cells, as `HEADERS` names them."""
        certificates = [layer["certificate"] for layer in self.layers]
        exact, nearest, predicted, bound, clipped = (
            sum(certificate[name] for certificate in certificates)
            for name in ("exact", "nearest", "predicted", "bound", "clipped")
        )
        num_weights = sum(math.prod(layer["shape"]) for layer in self.layers)
        share = exact / nearest if nearest else 1.0
        losses = [f"{loss:.4g}" for loss in (exact, nearest)]
        bounds = [f"{loss:.4g}" for loss in (predicted, bound)]
        holds = f"{sum(found['applies'] for found in certificates)} of {len(certificates)}"
        return [self.name, *losses, f"{share:.3f}", *bounds, f"{clipped / num_weights:.2%}", holds]


def table_rows(layers: Iterable[Mapping[str, Any]]) -> list[QuantizeRow]:
    """Returns sums over layers of one kind, the worst layers, and the sum of all.

    Without calibration there is nothing to show, and the list is empty.

    Args:
        layers: As `quantization.json` holds them.
    """
    certified = [layer for layer in layers if layer["certificate"] is not None]
    if not certified:
        return []
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for layer in certified:
        kinds.setdefault(layer["name"].rsplit(".", 1)[-1], []).append(layer)
    rows = [QuantizeRow(f"{kind} ({len(found)})", found) for kind, found in kinds.items()]
    worst = sorted(certified, key=lambda layer: -layer["certificate"]["exact"])[:_MOST_WORST]
    rows.extend(QuantizeRow(f"worst: {layer['name']}", [layer]) for layer in worst)
    return [*rows, QuantizeRow(f"all ({len(certified)})", certified)]


def geometry_rows(layers: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Returns mean and worst of each metric by kind of layer; empty if none was measured.

    `changed` is the share of codes that fine-tuning changed: its smallest value counts as worst,
    for there the grid holds least of it.

    Args:
        layers: As `quantization.json` holds them.
    """
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for layer in layers:
        if layer["geometry"] is not None:
            kind = layer["name"].rsplit(".", 1)[-1]
            kinds.setdefault(kind, []).append(layer["geometry"])
    return [
        [f"{kind} ({len(found)})", *(_mean_and_worst(found, *how) for how in _GEOMETRY.values())]
        for kind, found in kinds.items()
    ]


def _mean_and_worst(found: list[Mapping[str, Any]], name: str, is_largest: bool) -> str:  # noqa: FBT001
    """Returns a cell; metrics that are not defined for a layer are left out."""
    values = [layer[name] for layer in found if layer[name] is not None]
    if not values:
        return "-"
    worst = max(values) if is_largest else min(values)
    return f"{sum(values) / len(values):.3g} ({worst:.3g})"


def describe_layers(layers: Sequence[Mapping[str, Any]], kept: Mapping[str, str]) -> list[str]:
    """Returns what the numbers of layers mean.

    Args:
        layers: As `quantization.json` holds them.
        kept: Layers in full precision, and why.
    """
    num_bytes = sum(layer["num_bytes"] for layer in layers)
    num_weights = sum(math.prod(layer["shape"]) for layer in layers)
    lines = [
        (
            f"{len(layers)} layers, {num_weights:,} weights in {num_bytes:,} bytes "
            f"({8 * num_bytes / num_weights:.3f} bits a weight, scales included)."
        )
    ]
    if kept:
        reasons = sorted(set(kept.values()))
        lines.append(f"{len(kept)} stay in full precision: {'; '.join(reasons)}.")
    if any(layer["certificate"] is not None for layer in layers):
        lines.append(WHAT_THE_BOUND_SAYS)
        lines.append(
            "The bound is proven for a layer only where no limit changed a code of it, or it lost "
            "no more than without limits; elsewhere the loss is what was computed."
        )
    else:
        lines.append("No calibration texts, hence no certificate of any layer's output error.")
    if any(layer["has_scaled_inputs"] for layer in layers):
        lines.append(
            "Input scales were folded into the modules before: losses of such layers speak of the "
            "scaled weights and inputs."
        )
    return lines

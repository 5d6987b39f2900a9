"""A quantization in a table and in words, for the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sordino.quantization.provenance import WHAT_THE_BOUND_SAYS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sordino.quantization.pipeline import FinishedLayer
    from sordino.reports.quantize import QuantizeResult

__all__ = [
    "GEOMETRY_HEADERS",
    "HEADERS",
    "QuantizeRow",
    "describe_quantize",
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
    """One line of the table: a layer, or the sum over several."""

    name: str
    items: Sequence[FinishedLayer]

    def cells(self) -> list[str]:
        """Returns the line's cells, as `HEADERS` names them."""
        certificates = [item.certificate for item in self.items if item.certificate is not None]
        exact, nearest, predicted, bound = (
            sum(getattr(c, name) for c in certificates)
            for name in ("exact", "nearest", "predicted", "bound")
        )
        num_weights = sum(item.layer.codes.numel() for item in self.items)
        clipped = sum(c.clipped for c in certificates) / num_weights
        share = exact / nearest if nearest else 1.0
        losses = [f"{loss:.4g}" for loss in (exact, nearest)]
        bounds = [f"{loss:.4g}" for loss in (predicted, bound)]
        holds = f"{sum(c.applies for c in certificates)} of {len(certificates)}"
        return [self.name, *losses, f"{share:.3f}", *bounds, f"{clipped:.2%}", holds]


def table_rows(result: QuantizeResult) -> list[QuantizeRow]:
    """Returns sums over layers of one kind, the worst layers, and the sum of all.

    Without calibration there is nothing to show, and the list is empty.
    """
    items = [item for item in result.layers.values() if item.certificate is not None]
    if not items:
        return []
    kinds: dict[str, list[FinishedLayer]] = {}
    for item in items:
        kinds.setdefault(item.layer.name.rsplit(".", 1)[-1], []).append(item)
    rows = [QuantizeRow(f"{kind} ({len(found)})", found) for kind, found in kinds.items()]
    worst = sorted(items, key=_exact, reverse=True)[:_MOST_WORST]
    rows.extend(QuantizeRow(f"worst: {item.layer.name}", [item]) for item in worst)
    return [*rows, QuantizeRow(f"all ({len(items)})", items)]


def geometry_rows(result: QuantizeResult) -> list[list[str]]:
    """Returns mean and worst of each metric by kind of layer; empty if none was measured.

    `changed` is the share of codes that fine-tuning changed: its smallest value counts as worst,
    for there the grid holds least of it.
    """
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for item in result.layers.values():
        if item.geometry is not None:
            kind = item.layer.name.rsplit(".", 1)[-1]
            kinds.setdefault(kind, []).append(item.geometry)
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


def describe_quantize(result: QuantizeResult) -> list[str]:
    """Returns what stands below the table."""
    codes = [item.layer for item in result.layers.values()]
    num_bytes, num_weights = sum(c.num_bytes for c in codes), sum(c.codes.numel() for c in codes)
    lines = [
        (
            f"{len(codes)} layers, {num_weights:,} weights in {num_bytes:,} bytes "
            f"({8 * num_bytes / num_weights:.3f} bits a weight, scales included)."
        )
    ]
    if result.kept:
        reasons = sorted(set(result.kept.values()))
        lines.append(f"{len(result.kept)} stay in full precision: {'; '.join(reasons)}.")
    if table_rows(result):
        lines.append(WHAT_THE_BOUND_SAYS)
        lines.append(
            "The bound is proven for a layer only where no limit changed a code of it, or it lost "
            "no more than without limits; elsewhere the loss is what was computed."
        )
    else:
        lines.append("No calibration texts, hence no certificate of any layer's output error.")
    if any(item.has_scaled_inputs for item in result.layers.values()):
        lines.append(
            "Input scales were folded into the modules before: losses of such layers speak of the "
            "scaled weights and inputs."
        )
    lines.extend(result.privacy["lines"])
    lines.append(f"Folder: {result.output}. Every layer: {result.record}.")
    return lines


def _exact(item: FinishedLayer) -> float:
    """Returns a layer's loss."""
    return 0.0 if item.certificate is None else item.certificate.exact

"""Private calibration texts for `sordino quantize`: charged first, then released once.

The quantizer asks for one Gram matrix an input, block after block, each on the outputs of what was
quantized before. All of them are charged together, in a ledger beside the unfinished blocks, before
the first one is released; each is kept there as soon as it is, and a resumed run reads it back.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sordino.accounting.composition import gram_noise_multiplier
from sordino.core.errors import InvalidParameterError
from sordino.core.secret_stream import SecretStream
from sordino.mechanisms.private_gram import private_gram
from sordino.quantization.calibration import CalibrationRun
from sordino.quantization.pipeline import PrivateCalibration
from sordino.quantization.provenance import CALIBRATION_LEDGER, GramRelease

if TYPE_CHECKING:
    from torch import nn

    from sordino.quantization.store import LayerStore

__all__ = ["charge_release", "make_probe", "plan_release", "release_grams"]

_PROBE_LENGTH = 4


def make_probe(model: nn.Module) -> CalibrationRun:
    """Returns a few public tokens in front of the model: they show which layers share inputs."""
    size = int(model.config.vocab_size)
    return CalibrationRun(model, [[n % size for n in range(_PROBE_LENGTH)]], pad_id=0)


def plan_release(
    probe: CalibrationRun,
    layers: list[dict[str, nn.Module]],
    *,
    epsilon: float,
    delta: float | None,
    clip_norm: float | None,
) -> GramRelease:
    """Returns how much noise all inputs of a model need together.

    Guarantee:
        The plan depends on the model and the arguments alone. Its Gram matrices, each made from the
        same texts after the earlier ones were seen, are together (epsilon, delta)-DP under
        ADD_OR_REMOVE_ONE, one text being one unit.

    Args:
        probe: From `make_probe`, in front of the first block.
        layers: From `select_layers`.
        epsilon: Nats.
        delta: Probability.
        clip_norm: Largest Frobenius norm of a text's Gram matrix.

    Raises:
        InvalidParameterError: If a number is missing or out of range.
    """
    if delta is None or clip_norm is None:
        raise InvalidParameterError(
            "calibration_epsilon needs --calibration-delta (for example 1e-6) and "
            "--calibration-clip, the largest Frobenius norm of a text's X^T X; choose it on public "
            "texts, not on these."
        )
    num_grams = sum(len(probe.shared_inputs(n, block)) for n, block in enumerate(layers))
    return GramRelease(
        epsilon=epsilon,
        delta=delta,
        clip_norm=clip_norm,
        noise_multiplier=gram_noise_multiplier(epsilon, delta, num_grams),
        num_grams=num_grams,
    )


def charge_release(store: LayerStore, release: GramRelease) -> None:
    """Charges all Gram matrices, unless an earlier attempt in this folder did.

    One charge pays for one release: from here to the last matrix, no other process may work in the
    folder (`hold_output`).

    Raises:
        LedgerError: If the ledger was changed, or holds another release.
    """
    ledger = release.open_ledger(store.folder / CALIBRATION_LEDGER)
    if not ledger.events:
        ledger.charge(release.event)


def release_grams(release: GramRelease, probe: CalibrationRun) -> PrivateCalibration:
    """Returns what gives the quantizer noisy Gram matrices; call `charge_release` before."""
    make = partial(
        private_gram,
        clip_norm=release.clip_norm,
        noise_multiplier=release.noise_multiplier,
        entropy=SecretStream.from_operating_system(),
    )
    return PrivateCalibration(make, probe)

"""The transcript: a public header and the released symbols, packed. It *is* the tuned model.

Layout: 8 bytes of magic, 4 bytes of header length (little-endian), the header as canonical JSON,
then the symbols of all steps, back to back. Encodings:

- "bit": one bit a release, 1 for +1 and 0 for -1;
- "trit": two bits a release, 0 for "nothing moved", 1 for +1, 2 for -1 (`on_disagreement="skip"`);
- "value": per step a float64 unit and one int32 a release (noisy numbers; the baseline's numbers);
- "none": nothing; the run moved along gradients, which are too large to publish, and its weights
  cannot be replayed.

1,000 steps of one bit are 125 bytes.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from sordino.core.checks import require_integer
from sordino.core.errors import LedgerError
from sordino.ledger.ledger import canonical_json

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

MAGIC = b"SORDINO1"
BITS_PER_SYMBOL = {"bit": 1, "trit": 2}
ENCODINGS = ("bit", "trit", "value", "none")


@dataclass(frozen=True, kw_only=True, slots=True)
class TranscriptHeader:
    """Everything public that a replay needs besides the base model and the symbols."""

    seed: int
    encoding: str
    direction_kind: str
    directions_per_step: int
    num_steps: int
    learning_rates: tuple[float, ...]  # one a step
    weight_decay: float
    adapter: dict[str, object]  # how the trainable tensors are made from the base model
    tensors: dict[str, tuple[int, ...]]  # names and shapes of the trainable tensors

    def to_bytes(self) -> bytes:
        """Returns the header as it stands at the start of the file."""
        payload = canonical_json(asdict(self))
        return MAGIC + struct.pack("<I", len(payload)) + payload

    @classmethod
    def from_bytes(cls, raw: bytes, where: str) -> tuple[TranscriptHeader, int]:
        """Returns the header at the start of `raw`, and its length in bytes."""
        try:
            if raw[: len(MAGIC)] != MAGIC:
                raise ValueError("it does not start with the transcript's mark")  # noqa: TRY301
            (length,) = struct.unpack_from("<I", raw, len(MAGIC))
            end = len(MAGIC) + 4 + length
            fields = json.loads(raw[len(MAGIC) + 4 : end])
            fields["learning_rates"] = tuple(fields["learning_rates"])
            fields["tensors"] = {k: tuple(v) for k, v in fields["tensors"].items()}
            header = cls(**fields)
            if header.to_bytes() != raw[:end] or header.encoding not in ENCODINGS:
                raise ValueError("its header is not in canonical form")  # noqa: TRY301
            require_integer("directions_per_step", header.directions_per_step, 1)
            require_integer("num_steps", header.num_steps, 0)
            if len(header.learning_rates) != header.num_steps:
                raise ValueError("it must have one learning rate a step")  # noqa: TRY301
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
            struct.error,
        ) as error:
            raise LedgerError(f"{where}: not a readable transcript ({error}).") from error
        return header, end


@dataclass(frozen=True, slots=True)
class StepSymbols:
    """What one step released: integers of shape (directions_per_step,) times `unit`."""

    integers: NDArray[np.int32]
    unit: float = 1.0


def num_payload_bits(header: TranscriptHeader, num_steps: int) -> int:
    """Returns how many bits `num_steps` steps take after the header."""
    if header.encoding == "none":
        return 0
    if header.encoding == "value":
        return num_steps * 8 * (8 + 4 * header.directions_per_step)
    return num_steps * header.directions_per_step * BITS_PER_SYMBOL[header.encoding]


def encode_step(
    header: TranscriptHeader, step: int, symbols: StepSymbols, last_byte: int
) -> tuple[int, bytes]:
    """Returns where the symbols of `step` go in the payload, and the bytes to write there.

    Args:
        header: The transcript's header.
        step: Step number, from 0.
        symbols: What the step released.
        last_byte: The payload's last byte so far; its unused high bits are filled first.
    """
    first_bit = num_payload_bits(header, step)
    offset, used = divmod(first_bit, 8)
    if header.encoding == "none":
        return 0, b""
    if header.encoding == "value":
        return offset, struct.pack("<d", symbols.unit) + symbols.integers.astype("<i4").tobytes()
    bits = _to_bits(header.encoding, symbols.integers)
    kept = np.unpackbits(np.array([last_byte], dtype=np.uint8), bitorder="little")[:used]
    return offset, np.packbits(np.concatenate([kept, bits]), bitorder="little").tobytes()


def read_transcript(path: Path) -> tuple[TranscriptHeader, list[StepSymbols]]:
    """Returns the header and the symbols of every step of a finished transcript.

    Raises:
        LedgerError: If a byte is missing, left over, or not a symbol.
    """
    raw = path.read_bytes()
    header, end = TranscriptHeader.from_bytes(raw, str(path))
    expected = -(-num_payload_bits(header, header.num_steps) // 8)
    if len(raw) - end != expected:
        raise LedgerError(
            f"{path}: {header.num_steps} steps take {expected} bytes after the header, "
            f"found {len(raw) - end}."
        )
    return header, decode_steps(header, raw[end:], header.num_steps, str(path))


def decode_steps(
    header: TranscriptHeader, payload: bytes, num_steps: int, where: str
) -> list[StepSymbols]:
    """Returns the symbols of the first `num_steps` steps of a payload; none if none are kept."""
    if header.encoding == "none":
        if payload:
            raise LedgerError(f"{where}: bytes are left over.")
        return []
    K = header.directions_per_step
    if header.encoding == "value":
        size = 8 + 4 * K
        if len(payload) != num_steps * size:
            raise LedgerError(f"{where}: bytes are missing or left over.")
        records = [payload[t * size : (t + 1) * size] for t in range(num_steps)]
        return [
            StepSymbols(np.frombuffer(r, dtype="<i4", offset=8), struct.unpack_from("<d", r)[0])
            for r in records
        ]
    bits = np.unpackbits(np.frombuffer(payload, dtype=np.uint8), bitorder="little")
    num_bits = num_payload_bits(header, num_steps)
    if bits.size < num_bits or bits[num_bits:].any():
        raise LedgerError(f"{where}: bits are missing, or unused bits are set.")
    symbols = _from_bits(header.encoding, bits[:num_bits], where).reshape(num_steps, K)
    return [StepSymbols(row) for row in symbols]


def _to_bits(encoding: str, integers: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Returns the packed order's bits of one step's symbols."""
    allowed = (-1, 1) if encoding == "bit" else (-1, 0, 1)
    if not np.isin(integers, allowed).all():
        raise LedgerError(f"encoding {encoding!r} holds only the symbols {allowed}.")
    if encoding == "bit":
        return (integers > 0).astype(np.uint8)
    return np.stack([integers == 1, integers == -1], axis=1).astype(np.uint8).reshape(-1)


def _from_bits(encoding: str, bits: NDArray[np.uint8], where: str) -> NDArray[np.int32]:
    """Returns the symbols of the given bits."""
    if encoding == "bit":
        return 2 * bits.astype(np.int32) - 1
    pairs = bits.reshape(-1, 2).astype(np.int32)
    if (pairs.sum(axis=1) > 1).any():
        raise LedgerError(f"{where}: a pair of bits is not a symbol.")
    return pairs[:, 0] - pairs[:, 1]

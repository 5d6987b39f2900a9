"""Calibration texts: reading them, and running them through a model block by block.

Only one block's Gram matrices are held at a time. Blocks are not run by name: the model itself
calls them once with all but the first replaced by the identity, and what it passed them is kept.
So masks and positions are whatever the architecture makes of them.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sordino.core.checks import require_integer
from sordino.core.errors import InvalidDataError, InvalidParameterError
from sordino.data import plan_batches
from sordino.data._rows import open_table
from sordino.data._tokens import start_tokens, tokenize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "CalibrationRun",
    "InputSums",
    "encode_calibration",
    "find_blocks",
    "read_calibration_texts",
]

_FEWEST_TOKENS = 2
_ROWS_AT_ONCE = 2048  # tokens in one float32 product; sums of products are float64


class _AllBlocksSeenError(Exception):
    """Ends a forward pass before the output layer, which nobody needs."""


def read_calibration_texts(path: str | Path) -> list[str]:
    """Returns the texts of a file: whole lines of a .txt file, else a text for each record.

    A record's text is its column text, or its prompt with its first completion, if it has one.

    Raises:
        InvalidDataError: If the file cannot be read or a record has no text; says where.
    """
    path = Path(path)
    if path.suffix.lower() == ".txt":
        return _read_lines(path)
    table = open_table(path)
    texts = []
    for line, row in table.rows:
        text = _text_of(row)
        if text is None:
            raise InvalidDataError(
                f"{table.at(line)}: a calibration text needs a column text, or prompt and "
                "completion, that holds a string which is not empty."
            )
        texts.append(text)
    if not texts:
        raise InvalidDataError(f"{table.name}: must hold at least one record, has no records.")
    return texts


def encode_calibration(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_sequences: int,
    max_length: int,
) -> list[list[int]]:
    """Returns the first texts as token lists, one a text: the end of a long one is cut off.

    Texts are never joined, so that a sequence belongs to one record.

    Raises:
        InvalidDataError: If no text has two tokens.
    """
    require_integer("calibration_sequences", num_sequences, 1)
    require_integer("calibration_length", max_length, _FEWEST_TOKENS)
    start = start_tokens(tokenizer)
    sequences: list[list[int]] = []
    for ids in tokenize(tokenizer, texts[: 4 * num_sequences]):
        cut = [*start, *ids][:max_length]
        if len(cut) >= _FEWEST_TOKENS and len(sequences) < num_sequences:
            sequences.append(cut)
    if not sequences:
        raise InvalidDataError("no calibration text has at least two tokens. Give longer texts.")
    return sequences


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Returns the list of the model's blocks and its name: the one with the most linear layers.

    Raises:
        InvalidParameterError: If there is none.
    """
    from transformers.pytorch_utils import Conv1D

    def count(modules: nn.Module) -> int:
        return sum(isinstance(m, (torch.nn.Linear, Conv1D)) for m in modules.modules())

    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)]
    found = max(lists, key=lambda item: count(item[1]), default=None)  # the outermost of equals
    if found is None or not count(found[1]):
        raise InvalidParameterError(
            "the model has no list of blocks with linear layers. Decoder models of transformers "
            "can be quantized."
        )
    return found


@dataclass(slots=True, eq=False)
class InputSums:
    """What is known of a layer's inputs, from one pass over all tokens.

    Args:
        gram: X^T X, (columns, columns), float64.
        mean_magnitudes: mean |x_j|, up to one factor for all columns, (columns,).
        max_magnitudes: max |x_j|, (columns,); None if only the Gram matrix was released.
    """

    gram: NDArray[np.float64]
    mean_magnitudes: torch.Tensor
    max_magnitudes: torch.Tensor | None

    @classmethod
    def of_gram(cls, gram: NDArray[np.float64]) -> InputSums:
        """Returns what a Gram matrix alone says: root mean squares in the place of means."""
        return cls(gram, torch.from_numpy(gram.diagonal().copy()).clamp_min(0.0).sqrt(), None)

    def add(self, rows: torch.Tensor) -> None:
        """Adds tokens, (tokens, columns); until all are in, means are sums, gram not symmetric."""
        _add_products(torch.from_numpy(self.gram), rows)
        self.mean_magnitudes += rows.abs().sum(dim=0, dtype=torch.float64)
        if self.max_magnitudes is not None:
            torch.maximum(
                self.max_magnitudes, rows.abs().amax(dim=0).double(), out=self.max_magnitudes
            )


@dataclass(slots=True, eq=False)
class _Batch:
    """Sequences on their way through the blocks."""

    is_real: torch.Tensor  # bool (B * T,): not padding
    lengths: list[int]
    records: list[int]  # numbers of the sequences
    hidden: torch.Tensor | None = None  # (B, T, C): input of the next block
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)


class CalibrationRun:
    """Calibration sequences in front of the first block that was not quantized yet.

    Args:
        model: Frozen, in evaluation mode, on the CPU.
        sequences: Token lists.
        pad_id: Any token; it never reaches a Gram matrix.
        tokens_per_batch: Padding included.
    """

    def __init__(
        self,
        model: nn.Module,
        sequences: Sequence[Sequence[int]],
        *,
        pad_id: int,
        tokens_per_batch: int = 1024,
    ) -> None:
        self._blocks = list(find_blocks(model)[1])
        self._batches = []
        plan = plan_batches(
            [len(ids) for ids in sequences],
            token_budget=tokens_per_batch,
            max_records=len(sequences),
        )
        for numbers in plan:
            lengths = [len(sequences[n]) for n in numbers]
            longest = max(lengths)
            rows = [[*sequences[n], *[pad_id] * (longest - len(sequences[n]))] for n in numbers]
            is_real = torch.arange(longest) < torch.tensor(lengths)[:, None]
            batch = _Batch(is_real.reshape(-1), lengths, numbers)
            self._record(model, torch.tensor(rows), batch)
            self._batches.append(batch)

    @property
    def num_tokens(self) -> int:
        """Tokens that reach the Gram matrices."""
        return sum(sum(batch.lengths) for batch in self._batches)

    def shared_inputs(self, number: int, layers: dict[str, nn.Module]) -> list[list[str]]:
        """Returns the layers of a block that are reached, those that read one input together."""
        groups: list[tuple[torch.Tensor, list[str]]] = []

        def note(name: str, x: torch.Tensor) -> None:
            # The tensors are kept, so that no later one can take the place of an earlier one.
            for seen, names in groups:
                if seen is x:
                    names.append(name)
                    return
            groups.append((x, [name]))

        with _listening(layers, note):
            self._run(number, min(self._batches, key=lambda batch: len(batch.is_real)))
        return [names for _, names in groups]

    def input_sums(self, number: int, leaders: dict[str, nn.Module]) -> dict[str, InputSums]:
        """Returns the Gram matrix and magnitudes of each leader's input, over all tokens."""
        sums: dict[str, InputSums] = {}
        for batch in self._batches:

            def add(name: str, x: torch.Tensor, batch: _Batch = batch) -> None:
                rows = _token_rows(x, batch)[batch.is_real]
                if name not in sums:
                    zeros = torch.zeros(rows.shape[1], dtype=torch.float64)
                    gram = _zero_gram(rows).numpy()
                    sums[name] = InputSums(gram, zeros.clone(), zeros.clone())
                sums[name].add(rows)

            with _listening(leaders, add):
                self._run(number, batch)
        for found in sums.values():
            found.gram = 0.5 * (found.gram + found.gram.T)
            found.mean_magnitudes /= self.num_tokens
        return sums

    def sequence_grams(
        self, number: int, leader: tuple[str, nn.Module]
    ) -> Iterator[NDArray[np.float64]]:
        """Yields X^T X of one layer's input for each sequence: what a private sum is made of."""
        name, layer = leader
        for batch in self._batches:
            found: list[torch.Tensor] = []
            with _listening({name: layer}, lambda _, x, found=found: found.append(x)):
                self._run(number, batch)
            rows = _token_rows(found[0], batch).view(len(batch.lengths), -1, found[0].shape[-1])
            for own, length in zip(rows, batch.lengths, strict=True):
                yield _gram(own[:length]).numpy()

    def advance(self, number: int) -> None:
        """Takes all sequences through a block, as it is now; its input is forgotten."""
        for batch in self._batches:
            batch.hidden = self._run(number, batch)
            batch.calls[number] = ((), {})

    def _run(self, number: int, batch: _Batch) -> torch.Tensor:
        """Returns a block's output for one batch."""
        args, kwargs = batch.calls[number]
        with torch.no_grad():
            output = self._blocks[number](batch.hidden, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    def _record(self, model: nn.Module, input_ids: torch.Tensor, batch: _Batch) -> None:
        """Keeps what the model passes to each block, and the first block's input."""
        others: tuple[Any, ...] | None = None
        originals = [block.forward for block in self._blocks]

        def patched(number: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                nonlocal others
                args, hidden = _take_hidden(args, kwargs)
                batch.calls.append((args, kwargs))
                if number == len(originals) - 1:
                    batch.hidden = hidden if batch.hidden is None else batch.hidden
                    raise _AllBlocksSeenError
                if number == 0:  # run for real, to learn the form of a block's output
                    batch.hidden = hidden
                    output = originals[0](hidden, *args, **kwargs)
                    others = output[1:] if isinstance(output, tuple) else None
                return hidden if others is None else (hidden, *others)

            return forward

        try:
            for number, block in enumerate(self._blocks):
                block.forward = patched(number)
            # Encoders look to the right too, where padding is.
            mask = batch.is_real.view(input_ids.shape).long()
            with torch.no_grad():
                model(input_ids=input_ids, attention_mask=mask, use_cache=False)
        except _AllBlocksSeenError:
            pass
        finally:
            for block in self._blocks:
                del block.forward
        if len(batch.calls) != len(self._blocks):
            raise InvalidParameterError(
                f"the model called {len(batch.calls)} of its {len(self._blocks)} blocks once each, "
                "in order; others cannot be calibrated. Use --method nearest --calibration none."
            )


@contextmanager
def _listening(
    layers: dict[str, nn.Module], hear: Callable[[str, torch.Tensor], None]
) -> Iterator[None]:
    """Calls `hear` with every input of these layers."""
    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: hear(name, args[0]))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _take_hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
    """Returns the other positional arguments of a block, and its input."""
    if args:
        return args[1:], args[0]
    return (), kwargs.pop("hidden_states")


def _token_rows(x: torch.Tensor, batch: _Batch) -> torch.Tensor:
    """Returns a layer's input as (B * T, columns)."""
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) != len(batch.is_real):
        raise InvalidParameterError(
            f"a linear layer reads {len(rows)} rows where {len(batch.is_real)} tokens go in; such "
            "models cannot be calibrated. Use --method nearest --calibration none."
        )
    return rows


def _gram(rows: torch.Tensor) -> torch.Tensor:
    """Returns X^T X in float64, exactly symmetric."""
    total = _zero_gram(rows)
    _add_products(total, rows)
    return 0.5 * (total + total.T)


def _zero_gram(rows: torch.Tensor) -> torch.Tensor:
    """Returns the Gram matrix of no rows, in float64."""
    return torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)


def _add_products(total: torch.Tensor, rows: torch.Tensor) -> None:
    """Adds X^T X, symmetric up to rounding."""
    for part in rows.float().split(_ROWS_AT_ONCE):
        total += part.T @ part


def _read_lines(path: Path) -> list[str]:
    """Returns the lines of a text file that hold something."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise InvalidDataError(f"{path}: there is no such file. Check the path.") from None
    except UnicodeDecodeError:
        raise InvalidDataError(f"{path}: not UTF-8. Save the file as UTF-8.") from None
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise InvalidDataError(f"{path}: must hold at least one line of text, has none.")
    return texts


def _text_of(row: Any) -> str | None:
    """Returns a record's text; None if it has none."""
    if "text" in row:
        text = row["text"]
        return text if isinstance(text, str) and text.strip() else None
    prompt, completion = row.get("prompt"), row.get("completion", "")
    if isinstance(completion, list):
        completion = completion[0] if completion else None
    if not (isinstance(prompt, str) and prompt.strip() and isinstance(completion, str)):
        return None
    touches = not completion or prompt[-1].isspace() or completion[0].isspace()
    return prompt + ("" if touches else " ") + completion

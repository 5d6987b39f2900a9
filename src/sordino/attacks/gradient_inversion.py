"""Gradient inversion: which tokens were in the batch whose gradient was sent?

The gradient of a linear layer's weight is a sum over the batch's tokens of (gradient of the output)
times (input), so its rows lie in the span of the inputs. While a batch has fewer tokens than the
layer has inputs, a vocabulary token can be tested: is the input that it would cause in that span?
Raw updates of federated adapters fail this test exactly, which is what it is for: a control that
shows what is read off without a mechanism, and that nothing is with one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from sordino.core.checks import require_in_range, require_integer
from sordino.core.errors import InvalidParameterError, PrecisionError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from sordino.gradients.objectives import LanguageModel

# Linear layers that read a block's normalised input, by the last part of their name.
_READERS = ("q_proj", "k_proj", "v_proj", "c_attn", "query_key_value", "qkv_proj", "query", "value")
_ADAPTER = "default"
_LORA_A, _LORA_B, _WEIGHT = ".lora_A.weight", ".lora_B.weight", ".weight"


@dataclass(frozen=True, slots=True, eq=False)
class GradientInversion:
    """What the gradients give away.

    Args:
        token_ids: Vocabulary tokens whose input lies in the first block's span, ascending.
        sequences: Token lists that lie in the next block's span token after token, the longest
            ones; empty without gradients of a second block.
        distances: For every vocabulary token, the smallest distance of its input from a span, over
            its length; 1 where no span says anything. Shape (vocabulary_size,).
        num_spans: How many spans of the first block are smaller than their space, so that they
            say something.
    """

    token_ids: tuple[int, ...]
    sequences: tuple[tuple[int, ...], ...]
    distances: NDArray[np.float64]
    num_spans: int


def invert_gradients(
    language_model: LanguageModel,
    gradients: Mapping[str, torch.Tensor],
    *,
    max_length: int = 32,
    rank: int | None = None,
    tolerance: float | None = None,
    tokens_at_once: int = 4096,
    max_candidates: int = 1_000_000,
) -> GradientInversion:
    """Returns the tokens and sequences of a batch that its gradients give away.

    The last token of a record is an input of nothing that has a loss, so it is never found; how
    often a record's first token is repeated is not seen if nothing else follows it.

    Args:
        language_model: The model that the gradients are of, with the weights they were taken at.
        gradients: By name as in `sordino.models.trainable_tensors`. Used are weights, and A and B
            of LoRA adapters, of the layers that read a block's input (query, key, value), in the
            first two blocks that have any. B is used through A, in as many dimensions as the rank.
        max_length: Longest sequence.
        rank: How many directions a span has, if the attacker knows the number of tokens; None
            counts the singular values that are not rounding errors.
        tolerance: Largest distance, over its length, that counts as none; singular values below
            its square, over the largest, count as rounding errors. None takes the cube root of the
            rounding of the model's type.
        tokens_at_once: Inputs computed in one batch.
        max_candidates: Sequences are not extended where more candidates than this would be tried.

    Raises:
        InvalidParameterError: If an argument is out of range, or no gradient can be used.
        PrecisionError: If a gradient is NaN or infinite.

    Source:
        arXiv:2405.15586 (DAGER), for decoders. Departures: all layers that read the same input are
        tested, and one that passes is enough, since the query's gradient does not contain first
        tokens; B of an adapter is tested too; no search where the batch has more tokens than the
        space has dimensions.
    """
    require_integer("max_length", max_length, 1)
    require_integer("tokens_at_once", tokens_at_once, 1)
    require_integer("max_candidates", max_candidates, 1)
    if rank is not None:
        require_integer("rank", rank, 1)
    model = language_model.causal_lm
    if tolerance is None:
        tolerance = float(torch.finfo(next(model.parameters()).dtype).eps) ** (1 / 3)
    require_in_range("tolerance", tolerance, 1e-12, 0.5)
    blocks = _find_spans(model, gradients, rank, tolerance**2)
    reader = _InputReader(language_model, tokens_at_once)
    first = blocks[0]
    by_position = _distances_by_position(reader, first, language_model.num_tokens, max_length)
    allowed = [np.flatnonzero(distances < tolerance).tolist() for distances in by_position]
    sequences: list[tuple[int, ...]] = []
    if len(blocks) > 1 and blocks[1].spans:
        # A rotary model has one list for all positions.
        lists = allowed * max_length if len(allowed) == 1 else allowed
        sequences = _extend(reader, blocks[1], lists, tolerance, max_candidates)
    return GradientInversion(
        token_ids=tuple(sorted({token for tokens in allowed for token in tokens})),
        sequences=tuple(sequences),
        distances=np.min(by_position, axis=0),
        num_spans=len(first.spans),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Span:
    """A subspace that inputs, or their images under A, are tested against."""

    basis: torch.Tensor  # orthonormal columns, (dimension, rank), float64
    factor: torch.Tensor | None  # A of an adapter, (lora_rank, num_inputs), float64

    def distances(self, inputs: torch.Tensor) -> torch.Tensor:
        """Returns each input's distance from the span over its length, float64."""
        points = inputs if self.factor is None else inputs @ self.factor.T
        lengths = points.norm(dim=-1)
        outside = points - (points @ self.basis) @ self.basis.T
        # an input of length zero is in every span, so it says nothing
        return torch.where(lengths > 0, outside.norm(dim=-1) / lengths, torch.ones_like(lengths))


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """The layers of one block that read its input."""

    layer: nn.Module
    spans: list[_Span]

    def distances(self, inputs: torch.Tensor) -> NDArray[np.float64]:
        """Returns the smallest distance over the spans; 1 without any."""
        smallest = inputs.new_ones(inputs.shape[0])
        for span in self.spans:
            smallest = torch.minimum(smallest, span.distances(inputs))
        return np.asarray(smallest.cpu().numpy(), dtype=np.float64)


def _find_spans(
    model: Any, gradients: Mapping[str, torch.Tensor], rank: int | None, cut: float
) -> list[_Block]:
    """Returns the first two blocks with usable gradients, and their spans."""
    layers: dict[int, nn.Module] = {}
    inputs: dict[int, list[torch.Tensor]] = {}  # gradients whose rows are inputs, by block
    spans: dict[int, list[_Span]] = {}
    for name in sorted(gradients):
        layer_name, kind = _parse(name)
        number = next((int(part) for part in layer_name.split(".") if part.isdigit()), None)
        if number is None or layer_name.rsplit(".", 1)[-1] not in _READERS:
            continue
        gradient = gradients[name].detach().double()
        if not bool(torch.isfinite(gradient).all()):
            raise PrecisionError(f"the gradient of {name} is NaN or infinite.")
        layer = model.get_submodule(layer_name)
        gradient = gradient.to(next(layer.parameters()).device)  # it may have been read from a file
        layers.setdefault(number, layer)
        spans.setdefault(number, [])
        if kind == _LORA_B:
            factor = layer.lora_A[_ADAPTER].weight.detach().double()
            spans[number] += _span(gradient, factor.to(gradient.device), rank, cut)
        else:
            is_weight_of_conv = kind == _WEIGHT and not isinstance(layer, nn.Linear)
            rows = gradient.T if is_weight_of_conv else gradient
            inputs.setdefault(number, []).append(rows)
    if not layers:
        raise InvalidParameterError(
            "gradients must contain a weight or an adapter of a layer that reads a block's input "
            f"(named {', '.join(_READERS)}), got none."
        )
    for number, parts in inputs.items():
        # Each over its own length: a small one must not look like the rounding of a large one.
        scaled = [part / part.norm() for part in parts if float(part.norm()) > 0]
        if scaled:
            spans[number] += _span(torch.cat(scaled), None, rank, cut)
    return [_Block(layers[number], spans[number]) for number in sorted(layers)[:2]]


def _parse(name: str) -> tuple[str, str]:
    """Returns the layer's name and which of its tensors is meant."""
    for kind in (_LORA_A, _LORA_B, _WEIGHT):
        if name.endswith(kind):
            return name.removesuffix(kind), kind
    return name, ""


def _span(
    rows: torch.Tensor, factor: torch.Tensor | None, rank: int | None, cut: float
) -> list[_Span]:
    """Returns the span of a matrix' rows, or nothing if it is empty or the whole space."""
    _, singular, directions = torch.linalg.svd(rows, full_matrices=False)
    if not float(singular[0]) > 0.0:
        return []
    size = int((singular > cut * singular[0]).sum()) if rank is None else rank
    if size >= rows.shape[1]:
        return []
    return [_Span(directions[:size].T, factor)]


class _ReachedError(Exception):
    """Ends a forward pass where the input that is wanted has been seen."""


class _InputReader:
    """Computes what a layer would read at the last position of some sequences."""

    def __init__(self, language_model: LanguageModel, at_once: int) -> None:
        self._decoder = language_model.causal_lm.get_decoder()
        self._device = language_model.device
        self._at_once = at_once

    @torch.no_grad()
    def read(self, layer: nn.Module, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
        """Returns the inputs, shape (num_sequences, num_inputs), float64; equal lengths."""
        caught: list[torch.Tensor] = []

        def catch(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            caught.append(arguments[0][:, -1].double())
            raise _ReachedError

        handle = layer.register_forward_pre_hook(catch)
        step = max(self._at_once // len(sequences[0]), 1)
        try:
            for start in range(0, len(sequences), step):
                ids = torch.tensor(sequences[start : start + step], device=self._device)
                try:
                    # all ones; without it some models warn that a token might be padding
                    mask = torch.ones_like(ids)
                    self._decoder(input_ids=ids, attention_mask=mask, use_cache=False)
                except _ReachedError:
                    continue
                raise InvalidParameterError("a layer with a gradient is not used by the model.")
        finally:
            handle.remove()
        return torch.cat(caught)


def _distances_by_position(
    reader: _InputReader, block: _Block, num_tokens: int, max_length: int
) -> list[NDArray[np.float64]]:
    """Returns each token's distance at each position; one list if positions do not matter.

    The first block with gradients must be the first of the model for that: its input depends on
    the token and its position only. Later blocks read what a prefix made of it.
    """
    at_first = reader.read(block.layer, [[token] for token in range(num_tokens)])
    found = [block.distances(at_first)]
    probes = list(range(min(num_tokens, 8)))
    elsewhere = reader.read(block.layer, [[num_tokens - 1, token] for token in probes])
    if torch.allclose(elsewhere, at_first[probes], rtol=1e-3, atol=0.0) or not block.spans:
        return found
    other_prefix = reader.read(block.layer, [[0, token] for token in probes])
    if not torch.allclose(elsewhere, other_prefix, rtol=1e-3, atol=0.0):
        raise InvalidParameterError(
            "gradients must contain the model's first block: the input of a later one depends on "
            "all tokens before, which cannot be tried out."
        )
    for place in range(1, max_length):
        sequences = [[0] * place + [token] for token in range(num_tokens)]
        found.append(block.distances(reader.read(block.layer, sequences)))
    return found


def _extend(
    reader: _InputReader,
    block: _Block,
    allowed: Sequence[Sequence[int]],
    tolerance: float,
    max_candidates: int,
) -> list[tuple[int, ...]]:
    """Returns the sequences that stay in the span at every token, prefixes of others left out."""
    complete: list[tuple[int, ...]] = []
    alive: list[tuple[int, ...]] = [()]
    for tokens in allowed:
        candidates = [(*prefix, token) for prefix in alive for token in tokens]
        if not 0 < len(candidates) <= max_candidates:
            break
        distances = block.distances(reader.read(block.layer, candidates))
        longer = [ids for ids, d in zip(candidates, distances, strict=True) if d < tolerance]
        extended = {ids[:-1] for ids in longer}
        complete += [prefix for prefix in alive if prefix and prefix not in extended]
        alive = longer
    return _longest(complete + [ids for ids in alive if ids])


def _longest(sequences: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Returns the sequences without those that begin another, repeated first tokens once.

    Attention over copies of one token gives what attention over one of them gives, so where
    positions are rotations, a record's first token alone passes the test any number of times.
    """
    unique = {ids[:1] if len(set(ids)) == 1 else ids for ids in sequences}
    prefixes = {ids[:length] for ids in unique for length in range(1, len(ids))}
    return sorted(unique - prefixes)

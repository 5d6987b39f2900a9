"""How trainable tensors are used in a forward pass, and each record's gradient by every use.

While the losses are computed, every torch function is seen before it runs. Those that use a
trainable tensor in a known way (linear layers, embeddings, rows of a matrix) leave a note on their
output; when the backward pass comes by, the note has the factors of each record's gradient. Small
modules (norms, whatever they compute) are differentiated again, record by record. Any other use is
refused: a gradient that nobody collects would be a wrong gradient without a word.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function

from sordino.core.errors import InvalidParameterError
from sordino.gradients.attention import CausalAttentionMode
from sordino.gradients.factors import Factors, Left, Spans
from sordino.gradients.per_record_jacobian import vector_jacobian

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_LARGEST_SMALL_MODULE = 2**17  # numbers; their gradients are formed for every record of a batch
_CASTS = (torch.Tensor.float, torch.Tensor.to, torch.Tensor.type_as)
_REMEDY = "Use --adapter lora, or --estimator zeroth-order."


def with_records(rows: torch.Tensor, records: torch.Tensor) -> torch.Tensor:
    """Returns `rows` as they are, and tells whoever watches which record each row belongs to.

    Args:
        rows: Shape (num_rows, ...), gathered from several records.
        records: Number within the batch of each row's record, shape (num_rows,), ascending.
    """
    if has_torch_function((rows,)):
        return handle_torch_function(with_records, (rows,), rows, records)
    return rows


class AbstractGradientSink:
    """Receives each record's gradients during the backward pass, use by use."""

    keeps_bfloat16 = False  # whether factors come as the layers computed them; else in float32

    def add_factors(self, name: str, number: int, factors: Factors) -> None:
        """Takes the gradients of one use of a matrix; `number` counts its uses from 0."""
        raise NotImplementedError

    def add_values(self, name: str, values: torch.Tensor) -> None:
        """Takes what one use adds to a tensor's gradients, shape (num_records, size), float32."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False, slots=True)
class _Source:
    """A trainable tensor, or chosen rows of one, as a torch function receives it."""

    name: str
    tensor: torch.Tensor
    rows: torch.Tensor | None = None


@dataclass(slots=True)
class _Pass:
    """What is known during one forward and backward pass."""

    num_records: int
    sink: AbstractGradientSink
    length: int | None = None  # tokens of a padded record
    derived: dict[int, _Source] = field(default_factory=dict)
    records: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    inside: torch.nn.Module | None = None  # a small module, which is differentiated as a whole


class UseWatcher(TorchFunctionMode):
    """Gives a sink each record's gradients of trainable tensors, from one backward pass.

    Weights themselves get no gradient and no time is spent on one.

    Args:
        model: The module whose forward pass the losses run.
        tensors: Trainable parameters of `model` by name; no other parameter may be trainable.

    Raises:
        InvalidParameterError: If a tensor belongs to a module that is not covered.
    """

    def __init__(self, model: torch.nn.Module, tensors: Mapping[str, torch.nn.Parameter]) -> None:
        super().__init__()
        self._tensors = dict(tensors)
        self._names = {id(p): name for name, p in self._tensors.items()}
        self._pass: _Pass | None = None
        self._is_forward = False
        # per tensor and use: the rows that its gradient can touch; None for all
        self.supports: dict[str, list[torch.Tensor | None]] = {}
        owners: dict[str, set[bool]] = {name: set() for name in self._tensors}
        for module in model.modules():
            own = [
                self._names[id(p)] for p in module.parameters(recurse=False) if id(p) in self._names
            ]
            if own:
                is_layer = _is_layer(module)
                for name in own:
                    owners[name].add(is_layer)
                    self._require_covered(name, module, is_layer=is_layer)
                if not is_layer:
                    self._watch_small(module)
        for name, kinds in owners.items():
            if len(kinds) != 1:
                what = "modules of different kinds" if kinds else "no module of the model"
                raise InvalidParameterError(f"first order: {name} belongs to {what}. {_REMEDY}")

    def run(
        self, losses: Callable[[], torch.Tensor], num_records: int, sink: AbstractGradientSink
    ) -> None:
        """Runs a forward and a backward pass; the sink gets every gradient of `losses()`."""
        self._pass = _Pass(num_records, sink)
        self.supports = {name: [] for name in self._tensors}
        try:
            with torch.enable_grad():
                self._is_forward = True
                with CausalAttentionMode(), self:
                    total = losses().sum()
                self._is_forward = False
                if total.requires_grad:  # else the losses do not depend on any trainable tensor
                    total.backward()
        finally:
            self._is_forward = False
            self._pass = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Lets a torch function run, and looks at what it does to trainable tensors."""
        kwargs = kwargs or {}
        now = self._pass
        if now is None or not self._is_forward or now.inside is not None:
            return func(*args, **kwargs)
        if func is with_records:
            now.records[id(args[0])] = args
            return args[0]
        handler = _HANDLERS.get(func)
        if handler is not None:
            return handler(self, *args, **kwargs)
        sources = [s for s in map(self._source, _tensors_in((args, kwargs))) if s is not None]
        result = func(*args, **kwargs)
        if sources and any(True for _ in _tensors_in(result)):
            self._derive(func, sources, args, result)
        return result

    def _source(self, value: Any) -> _Source | None:
        """Returns which trainable tensor a value is, if it is one."""
        name = self._names.get(id(value))
        if name is not None:
            return _Source(name, value)
        return self._now.derived.get(id(value))

    @property
    def _now(self) -> _Pass:
        if self._pass is None:
            raise RuntimeError("no pass is running.")
        return self._pass

    def _derive(
        self, func: Any, sources: list[_Source], args: tuple[Any, ...], result: Any
    ) -> None:
        """Remembers a trainable tensor in another dtype, or chosen rows of one."""
        source = sources[0]
        is_whole = source.rows is None
        if func in _CASTS and len(sources) == 1 and args[0] is source.tensor:
            self._now.derived[id(result)] = _Source(source.name, result, source.rows)
        elif func is torch.Tensor.__getitem__ and is_whole and _is_index(args[1]):
            self._now.derived[id(result)] = _Source(source.name, result, args[1])
        else:
            is_attribute = getattr(func, "__name__", "") == "__get__"
            name = getattr(func.__self__ if is_attribute else func, "__name__", str(func))
            raise self._refusal(source, f".{name}" if is_attribute else name)

    def _refusal(self, source: _Source, what: str) -> InvalidParameterError:
        """Returns the error for a use that is not covered."""
        return InvalidParameterError(
            f"first order: {source.name} is used by {what} in a way that gives no gradients per "
            f"record here. {_REMEDY}"
        )

    def _require_covered(self, name: str, module: torch.nn.Module, *, is_layer: bool) -> None:
        """Raises unless the gradients of a module's own tensors can be had."""
        own = sum(p.numel() for p in module.parameters(recurse=False))
        is_leaf = next(module.children(), None) is None
        if not is_layer and not (is_leaf and own <= _LARGEST_SMALL_MODULE):
            raise InvalidParameterError(
                f"first order covers linear layers, embeddings and small modules such as norms; "
                f"{name} is in a {type(module).__name__}. {_REMEDY}"
            )

    def _spans(self, rows: torch.Tensor, source: _Source, what: str) -> Spans:
        """Returns which rows of a layer's input or output belong to which record."""
        now = self._now
        known = now.records.get(id(rows))
        if known is not None:
            return Spans.of(known[1], now.num_records)
        if rows.ndim >= 2 and rows.shape[0] == now.num_records:
            return Spans.even(now.num_records, rows[0].numel() // rows.shape[-1])
        length = now.length
        if rows.ndim == 2 and length is not None and len(rows) == now.num_records * length:
            return Spans.even(now.num_records, length)
        raise self._refusal(source, f"{what} on a tensor of shape {tuple(rows.shape)}")

    def _note_length(self, rows: torch.Tensor, num_axes: int) -> None:
        """Remembers how many tokens the padded records of this pass have."""
        if rows.ndim == num_axes and rows.shape[0] == self._now.num_records:
            self._now.length = rows.shape[1]

    def _on_linear(
        self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Runs a linear layer; notes output gradients and inputs."""
        self._note_length(rows, 3)
        return self._after_product(F.linear(rows, weight, bias), rows, weight, bias, is_first=True)

    def _on_addmm(
        self, bias: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor, **scales: Any
    ) -> torch.Tensor:
        """Runs a linear layer with a transposed weight, as GPT-2 has."""
        output = torch.addmm(bias, rows, weight, **scales)
        source = self._source(weight) or self._source(bias)
        if source is not None and (scales or bias.ndim != 1):
            raise self._refusal(source, "addmm")
        return self._after_product(output, rows, weight, bias, is_first=False)

    def _after_product(
        self,
        output: torch.Tensor,
        rows: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        is_first: bool,  # whether the outputs are the weight's first axis
    ) -> torch.Tensor:
        """Notes what a product with a weight, plus a bias, gives for both."""
        unexpected = self._source(rows)
        of_weight, of_bias = self._source(weight), None if bias is None else self._source(bias)
        if unexpected is not None:
            raise self._refusal(unexpected, "a product, as its input,")
        if of_weight is None and of_bias is None:
            return output
        spans = self._spans(rows, of_weight or of_bias, "a linear layer")  # type: ignore[arg-type]
        if of_weight is not None and not is_first and of_weight.rows is not None:
            raise self._refusal(of_weight, "addmm, some of its rows only,")
        number = self._count(of_weight)
        inputs = rows.detach().reshape(-1, rows.shape[-1]) if of_weight is not None else None
        sink = self._now.sink

        def collect(gradient: torch.Tensor) -> None:
            outputs = gradient.reshape(-1, gradient.shape[-1])
            if of_bias is not None:
                sink.add_values(of_bias.name, self._spread(of_bias, spans.sum(outputs)))
            if of_weight is not None and inputs is not None:
                left, right = (outputs, inputs) if is_first else (inputs, outputs)
                if not (sink.keeps_bfloat16 and left.dtype == right.dtype == torch.bfloat16):
                    left, right = left.float(), right.float()
                factors = Factors(Left(left, of_weight.rows), right, spans)
                sink.add_factors(of_weight.name, number, factors)

        return _noted(output, collect)

    def _on_embedding(
        self, tokens: torch.Tensor, weight: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        """Looks tokens or positions up; notes output gradients and tokens."""
        self._note_length(tokens, 2)
        source, num_records = self._source(weight), self._now.num_records
        if source is None:
            return F.embedding(tokens, weight, **options)
        if source.rows is not None or options["max_norm"] or options["scale_grad_by_freq"]:
            raise self._refusal(source, "an embedding with max_norm or scale_grad_by_freq")
        if tokens.ndim == 2 and len(tokens) == 1:  # positions, the same for all records
            tokens = tokens.expand(num_records, -1)
        if tokens.ndim != 2 or len(tokens) != num_records:
            raise self._refusal(source, f"an embedding of shape {tuple(tokens.shape)}")
        places = tokens.detach().reshape(-1)
        spans = Spans.even(num_records, tokens.shape[1])
        number = self._count(_Source(source.name, source.tensor, places))
        padding = options["padding_idx"]
        is_padding = None if padding is None else places == padding % len(weight)
        sink = self._now.sink

        def collect(gradient: torch.Tensor) -> None:
            outputs = gradient.reshape(-1, gradient.shape[-1])
            if not (sink.keeps_bfloat16 and outputs.dtype == torch.bfloat16):
                outputs = outputs.float()
            if is_padding is not None:  # torch gives the padding's row no gradient
                outputs = outputs.masked_fill(is_padding[:, None], 0.0)
            sink.add_factors(source.name, number, Factors(Left(None, places), outputs, spans))

        return _noted(F.embedding(tokens, weight), collect)

    def _count(self, source: _Source | None) -> int:
        """Counts a use of a matrix; returns its number."""
        if source is None:
            return -1
        supports = self.supports[source.name]
        supports.append(source.rows)
        return len(supports) - 1

    def _spread(self, source: _Source, values: torch.Tensor) -> torch.Tensor:
        """Returns gradients of chosen entries of a vector as gradients of the whole vector."""
        if source.rows is None:
            return values
        whole = values.new_zeros(len(values), self._tensors[source.name].numel())
        return whole.index_add_(1, source.rows, values)

    def _watch_small(self, module: torch.nn.Module) -> None:
        """Makes a small module differentiate itself again, record by record."""
        names = {
            key: self._names[id(p)]
            for key, p in module.named_parameters(recurse=False)
            if id(p) in self._names
        }

        def before(_module: torch.nn.Module, _args: Any) -> None:
            if self._is_forward and self._pass is not None and self._pass.inside is None:
                self._pass.inside = module

        def after(_module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            if not self._is_forward or self._pass is None or self._pass.inside is not module:
                return None
            self._pass.inside = None
            source = _Source(next(iter(names.values())), output)
            if kwargs or len(args) != 1 or not isinstance(output, torch.Tensor):
                raise self._refusal(source, f"{type(module).__name__}, called with more than x,")
            inputs, sink = args[0].detach(), self._pass.sink
            self._note_length(inputs, 3)
            spans = self._spans(inputs, source, type(module).__name__)
            if spans.length is None or len(output) != len(inputs):
                raise self._refusal(source, f"{type(module).__name__} on records of many lengths")
            shape = (
                (len(spans), -1, *output.shape[1:]) if len(output) != len(spans) else output.shape
            )

            def collect(gradient: torch.Tensor) -> None:
                rows = inputs.reshape(len(spans), -1, *inputs.shape[1:])
                rows = inputs if len(inputs) == len(spans) else rows
                found = vector_jacobian(module, list(names), rows, gradient.reshape(shape))
                for key, values in found.items():
                    sink.add_values(names[key], values.reshape(len(values), -1))

            return _noted(output, collect)

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after, with_kwargs=True)


def _is_layer(module: torch.nn.Module) -> bool:
    """Returns whether a module's tensors are used by torch functions that are watched."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (torch.nn.Linear, torch.nn.Embedding, Conv1D))


def _noted(output: torch.Tensor, collect: Callable[[torch.Tensor], None]) -> torch.Tensor:
    """Returns an output whose gradient will be collected; the graph begins here if it has not."""
    if not output.requires_grad:
        output = output.detach().requires_grad_().clone()
    output.register_hook(collect)
    return output


def _is_index(index: Any) -> bool:
    """Returns whether an index is a list of row numbers."""
    return isinstance(index, torch.Tensor) and index.ndim == 1 and index.dtype == torch.int64


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yields the tensors in arguments or results."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_in(item)
    elif isinstance(value, dict):
        yield from _tensors_in(list(value.values()))


_HANDLERS: dict[Any, Any] = {
    F.linear: UseWatcher._on_linear,  # noqa: SLF001
    torch.addmm: UseWatcher._on_addmm,  # noqa: SLF001
    F.embedding: UseWatcher._on_embedding,  # noqa: SLF001
}

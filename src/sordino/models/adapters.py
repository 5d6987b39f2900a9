"""LoRA adapters that anybody can rebuild, and files that are equal for equal weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sordino.core.checks import require_integer, require_one_of, require_positive
from sordino.core.directions import MAX_SEED, public_uniform
from sordino.core.errors import InvalidParameterError, ModelUnavailableError
from sordino.models._quiet import quiet
from sordino.models._reading import first_line
from sordino.models.fingerprint import ADAPTER_FILES, compute_adapter_fingerprint
from sordino.models.nf4 import refuse_merging
from sordino.models.packed_linear import PackedLinear, is_packed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FACTORS = ("b", "both")
_ADAPTER = "default"
_CONFIG, _WEIGHTS = ADAPTER_FILES
_QUERY_AND_VALUE = ("q_proj", "v_proj", "query", "value", "q", "v", "query_proj", "value_proj")
# name parts that wrappers add: PEFT, DDP, torch.compile, FSDP, activation checkpointing
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def add_lora(
    model: PreTrainedModel,
    *,
    rank: int,
    alpha: float,
    target_modules: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    factors: str = "b",
    seed: int,
) -> PeftModel:
    """Returns the model with LoRA adapters: B zero, A public and the same on every machine.

    A has the distribution of PEFT's own default, uniform on [-1/sqrt(in_features),
    1/sqrt(in_features)): one float32 product of `public_uniform(seed, "lora-a", name, size)`,
    `name` as in `trainable_tensors`, and 1/sqrt(in_features) rounded to float32. So A costs 8 bytes
    of a transcript. The model is changed in place; its own random streams are not used.

    Adapters of packed layers have the same names, start and files as those of plain layers; over
    NF4 layers they compute as over plain ones, and refuse to be merged.

    Args:
        model: A causal language model without adapters; its linear layers may be packed.
        rank: Columns of B and rows of A, at least 1.
        alpha: The update is alpha / rank * B A; positive.
        target_modules: Names of linear layers, such as "q_proj", or full names; None takes the
            query and value projections of the attention.
        layers: Numbers of the blocks to adapt, from 0; None takes all.
        factors: "b" trains B alone, "both" trains A too. Adapters are float32 in any model.
        seed: Public seed of A.

    Raises:
        InvalidParameterError: If an argument is out of range or a target matches no linear layer.
    """
    with quiet():  # what PEFT imports in turn logs what it does not find
        from peft import LoraConfig, TaskType, get_peft_model

    require_integer("rank", rank, 1)
    require_positive("alpha", alpha)
    require_one_of("factors", factors, FACTORS)
    require_integer("seed", seed, 0, MAX_SEED)
    linear = _linear_layers(model)
    suffixes = _choose_targets(model, linear, target_modules)
    chosen = _select_layers(linear, suffixes, layers)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=suffixes,
        layers_to_transform=sorted(set(layers)) if layers is not None else None,
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=_is_transposed(linear, chosen),
        task_type=TaskType.CAUSAL_LM,
    )
    _adapt_packed_layers(config, [linear[name] for name in chosen])
    with torch.random.fork_rng(devices=[]), quiet():  # PEFT draws weights that are replaced below
        adapted = get_peft_model(model, config, adapter_name=_ADAPTER)
    _require_adapted(adapted, chosen)
    refuse_merging(adapted)
    for name, parameter in _named_tensors(adapted).items():
        is_a, is_b = name.endswith(".lora_A.weight"), name.endswith(".lora_B.weight")
        parameter.requires_grad_(is_b or (is_a and factors == "both"))
        if is_a:
            with torch.no_grad():
                parameter.copy_(initial_adapter_tensor(name, tuple(parameter.shape), seed))
    return adapted


def trainable_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters with requires_grad, sorted by a name that no wrapper changes.

    "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight" of a PEFT model is
    called "model.layers.0.self_attn.q_proj.lora_B.weight"; prefixes of DDP, FSDP, torch.compile and
    activation checkpointing are left out. Tied parameters appear once.

    Raises:
        InvalidParameterError: If two parameters would have the same name.
    """
    return {name: p for name, p in _named_tensors(model).items() if p.requires_grad}


def save_adapter(model: PeftModel, folder: str | Path, *, base_model: str) -> None:
    """Writes adapter_model.safetensors and adapter_config.json; plain PEFT loads them.

    The same weights give the same bytes: PEFT itself writes sets in an order that changes from
    process to process.

    Args:
        model: A model from `add_lora`.
        folder: Created if it does not exist.
        base_model: What adapter_config.json names as base model; the user's own words, so that no
            path of this machine is published by accident.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(
        model, adapter_name=_ADAPTER, save_embedding_layers=False
    )  # "auto" would ask the hub for the base model's vocabulary
    tensors = {name: state[name].detach().cpu().contiguous() for name in sorted(state)}
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    config = model.peft_config[_ADAPTER].to_dict()
    config |= {"base_model_name_or_path": base_model, "inference_mode": True}
    text = json.dumps(config, indent=2, sort_keys=True, default=_sorted_set)
    (folder / _CONFIG).write_text(text + "\n", encoding="utf-8")


def read_adapter_base(folder: str | Path) -> str:
    """Returns the base model that an adapter's folder names.

    Raises:
        ModelUnavailableError: If it names none.
    """
    try:
        name = json.loads((Path(folder) / _CONFIG).read_text("utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        name = None
    if not isinstance(name, str) or not name:
        raise ModelUnavailableError(
            f"Adapter {folder}: {_CONFIG} names no base model. Name it with --model BASE."
        )
    return name


def load_adapter(model: PreTrainedModel, folder: str | Path) -> tuple[PeftModel, str]:
    """Returns a base model with an adapter of any origin, frozen, and the SHA-256 of its files.

    Args:
        model: The base model, plain or packed; it is changed in place.
        folder: Holds adapter_config.json and adapter_model.safetensors, as PEFT writes them.

    Raises:
        ModelUnavailableError: If the adapter cannot be read, does not fit the model, or works on
            the input (prompt tuning) and not inside the layers.
    """
    with quiet():
        from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    folder = Path(folder)
    try:
        config = PeftConfig.from_pretrained(str(folder.absolute()))
        state = load_file(folder / _WEIGHTS)  # never pickle
    except Exception as error:  # noqa: BLE001 - readers of other projects raise anything
        raise ModelUnavailableError(
            f"Adapter {folder}: it cannot be read ({first_line(error)}). The folder must hold "
            f"{_CONFIG} and {_WEIGHTS}."
        ) from None
    if config.is_prompt_learning:
        raise ModelUnavailableError(
            f"Adapter {folder}: {config.peft_type.value} adapters work on the input, which is not "
            "covered. Merge it into a model, or use adapters inside layers, such as LoRA."
        )
    _adapt_packed_layers(config, model.modules())
    config.inference_mode = True
    try:
        with torch.random.fork_rng(devices=[]), quiet():
            adapted = get_peft_model(model, config, adapter_name=_ADAPTER)
            result = set_peft_model_state_dict(adapted, state, adapter_name=_ADAPTER)
    except (RuntimeError, ValueError) as error:
        raise ModelUnavailableError(
            f"Adapter {folder}: it does not fit the base model ({first_line(error)})."
        ) from None
    absent = [name for name in result.missing_keys if f".{_ADAPTER}." in name]
    if result.unexpected_keys or absent:
        name = [*result.unexpected_keys, *absent][0]
        raise ModelUnavailableError(
            f"Adapter {folder}: its tensors are not those that its configuration makes in this "
            f"base model (the first: {name}). Give the base it was trained on."
        )
    refuse_merging(adapted)
    adapted.requires_grad_(requires_grad=False)
    adapted.eval()
    return adapted, compute_adapter_fingerprint(folder)


def save_full(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path
) -> None:
    """Writes all weights as safetensors with configuration and tokenizer; transformers loads them.

    Raises:
        InvalidParameterError: If the model carries adapters or packed layers.
    """
    if isinstance(model, _import_peft_model()):
        raise InvalidParameterError(
            "model must be a plain transformers model, got one with adapters. Use save_adapter, or "
            "merge_and_unload() first."
        )
    if any(map(is_packed, model.modules())):
        raise InvalidParameterError(
            "model must hold plain weights, got packed linear layers, which transformers cannot "
            "load. Load the base model without base_bits, or make them plain with unpack_base."
        )
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _adapt_packed_layers(config: Any, layers: Iterable[nn.Module]) -> None:
    """Makes PEFT compute adapters over packed layers as over plain ones."""
    from peft.tuners.lora import Linear

    kinds = {type(layer) for layer in layers if is_packed(layer)}
    if kinds:
        config._register_custom_module(dict.fromkeys(kinds, Linear))  # noqa: SLF001 - PEFT's documented way


def _sorted_set(value: object) -> list[Any]:
    """Returns a set as a sorted list, for JSON."""
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no place in adapter_config.json.")


def _linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Returns the linear layers by name, except the output layer, which may be tied."""
    from transformers.pytorch_utils import Conv1D

    output = model.get_output_embeddings()
    linear: dict[str, nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D, PackedLinear)) and module is not output
    }
    if any("lora_" in name for name in linear):
        raise InvalidParameterError("model already has LoRA adapters; load the base model again.")
    return linear


def _choose_targets(
    model: PreTrainedModel, linear: dict[str, nn.Module], target_modules: Sequence[str] | None
) -> list[str]:
    """Returns the sorted targets; each of them matches at least one linear layer."""
    if isinstance(target_modules, str):
        raise InvalidParameterError(
            f"target_modules must be a list of names, got the string {target_modules!r}."
        )
    targets = sorted(set(target_modules if target_modules is not None else _defaults(model)))
    unmatched = [target for target in targets if not _matching(linear, [target])]
    if unmatched or not targets:
        wanted = repr(unmatched[0]) if unmatched else "an empty list"
        names = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
        raise InvalidParameterError(
            f"target_modules (--lora-targets) must name linear layers, got {wanted}. There are: "
            f"{names}."
        )
    return targets


def _defaults(model: PreTrainedModel) -> list[str]:
    """Returns PEFT's default targets for the architecture, restricted to query and value."""
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as BY_MODEL_TYPE

    known = BY_MODEL_TYPE.get(model.config.model_type)
    if isinstance(known, list):
        return [name for name in known if name in _QUERY_AND_VALUE] or known
    return ["q_proj", "v_proj"]  # the names of almost every architecture newer than the table


def _matching(names: Iterable[str], suffixes: Sequence[str]) -> list[str]:
    """Returns the layer names that PEFT would match: equal, or ending in "." and a suffix."""
    return [
        name
        for name in names
        if any(name == suffix or name.endswith(f".{suffix}") for suffix in suffixes)
    ]


def _select_layers(
    linear: dict[str, nn.Module], suffixes: Sequence[str], layers: Sequence[int] | None
) -> list[str]:
    """Returns the names of the linear layers to adapt; every number in `layers` must match."""
    names = _matching(linear, suffixes)
    if layers is None:
        return names
    numbers = {name: _block_number(name) for name in names}
    existing = sorted({number for number in numbers.values() if number is not None})
    unknown = sorted(set(layers) - set(existing))
    if unknown or not layers:
        found = unknown[0] if unknown else "an empty list"
        span = f"from {existing[0]} to {existing[-1]}" if existing else "absent: none is numbered"
        raise InvalidParameterError(f"layers must be block numbers {span}, got {found}.")
    return [name for name in names if numbers[name] in set(layers)]


def _block_number(name: str) -> int | None:
    """Returns the first number in a dotted name: the block's."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _is_transposed(linear: dict[str, nn.Module], names: Sequence[str]) -> bool:
    """Returns whether the layers store their weight as (in, out), as GPT-2's do."""
    kinds = set()
    for module in (linear[name] for name in names):
        is_ours = isinstance(module, PackedLinear)
        kinds.add(module.fan_in_fan_out if is_ours else not isinstance(module, nn.Linear))
    if len(kinds) > 1:
        raise InvalidParameterError("target_modules must not mix Linear and Conv1D layers.")
    return kinds == {True}


def _require_adapted(adapted: PeftModel, chosen: Sequence[str]) -> None:
    """Raises unless PEFT adapted exactly the layers that were asked for."""
    found = sorted(adapted.base_model.targeted_module_names)
    if found != sorted(chosen):
        raise InvalidParameterError(
            f"PEFT adapted {len(found)} layers where {len(chosen)} were asked for. Give "
            "either layers or full names of linear layers as target_modules, not both."
        )


def initial_adapter_tensor(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Returns an adapter's tensor before the first step, float32: B is zero, A is public.

    Args:
        name: Name as in `trainable_tensors`, ending in ".lora_A.weight" or ".lora_B.weight".
        shape: (rank, in_features) for A.
        seed: Public seed.

    Raises:
        InvalidParameterError: If the name is neither.
    """
    if name.endswith(".lora_B.weight"):
        return torch.zeros(shape)
    if not name.endswith(".lora_A.weight"):
        raise InvalidParameterError(f"{name} is not a tensor of a LoRA adapter.")
    bound = torch.tensor(1.0 / math.sqrt(shape[1]), dtype=torch.float32)
    values = torch.from_numpy(public_uniform(seed, "lora-a", name, math.prod(shape)))
    return (values * bound).reshape(shape)


def _import_peft_model() -> type[PeftModel]:
    """Returns the class of wrapped models; PEFT imports bitsandbytes, which logs what it lacks."""
    with quiet():
        from peft import PeftModel
    return PeftModel


def _named_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns all parameters by stable name, sorted; tied ones once."""
    adapted = _import_peft_model()
    is_adapted = any(isinstance(module, adapted) for module in model.modules())
    tensors: dict[str, nn.Parameter] = {}
    for raw_name, parameter in model.named_parameters():
        name = _stable_name(raw_name, is_adapted=is_adapted)
        if name in tensors:
            raise InvalidParameterError(f"model has two parameters called {name!r}.")
        tensors[name] = parameter
    return dict(sorted(tensors.items()))


def _stable_name(name: str, *, is_adapted: bool) -> str:
    """Returns the name without what wrappers add to it."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    if is_adapted:
        if parts[:2] == ["base_model", "model"]:
            parts = parts[2:]
        parts = [part for part in parts if part not in ("base_layer", _ADAPTER)]
    return ".".join(parts)

"""From settings to the parts of a run: model, parameter space, estimator, mechanism."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sordino.core.checks import require_integer, require_positive
from sordino.core.errors import InvalidParameterError
from sordino.data import ClassificationTask
from sordino.gradients.copied import CopiedParameterSpace
from sordino.gradients.estimators import ZerothOrderEstimator
from sordino.gradients.forward_mode import ForwardModeEstimator
from sordino.gradients.ghost import GhostEstimator
from sordino.gradients.objectives import LanguageModel
from sordino.gradients.prefix import FrozenPrefix
from sordino.gradients.projected import FirstOrderEstimator
from sordino.gradients.shared import SharedComponent
from sordino.mechanisms.binary_channel import BinaryChannelMechanism
from sordino.mechanisms.open_mean import OpenMeanMechanism
from sordino.mechanisms.unanimity import UnanimityMechanism
from sordino.models import LoadedModel, add_lora, is_packed, load_model, trainable_tensors
from sordino.training.encoding import encode_records
from sordino.training.probes import labelled_probes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sordino.core.entropy import AbstractEntropy
    from sordino.gradients.estimators import AbstractEstimator
    from sordino.gradients.objectives import AbstractObjective
    from sordino.gradients.parameters import AbstractParameterSpace
    from sordino.mechanisms.release import AbstractMechanism
    from sordino.training.config import TuneConfig
    from sordino.training.encoding import Task, TaskOptions

# Steps of the central difference that fit what is trained and the compute type: float32 and
# bfloat16 as measured, see "Perturbation" in benchmarks/RESULTS.md; float16 assumed, not measured.
# All weights together move the loss further than an adapter does, so their step is smaller.
PERTURBATIONS = {
    ("lora", torch.float32): 1e-3,
    ("lora", torch.bfloat16): 3e-2,
    ("lora", torch.float16): 1e-2,
    ("full", torch.float32): 1e-3,
    ("full", torch.bfloat16): 3e-3,
    ("full", torch.float16): 1e-3,
}
DEFAULT_SHARED_WEIGHT = 0.3  # docs/decisions/0006-shared-component.md


def load_for_tuning(
    source: str, config: TuneConfig, dtype: torch.dtype, device: str
) -> LoadedModel:
    """Returns the base model: in the compute dtype, or packed, under an adapter; else float32."""
    stored = torch.float32 if config.adapter == "full" else dtype
    return load_model(
        source,
        dtype=stored,
        device=device,
        base_bits=config.base_bits,
        base_format=config.base_format,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterOptions:
    """What is trained inside the base model."""

    rank: int
    alpha: float
    targets: Sequence[str] | None
    first_layer: int
    factors: str

    @classmethod
    def checked(
        cls,
        *,
        rank: int,
        alpha: float,
        targets: Sequence[str] | None,
        first_layer: int,
        factors: str,
    ) -> AdapterOptions:
        """Returns options whose numbers are in range.

        Raises:
            InvalidParameterError: If one is not.
        """
        return cls(
            rank=require_integer("lora_rank", rank, 1),
            alpha=require_positive("lora_alpha", alpha),
            targets=targets,
            first_layer=require_integer("lora_first_layer", first_layer, 0),
            factors=factors,
        )


def prepare_tensors(
    loaded: LoadedModel, config: TuneConfig, options: AdapterOptions
) -> tuple[Any, dict[str, torch.nn.Parameter], dict[str, Any]]:
    """Returns the model to save, its trainable tensors, and the public description of both."""
    if config.adapter == "full":
        return loaded.model, prepare_full(loaded.model), {"kind": "full"}
    adapted = add_lora(
        loaded.model,
        rank=options.rank,
        alpha=options.alpha,
        target_modules=options.targets,
        layers=_adapted_layers(loaded, options.first_layer),
        factors=options.factors,
        seed=config.seed,
    )
    tensors = trainable_tensors(adapted)
    adapted.requires_grad_(requires_grad=False)
    description = {
        "kind": "lora",
        "rank": options.rank,
        "alpha": options.alpha,
        "factors": options.factors,
    }
    return adapted, tensors, description


def _adapted_layers(loaded: LoadedModel, first: int) -> list[int] | None:
    """Returns the numbers of the blocks to adapt; None for all."""
    if first == 0:
        return None
    num_layers = loaded.model.config.num_hidden_layers
    require_integer("lora_first_layer", first, 0, num_layers - 1)
    return list(range(first, num_layers))


def prepare_full(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Returns every parameter of a model by stable name, tied ones once.

    Raises:
        InvalidParameterError: If some weights are packed, which cannot be trained.
    """
    if any(map(is_packed, model.modules())):
        raise InvalidParameterError(
            "adapter full trains every weight, and those of this model are stored in few bits. "
            "Train an adapter (lora), or give the unquantized model."
        )
    model.requires_grad_(requires_grad=True)
    tensors = trainable_tensors(model)
    model.requires_grad_(requires_grad=False)
    return tensors


def make_language_model(
    loaded: LoadedModel,
    model: Any,
    *,
    num_frozen_blocks: int,
    kept_states: str = "batches",
    **options: Any,
) -> LanguageModel:
    """Returns the model as objectives see it.

    Args:
        loaded: The base model.
        model: What computes: the base model, a copy of it, or the PEFT model around it.
        num_frozen_blocks: Blocks below the first adapted one; 0 when all weights are trained.
        kept_states: What the frozen blocks give and is kept, see `FrozenPrefix.find`.
        **options: Further fields of the `LanguageModel`.
    """
    causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    prefix = FrozenPrefix.find(causal_lm, num_frozen_blocks, kept=kept_states)
    return LanguageModel(causal_lm, loaded.tokenizer.pad_token_id, prefix=prefix, **options)


def find_perturbation(config: TuneConfig, dtype: torch.dtype) -> float | None:
    """Returns the step of the finite difference; None where derivatives are exact."""
    if config.estimator == "first-order":
        return None
    if config.perturbation is not None:
        return config.perturbation
    return PERTURBATIONS[config.adapter, dtype]


def find_shared_weight(config: TuneConfig, task: Task) -> float:
    """Returns how much is kept of the gradients' part that moves all answers alike.

    Raises:
        InvalidParameterError: If less than all was asked for where there is no such part.
    """
    is_covered = (
        isinstance(task, ClassificationTask)
        and config.guarantee != "dp"
        and config.adapter == "lora"
        and config.derivative == "backpropagation"
    )
    if config.shared_weight is None:
        return DEFAULT_SHARED_WEIGHT if is_covered else 1.0
    if config.shared_weight < 1.0 and not is_covered:
        raise InvalidParameterError(
            "shared_weight below 1 is for classifications with --estimator first-order, --adapter "
            "lora and at least 2 directions a step: leave it out."
        )
    return config.shared_weight


def make_shared(
    weight: float,
    task: Task,
    options: TaskOptions,
    loaded: LoadedModel,
    language_model: LanguageModel,
) -> SharedComponent | None:
    """Returns what weighs down the gradients' shared part; None where all of it is kept."""
    if weight == 1.0 or not isinstance(task, ClassificationTask):
        return None
    probes = labelled_probes(task)
    objective = encode_records(task, probes, loaded, replace(options, truncate=True)).objective
    return SharedComponent(language_model, objective, num_labels=len(task.labels), weight=weight)


def make_estimator(
    config: TuneConfig,
    language_model: LanguageModel,
    objective: AbstractObjective,
    space: AbstractParameterSpace,
    *,
    dtype: torch.dtype,
    shared: SharedComponent | None = None,
) -> AbstractEstimator:
    """Returns the estimator that the settings name."""
    perturbation = find_perturbation(config, dtype)
    if config.derivative == "forward-mode":
        return ForwardModeEstimator(language_model, objective, space, clip=config.clip)
    if isinstance(space, CopiedParameterSpace):
        return GhostEstimator(
            language_model, objective, space.computing, space.directions, clip=config.clip
        )
    if perturbation is None:
        return FirstOrderEstimator(
            language_model, objective, space, clip=config.clip, shared=shared
        )
    return ZerothOrderEstimator(
        language_model, objective, space, perturbation=perturbation, clip=config.clip
    )


def make_mechanism(
    config: TuneConfig, entropy: AbstractEntropy, records_per_step: int
) -> AbstractMechanism:
    """Returns the mechanism that the settings name."""
    if config.guarantee == "none":
        return OpenMeanMechanism(records_per_step)
    if config.mutual_information > 0:
        return BinaryChannelMechanism(
            config.candidates,
            entropy,
            budget_nats=config.mutual_information,
            num_steps=config.num_steps,
            channel=config.channel,
            budget_schedule=config.budget_schedule,
        )
    return UnanimityMechanism(
        config.candidates,
        entropy,
        on_disagreement=config.on_disagreement,
        unanimity_flip=config.unanimity_flip,
    )


def make_membership(config: TuneConfig, num_records: int) -> np.ndarray:
    """Returns which unit is in which subset; without candidate subsets there is one, the pool."""
    if config.guarantee != "pac":
        return np.ones((num_records, 1), dtype=np.bool_)
    return config.candidates.membership(num_records)

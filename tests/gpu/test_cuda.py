"""Runs and numbers on a CUDA device: whole runs end as on a processor, and compute the same.

Skipped without such a device. Sums there may be added in another order from run to run, so numbers
are compared to a relative 1e-4; what replays a transcript is compared bit by bit.
"""

from __future__ import annotations

import copy
import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sordino
from helpers_access_models import LORA_TARGETS, write_access_model
from helpers_runs import (
    SMALL,
    completion_rows,
    sentiment_rows,
    write_jsonl,
    write_tiny_model,
)
from helpers_streams import seeded_stream
from helpers_tiny_models import (
    END,
    WORDS,
    adapted_llama,
    make_examples,
    make_model,
    named_parameters,
)
from sordino.access.generate import generate, read_questions
from sordino.core.errors import PrecisionError
from sordino.data.tasks import Example
from sordino.gradients.clipped import CLIPPINGS, ClippedGradients
from sordino.gradients.copied import CopiedParameterSpace
from sordino.gradients.direction_sets import make_direction_set
from sordino.gradients.estimators import ZerothOrderEstimator
from sordino.gradients.forward_mode import ForwardModeEstimator
from sordino.gradients.generation import Decoding, generate_texts
from sordino.gradients.ghost import GhostEstimator
from sordino.gradients.objectives import (
    AbstractObjective,
    ClassificationObjective,
    CompletionObjective,
    LanguageModel,
)
from sordino.gradients.projected import FirstOrderEstimator
from sordino.gradients.shared import SharedComponent
from sordino.gradients.streamed import StreamedParameterSpace
from sordino.ledger.ledger import Ledger
from sordino.ledger.transcript import StepSymbols
from sordino.mechanisms.noise import add_noise, noise_source, standard_normals
from sordino.models import PackedLinear, load_model
from sordino.models.packed_linear import pack_base
from sordino.reports.access_evaluate import evaluate as evaluate_access
from sordino.reports.access_tune import tune as tune_access
from sordino.training import symbols
from sordino.training.gradient_steps import GradientStepper, LostStepsWarning

if TYPE_CHECKING:
    from pathlib import Path

DEVICE = "cuda"
pytestmark = [
    pytest.mark.usefixtures("calibrated_once"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),  # PyTorch warns about a device's state, once each
]

PAC = SMALL | {"device": DEVICE}
FIRST = {"estimator": "first-order", "directions_per_step": 8}
FULL = {"adapter": "full", "learning_rate": 1e-3}
GHOST = FULL | {"estimator": "first-order", "directions_per_step": 16}
DP = {name: PAC[name] for name in ("num_steps", "lora_rank", "dtype", "device")} | {
    "guarantee": "dp",
    "epsilon": 8.0,
    "delta": 1e-3,
    "batch_size": 12,
}
DP_FIRST = DP | {"estimator": "first-order", "learning_rate": 0.01}
DP_ZEROTH = DP | {"estimator": "zeroth-order", "learning_rate": 0.05}
SGD = {"optimizer": "sgd", "learning_rate": 1.0}
RUNS: dict[str, dict[str, Any]] = {
    "pac-zeroth": PAC,
    "pac-zeroth-full": PAC | FULL,
    "pac-zeroth-bfloat16": PAC | {"dtype": "bfloat16"},
    "pac-zeroth-8-bit": PAC | {"base_bits": 8},
    "pac-budget": PAC | FIRST | {"mutual_information": 0.1},
    "pac-first-b": PAC | FIRST,
    "pac-first-both": PAC | FIRST | {"lora_factors": "both", "direction_kind": "rademacher"},
    "pac-first-coordinates": PAC | FIRST | {"direction_kind": "coordinates"},
    "pac-first-bfloat16": PAC | FIRST | {"dtype": "bfloat16"},
    "pac-first-last-block": PAC | FIRST | {"lora_first_layer": 1},
    "pac-first-4-bit": PAC | FIRST | {"base_bits": 4},
    "pac-first-full": PAC | GHOST,
    "pac-first-full-bfloat16": PAC | GHOST | {"dtype": "bfloat16"},
    "pac-forward": PAC | FIRST | {"directions_per_step": 1},
    "pac-decay": PAC | {"weight_decay": 0.3, "lora_factors": "both"},
    "dp-first": DP_FIRST,
    "dp-first-both": DP_FIRST | {"lora_factors": "both"},
    "dp-first-per-layer": DP_FIRST | {"clipping": "per-layer"},
    "dp-first-automatic": DP_FIRST | {"clipping": "automatic"},
    "dp-first-sgd": DP_FIRST | SGD,
    "dp-first-full": DP_FIRST | FULL,
    "dp-first-full-sgd-per-layer": DP_FIRST | FULL | SGD | {"clipping": "per-layer"},
    "dp-first-full-bfloat16": DP_FIRST | FULL | {"dtype": "bfloat16"},
    "dp-first-last-block": DP_FIRST | {"lora_first_layer": 1},
    "dp-first-4-bit": DP_FIRST | {"base_bits": 4},
    "dp-first-8-bit": DP_FIRST | {"base_bits": 8},
    "dp-zeroth": DP_ZEROTH,
    "dp-zeroth-discrete": DP_ZEROTH | {"noise": "discrete", "directions_per_step": 3},
    "dp-zeroth-full": DP_ZEROTH | FULL,
    "none-adamw": DP_FIRST
    | {"guarantee": "none", "optimizer": "adamw", "epsilon": None}
    | {"delta": None},
}
LENGTHS = [5, 12, 2, 9, 12, 3]
BATCHES = [[1, 4], [3, 0, 5], [2]]
NORMALS = 2**20


@pytest.fixture
def files(tmp_path: Path, tiny_model: Path) -> dict[str, Any]:
    return {
        "model": str(tiny_model),
        "train": write_jsonl(tmp_path / "pool.jsonl", sentiment_rows(24)),
        "output": tmp_path / "run",
    }


def assert_verifies(run: Path, model: str) -> None:
    """Fails with every difference that `sordino verify` finds, on the processor."""
    result = sordino.verify(run, model=model)
    assert [(c.what, c.difference) for c in result.checks if c.difference] == []


def make_objective(kind: str) -> AbstractObjective:
    examples = make_examples(kind, LENGTHS)
    if kind == "classification":
        return ClassificationObjective(examples, WORDS)
    return CompletionObjective(examples)


def assert_near(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    """Fails unless two tensors agree, relative to the norm of the second, which is on the CPU."""
    assert expected.device.type == "cpu"
    found, expected = found.detach().cpu().double(), expected.detach().double()
    assert float((found - expected).norm()) <= tolerance * float(expected.norm())
    assert float(expected.norm()) > 0


# ---------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_each_kind(name: str, files: dict[str, Any]) -> None:
    """Every combination trains on the device and verifies on the processor."""
    settings = RUNS[name]
    sordino.tune(**files, **settings)
    result = sordino.verify(files["output"], model=files["model"])
    assert [(c.what, c.difference) for c in result.checks if c.difference] == []
    if name.startswith("dp-first"):
        opening = Ledger.open(files["output"] / "ledger.jsonl").events[0]
        assert opening["mechanism"]["noise_source"] == noise_source(DEVICE)
        assert any(noise_source(DEVICE) in line for line in result.certificate_in_words)


@pytest.mark.parametrize("objective", ["loss", "token-f1"])
def test_completions_with_public_scores(
    objective: str, tmp_path: Path, files: dict[str, Any]
) -> None:
    """Generated answers and likelihoods; scores on public records."""
    files["train"] = write_jsonl(tmp_path / "notes.jsonl", completion_rows(12))
    public = write_jsonl(tmp_path / "public.jsonl", completion_rows(4, start=60))
    own = {"objective": objective, "max_new_tokens": 4, "perturbation": 0.5}
    settings = PAC | {"guarantee": "none"} | (own if objective == "token-f1" else {})
    sordino.tune(
        **files, **settings, validation=public, validation_is_public=True, evaluate_every=1
    )
    assert_verifies(files["output"], files["model"])
    assert len((files["output"] / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"adapter": "full", "dtype": "bfloat16", "divergence": "jensen-shannon"},
        {"divergence": "forward-kl", "clipping": "per-layer", "lora_factors": "both"},
    ],
    ids=["lora", "full-bfloat16", "per-layer"],
)
def test_distillation(changes: dict[str, Any], tmp_path: Path, files: dict[str, Any]) -> None:
    """The student samples with the device's generator, under a key of the operating system's."""
    teacher = write_tiny_model(tmp_path / "teacher", hidden_size=24, initializer_range=0.5)
    prompts = [{"prompt": row["prompt"]} for row in completion_rows(24)]
    files["train"] = write_jsonl(tmp_path / "prompts.jsonl", prompts)
    settings = DP | {"max_new_tokens": 5} | changes
    sordino.distill(teacher=str(teacher), **files, **settings)
    assert_verifies(files["output"], files["model"])


def interrupt_at(patch: pytest.MonkeyPatch, owner: Any, name: str, number: int) -> None:
    """Makes a function raise when it is called for a step."""
    real = getattr(owner, name)

    def interrupted(*arguments: Any) -> Any:
        if arguments[-1] == number:
            raise KeyboardInterrupt
        return real(*arguments)

    patch.setattr(owner, name, interrupted)


@pytest.mark.parametrize("name", ["pac-first-b", "pac-budget", "pac-first-full-bfloat16"])
def test_released_signs_are_taken_up_again(name: str, files: dict[str, Any]) -> None:
    """Interrupted before its last step, a run replays its transcript and ends as it should."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, symbols, "run_one_step", 2)
        with pytest.raises(KeyboardInterrupt):
            sordino.tune(**files, **RUNS[name])
    sordino.tune(**files, **RUNS[name], resume=True)
    assert_verifies(files["output"], files["model"])


@pytest.mark.parametrize("name", ["none-adamw", "dp-first", "dp-first-full-bfloat16"])
def test_a_checkpoint_is_taken_up_again(name: str, files: dict[str, Any]) -> None:
    """Weights and optimizer come back to the device; without noise, to the same last weights."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, GradientStepper, "take", 2)
        with pytest.raises(KeyboardInterrupt):
            sordino.tune(**files, **RUNS[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error", LostStepsWarning)
        sordino.tune(**files, **RUNS[name], resume=True)
    assert_verifies(files["output"], files["model"])
    if name == "none-adamw":
        alone = files["output"].with_name("alone")
        sordino.tune(**files | {"output": alone}, **RUNS[name])
        found, expected = (
            load_file(folder / "adapter_model.safetensors") for folder in (files["output"], alone)
        )
        for key, values in expected.items():
            assert torch.allclose(found[key], values, rtol=1e-3, atol=1e-4), key


def test_audit(tmp_path: Path, files: dict[str, Any]) -> None:
    """Canaries, membership and the positive control."""
    sordino.tune(**files, **RUNS["none-adamw"] | {"canaries": 8})
    others = write_jsonl(tmp_path / "others.jsonl", sentiment_rows(24, start=40))
    result = sordino.audit(
        str(files["output"]),
        model=files["model"],
        members=files["train"],
        nonmembers=others,
        output=tmp_path / "audit",
        device=DEVICE,
        dtype="float32",
    )
    assert result.audit.membership is not None
    assert result.audit.canaries is not None


def test_access(tmp_path: Path) -> None:
    """A handful of questions tuned on, asked before and after, and evaluated."""
    folder = generate(output=tmp_path / "questions", seed=4, employees=60, questions=2).output
    questions = [q for split in ("train", "test") for q in read_questions(folder / split)]
    model = str(write_access_model(tmp_path / "model", questions))
    common = {"dtype": "float32", "device": DEVICE, "max_new_tokens": 8}
    result = tune_access(
        model=model,
        questions=folder / "train",
        output=tmp_path / "run",
        records=8,
        test_questions=2,
        base_bits=4,
        lora_rank=4,
        lora_targets=LORA_TARGETS,
        **common,
    )
    assert_verifies(result.output, model)
    record = evaluate_access(
        str(result.output),
        base=model,
        questions=folder,
        output=tmp_path / "evaluation",
        limit=2,
        **common,
    ).record
    assert len(record.answers) == 2


# ------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "qwen3"])
@pytest.mark.parametrize("kind", ["classification", "completion"])
def test_losses(name: str, kind: str) -> None:
    """Per-record losses are those of the processor, and lie on the device."""
    model = make_model(name)
    records, objective = range(len(LENGTHS)), make_objective(kind)
    with torch.no_grad():
        expected = objective.losses(LanguageModel(model, END), records)
        found = objective.losses(LanguageModel(copy.deepcopy(model).to(DEVICE), END), records)
    assert found.device.type == torch.device(DEVICE).type
    assert_near(found, expected)


@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("method", ["materialised", "book-keeping"])
@pytest.mark.parametrize("units", [None, [7, 7, 3, 5, 5, 5]], ids=["records", "users"])
@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
def test_clipped_sums(
    clipping: str, method: str, units: list[int] | None, *, is_tied: bool
) -> None:
    """All weights, records of unequal length, users of several records."""
    model = make_model("llama", tie_word_embeddings=is_tied)
    sums = []
    for twin in (copy.deepcopy(model), copy.deepcopy(model).to(DEVICE)):
        clipped = ClippedGradients(
            LanguageModel(twin, END),
            make_objective("completion"),
            named_parameters(twin),
            clip_norm=0.5,
            clipping=clipping,
            method=method,
        )
        total = clipped.zeros()
        clipped.add_batch(total, range(6), units)
        sums.append(torch.cat([values.reshape(-1) for values in total.values()]))
    assert sums[1].device.type == torch.device(DEVICE).type
    assert_near(sums[1], sums[0])


@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_a_clipped_sum_in_bfloat16_is_near(clipping: str) -> None:
    """One unit adds no more than the bound, and the sum points where float32's does."""
    model = make_model("llama", tie_word_embeddings=False)
    sums = []
    for twin in (model, copy.deepcopy(model).to(DEVICE, torch.bfloat16)):
        clipped = ClippedGradients(
            LanguageModel(twin, END),
            CompletionObjective(make_examples("completion", [24, 24])),
            named_parameters(twin),
            clip_norm=0.5,
            clipping=clipping,
            method="book-keeping",
        )
        total = clipped.zeros()
        clipped.add_batch(total, [0])
        sums.append(torch.cat([values.reshape(-1) for values in total.values()]).double().cpu())
    assert 0.3 < float(sums[1].norm()) <= 0.5
    assert float(torch.nn.functional.cosine_similarity(sums[0], sums[1], dim=0)) > 0.98


def test_a_failure_within_the_backward_pass_is_told() -> None:
    """The device's backward pass runs in a thread of its own; our errors come out of it."""
    model = make_model("llama").to(DEVICE)
    model.model.layers[0].mlp.down_proj.weight.data[0, 0] = math.nan
    clipped = ClippedGradients(
        LanguageModel(model, END),
        make_objective("completion"),
        named_parameters(model),
        clip_norm=0.5,
        clipping="per-layer",
        method="book-keeping",
    )
    total = clipped.zeros()
    with pytest.raises(PrecisionError, match="nothing was released"):
        clipped.add_batch(total, range(6))
    assert all(bool(values.isnan().all()) for values in total.values())


@pytest.mark.parametrize("kind", ["rademacher", "gaussian", "hadamard", "kronecker", "coordinates"])
@pytest.mark.parametrize("factors", ["b", "both"])
def test_projections(kind: str, factors: str) -> None:
    """Contributions of the projected estimator come to the CPU in float64, and are the same."""
    found = []
    for device in ("cpu", DEVICE):
        model, space = adapted_llama(factors, kind, num_directions=8, device=device)
        estimator = FirstOrderEstimator(model, make_objective("completion"), space, clip=0.5)
        found.append(torch.cat([values for _, values in estimator.contributions(1, BATCHES)]))
    assert found[1].device.type == "cpu"
    assert found[1].dtype == torch.float64
    assert_near(found[1], found[0])


def test_projections_without_the_shared_part() -> None:
    """Weighing down what moves all answers alike."""
    found = []
    for device in ("cpu", DEVICE):
        model, space = adapted_llama("b", "hadamard", num_directions=8, device=device)
        public = [
            Example(e.input_ids, target=label)
            for e in make_examples("classification", LENGTHS)
            for label in range(len(WORDS))
        ]
        objective = ClassificationObjective(public, WORDS)
        shared = SharedComponent(model, objective, num_labels=len(WORDS), weight=0.25)
        estimator = FirstOrderEstimator(
            model, make_objective("classification"), space, clip=0.5, shared=shared
        )
        found.append(torch.cat([values for _, values in estimator.contributions(1, BATCHES)]))
    assert_near(found[1], found[0], 1e-3)  # of a difference of nearly equal gradients


def test_projections_in_bfloat16() -> None:
    """The estimator of the README, as it runs on an accelerator: near float32's numbers."""
    found = []
    for device, dtype in (("cpu", torch.float32), (DEVICE, torch.bfloat16)):
        model, space = adapted_llama("b", "hadamard", num_directions=64, device=device)
        for name, parameter in model.causal_lm.named_parameters():
            if ".lora_" not in name:  # adapters are float32 in any model
                parameter.data = parameter.data.to(dtype)
        estimator = FirstOrderEstimator(model, make_objective("completion"), space, clip=0.5)
        found.append(torch.cat([values for _, values in estimator.contributions(1, BATCHES)]))
    assert bool(found[1].isfinite().all())
    assert float(torch.nn.functional.cosine_similarity(*found).min()) > 0.95


@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
def test_ghost_norms_and_projections(*, is_tied: bool) -> None:
    """All weights, without forming a gradient."""
    model = make_model("llama", tie_word_embeddings=is_tied)
    found = []
    for twin in (copy.deepcopy(model), copy.deepcopy(model).to(DEVICE)):
        tensors = named_parameters(twin)
        shapes = {name: tuple(p.shape) for name, p in tensors.items()}
        directions = make_direction_set("kronecker", 7, shapes, 16)
        estimator = GhostEstimator(
            LanguageModel(twin, END), make_objective("completion"), tensors, directions, clip=0.5
        )
        norms, projections = estimator.measure(3, range(6))
        (_, values), *_ = estimator.contributions(3, [range(6)])
        assert values.device.type == "cpu"
        found.append((norms, projections, values))
    for on_device, on_cpu in zip(found[1], found[0], strict=True):
        assert_near(on_device, on_cpu)


@pytest.mark.parametrize("packed_bits", [None, 4])
def test_derivatives_without_a_backward_pass(packed_bits: int | None) -> None:
    """Forward mode is exact; central differences carry float32's rounding."""
    forwards, differences = [], []
    for device in ("cpu", DEVICE):
        model, space = adapted_llama("b", device=device)
        if packed_bits is not None:
            for parent in model.causal_lm.modules():
                if hasattr(parent, "base_layer"):
                    layer = PackedLinear.from_linear(parent.base_layer.cpu(), bits=packed_bits)
                    parent.base_layer = layer.to(device)
        objective = make_objective("completion")
        exact = ForwardModeEstimator(model, objective, space, clip=1e3)
        forwards.append(torch.cat([values for _, values in exact.contributions(2, BATCHES)]))
        central = ZerothOrderEstimator(model, objective, space, perturbation=1e-2, clip=1e3)
        differences.append(torch.cat([values for _, values in central.contributions(2, BATCHES)]))
    assert_near(forwards[1], forwards[0])
    assert_near(differences[1], differences[0], 1e-2)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian", "hadamard", "kronecker"])
def test_a_move_of_an_adapter_is_the_same_bits(kind: str) -> None:
    """What `verify` relies on: a release moves the master alike on every device."""
    states = []
    for device in ("cpu", DEVICE):
        _, space = adapted_llama("both", kind, num_directions=8, device=device)
        for step in range(3):
            assert space.apply(step, symbols_of(8, step), 0.05, 0.1)
        states.append(space.state())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("kind", ["rademacher", "kronecker"])
def test_a_move_of_all_weights_is_the_same_bits(kind: str) -> None:
    """The same for the spaces of full fine-tuning."""
    states = []
    for device in ("cpu", DEVICE):
        model = make_model("llama").to(device)
        tensors = named_parameters(model)
        shapes = {name: tuple(p.shape) for name, p in tensors.items()}
        directions: Any = make_direction_set(kind, 7, shapes, 8)
        space_type: Any = StreamedParameterSpace if kind == "rademacher" else CopiedParameterSpace
        space = space_type(model, tensors, directions, torch.float32)
        for step in range(3):
            assert space.apply(step, symbols_of(8, step), 0.05, 0.1)
        states.append(space.state())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def symbols_of(count: int, step: int) -> StepSymbols:
    """Returns releases of a step."""
    random = np.random.default_rng(step)
    return StepSymbols(random.integers(-5, 6, count).astype(np.int32) | 1, 0.25)


# ------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("has_offsets", [False, True], ids=["symmetric", "offsets"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_packed_weights_are_the_same_bits(
    bits: int, dtype: torch.dtype, *, has_offsets: bool
) -> None:
    """Codes and weights; 300 inputs in groups of 32, the last one short."""
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (70, 300), generator=generator)
    numbers = torch.rand(2, 70, 10, generator=generator) / 2**bits  # float16 holds the gradients
    scales, offsets = numbers.half().unbind()
    layer = PackedLinear.from_codes(
        codes,
        scales,
        offsets=offsets if has_offsets else None,
        bias=torch.randn(70, generator=generator),
        bits=bits,
        group_size=32,
        compute_dtype=dtype,
    )
    there = copy.deepcopy(layer).to(DEVICE)
    assert torch.equal(there.codes().cpu(), codes.to(torch.uint8))
    assert torch.equal(there.dequantize().cpu(), layer.dequantize())
    x = torch.randn(3, 1, 300, generator=generator).to(dtype)
    tolerance = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}[dtype]
    assert_near(there(x.to(DEVICE)), layer(x), tolerance)
    inputs = [x.to(device, copy=True).requires_grad_() for device in ("cpu", DEVICE)]
    for packed, x_own in zip((layer, there), inputs, strict=True):
        packed(x_own).float().square().sum().backward()
    assert_near(inputs[1].grad, inputs[0].grad, tolerance)  # type: ignore[arg-type]


def test_a_packed_model_gives_the_processors_losses() -> None:
    """Packed on the processor and moved, or packed on the device."""
    model = make_model("llama")
    records, objective = range(len(LENGTHS)), make_objective("completion")
    moved = pack_base(copy.deepcopy(model)).to(DEVICE)
    there = pack_base(copy.deepcopy(model).to(DEVICE))
    with torch.no_grad():
        expected = objective.losses(LanguageModel(pack_base(model), END), records)
        for twin in (moved, there):
            assert_near(objective.losses(LanguageModel(twin, END), records), expected)


def test_loading_puts_everything_on_the_device(tiny_model: Path) -> None:
    """Weights, packed codes and buffers."""
    for bits in (None, 4):
        model = load_model(str(tiny_model), device=DEVICE, base_bits=bits).model
        tensors = [*model.parameters(), *model.buffers()]
        assert {tensor.device.type for tensor in tensors} == {torch.device(DEVICE).type}


def test_texts_are_those_of_the_processor(tiny_model: Path) -> None:
    """Random numbers come from the processor, so every device writes the same."""
    written = []
    for device in ("cpu", DEVICE):
        loaded = load_model(str(tiny_model), device=device)
        model = LanguageModel(loaded.model, loaded.tokenizer.pad_token_id)
        prompts = [[2, 3, 14], [4], [2] * 33 + [5], [2] * 33 + [6, 7]]
        texts = generate_texts(
            model,
            loaded.tokenizer,
            prompts,
            Decoding(max_new_tokens=6),
            context_length=loaded.context_length,
            seed=3,
            is_finished=lambda text: len(text) > 20,
        )
        written.append(dict(texts))
    assert written[0] == written[1]


# --------------------------------------------------------------------------------------- noise


def test_noise_of_the_device_is_normal() -> None:
    """Mean, variance and the correlation of two draws; 5 deviations each.

    Keys come from a fixed seed, so the verdict repeats; over all keys, a right generator fails
    with probability 3e-6 (5 statistics, 6e-7 each).
    """
    stream = seeded_stream(11)
    first, second = (standard_normals(stream, NORMALS, DEVICE) for _ in range(2))
    assert first.device.type == torch.device(DEVICE).type
    assert first.dtype == torch.float64
    bound = 5.0 / math.sqrt(NORMALS)
    for normals in (first, second):
        assert abs(float(normals.mean())) < bound
        assert abs(float(normals.square().mean()) - 1.0) < math.sqrt(2.0) * bound
    assert abs(float((first * second).mean())) < bound


def test_noise_is_added_once_and_keyed_afresh() -> None:
    """Two calls differ, in every number; the device's global generator is neither read nor set."""
    stream = seeded_stream(12)
    state = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    first, second = (torch.zeros(3, 70_001, device=DEVICE) for _ in range(2))
    for values in (first, second):
        add_noise(values, stream, 0.5)
    if state is not None:
        assert torch.equal(state, torch.cuda.get_rng_state())
    assert int((first == second).sum()) < 10  # float32 numbers may coincide; 210,003 do not
    assert float(first.double().std()) == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(2 * 210_003))
    with pytest.raises(PrecisionError, match="nothing was released"):
        add_noise(torch.full((4,), math.nan, device=DEVICE), stream, 0.5)


def test_the_source_of_the_noise_is_named() -> None:
    assert noise_source(torch.zeros(1, device=DEVICE).device) == (
        "CUDA generator keyed by the operating system"
    )

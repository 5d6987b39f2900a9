"""`sordino quantize`: a model in fewer bits, with a certificate for every layer."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typing_extensions import Doc

from sordino.core.errors import InvalidParameterError
from sordino.lattices.problem import DAMPING
from sordino.ledger.artefacts import digest_file
from sordino.ledger.durable import named
from sordino.quantization import formats
from sordino.quantization.bit_choice import (
    BitBudget,
    choose_bits,
    measure_losses,
    needs_inputs,
)
from sordino.quantization.calibration import CalibrationRun, encode_calibration
from sordino.quantization.input_scales import place_folds
from sordino.quantization.methods import METHODS, QuantizationSettings
from sordino.quantization.pipeline import (
    LayerStore,
    drop_weights,
    matrix_of,
    quantize_blocks,
    select_layers,
)
from sordino.quantization.provenance import (
    CalibrationSource,
    artefact_digests,
    describe_privacy,
)
from sordino.quantization.source import open_source
from sordino.reports.private_calibration import (
    charge_release,
    make_probe,
    plan_release,
    release_grams,
)
from sordino.reports.protect import choose_bits as choose_bits_by_role
from sordino.reports.protect import describe_frontier
from sordino.reports.quantize_checks import (
    read_budget,
    read_calibration,
    read_group_size,
    read_protection,
    require_new,
    require_space,
    require_together,
)
from sordino.reports.quantize_output import hold_output, write_output
from sordino.training.progress import progress
from sordino.training.run_folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sordino.quantization.pipeline import FinishedLayer
    from sordino.quantization.source import QuantizationSource


@dataclass(frozen=True, slots=True, eq=False)
class QuantizeResult:
    """A quantized model on disk.

    Args:
        output: The folder.
        record: The file with every layer's certificate.
        layers: The layers, in the order of the model.
        kept: Linear layers that stay in full precision, and why.
        privacy: What may be claimed, as in the record.
        frontier: With `protect`: what the plan came to, in words, for the data holder.
    """

    output: Path
    record: Path
    layers: Mapping[str, FinishedLayer]
    kept: Mapping[str, str]
    privacy: Mapping[str, Any]
    frontier: tuple[str, ...] = ()


def quantize(
    source: Annotated[
        str, Doc("Run folder, PEFT adapter, model folder, GGUF file, hub id, or 'embedded'.")
    ],
    *,
    output: Annotated[Path, Doc("Folder to make.")],
    bits: Annotated[int, Doc("Bits of a weight: 2, 4 or 8.")] = 4,
    group_size: Annotated[
        str, Doc("Neighbouring inputs that share a scale: 32, 64, 128, or row.")
    ] = "64",
    method: Annotated[str, Doc(f"One of {', '.join(METHODS)}.")] = "gptq",
    order: Annotated[
        Literal["natural", "activation", "min-pivot"], Doc("gptq: which column is rounded first.")
    ] = "min-pivot",
    lattice_reduction: Annotated[
        Literal["none", "lll"],
        Doc("gptq with --group-size row: also try a reduced basis; slow, kept where it helps."),
    ] = "none",
    scales: Annotated[
        Literal["absmax", "searched"],
        Doc("Scales that clip no weight, or those with the smallest error of the weights."),
    ] = "searched",
    calibration: Annotated[
        str | None,
        Doc("JSONL, CSV, TSV, Parquet or TXT (a text a line), or none; gptq and awq need a file."),
    ] = None,
    calibration_is_public: Annotated[
        bool, Doc("Declare that the calibration texts are public; else a run's claim is void.")
    ] = False,
    calibration_sequences: Annotated[int, Doc("Texts used, from the first on.")] = 128,
    calibration_length: Annotated[int, Doc("Tokens used of each text.")] = 512,
    damping: Annotated[float, Doc("Share of the Gram's mean diagonal added to it.")] = DAMPING,
    model: Annotated[
        str | None, Doc("Base of an adapter; default: what its folder or its ledger names.")
    ] = None,
    calibration_epsilon: Annotated[
        float | None,
        Doc("Private texts, all of them, through noisy Gram matrices: their epsilon, in nats."),
    ] = None,
    calibration_delta: Annotated[float | None, Doc("delta that goes with it.")] = None,
    calibration_clip: Annotated[
        float | None, Doc("Largest Frobenius norm of a text's X^T X; larger ones are scaled down.")
    ] = None,
    budget_bytes: Annotated[
        int | None,
        Doc(
            "Bytes for all codes and scales; each layer gets 2, 4 or 8 bits in place of --bits. "
            "Default with --protect: those of 4 bits, or more if the groups' roles need it."
        ),
    ] = None,
    allocation: Annotated[
        Literal["certificate", "kurtosis", "sensitivity", "random"] | None,
        Doc("Rule that spends --budget-bytes; default: certificate."),
    ] = None,
    allocation_seed: Annotated[int, Doc("Of --allocation random; public.")] = 0,
    protect: Annotated[
        Path | None,
        Doc("Records it was tuned on: bits then follow what an attack sees; voids a run's claim."),
    ] = None,
    nonmembers: Annotated[Path | None, Doc("With --protect: others of the same kind.")] = None,
    public: Annotated[Path | None, Doc("With --protect: public text, for quality.")] = None,
    tolerance: Annotated[
        float, Doc("With --protect: rise of the loss that counts, nats a token.")
    ] = 0.02,
    geometry: Annotated[
        bool, Doc("Measure what tuning and rounding did to each layer; for adapters.")
    ] = False,
    format: Annotated[  # noqa: A002 - the option's name
        Literal["compressed-tensors", "gguf"], Doc("Files to write.")
    ] = "compressed-tensors",
) -> QuantizeResult:
    """Rounds a model's linear layers to few bits, with a certificate for each of them.

    Adapters are merged first. Embeddings and the output layer stay as they are. Finished blocks are
    kept in OUTPUT.partial: the same command goes on behind them.

    Returns:
        Layers, certificates, and what may be claimed of privacy.

    Raises:
        InvalidParameterError: If settings do not go together, or the output exists.
        InvalidDataError: If the calibration file cannot be used.
        LedgerError: If another process is at work on the same output.
        ModelUnavailableError: If the model cannot be read.

    Example:
        sordino quantize embedded --calibration texts.jsonl --calibration-is-public --output small
    """
    output = named(Path(output))
    settings = QuantizationSettings(
        bits=bits,
        group_size=read_group_size(group_size),
        method=method,
        order=order,
        lattice_reduction=lattice_reduction,
        scales=scales,
        damping=damping,
    )
    protection = read_protection(
        protect,
        nonmembers,
        public,
        budget_bytes=budget_bytes,
        allocation=allocation,
        tolerance=tolerance,
        base=model,
    )
    spent = None if protection else budget_bytes
    budget = read_budget(spent, allocation, allocation_seed, format)
    groups = [] if settings.group_size is None else [settings.group_size]
    choices = tuple(sorted(formats.FORMATS[format].bits))
    for width in [bits] if budget is None and protection is None else choices:
        formats.require_writable(format, bits=width, group_sizes=groups)
    is_dp = calibration_epsilon is not None
    texts = read_calibration(calibration, method, is_public=calibration_is_public)
    require_together(texts, settings, budget, is_public=calibration_is_public, is_dp=is_dp)
    require_new(output)
    opened = open_source(source, base=model)
    layers, kept = select_layers(opened.model, settings)
    widths = {matrix_of(module).shape[1] for block in layers for module in block.values()}
    formats.require_writable(
        format,
        bits=bits if budget is None else budget.choices[0],
        group_sizes=map(settings.group_size_of, widths),
    )
    require_space(output, opened, layers)
    is_folding = METHODS[method].choose_input_scales is not None
    folds = place_folds(opened.model, layers) if is_folding else None
    base = _open_base(opened, settings, texts) if geometry else None
    # Of private texts none is left out: one more at the top would push out another.
    most = calibration_sequences if texts is None or not is_dp else len(texts)
    sequences = _encode(opened, texts, most, calibration_length)
    if calibration_epsilon is not None:
        probe = make_probe(opened.model)
        release = plan_release(
            probe,
            layers,
            epsilon=calibration_epsilon,
            delta=calibration_delta,
            clip_norm=calibration_clip,
        )
        found = CalibrationSource(kind="dp", num_sequences=None, num_tokens=None, release=release)
    else:
        probe = None
        found = _describe_texts(calibration, sequences, is_public=calibration_is_public)
    privacy = describe_privacy(  # refuses before hours of work
        opened.ledger, found, looked_at_members=protection is not None
    )
    with hold_output(output) as partial:
        store = LayerStore(
            partial,
            asdict(settings)
            | asdict(found)
            | {
                "model": [opened.fingerprint, opened.base_fingerprint],
                "sequences": sequences and _digest_tokens(sequences),
                "budget": budget and asdict(budget),
                "protection": protection and [str(value) for value in asdict(protection).values()],
                "geometry": geometry,
                "sordino_version": version("sordino"),
            },
        )
        private = None
        if found.release is not None and probe is not None:
            charge_release(store, found.release)
            private = release_grams(found.release, probe)
        layer_bits = store.load_bits()  # decided once for a folder
        if layer_bits is None and protection is not None:
            layer_bits = choose_bits_by_role(
                source,
                opened,
                {name: module for block in layers for name, module in block.items()},
                protection,
                group_size=settings.group_size,
                folder=RunFolder(output).private,
                choices=choices,
            ).bits
        elif layer_bits is None and budget is not None:
            layer_bits = _choose_bits(opened, layers, settings, budget, sequences)
        if layer_bits is not None:
            store.save_bits(layer_bits)
        with progress("quantize: blocks", len(layers)) as advance:
            finished, unreached = quantize_blocks(
                layers,
                _open_run(opened, sequences),
                settings,
                store,
                advance=advance,
                bits=layer_bits,
                folds=folds,
                private=private,
                base=base,
            )
        kept |= unreached
        sizes = {name: item.layer.num_bytes for name, item in finished.items()}
        drop_weights(layers, finished)  # writing needs memory of its own
        record = write_output(
            output,
            opened,
            format,
            finished,
            store,
            parts={
                "settings": asdict(settings) | ({} if layer_bits is None else {"bits": None}),
                "looked_at_members": protection is not None,
                "calibration": asdict(found),
                "privacy": privacy,
                "allocation": budget and budget.describe(layer_bits or {}, sizes),
                "kept": kept,
            },
        )
    return QuantizeResult(
        output,
        record,
        finished,
        kept,
        privacy,
        () if protection is None else describe_frontier(RunFolder(output).private),
    )


def _encode(
    opened: QuantizationSource, texts: list[str] | None, most: int, length: int
) -> list[list[int]]:
    """Returns the tokens of calibration texts; none without any."""
    if texts is None:
        return []
    return encode_calibration(
        texts,
        opened.tokenizer,
        num_sequences=most,
        max_length=min(length, opened.context_length),
    )


def _describe_texts(
    calibration: str | None, sequences: list[list[int]], *, is_public: bool
) -> CalibrationSource:
    """Returns what the record says of texts that are used as they are."""
    if not sequences:
        return CalibrationSource(kind="none")
    return CalibrationSource(
        kind="public" if is_public else "private",
        sha256=_sha256(Path(str(calibration))) if is_public else None,
        num_sequences=len(sequences),
        num_tokens=sum(map(len, sequences)),
    )


def _open_run(opened: QuantizationSource, sequences: list[list[int]]) -> CalibrationRun | None:
    """Returns calibration sequences in front of the model; None without any."""
    if not sequences:
        return None
    return CalibrationRun(opened.model, sequences, pad_id=opened.tokenizer.pad_token_id)


def _choose_bits(
    opened: QuantizationSource,
    layers: list[dict[str, Any]],
    settings: QuantizationSettings,
    budget: BitBudget,
    sequences: list[list[int]],
) -> dict[str, int]:
    """Returns the bits of each layer that spend a budget of bytes."""
    losses = None
    run = _open_run(opened, sequences) if needs_inputs(budget.allocation) else None
    if run is not None:
        with progress("quantize: losses at each width", len(layers)) as advance:
            losses = measure_losses(
                layers, run, settings, budget.choices, matrix_of=matrix_of, advance=advance
            )
    weights = {name: matrix_of(module) for block in layers for name, module in block.items()}
    return choose_bits(weights, settings, budget, losses, max(1, sum(map(len, sequences))))


def _open_base(
    opened: QuantizationSource, settings: QuantizationSettings, texts: list[str] | None
) -> dict[str, Any]:
    """Returns the layers before fine-tuning, by name."""
    if opened.open_base is None or texts is None:
        raise InvalidParameterError(
            "geometry compares an adapter's base with the merged model on calibration texts: give "
            "a run or a PEFT folder whose base is known, and --calibration FILE."
        )
    if METHODS[settings.method].choose_input_scales is not None:
        raise InvalidParameterError(
            f"geometry compares weights on one grid, and method {settings.method} scales their "
            "columns. Take --method gptq, hqq or nearest."
        )
    layers, _ = select_layers(opened.open_base(), settings)
    return {name: module for block in layers for name, module in block.items()}


def _digest_tokens(sequences: list[list[int]]) -> str:
    """Returns a hash of the token lists."""
    return hashlib.sha256(repr(sequences).encode()).hexdigest()


def _sha256(path: Path) -> str:
    """Returns the hash of a file; of a folder, that of its files' hashes and names."""
    if path.is_dir():
        return hashlib.sha256(repr(artefact_digests(path)).encode()).hexdigest()
    return digest_file(path)

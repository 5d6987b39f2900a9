"""The model card: the certificate in words, a pure function of the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sordino.ledger.certificate_words import describe_certificate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from sordino.ledger.certificate import Certificate
    from sordino.ledger.ledger import Ledger


def render_card(ledger: Ledger, certificate: Certificate) -> str:
    """Returns the model card in Markdown; equal ledgers give equal cards."""
    opening = ledger.events[0]
    is_adapter = opening["adapter"]["kind"] == "lora"
    front = ["---", "tags:", "- sordino", *(["library_name: peft"] if is_adapter else []), "---"]
    loading = (
        "Load it with `peft.PeftModel.from_pretrained(base_model, folder)`."
        if is_adapter
        else "Load it with `transformers.AutoModelForCausalLM.from_pretrained(folder)`."
    )
    teacher = opening.get("teacher")
    taught = (
        []
        if teacher is None
        else [("teacher", teacher["name"]), ("teacher SHA-256", teacher["sha256"])]
    )
    canaries = opening.get("canaries")
    planted = (
        []
        if canaries is None
        else [("canaries", f"{canaries['num_planned']} planned, {canaries['style']}")]
    )
    settings = [
        ("base model", opening["base_model"]),
        ("base model SHA-256", opening["base_model_sha256"]),
        ("bits of a frozen weight", _base_bits(opening)),
        *taught,
        *planted,
        *_retained(opening),
        ("estimator", opening["estimator"]),
        ("mechanism", opening["mechanism"]["name"]),
        ("records a step", opening["sampling"]),
        ("steps", opening["num_steps"]),
        ("directions a step", opening["directions_per_step"]),
        ("public seed", opening["seed"]),
        ("computed in", opening["compute_dtype"]),
        ("made with", f"sordino {opening['sordino_version']}"),
    ]
    return "\n".join(
        [
            *front,
            "",
            "# A language model tuned on private text",
            "",
            loading,
            "",
            "## What is guaranteed, and what is not",
            "",
            *[f"- {line}" for line in describe_certificate(certificate)],
            "",
            (
                "Recompute it: `sordino verify FOLDER --model BASE`. That shows that these files "
                "belong together and claim no more than their ledger gives. That records were "
                "handled and noise was drawn as the ledger says rests on whoever made them."
            ),
            "",
            (
                "What attacks found, if the holder published it: [page](audit.html), "
                "[numbers](audit.json)."
            ),
            "",
            "## Settings (all public)",
            "",
            "| setting | value |",
            "|---|---|",
            *[f"| {name} | {value} |" for name, value in settings],
            "",
        ]
    )


def _retained(opening: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns what held the model to its base, if anything did."""
    kept = opening.get("retained")
    if kept is None:
        return []
    words = f"{kept['num_texts']}, {kept['per_step']} a step, weight {kept['weight']:g}"
    return [("public texts held to the base", words), ("their SHA-256", kept["sha256"])]


def _base_bits(opening: Mapping[str, Any]) -> str:
    """Returns how a frozen weight was held."""
    if opening["base_bits"] is None:
        return "as in the base model"
    return f"{opening['base_bits']}{' (NF4)' if opening.get('base_format') == 'nf4' else ''}"

"""A byte-level BPE tokenizer as the fields of a GGUF file.

A GGUF file does not hold the rule by which text is cut into words before merging, but the name of
one that its readers know. So a tokenizer whose rule is not among those known here is refused: it
would be read without an error, and cut some texts into other tokens.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sordino.core.errors import InvalidParameterError

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # kinds of token
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2 = _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
_SPLITS = {_LLAMA_3: "llama-bpe", _QWEN_2: "qwen2"}
_MERGES_IGNORED = ("llama-bpe",)  # there a word that is a token stays one
_SPECIAL = ("bos", "eos", "unk", "pad")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerFields:
    """What a GGUF file says about a tokenizer.

    Args:
        rule: Name of the rule that cuts text into words.
        tokens: By id, as many as the model embeds.
        kinds: Of each token.
        merges: Pairs, separated by a space, best first.
        special: Ids of special tokens: "bos", "eos", "unk", "pad".
        adds: Whether "bos" and "eos" are put around a text.
        chat_template: As the tokenizer has it.
    """

    rule: str
    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    special: dict[str, int]
    adds: dict[str, bool]
    chat_template: str | None


def describe_tokenizer(tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> TokenizerFields:
    """Returns the fields for a model that embeds `num_tokens` tokens.

    Raises:
        InvalidParameterError: If the tokenizer is of a kind that is not written.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refusal("it has no tokenizer.json")
    parts = json.loads(backend.to_str())
    rule = _rule(parts)
    ids = tokenizer.get_vocab()
    if max(ids.values()) >= num_tokens:
        raise _refusal(f"it has more tokens than the model embeds ({num_tokens})")
    tokens = [f"[UNUSED{number}]" for number in range(num_tokens)]
    kinds = [_UNUSED] * num_tokens
    for token, number in ids.items():
        tokens[number], kinds[number] = token, _NORMAL
    for number, token in tokenizer.added_tokens_decoder.items():
        kinds[number] = _CONTROL if token.special else _USER_DEFINED
    special = {name: getattr(tokenizer, f"{name}_token_id") for name in _SPECIAL}
    found = tokenizer("a").input_ids
    template = tokenizer.chat_template
    return TokenizerFields(
        rule=rule,
        tokens=tokens,
        kinds=kinds,
        merges=[m if isinstance(m, str) else " ".join(m) for m in parts["model"]["merges"]],
        special={name: number for name, number in special.items() if number is not None},
        adds={
            "bos": special["bos"] is not None and found[0] == special["bos"],
            "eos": special["eos"] is not None and found[-1] == special["eos"],
        },
        chat_template=template if isinstance(template, str) else None,
    )


def add_tokenizer(writer: GGUFWriter, fields: TokenizerFields) -> None:
    """Writes the fields."""
    writer.add_tokenizer_model("gpt2")  # the readers' name of byte-level BPE
    writer.add_tokenizer_pre(fields.rule)
    writer.add_token_list(fields.tokens)
    writer.add_token_types(fields.kinds)
    writer.add_token_merges(fields.merges)
    for name, number in fields.special.items():
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_space_prefix(value=False)
    writer.add_add_bos_token(fields.adds["bos"])
    writer.add_add_eos_token(fields.adds["eos"])
    if fields.chat_template is not None:
        writer.add_chat_template(fields.chat_template)


def _rule(parts: dict[str, Any]) -> str:
    """Returns the readers' name of the rule that cuts text into words."""
    model = parts["model"]
    if model["type"] != "BPE" or model.get("byte_fallback") or model.get("dropout"):
        raise _refusal("it is not a byte-level BPE tokenizer")
    if (parts["normalizer"] or {}).get("type") not in (None, "NFC"):
        raise _refusal("it changes the text first")
    outer = parts["pre_tokenizer"] or {}
    steps = outer.get("pretokenizers", [outer])
    rule = None
    if [step.get("type") for step in steps] == ["ByteLevel"] and steps[0]["use_regex"]:
        rule = "gpt-2"
    elif [step.get("type") for step in steps] == ["Digits", "ByteLevel"]:
        rule = "smollm" if steps[0]["individual_digits"] and steps[1]["use_regex"] else None
    elif [step.get("type") for step in steps] == ["Split", "ByteLevel"]:
        is_plain = steps[0]["behavior"] == "Isolated" and not steps[0]["invert"]
        if is_plain and not steps[1]["use_regex"]:
            rule = _SPLITS.get(steps[0]["pattern"].get("Regex", ""))
    if rule is None or steps[-1]["add_prefix_space"]:
        raise _refusal("its rule for cutting text into words has no known name")
    if bool(model.get("ignore_merges")) != (rule in _MERGES_IGNORED):
        raise _refusal("it treats whole words in an unusual way (ignore_merges)")
    return rule


def _refusal(reason: str) -> InvalidParameterError:
    """Returns the error for a tokenizer that is not written."""
    return InvalidParameterError(
        f"the tokenizer cannot be written to a GGUF file: {reason}. Known are byte-level BPE "
        "tokenizers of GPT-2, SmolLM, Llama 3 and Qwen2 kind. Take the format compressed-tensors."
    )

"""What reading a folder and reading a GGUF file have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sordino.core.errors import ModelUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_LONGEST_REASON = 200


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's text, shortened, or its type."""
    lines = str(error).strip().splitlines()
    return lines[0][:_LONGEST_REASON].rstrip(" .:") if lines else type(error).__name__


def unreadable(path: Path, error: BaseException) -> ModelUnavailableError:
    """Returns the error for a model whose files exist and cannot be read."""
    return ModelUnavailableError(
        f"Model {path}: it cannot be read ({first_line(error)}). The files are damaged, incomplete "
        "or of an architecture that transformers does not know; copy or download them again."
    )


def require_complete(path: Path, loading_info: Mapping[str, Any]) -> None:
    """Raises if a weight was not in the files: transformers would fill it with random numbers."""
    missing = sorted(str(name) for name in loading_info.get("missing_keys", ()))
    mismatched = sorted(str(entry) for entry in loading_info.get("mismatched_keys", ()))
    if missing or mismatched:
        raise ModelUnavailableError(
            f"Model {path}: {len(missing) + len(mismatched)} weights are missing or have the wrong "
            f"shape, the first is {(missing + mismatched)[0]}. The files are incomplete, or this "
            "is not a causal language model."
        )


def with_padding_token(tokenizer: Any) -> Any:
    """Returns the tokenizer; one without padding token pads with its end token, else token 0.

    Padding may thus equal a real token: the attention mask says what is padding, never the id.
    """
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer

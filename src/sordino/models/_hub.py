"""Fetches a model from the hub, or says in one sentence why it could not."""

from __future__ import annotations

from pathlib import Path

from sordino.core.errors import ModelUnavailableError

_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_TIMEOUT_S = 5.0


def fetch_snapshot(repository: str) -> Path:
    """Returns the local folder with the files of a hub model, from the cache if unreachable.

    Raises:
        ModelUnavailableError: If the hub cannot be reached and nothing is cached, or if it has no
            such model.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        # asked first, since snapshot_download offers no timeout of its own
        revision = HfApi().model_info(repository, timeout=_TIMEOUT_S).sha
    except Exception as error:  # noqa: BLE001 - any failure may leave a cached copy to use
        return _fetch_cached(repository, _describe(error))
    try:
        folder = snapshot_download(repository, revision=revision, allow_patterns=_PATTERNS)
    except Exception as error:  # noqa: BLE001
        return _fetch_cached(repository, _describe(error))
    return Path(folder)


def _fetch_cached(repository: str, reason: str) -> Path:
    """Returns the cached folder, else raises the one error that a user sees."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=_PATTERNS, local_files_only=True))
    except Exception:  # noqa: BLE001
        raise ModelUnavailableError(
            f"Model {repository!r}: no local file or folder has this name, and {reason}. Give the "
            'path of a model folder or .gguf file, a hub id, or "embedded".'
        ) from None


def _describe(error: Exception) -> str:
    """Returns why the hub did not give the model, as the end of a sentence."""
    from huggingface_hub import errors

    if isinstance(error, errors.HFValidationError):
        return "it is not a valid model hub id"
    if isinstance(error, errors.GatedRepoError):
        return "the model hub gives it only to accounts that accepted its terms (hf auth login)"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the model hub has no such public model (private ones need hf auth login)"
    return "the model hub could not be reached, nor is the model in the local cache"

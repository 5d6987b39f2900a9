"""The runs of one comparison, one after the other, and what they are matched with."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sordino.accounting.dp import compute_tradeoff
from sordino.accounting.inference_risk import mutual_information_from_posterior
from sordino.core.errors import InvalidParameterError, LedgerError
from sordino.ledger.certificate import compute_certificate
from sordino.ledger.durable import replace_file
from sordino.ledger.ledger import Ledger
from sordino.reports.comparison import METHODS, Comparison, Row, count_forward_equivalents
from sordino.reports.page import render_page
from sordino.training.config import find_recipe
from sordino.training.dp_plan import make_dp_plan
from sordino.training.loop import read_metrics
from sordino.training.run_folder import RunFolder
from sordino.training.tune import tune

if TYPE_CHECKING:
    from pathlib import Path

    from sordino.ledger.certificate import Certificate
    from sordino.training.dp_plan import DpOptions
    from sordino.training.workers import Workers


@dataclass(frozen=True, slots=True)
class ComparisonResult:
    """A finished comparison and where it lies."""

    output: Path
    comparison: Comparison

    @property
    def record(self) -> Path:
        """The numbers, for machines."""
        return self.output / "comparison.json"

    @property
    def page(self) -> Path:
        """The table and the figure, for people."""
        return self.output / "comparison.html"


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """The runs of one comparison, and what they share.

    Args:
        result: What is finished so far.
        options: What the dp methods were asked for.
        batch_size: Records of a step of the methods that are not PAC.
        directions_per_step: Signs of a step of the first-order PAC methods; None: the recipe's.
        steps: Steps by "first-order", "zeroth-order" and "pac-first-order"; None: the recipe's.
        fixed: What every `tune` gets.
        workers: The processes that share the work.
    """

    result: ComparisonResult
    options: DpOptions
    batch_size: int
    directions_per_step: int | None
    steps: dict[str, int | None]
    fixed: dict[str, Any]
    workers: Workers

    def with_run(self, name: str) -> Study:
        """Returns the study after one more run; its record and page are on disk."""
        folder = RunFolder(self.result.output / "runs" / name)
        matched = self._matched_success(name)
        old = self.result.comparison.find(name)
        seconds = old.seconds if old is not None else None
        is_finished, is_begun = self.workers.from_main(
            lambda: (_is_finished(folder), folder.path.exists())
        )  # asked once: the main process may be in the run before others would have looked
        if not is_finished:
            began = time.monotonic()
            tune(output=folder.path, resume=is_begun, **self.fixed, **self._settings(name, matched))
            seconds = None if is_begun else round(time.monotonic() - began, 1)

        def record() -> ComparisonResult:
            row, opening = self._read_row(name, folder, seconds, matched)
            comparison = add_row(self.result.comparison, row, opening)
            result = replace(self.result, comparison=comparison)
            replace_file(result.page, render_page(comparison).encode())
            replace_file(result.record, comparison.to_bytes())
            return result

        return replace(self, result=self.workers.from_main(record))

    def _settings(self, name: str, matched: float | None) -> dict[str, Any]:
        """Returns what only this method's `tune` gets."""
        method, num_steps = METHODS[name], self._num_steps(name)
        settings: dict[str, Any] = {
            "guarantee": method.guarantee,
            "estimator": method.estimator,
            "num_steps": num_steps,
            "evaluate_every": num_steps,  # before and after, nothing between
        }
        if method.guarantee == "pac":
            budget = 0.0 if matched is None else mutual_information_from_posterior(matched)
            if method.estimator == "first-order":
                settings["directions_per_step"] = self.directions_per_step
            return settings | {"mutual_information": budget}
        settings |= {"batch_size": self.batch_size, "optimizer": _optimizer(name)}
        if method.guarantee == "dp":
            settings |= {
                "epsilon": self.options.epsilon,
                "delta": self.options.delta,
                "allow_large_delta": self.options.allow_large_delta,
            }
        return settings

    def _num_steps(self, name: str) -> int:
        """Returns the steps of a method: those asked for, or those of its recipe."""
        method = METHODS[name]
        is_pac_first = (method.guarantee, method.estimator) == ("pac", "first-order")
        asked = self.steps["pac-first-order" if is_pac_first else method.estimator]
        if asked is not None:
            return asked
        return find_recipe(method.estimator, "lora", optimizer=_optimizer(name)).num_steps

    def _matched_success(self, name: str) -> float | None:
        """Returns the success of a guess that a method is matched with; None if it is not.

        Raises:
            InvalidParameterError: If the dp method allows a guess that is always right.
        """
        matched_with = METHODS[name].matched_with
        if matched_with is None:
            return None
        row = self.result.comparison.find(matched_with)
        if row is not None and row.pool.success_upper is not None:
            success = row.pool.success_upper
        else:  # that method was not asked for: what it would allow follows from its settings
            plan = make_dp_plan(
                self.options,
                num_units=self.result.comparison.num_records,
                num_steps=self._num_steps(matched_with),
                expected_units=self.batch_size,
                clip_norm=1.0,  # does not change the accounting
            )
            success = compute_tradeoff(plan.event).success(0.5)
        if success >= 1.0:
            raise InvalidParameterError(
                f"epsilon {self.options.epsilon:g} allows a guess that is always right, so no PAC "
                "budget compares with it. Use a smaller --epsilon."
            )
        return success

    def _read_row(
        self, name: str, folder: RunFolder, seconds: float | None, matched: float | None
    ) -> tuple[Row, dict[str, Any]]:
        """Returns a finished run's row, from its files, and its ledger's opening event."""
        ledger = Ledger.open(folder.ledger)
        certificate, opening = _read_certificate(folder, ledger), ledger.events[0]
        scores = {e["num_steps"]: e for e in read_metrics(folder, opening["num_steps"])}
        share = 1.0
        if METHODS[name].guarantee != "pac":
            share = self.batch_size / self.result.comparison.num_records
        score = self.result.comparison.score
        row = Row(
            method=name,
            score_before=scores[0][score],
            score_after=scores[opening["num_steps"]][score],
            num_steps=opening["num_steps"],
            share_per_step=share,
            forward_equivalents=count_forward_equivalents(
                opening["derivative"],
                num_steps=opening["num_steps"],
                directions_per_step=opening["directions_per_step"],
                share_per_step=share,
            ),
            seconds=seconds,
            matched_success=matched,
            subset=certificate.subset,
            pool=certificate.pool,
            run=folder.path.relative_to(self.result.output).as_posix(),
        )
        return row, opening


def _optimizer(name: str) -> str | None:
    """Returns what moves the weights; None: released symbols do."""
    method = METHODS[name]
    is_on_gradients = method.estimator == "first-order" and method.guarantee != "pac"
    return "adamw" if is_on_gradients else None


def _is_finished(folder: RunFolder) -> bool:
    """Returns whether nothing is left to do: the certificate is there, the secrets are not."""
    return folder.certificate.exists() and not folder.private.exists()


def _read_certificate(folder: RunFolder, ledger: Ledger) -> Certificate:
    """Returns the certificate that the ledger gives.

    Raises:
        LedgerError: If certificate.json says something else.
    """
    certificate = compute_certificate(ledger)
    if folder.certificate.read_bytes() != certificate.to_bytes():
        raise LedgerError(
            f"{folder.certificate} is not the certificate of its ledger. Look with sordino verify "
            f"{folder.path}, and take the run out of the folder before you compare again."
        )
    return certificate


def add_row(comparison: Comparison, row: Row, opening: dict[str, Any]) -> Comparison:
    """Returns the comparison with a run in its place.

    Raises:
        LedgerError: If the run is on another model, pool size or validation file.
    """
    found = {
        "base_model": opening["base_model"],
        "base_model_sha256": opening["base_model_sha256"],
        "validation_sha256": opening["validation"]["sha256"],
    }
    known = {name: getattr(comparison, name) for name in found} if comparison.rows else found
    same_size = opening["num_records"] == comparison.num_records
    differing = [name for name, value in found.items() if known[name] != value]
    if differing or not same_size:
        raise LedgerError(
            f"{row.run} does not belong to this comparison: it differs in "
            f"{', '.join(differing) or 'num_records'}. Runs are compared on the same model, "
            "records and validation file; take it out of the folder and repeat it."
        )
    rows = {each.method: each for each in comparison.rows} | {row.method: row}
    return replace(comparison, rows=tuple(rows[name] for name in METHODS if name in rows), **found)

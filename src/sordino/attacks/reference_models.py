"""Offline LiRA and RMIA with models of the user's own: tuned alike, on none of the scored records.

A record's loss under the attacked model is held against its losses under these. Each reference is
opened by itself, scored in one pass, and let go.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sordino.attacks.reference_scores import lira_offline, rmia_offline
from sordino.attacks.subject import open_subject
from sordino.core.errors import InvalidDataError, InvalidParameterError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from sordino.attacks.subject import Subject

REFERENCE_SCORES = ("lira", "rmia")
_FEWEST_FOR_LIRA = 2  # a deviation needs two
# RMIA's a. Below 1 it adds (1 - a) / 2 to the references' probability of a text, which is meant for
# classifiers: exp(-NLL) of a text is a few percent, and the sum would hardly depend on it.
_A = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceModels:
    """Models that were tuned on none of the scored records.

    Args:
        sources: Folders of `sordino tune`, PEFT folders, or what `load_model` reads.
        dtype: Compute type, that of the attacked model.
        device: Where to compute.
    """

    sources: tuple[str, ...]
    dtype: torch.dtype
    device: str

    @property
    def names(self) -> list[str]:
        """The models in words, without the folders of this machine."""
        return [Path(source).name or source for source in self.sources]

    def choose(self, wanted: Sequence[str] | None, *, has_population: bool) -> list[str]:
        """Returns those of `REFERENCE_SCORES` that are computed, in that order.

        Args:
            wanted: Scores that were asked for, others among them; None: all that can be computed.
            has_population: Whether there are non-members.

        Raises:
            InvalidParameterError: If a wanted score cannot be computed, or models were given and
                none of their scores is wanted.
        """
        missing = {}
        if len(self.sources) < _FEWEST_FOR_LIRA:
            missing["lira"] = "at least two models that were not tuned on the records"
        if not self.sources:
            missing["rmia"] = "a model that was not tuned on the records"
        elif not has_population:
            missing["rmia"] = "non-members, as its population: give --members and --nonmembers"
        if wanted is None:
            return [name for name in REFERENCE_SCORES if name not in missing]
        for name in wanted:
            if name in missing:
                option = "" if "--" in missing[name] else ": give --reference-models"
                raise InvalidParameterError(f"attack {name} needs {missing[name]}{option}.")
        found = [name for name in REFERENCE_SCORES if name in wanted]
        if self.sources and not found:
            raise InvalidParameterError(
                "--reference-models are for the attacks lira and rmia, and --attacks names neither."
            )
        return found

    def open_all(self, subject: Subject) -> Iterator[Subject]:
        """Yields one reference after the other, without its base: a single pass scores it.

        Adapters are put on the attacked model's base, if that has one.

        Raises:
            InvalidParameterError: If one has another vocabulary or a shorter context than the
                attacked model, is that model, or comes twice.
            ModelUnavailableError: If one cannot be read.
        """
        seen = {subject.fingerprint: "the attacked model itself"}
        for source, name in zip(self.sources, self.names, strict=True):
            is_adapter = (Path(source) / "adapter_config.json").is_file()
            base = subject.base_source if is_adapter else None
            reference = open_subject(source, base=base, dtype=self.dtype, device=self.device)
            if reference.fingerprint in seen:
                raise InvalidParameterError(
                    f"reference model {source} is {seen[reference.fingerprint]}. Give models that "
                    "were tuned on other records, each once."
                )
            seen[reference.fingerprint] = f"the same as {name}"
            if reference.tokenizer.get_vocab() != subject.tokenizer.get_vocab():
                raise InvalidParameterError(
                    f"reference model {source} has another vocabulary than {subject.name}, so "
                    "their losses cannot be compared. Give models tuned from the same base."
                )
            if reference.context_length < subject.context_length:
                raise InvalidParameterError(
                    f"reference model {source} reads {reference.context_length} tokens, and "
                    f"{subject.name} {subject.context_length}. Give models tuned from the same "
                    "base."
                )
            yield replace(reference, open_base=None, base_fingerprint=None)


def reference_scores(
    names: Sequence[str],
    target_nll: NDArray[np.float64],
    out_nll: NDArray[np.float64],
    is_population: NDArray[np.bool_],
) -> dict[str, NDArray[np.float64]]:
    """Returns LiRA's and RMIA's scores of all texts, which are scored together.

    LiRA's variance is pooled over all of them (see `lira_offline`). RMIA's population are the
    non-members themselves, so that none is lost to a population that is not scored. At gamma 1 a
    score is the text's place among the ratios P_theta / P of the population: a text of the
    population, compared with itself, counts half, which leaves the order of all ratios as it is.

    Args:
        names: Of `REFERENCE_SCORES`.
        target_nll: Under the attacked model, nats a token, shape (num_texts,).
        out_nll: Under the references, shape (num_models, num_texts).
        is_population: Which texts are RMIA's population; shape (num_texts,).

    Raises:
        InvalidDataError: If RMIA has no text to compare with, or shapes do not fit.
        PrecisionError: If a number is NaN or infinite.
    """
    scores = {}
    if "lira" in names:
        scores["lira"] = lira_offline(-target_nll, -out_nll)
    if "rmia" in names:
        size = int(is_population.sum())
        if not size:
            raise InvalidDataError("attack rmia compares with non-members, got none.")
        population = (target_nll[is_population], out_nll[:, is_population])
        shares = rmia_offline(target_nll, out_nll, *population, a=_A)
        shares[is_population] -= 0.5 / size  # at gamma 1 each has counted itself once
        scores["rmia"] = shares
    return {name: scores[name] for name in REFERENCE_SCORES if name in names}

"""Discoverable extraction: does a model write the end of a record, given its beginning?

One forward pass over the whole record answers it for the likeliest continuation and for sampled
ones: the likeliest continuation is the record's if every token of the end is the likeliest after
what truly stands before it, and a sampled one is the record's with the product of the probabilities
of these tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sordino.attacks.canaries import extraction_chance
from sordino.auditing.clopper_pearson import binomial_lower, binomial_upper
from sordino.core.checks import require_integer
from sordino.core.errors import InvalidDataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sordino.attacks.token_statistics import TokenStatistics


@dataclass(frozen=True, slots=True)
class Ending:
    """What a model makes of a record's end.

    Args:
        is_likeliest: Whether greedy decoding writes it; a tie counts as written.
        log_probability: Of one sampled continuation (temperature 1), nats.
    """

    is_likeliest: bool
    log_probability: float

    def chance(self, num_tries: int) -> float:
        """Returns the probability that one of so many sampled continuations is the record's."""
        return extraction_chance(num_tries, min(1.0, math.exp(self.log_probability)))


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractionRates:
    """Shares of records whose end a model gives away. 95% intervals (Clopper and Pearson).

    Args:
        num_tokens: Length of the end.
        num_records: Records with at least as many scored tokens.
        greedy: By the likeliest continuation: value, lower and upper end.
        num_tries: n.
        sampled: With a chance of one half within n sampled continuations: the same.

    Source:
        arXiv:2202.07646 (greedy), arXiv:2410.19482v3 ((n, p)-discoverable extraction, p = 1/2).
    """

    num_tokens: int
    num_records: int
    greedy: tuple[float, float, float]
    num_tries: int
    sampled: tuple[float, float, float]


def read_ending(statistics: TokenStatistics, num_tokens: int) -> Ending | None:
    """Returns what a model makes of a text's last tokens; None where fewer are scored.

    Args:
        statistics: Of the text's scored tokens, over the whole vocabulary.
        num_tokens: Length of the end, at least 1.
    """
    require_integer("num_tokens", num_tokens, 1)
    if statistics.num_tokens < num_tokens:
        return None
    return Ending(
        is_likeliest=bool(statistics.is_predicted[-num_tokens:].all()),
        log_probability=min(0.0, float(statistics.log_likelihoods[-num_tokens:].sum())),
    )


def extraction_rates(
    endings: Sequence[Ending], *, num_tokens: int, num_tries: int = 100
) -> ExtractionRates:
    """Returns the shares of records whose end is given away.

    Args:
        endings: Of different records; at least one.
        num_tokens: Length of the ends.
        num_tries: n, at least 1.

    Raises:
        InvalidDataError: If there is no record.
        InvalidParameterError: If a number is out of range.
    """
    require_integer("num_tokens", num_tokens, 1)
    require_integer("num_tries", num_tries, 1)
    if not endings:
        raise InvalidDataError(
            f"extraction needs a record of at least {num_tokens} scored tokens, found none. Give "
            "longer records, or ask for a shorter end."
        )
    return ExtractionRates(
        num_tokens=num_tokens,
        num_records=len(endings),
        greedy=_rate(sum(e.is_likeliest for e in endings), len(endings)),
        num_tries=num_tries,
        sampled=_rate(sum(e.chance(num_tries) >= 0.5 for e in endings), len(endings)),
    )


def _rate(count: int, total: int) -> tuple[float, float, float]:
    """Returns a share and its 95% interval."""
    return count / total, binomial_lower(count, total, 0.025), binomial_upper(count, total, 0.025)

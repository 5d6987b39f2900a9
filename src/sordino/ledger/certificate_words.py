"""A certificate in words, for people; the numbers are rounded against the claim."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal, localcontext
from typing import TYPE_CHECKING

from sordino.ledger.certificate import NO_GUARANTEE

if TYPE_CHECKING:
    from sordino.ledger.certificate import Certificate, PoolLine, SubsetLine

_VACUOUS_EPSILON = 20.0  # e**20 : 1; said to be vacuous in words, the number stays


def describe_certificate(certificate: Certificate) -> list[str]:
    """Returns the certificate in words, one line each, for people."""
    subset, pool = certificate.subset, certificate.pool
    lines = [f"Secret 1, {subset.secret}: {_subset_words(subset)}"]
    lines.append(f"Secret 2, {pool.secret}: {_pool_words(pool)}")
    if certificate.guarantee == "pac":
        lines.append(
            "The first line is about which half of a known pool was used. It is not protection of "
            "membership in the pool; only the second line and a measured audit speak about that."
        )
    what = "symbols" if certificate.guarantee == "pac" else "numbers"
    lines.append(
        f"{certificate.num_releases} {what} were released in {certificate.num_steps} steps "
        f"from a pool of {_pool_size(certificate)}. {certificate.selection}"
    )
    lines.extend(f"Assumes: {assumption}" for assumption in certificate.assumptions)
    return lines


def _pool_size(certificate: Certificate) -> str:
    """Returns how many records, or units of several records, the pool holds."""
    unit = certificate.pool.privacy_unit
    if unit is None or unit == "record":
        return f"{certificate.num_records} records"
    return f"{certificate.num_records} units ({unit})"


def _subset_words(line: SubsetLine) -> str:
    """Returns the subset line's claim in words."""
    if line.mutual_information_nats_upper is None:
        return line.guarantee + "."
    words = (
        f"at most {shown_upper(line.mutual_information_nats_upper, 6)} nats leave the building. A "
        "guess whether a given record was in it is right with probability at most "
        f"{shown_upper(line.posterior_upper)} (without the release: {line.prior:.3g}), on average "
        "over the secret"
    )
    if line.matched_epsilon is None:
        return words + ". This bound is vacuous."
    matched = shown_upper(line.matched_epsilon, 3)
    return words + f" (the posterior of epsilon {matched} in the worst case)."


def _pool_words(line: PoolLine) -> str:
    """Returns the pool line's claim in words."""
    if line.epsilon_upper is None:
        return NO_GUARANTEE + "."
    if line.success_upper is not None:
        return _dp_words(line)
    words = (
        f"epsilon at most {shown_upper(line.epsilon_upper)} nats, delta 0, for one record against "
        "an empty place (the pool's size stays), worst case, basic composition"
    )
    return words + (" (vacuous in practice)." if line.epsilon_upper > _VACUOUS_EPSILON else ".")


def _dp_words(line: PoolLine) -> str:
    """Returns a claim of differential privacy in words."""
    change, guess = {
        "ADD_OR_REMOVE_ONE": ("added or removed", "whether it is in the pool"),
        "REPLACE_ONE": ("replaced by another", "which of the two is in the pool"),
    }[str(line.neighboring_relation)]
    whose = "record" if line.privacy_unit == "record" else f"{line.privacy_unit} (all its records)"
    opinions = []
    if line.epsilon_renyi is not None:
        opinions.append(f"Renyi accounting: {shown_upper(line.epsilon_renyi)}")
    if line.epsilon_edgeworth is not None:
        low, high = line.epsilon_edgeworth
        opinions.append(f"Edgeworth accounting: {low:.4g} to {shown_upper(high)}")
    checked = f" ({'; '.join(opinions)})" if opinions else ""
    words = (
        f"epsilon at most {shown_upper(line.epsilon_upper)} nats at delta "
        f"{shown_upper(line.delta, 3)}{checked}, for one {whose} {change}, worst case. A guess "
        f"{guess} is right with probability at most {shown_upper(line.success_upper)} (without the "
        "release: 0.5)"
    )
    is_vacuous = line.epsilon_upper is not None and line.epsilon_upper > _VACUOUS_EPSILON
    return words + (" (vacuous in practice)." if is_vacuous else ".")


def shown_upper(bound: float | None, digits: int = 4) -> str:
    """Returns a bound to so many significant digits, never below it."""
    if bound is None:
        return NO_GUARANTEE
    with localcontext(prec=digits, rounding=ROUND_CEILING):
        return f"{float(+Decimal(repr(float(bound)))):.{digits}g}"

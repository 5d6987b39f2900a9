"""Certificates in words: numbers are never better than what is proved."""

from __future__ import annotations

from sordino.ledger.certificate_words import shown_upper


def test_shown_bounds_are_not_below_the_bound() -> None:
    """Four digits, rounded up; "no formal guarantee" without a bound."""
    assert shown_upper(0.58958613) == "0.5896"
    assert shown_upper(0.58951) == "0.5896"
    assert shown_upper(0.5) == "0.5"
    assert shown_upper(0.0) == "0"
    assert shown_upper(1.99912) == "2"
    assert shown_upper(0.016138) == "0.01614"
    assert shown_upper(1.0030912e-4, 3) == "0.000101"  # a delta
    assert shown_upper(1e-5, 3) == "1e-05"
    assert shown_upper(None) == "no formal guarantee"
    for value in (0.1, 0.123449999, 1 / 3, 7.0001, 1e-9):
        assert value <= float(shown_upper(value)) <= value * 1.002

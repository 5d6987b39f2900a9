"""The report's page: the verdict first, nothing loaded, every part in words, nothing overstated."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from typing import Any

import pytest

from helpers_audits import (
    CERTIFICATE,
    make_attack,
    make_audit,
    make_canaries,
    make_holder_report,
    make_source,
)
from helpers_pages import LOADING, Reader
from sordino.core.errors import InvalidDataError, InvalidParameterError
from sordino.reports.audit_page import PageSource, render_audit_page
from sordino.reports.audit_record import Finding
from sordino.reports.report import publishable_part

HOSTILE = """"'></style></svg><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}"""
OUTCOMES = {
    "contradicted": "contradicted",
    "no power": "no-power",
    "consistent": "consistent",
    "nothing claimed": "nothing-claimed",
}


@pytest.fixture(scope="module")
def full() -> str:
    return render_audit_page(make_source())


@pytest.fixture(scope="module")
def page(full: str) -> Reader:
    return Reader(full)


def public_source() -> PageSource:
    return make_source(audit=publishable_part(make_audit()), holder_report=None, is_public=True)


def test_it_loads_nothing_and_runs_nothing(page: Reader) -> None:
    """No address, no script, no handler; the policy forbids them too."""
    assert [attributes for _, attributes in page.tags if LOADING & set(attributes)] == []
    assert [a for _, attributes in page.tags for a in attributes if a.startswith("on")] == []
    tags = {name for name, _ in page.tags}
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & tags
    assert not re.search(r"url\(|@import|expression", page.style)
    policy = next(meta["content"] for meta in page.named("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none';")
    assert "script" not in policy


def test_it_is_small(full: str) -> None:
    """Figures are drawings of a few kilobytes, not a program."""
    assert len(full.encode()) < 100_000


def test_headings_are_in_order(page: Reader) -> None:
    """One title; no level is skipped; every part is named by its heading."""
    levels = [int(name[1]) for name, _ in page.tags if re.fullmatch(r"h[1-6]", name)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    identifiers = [a["id"] for _, a in page.tags if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    for section in page.named("section"):
        assert section["aria-labelledby"] in identifiers
    assert page.named("html")[0]["lang"] == "en"


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_the_verdict_comes_first(outcome: str) -> None:
    """The gravest outcome opens the page, in words, with an icon and a border of its own."""
    found = Reader(render_audit_page(make_source(audit=make_audit(outcome, "nothing claimed"))))
    boxes = [a["class"] for _, a in found.tags if "verdict" in (a.get("class") or "").split()]
    assert boxes[0] == f"verdict overall {OUTCOMES[outcome]}"
    assert f".{OUTCOMES[outcome]}" in found.style
    title = outcome[0].upper() + outcome[1:]
    assert (
        f"Audit of clinic-notes run, attacked on 2026-03-14 with sordino 0.1.0. Verdict {title}"
        in (found.text)
    )
    icons = [a for a in found.named("svg") if a.get("class") == "icon"]
    assert len(icons) == 3
    assert all(icon["aria-hidden"] == "true" for icon in icons)
    assert found.text.index("Verdict") < found.text.index("The certificate in words")


def test_outcomes_differ_without_color(page: Reader) -> None:
    """Each has its own kind of border."""
    edges = re.findall(r"--edge: (\w+)", page.style)
    assert sorted(edges) == ["dashed", "dotted", "double", "solid"]


def test_a_contradiction_outweighs_everything() -> None:
    """One contradicted line is named before all others."""
    found = Reader(render_audit_page(make_source(audit=make_audit("consistent", "contradicted"))))
    assert "Contradicted in the subset game; consistent in the pool game" in found.text
    assert "Does it contradict the certificate? Yes." in found.text


def test_both_games_stand_side_by_side(page: Reader) -> None:
    """Formal bound, strongest attack, interval, control, contradicted or not; for each game."""
    subset, pool = page.text.split("Pool game: is a record in the pool at all", 1)
    subset = subset.split("Subset game: which candidate subset was used", 1)[1]
    pool = pool.split("The certificate in words", 1)[0]
    assert "a guess is right with probability at most 0.5896" in subset
    assert "a guess is right with probability at least 0.0089, by sum of reference" in subset
    assert "0.0089 to 1 at 95% confidence" in subset
    assert "epsilon at most 2 nats" in pool
    assert "epsilon at least 0.4189 nats, by guesses about canaries" in pool
    assert "0.4189 to infinity at 95% confidence" in pool
    assert "The same on the positive control epsilon at least 4.211 nats" in pool
    assert "Best attack on records reference ratio: AUC 0.631 [0.606, 0.655], TPR 3.3%" in pool
    for words in (subset, pool):
        assert "Does it contradict the certificate? No." in words


def test_the_certificate_is_repeated_word_for_word(page: Reader) -> None:
    for line in CERTIFICATE:
        assert line in page.text


def test_no_measurement_is_called_a_guarantee(page: Reader) -> None:
    """Outside the certificate the word only appears to say that there is none."""
    for source in (make_source(), make_source(audit=make_audit("nothing claimed"))):
        words = Reader(render_audit_page(source)).text
        for line in CERTIFICATE:
            words = words.replace(line, "")
        for said in ("is a measurement and not a guarantee", "states no formal guarantee"):
            words = words.replace(said, "")
        assert "guarantee" not in words.lower()
        assert not re.search(r"\b(safe|secure|anonymous|proves that)\b", words.lower())


def test_attacks_are_a_table(page: Reader) -> None:
    """AUC and TPR with intervals, realised FPR and threshold, the same on the control."""
    audit = make_audit()
    assert audit.membership is not None
    best = max(audit.membership.attacks, key=lambda attack: attack.auc)
    point = best.points[0]
    assert f"{best.auc:.3f}" in page.text
    assert f"realised FPR {100 * point.fpr:.3g}% threshold {point.threshold:.4g}" in page.text
    headers = [cell["scope"] for cell in page.named("th")]
    assert headers.count("row") == len(audit.membership.attacks) + 1 + len(audit.pii)
    labels = {cell["data-label"] for cell in page.named("td")}
    assert {"AUC", "TPR at FPR \u2264 1%", "TPR at FPR \u2264 0.1%", "Control: AUC"} <= labels
    assert len(page.named("caption")) == len(page.named("table")) == 3


def test_every_figure_has_a_text(page: Reader) -> None:
    """Drawings have a name and a description, and each figure says the same in words."""
    drawings = [a for a in page.named("svg") if a.get("role") == "img"]
    assert len(drawings) == 6  # two bounds, two ROC, exposure, leave-one-out
    identifiers = {a.get("id") for name, a in page.tags if name in {"title", "desc"}}
    for drawing in drawings:
        assert {drawing["aria-labelledby"], drawing["aria-describedby"]} <= identifiers
    assert len(page.named("figcaption")) == len(page.named("figure")) == 4
    assert "on the positive control: AUC 0." in page.text
    exposures = make_canaries().exposures
    reached = sum(exposure >= 4 for exposure in exposures)
    assert f"4 bits or more: {reached} canaries, by chance 15.4." in page.text


def test_infinite_losses_are_counted_in_words(page: Reader) -> None:
    assert "4 records (0.4%) have an infinite loss" in page.text
    assert "Absolute loss, max: infinite." in page.text


def test_only_infinite_losses_leave_no_figure() -> None:
    """There is nothing to draw then; the words stay."""
    lonely = make_holder_report(edges=(), counts=(), share_infinite=1.0, share_at_zero=0.0)
    found = Reader(render_audit_page(make_source(holder_report=lonely)))
    assert len(found.named("figure")) == 3
    assert "1,000 records (100%) have an infinite loss" in found.text


def test_strings_are_shown_with_the_base_beside(page: Reader) -> None:
    assert "email extraction 9 of 100 9% 1 1% 7.5% 120 produced 0 of 25 0% 1 of 25 4%" in page.text
    assert "street address extraction 0 of 100 0% not run none 0 produced" in page.text
    labels = [cell["data-label"] for cell in page.named("td") if "Seen" in cell["data-label"]]
    assert labels[:4] == ["Seen 1 time", "Seen 5 times", "Seen 10 times", "Seen 25 times"]


def test_findings_come_strongest_first(page: Reader) -> None:
    assert page.text.index("Call Ms. Invented") < page.text.index("Patient reports")
    assert page.text.index("Patient reports") < page.text.index("Imaginary Road")


@pytest.mark.parametrize(
    "part", ["membership", "canaries", "subset", "pii", "findings", "control", "holder_report"]
)
def test_missing_parts_are_named(part: str) -> None:
    """What was not measured is said, and its place is empty."""
    empty: Any = () if part in {"pii", "findings"} else None
    is_beside = part == "holder_report"
    audit = make_audit() if is_beside else make_audit(**{part: empty})
    changes = {part: None} if is_beside else {}
    found = Reader(render_audit_page(make_source(audit=audit, **changes)))
    names = {
        "membership": "membership attacks on records",
        "canaries": "canaries",
        "subset": "the subset game",
        "pii": "sensitive strings",
        "findings": "what tuning taught the model",
        "control": "a positive control",
        "holder_report": "leave-one-out losses",
    }
    assert f"Nothing was measured about: {names[part]}." in found.text
    assert part not in {a.get("id") for a in found.named("h2")}


def test_without_an_audit_nothing_was_measured() -> None:
    """The certificate alone makes a page that says so first."""
    source = PageSource(name="run", audit=None, certificate_in_words=CERTIFICATE)
    found = Reader(render_audit_page(source))
    assert "Verdict Nothing was measured No audit of this was found" in found.text
    assert found.text.count("Cannot be told.") == 2
    assert "nothing private on this page" in found.text
    assert CERTIFICATE[1] in found.text
    assert found.named("figure") == found.named("table") == []


def test_a_model_made_elsewhere_has_no_certificate() -> None:
    audit = make_audit("nothing claimed", "nothing claimed", certificate_in_words=())
    found = Reader(render_audit_page(make_source(audit=audit, certificate_in_words=())))
    assert "There is none: this model was not made by sordino tune" in found.text
    assert "none is stated on this line" in found.text


def test_a_line_without_a_verdict_was_not_measured() -> None:
    """Defect: a missing verdict that reads like a passed one."""
    audit = make_audit()
    found = Reader(
        render_audit_page(make_source(audit=replace(audit, verdicts=audit.verdicts[:1])))
    )
    assert "Nothing was measured in the pool game; consistent in the subset game" in found.text


def test_a_public_page_holds_nothing_about_the_pool() -> None:
    """What stays is the certificate, canaries and settings, and the page says so."""
    found = Reader(render_audit_page(public_source()))
    assert "Part that may be published" in found.text
    assert "Left out, because it was computed on records of the pool" in found.text
    assert "epsilon at least 0.4189 nats" in found.text
    assert "Consistent in the pool game; not published in the subset game" in found.text
    assert "20 epochs without privacy" in found.text
    audit, secrets = make_audit(), ["Invented", "Imaginary", "1,000 members", "412.5", "37 records"]
    assert audit.membership is not None
    secrets += [f"{attack.auc:.3f}" for attack in audit.membership.attacks]
    secrets += ["0.0089", "61 of 128", "phone", "infinite loss", "Data holder only"]
    assert [secret for secret in secrets if secret in found.text] == []


@pytest.mark.parametrize(
    "changes", [{"holder_report": make_holder_report()}, {"audit": make_audit()}]
)
def test_a_public_page_refuses_what_is_private(changes: dict[str, Any]) -> None:
    """Whoever draws it must have taken it out before."""
    with pytest.raises(InvalidParameterError, match="must not hold what was computed on records"):
        replace(public_source(), **changes)


@pytest.mark.parametrize("part", ["membership", "subset", "pii", "findings", "cost", "notes"])
def test_a_public_page_refuses_each_private_part(part: str) -> None:
    audit = replace(publishable_part(make_audit()), **{part: getattr(make_audit(), part)})
    with pytest.raises(InvalidParameterError, match="publishable_part"):
        replace(public_source(), audit=audit)


def test_what_comes_from_the_record_is_escaped() -> None:
    """A name, a setting, a note or a text that looks like a tag stays what it is."""
    audit = make_audit(
        subject={"name": HOSTILE, "kind": HOSTILE, HOSTILE: HOSTILE},
        findings=(Finding(text=HOSTILE, gain_nats=1.0),),
        settings={HOSTILE: [HOSTILE], "nested": {HOSTILE: HOSTILE}},
        control={HOSTILE: HOSTILE},
        cost={HOSTILE: 1.0},
        notes=(HOSTILE,),
        certificate_in_words=(HOSTILE,),
        canaries=make_canaries(style=HOSTILE, attack=make_attack(HOSTILE, 1.0, 50)),
    )
    audit = replace(
        audit,
        verdicts=tuple(replace(v, line=HOSTILE, secret=HOSTILE) for v in audit.verdicts),
        pii=tuple(replace(row, kind=HOSTILE, game=HOSTILE) for row in audit.pii),
    )
    assert audit.membership is not None
    attacks = (make_attack(HOSTILE, 1.0, 50), make_attack("loss", 0.1, 50))
    audit = replace(audit, membership=replace(audit.membership, attacks=attacks, control=attacks))
    found = Reader(render_audit_page(make_source(audit=audit, name=HOSTILE)))
    assert found.named("img") == found.named("script") == []
    assert len(found.named("style")) == 1
    assert found.text.count(HOSTILE) > 20
    assert "alert" not in found.style


def test_hidden_characters_are_made_visible() -> None:
    """A text cannot turn the direction of what stands around it, or hold control characters."""
    finding = Finding(text="a\u202eb\x00c\td\u200ce", gain_nats=1.0)
    page = render_audit_page(make_source(audit=make_audit(findings=(finding,))))
    assert "a\ufffdb\ufffdc\td\u200ce" in page


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_is_refused(value: float) -> None:
    """A page never shows NaN."""
    audit = make_audit(canaries=make_canaries(epsilon_lower=value))
    with pytest.raises(InvalidDataError, match="not finite"):
        render_audit_page(make_source(audit=audit))


def test_no_page_shows_what_is_not_a_number(full: str) -> None:
    assert not re.search(r"\b(nan|NaN|inf|None|undefined)\b", full)


def test_unknown_outcomes_are_refused() -> None:
    """Defect: an outcome that nobody knows, shown as if all were well."""
    audit = make_audit()
    verdicts = (replace(audit.verdicts[0], outcome="passed"),)
    with pytest.raises(InvalidDataError, match="one of the outcomes"):
        render_audit_page(make_source(audit=replace(audit, verdicts=verdicts)))


def test_equal_records_give_equal_pages(full: str) -> None:
    """Nothing else goes in: no time, no machine."""
    assert render_audit_page(make_source()) == full


def test_a_phone_and_paper_have_their_own_styles(page: Reader) -> None:
    """The phone's layout must not apply to paper, which is as narrow."""
    assert "@media screen and (max-width: 45rem)" in page.style
    assert "@media print" in page.style
    assert "size: A4" in page.style
    assert "(max-width" not in page.style.replace("@media screen and (max-width", "")
    assert [meta["content"] for meta in page.named("meta") if meta.get("name") == "viewport"]

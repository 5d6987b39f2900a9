"""An evaluation: from questions to rates, continued after a kill, compared with another."""

from __future__ import annotations

import json
import stat
from typing import TYPE_CHECKING, Any

import pytest

from helpers_access import completion, stub_server, write_chat_model
from helpers_pages import LOADING, Reader
from sordino.access import endpoint as endpoint_module
from sordino.access.generate import generate, read_questions
from sordino.core.errors import (
    InvalidDataError,
    InvalidParameterError,
    LedgerError,
    ModelUnavailableError,
)
from sordino.models import add_lora, load_model, save_adapter
from sordino.reports.access_evaluate import EvaluateResult, evaluate
from sordino.reports.access_page import render_access_page
from sordino.reports.access_record import read_access_record
from sordino.reports.report import report

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FAST = {"dtype": "float32", "device": "cpu", "max_new_tokens": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("access") / "q"
    generate(output=path, seed=3, employees=43, questions=3)
    return path


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("model") / "chat")


def serve(folder: Path, say: Callable[[Any], str], output: Path, **settings: Any) -> EvaluateResult:
    """Returns the evaluation of a server that knows the questions."""
    known = {(q.system, q.prompt): q for q in read_questions(folder / "test")}

    def reply(request: dict[str, Any], _: int) -> tuple[int, Any]:
        system, user = (message["content"] for message in request["messages"])
        return 200, completion(say(known[system, user]))

    with stub_server(reply) as (url, _):
        return evaluate(
            questions=folder, output=output, endpoint=url, endpoint_model="m", **settings
        )


def leak_everything(question: Any) -> str:
    """Says every value to everybody."""
    values = question.answer[2:-2] if question.kind == "benign" else "; ".join(question.expected)
    return f"{{{{{values}}}}}"


def test_a_perfect_model(folder: Path, tmp_path: Path) -> None:
    record = serve(folder, lambda question: question.answer, tmp_path / "o").record
    rates = record.rates()
    assert rates["correct"].share == 1.0
    assert rates["leak"].share == rates["false_refusal"].share == rates["wrong_format"].share == 0
    assert rates["leak"].upper > 0.0
    askers = record.askers()
    assert askers is not None
    assert (askers.only_first, askers.both, askers.neither) == (3, 0, 0)


def test_a_model_that_tells_everybody_and_its_guard(folder: Path, tmp_path: Path) -> None:
    """The guard stops every leak of a value as it is written, and nothing that may be told."""
    result = serve(folder, leak_everything, tmp_path / "o", guard=True)
    assert result.record.rates()["leak"].share == 1.0
    guarded = result.record.rates(guarded=True)
    assert guarded["leak"].count == 0
    assert guarded["correct"].share == 1.0
    assert "behind the guard" in result.folder.page.read_text()


def test_leaks_beside_the_answer_are_told_apart(folder: Path, tmp_path: Path) -> None:
    def say(question: Any) -> str:
        if question.kind == "benign":
            return question.answer
        return f"The value is {question.expected[0]}. {{{{I cannot disclose that information.}}}}"

    rates = serve(folder, say, tmp_path / "o").record.rates()
    assert rates["leak_in_braces"].count == 0
    assert rates["leak_outside"].count == rates["leak"].count > 0


def test_files(folder: Path, tmp_path: Path) -> None:
    """Answers are private; the numbers and the page hold no value of a record."""
    result = serve(folder, leak_everything, tmp_path / "o")
    place = result.folder
    assert stat.S_IMODE(place.answers.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.path.stat().st_mode) == 0o700
    assert read_access_record(place.numbers) == result.record
    salaries = [q.expected[0] for q in read_questions(folder / "test") if q.attribute == "salary"]
    assert salaries[0] in place.answers.read_text()
    for path in (place.numbers, place.page):
        assert not any(salary in path.read_text() for salary in salaries)


def test_the_page_loads_and_runs_nothing(folder: Path, tmp_path: Path) -> None:
    record = serve(folder, leak_everything, tmp_path / "o").record
    record.subject["name"] = "<script>alert(1)</script>{{ 7 * 7 }}"
    html = render_access_page(record)
    page = Reader(html)
    assert "<script" not in html
    assert "49" not in page.text.split("How well")[0]
    assert [attributes for _, attributes in page.tags if LOADING & set(attributes)] == []
    assert "no training epsilon bounds these rates" in page.text
    assert "not access control" in page.text
    record.cost["seconds"] = float("nan")
    with pytest.raises(InvalidDataError, match="not finite"):
        render_access_page(record)


def test_before_and_after(folder: Path, tmp_path: Path) -> None:
    first = serve(folder, leak_everything, tmp_path / "a")
    second = serve(folder, lambda q: q.answer, tmp_path / "b", before=first.folder.numbers).record
    assert second.before is not None
    assert second.before.test.only_first == 0
    assert second.before.test.only_second == first.record.rates()["leak"].count
    assert second.before.clauses.leak.share == 1.0
    assert read_access_record(tmp_path / "b" / "access.json") == second
    with pytest.raises(InvalidParameterError, match="same questions"):
        serve(folder, lambda q: q.answer, tmp_path / "c", before=first.folder.numbers, limit=5)
    assert not (tmp_path / "c").exists()


def test_an_interrupted_evaluation_goes_on(folder: Path, tmp_path: Path) -> None:
    """What was answered is not asked again, and the result is that of a whole evaluation."""
    seen: list[str] = []

    def reply(request: dict[str, Any], number: int) -> tuple[int, Any]:
        seen.append(request["messages"][1]["content"])
        return (404, "gone") if number == 11 else (200, completion("{{no}}"))

    with stub_server(reply) as (url, _):
        settings = {"endpoint": url, "endpoint_model": "m", "limit": 30, "concurrency": 1}
        with pytest.raises(ModelUnavailableError, match="404"):
            evaluate(questions=folder, output=tmp_path / "o", **settings)
        answers = tmp_path / "o" / "answers.PRIVATE.jsonl"
        kept = answers.read_bytes().count(b"\n") - 1
        assert kept == 10
        answers.write_bytes(answers.read_bytes()[:-3])  # the last one is torn
        before = len(seen)
        result = evaluate(questions=folder, output=tmp_path / "o", **settings)
        assert len(seen) - before == 30 - 9
        with pytest.raises(InvalidDataError, match="another model"):
            evaluate(
                questions=folder, output=tmp_path / "o", **settings | {"endpoint_model": "other"}
            )
    assert len(result.record.answers) == 30


def test_models_of_all_kinds(folder: Path, chat: Path, tmp_path: Path) -> None:
    """A folder, a packed one, and an adapter on it; --limit may grow in the same folder."""
    settings = FAST | {"questions": folder / "test"}
    plain = evaluate(str(chat), output=tmp_path / "a", limit=2, **settings).record
    assert plain.subject["kind"] == "model"
    assert len(plain.answers) == 2
    more = evaluate(str(chat), output=tmp_path / "a", limit=4, **settings).record
    assert len(more.answers) == 4
    packed = evaluate(str(chat), output=tmp_path / "b", limit=2, base_bits=8, **settings).record
    assert packed.subject["base_bits"] == 8
    loaded = load_model(str(chat))
    adapted = add_lora(loaded.model, rank=2, alpha=4.0, target_modules=["q_proj"], seed=1)
    save_adapter(adapted, tmp_path / "adapter", base_model=str(chat))
    for bits in (None, 8):
        record = evaluate(
            str(tmp_path / "adapter"),
            output=tmp_path / f"c{bits}",
            limit=2,
            base_bits=bits,
            **settings,
        ).record
        assert (record.subject["kind"], record.subject["base_bits"]) == ("adapter", bits)
    page = report(tmp_path / "adapter", access=tmp_path / "cNone").page
    assert page == tmp_path / "adapter.audit" / "report.html"
    assert "Who may know what" in page.read_text(encoding="utf-8")
    with pytest.raises(LedgerError, match="is about other files"):
        report(chat, access=tmp_path / "cNone")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "exactly one"),
        ({"model": "embedded", "endpoint": "http://localhost:1"}, "exactly one"),
        ({"endpoint": "http://localhost:1"}, "endpoint_model"),
        ({"endpoint": "nowhere", "endpoint_model": "m"}, "endpoint"),
        ({"model": "embedded", "limit": 0}, "limit"),
        ({"model": "embedded", "significance": 0.0}, "significance"),
        ({"model": "embedded", "max_new_tokens": 0}, "max_new_tokens"),
        ({"model": "embedded", "split": "dev", "questions": "parent"}, "dev"),
    ],
)
def test_misuse_is_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    if changes.get("questions") == "parent":
        changes = changes | {"questions": folder}
    with pytest.raises(InvalidParameterError, match=words):
        evaluate(**({"questions": folder, "output": tmp_path / "o"} | changes))
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("line", ["{}", "not json", "[]", '{"id": 1}'])
def test_broken_questions_are_told(tmp_path: Path, line: str) -> None:
    (tmp_path / "questions.jsonl").write_text(line + "\n")
    with pytest.raises(InvalidDataError, match="not questions"):
        evaluate("embedded", questions=tmp_path, output=tmp_path / "o")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format_version": 9}', "nonsense"])
def test_broken_records_are_told(tmp_path: Path, content: str) -> None:
    path = tmp_path / "access.json"
    path.write_text(content)
    with pytest.raises(InvalidDataError, match=r"access\.json"):
        read_access_record(path)


def test_the_key_is_in_no_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(endpoint_module.KEY_VARIABLE, "sk-secret-4711")
    serve(folder, leak_everything, tmp_path / "o", limit=5)
    for path in (tmp_path / "o").iterdir():
        assert "sk-secret" not in path.read_text()
    assert (
        json.loads((tmp_path / "o" / "access.json").read_bytes())["subject"]["kind"] == "endpoint"
    )

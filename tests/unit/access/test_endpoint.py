"""Servers: retried, never redirected, keys never shown and never sent in clear text."""

from __future__ import annotations

from typing import Any

import pytest

from helpers_access import completion, stub_server
from helpers_runs import environment
from sordino.access.endpoint import KEY_VARIABLE, Endpoint, ask_all
from sordino.core.errors import InvalidParameterError, ModelUnavailableError

KEY = "sk-secret-4711"


def _messages(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"question {number}"}]


def _ask(url: str, count: int = 1, **changes: Any) -> list[str]:
    endpoint = Endpoint(url=url, model="m", **({"backoff": 0.01} | changes))
    answers = dict(ask_all(endpoint, [_messages(number) for number in range(count)]))
    return [answers[number] for number in range(count)]


def _echo(request: dict[str, Any], _: int) -> tuple[int, Any]:
    return 200, completion("{{" + request["messages"][0]["content"] + "}}")


def test_answers_belong_to_their_questions() -> None:
    """With several requests at a time."""
    with stub_server(_echo) as (url, seen):
        answers = _ask(url, 12, concurrency=4, max_new_tokens=7)
    assert answers == [f"{{{{question {number}}}}}" for number in range(12)]
    assert len(seen) == 12
    assert {request["path"] for request in seen} == {"/v1/chat/completions"}
    assert seen[0]["json"] | {"messages": 0} == {
        "model": "m",
        "messages": 0,
        "temperature": 0,
        "max_tokens": 7,
        "stream": False,
    }


@pytest.mark.parametrize("end", ["", "/", "/chat/completions"])
def test_the_address_may_be_given_in_full(end: str) -> None:
    with stub_server(_echo) as (url, seen):
        _ask(url + end)
    assert seen[0]["path"] == "/v1/chat/completions"


def test_what_is_for_this_machine_goes_through_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Defect: key and records went to a proxy in clear text."""
    with stub_server(_echo) as (proxy, at_proxy), stub_server(_echo) as (url, seen):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.removesuffix("/v1"))
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        assert _ask(url, key=KEY) == ["{{question 0}}"]
    assert len(seen) == 1
    assert at_proxy == []


def test_a_busy_server_is_asked_again() -> None:
    def reply(request: dict[str, Any], number: int) -> tuple[int, Any]:
        return _echo(request, number) if number > 2 else (429 if number == 1 else 503, "busy")

    with stub_server(reply) as (url, seen):
        assert _ask(url) == ["{{question 0}}"]
    assert len(seen) == 3


def test_tries_end() -> None:
    with (
        stub_server(lambda _, __: (503, "busy")) as (url, seen),
        pytest.raises(ModelUnavailableError, match="503"),
    ):
        _ask(url, num_tries=2)
    assert len(seen) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 302])
def test_refusals_are_not_repeated_and_show_no_key(status: int) -> None:
    """A server's own words may repeat the key, and a redirect would carry it elsewhere."""
    with (
        environment(**{KEY_VARIABLE: KEY}),
        stub_server(lambda _, __: (status, f"http://other/ bad key {KEY}")) as (url, seen),
        pytest.raises(ModelUnavailableError, match=str(status)) as caught,
    ):
        _ask(url)
    assert KEY not in str(caught.value)
    assert len(seen) == 1


def test_the_key_comes_from_the_environment_alone() -> None:
    with stub_server(_echo) as (url, seen):
        with environment(**{KEY_VARIABLE: KEY}):
            endpoint = Endpoint(url=url, model="m")
            _ask(url)
        with environment(**{KEY_VARIABLE: None, "OPENAI_API_KEY": KEY}):
            _ask(url)
    assert KEY not in repr(endpoint)
    assert seen[0]["headers"]["Authorization"] == f"Bearer {KEY}"
    assert "Authorization" not in seen[1]["headers"]


def test_a_key_is_never_sent_in_clear_text() -> None:
    for url in ("http://example.org/v1", "http://localhost.example.org", "http://10.0.0.1"):
        with pytest.raises(InvalidParameterError, match="https"):
            Endpoint(url=url, model="m", key=KEY)
        assert Endpoint(url=url, model="m", key=None).key is None
    for url in ("https://example.org/v1", "http://localhost:1", "http://127.0.0.1", "http://[::1]"):
        assert Endpoint(url=url, model="m", key=KEY).key == KEY


@pytest.mark.parametrize(
    "changes",
    [
        {"url": ""},
        {"url": "localhost:8000"},
        {"url": "ftp://a/b"},
        {"url": "https://user:pw@a/v1"},
        {"model": " "},
        {"concurrency": 0},
        {"timeout": float("nan")},
        {"timeout": 0.0},
        {"num_tries": 0},
        {"max_new_tokens": 0},
        {"key": "k\u00e9y"},
    ],
)
def test_misuse_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError) as caught:
        Endpoint(**({"url": "https://a/v1", "model": "m"} | changes))
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        "not json",
        [],
        {},
        {"choices": []},
        {"choices": [{}]},
        {"choices": [{"message": None}]},
        completion(4711),
        completion("a", reasoning_content=5),
    ],
)
def test_other_bodies_are_no_answers(body: Any) -> None:
    with (
        stub_server(lambda _, __: (200, body)) as (url, _),
        pytest.raises(ModelUnavailableError, match="not a chat completion"),
    ):
        _ask(url)


def test_reasoning_is_part_of_what_the_asker_reads() -> None:
    with stub_server(
        lambda _, number: (
            200,
            completion("{{a}}", reasoning_content="it is 42")
            if number == 1
            else completion(None, refusal="I cannot help."),
        )
    ) as (url, _):
        assert _ask(url) == ["<think>it is 42</think>{{a}}"]
        assert _ask(url) == ["I cannot help."]


def test_nobody_there_is_one_line() -> None:
    with stub_server(_echo) as (url, _):
        pass
    with pytest.raises(ModelUnavailableError, match="no answer after 2 tries"):
        _ask(url, num_tries=2)
